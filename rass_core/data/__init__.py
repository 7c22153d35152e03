"""Given prompts: files and hub data sets, their columns and cells, splits, decontamination."""
