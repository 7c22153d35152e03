import atexit
import os

from hypothesis import settings

# The tests' models are too small for threads, which only wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

# DuckDB's binding counts as leaks what is still referenced at exit, in a page of text; that runs last.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))

# Properties try the same cases on every run, so that a red run is about what was changed;
# `pytest --hypothesis-profile=search tests/unit/test_thinking.py` looks further.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=5000, deadline=None)
settings.load_profile("same")
