"""Writing prompts towards the boundary: operators, writers, cleaning, the scheduler of rounds."""
