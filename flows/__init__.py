"""What a user runs: one file a flow, and the command line."""
