"""Benchmarks on a real chat model, fetched with `rass model fetch`."""
