"""MORBench-style benchmarks: benign prompts near the boundary, each with a harmful contrast."""
