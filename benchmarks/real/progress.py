"""Lines on standard error, with the time."""

import sys
import time
from collections.abc import Callable


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def every_10_s(line: str) -> Callable[[int], None]:
    """Return what says a line with the number it is called with, at most every ten seconds."""
    said = [time.monotonic()]

    def report(number: int) -> None:
        if time.monotonic() - said[0] >= 10:
            said[0] = time.monotonic()
            say(line.format(number))

    return report
