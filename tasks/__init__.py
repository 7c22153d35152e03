"""Stages as Prefect tasks: read tables, call the core, write tables."""
