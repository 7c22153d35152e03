"""Durations and sizes in words, as log lines and the plan show them."""

MAX_SEED = 2**32 - 1
"""The largest seed that every generator of random numbers takes."""


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it: `4.1 s`, `80 s`, `12 min`, `3.2 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def size(n_bytes: float) -> str:
    """Return a number of bytes in decimal units: `12 kB`, `1.3 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
