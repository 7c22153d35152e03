import atexit
import os

# The tests' models are too small for threads, which only wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

# DuckDB's binding counts as leaks what is still referenced at exit, in a page of text; that runs last.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
