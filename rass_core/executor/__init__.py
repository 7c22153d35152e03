"""Executors: where the work on shards of rows is done, in this process or on a Ray cluster."""
