"""The lake: tables as Parquet files that are committed atomically, with DuckDB views over them."""
