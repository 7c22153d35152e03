"""The tables of the lake, one class each; `rass_core.lake.schema` brings them together."""
