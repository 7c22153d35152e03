"""What a run will cost, estimated before it starts: `rass plan`."""
