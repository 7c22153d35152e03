"""The built-in mitigation methods, one per file with its settings."""
