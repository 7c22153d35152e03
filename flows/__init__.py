"""What a user runs: one file per flow, and the command line."""
