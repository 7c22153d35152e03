"""What the measurements share: prompts, a clock, batches without a limit on padding."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

Result = TypeVar("Result")
SOURCES = ("xstest", "or_bench_hard", "ifeval")
"""Public files that are read in turn: short and long prompts, safe, unsafe and plain."""


def public_prompts(data: Path, n: int) -> list[str]:
    """Return n prompts, as many of each of `SOURCES`, the first of each file."""
    share = -(-n // len(SOURCES))
    texts = [pq.read_table(data / f"{source}.parquet", columns=["text"])["text"].to_pylist() for source in SOURCES]
    return [text for each in texts for text in each[:share]][:n]


def timed(compute: Callable[[], Result]) -> tuple[float, Result]:
    """Return the CPU seconds that a computation took, and its result."""
    started = time.process_time()
    result = compute()
    return time.process_time() - started, result


def by_budget(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield batches, longest first, up to a budget with padding counted but not limited: the way until now."""
    waiting = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while waiting:
        n = max(1, token_budget // lengths[waiting[0]])
        yield waiting[:n]
        waiting = waiting[n:]


def compared(what: str, before_s: float, after_s: float, max_difference: float | None, **more: Any) -> dict[str, Any]:
    """Return a row of the results."""
    return {
        "what": what,
        "before_s": round(before_s, 2),
        "after_s": round(after_s, 2),
        "ratio": round(before_s / after_s, 2) if after_s else None,
        "max_difference": max_difference,
        **more,
    }
