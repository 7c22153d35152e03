"""When an endpoint is asked again, and how long an outage is waited for."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rass_core.errors import EndpointError
from rass_core.models.completion import Problem
from rass_core.units import duration

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
"""Between tries; each pause is twice the one before."""
GIVE_UP_AFTER = 20
"""Calls failed in a row that are more than chance."""
Say = Callable[[str], object]


def ignored(line: str) -> None:
    """Take a line and say it to nobody."""


@dataclass
class Tries:
    """How often one call was tried."""

    n: int = 0
    began: float = 0.0
    """When it first failed."""
    was_garbled: bool = False
    others_are_answered: bool = False
    """As a trial call has shown."""


class Waiting:
    """How the calls of a batch wait for an endpoint that is down, together.

    Args:
        outage_s: The longest wait without any answer.
        say: Gets a line when waiting begins, and when it ends.
    """

    def __init__(self, outage_s: float, say: Say) -> None:
        self._outage_s, self._say = outage_s, say
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._since: float | None = None
        self._who = ""
        self.error: BaseException | None = None
        """What ended the batch."""

    @contextmanager
    def ends_with_an_error(self) -> Iterator[None]:
        """Let the other calls of the batch end where what is inside raises."""
        try:
            yield
        except BaseException as error:
            self.stop(error)
            raise

    def stop(self, error: BaseException) -> None:
        """Let every call end."""
        with self._lock:
            self.error = self.error or error
        self._stopped.set()

    def wait(self, who: str, problem: Problem, tried: Tries) -> None:
        """Wait before a call is tried again.

        Raises:
            EndpointError: It has been tried for so long, or the server asks to wait for longer.
        """
        left = self._outage_s - (time.monotonic() - tried.began)
        pause = max(problem.wait_s or 0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tried.n, 10)))
        if left <= 0 or (problem.wait_s or 0.0) > left:
            why = f"no answer for {duration(self._outage_s)} (outage_s)"
            if left > 0:
                why = f"asks to wait {duration(problem.wait_s or 0.0)}, longer than outage_s"
            raise EndpointError(f"{who}: {why}: {problem.reason}; run the same command again once it is up")
        tried.n += 1
        with self._lock:
            begins = tried.n > 1 and self._since is None
            if begins:
                self._since, self._who = tried.began, who
        if begins:
            self._say(f"{who}: {problem.reason}; waiting up to {duration(self._outage_s)} for it")
        if self._stopped.wait(min(pause, left)) or self._stopped.is_set():
            raise EndpointError(f"{who}: stopped")

    def answered(self) -> None:
        """Say that the endpoint is back, where it was waited for."""
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            self._say(f"{self._who}: answers again after {duration(time.monotonic() - since)}")
