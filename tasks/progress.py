"""What a long command shows while it works: bars on a terminal, lines in a pipe and in the log.

On a terminal each activity has a bar or a spinner. Elsewhere (a pipe, a worker, CI) an activity writes a line when
it begins, another every `Progress.interval_s` seconds, and one when it ends. The log gets the lines in both cases.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from rass_core.units import duration

CONSOLE = Console(stderr=True, highlight=False, quiet=True, emoji=False)
"""Standard error; the command line turns it on, a worker has Prefect's log."""
SPEED_WINDOW_S = 600.0
"""The rate is measured over at most so many seconds: recent ones count where batches differ."""

Log = Callable[[str], None]


@dataclass(eq=False)
class Activity:
    """Something that takes a while, between its first line and its last."""

    what: str
    task: Task
    """Its numbers; `total` is None where there is nothing to count."""
    log: Log | None
    is_said: bool = True
    """Whether its first line has been written."""
    context: Context = field(default_factory=copy_context)
    """Context of the thread that began it: Prefect's log needs it to name the run."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Return how long it has run."""
        return time.monotonic() - self.started

    def line(self) -> str:
        """Return how far it is, in one line."""
        if self.task.total is None:
            return f"{self.what}: still running, {duration(self.seconds)} so far"
        done, total = int(self.task.completed), int(self.task.total)
        share = f" ({100 * done / total:.1f} %)" if total and done else ""
        parts = [f"{self.what}: {done:,} of {total:,}{share}", _rate(self.task), _left(self.task)]
        return ", ".join(part for part in parts if part)


class Progress:
    """Shows the activities of a process; safe to call from any thread.

    Args:
        console: Where bars and lines go.
        interval_s: Seconds between two lines of an activity.
    """

    def __init__(self, console: Console, interval_s: float = 30.0) -> None:
        self.console, self.interval_s = console, interval_s
        self._lock = threading.RLock()
        self._active: list[Activity] = []
        self._reported: BaseException | None = None
        self._bars: Bars | None = None
        self._stop = threading.Event()
        self._woken = threading.Event()
        self._due = 0.0
        self._thread: threading.Thread | None = None

    @property
    def is_live(self) -> bool:
        """Return whether bars can be drawn: FORCE_COLOR makes no terminal of a pipe."""
        console = self.console
        is_terminal = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
        return is_terminal and not console.quiet

    def say(self, message: str, log: Log | None = None) -> None:
        """Write one line, with the time of day, and the message to the log; it is never broken."""
        self._print(message)
        if log is not None:
            log(message)

    @contextmanager
    def counting(self, what: str, total: int | None, log: Log | None = None) -> Iterator[Callable[..., None]]:
        """Show how far something is; call what is yielded with the number done, and with a total where it changes.

        Args:
            what: What is being done, in a few words: `reading residual streams`.
            total: Number to do; None where it comes with the first number done.
            log: Gets the lines as well.
        """
        with self._showing(what, total, log) as activity:
            self._tell(activity, f"{what}: started" if total is None else activity.line())

            def done(n: int, total: int | None = None) -> None:
                with self._lock:
                    if self._bars is not None:
                        self._bars.update(activity.task.id, completed=n, total=total)

            yield done
            self._tell(activity, f"{what}: {int(activity.task.completed):,} in {duration(activity.seconds)}")

    @contextmanager
    def running(self, what: str, log: Log | None = None, ends: bool = True, after_s: float = 0.0) -> Iterator[None]:
        """Show that something runs which cannot count, from its begin to its end.

        Args:
            what: What is being done, in a few words: `loading MODEL in vLLM`.
            log: Gets the lines as well.
            ends: Say at the end how long it took; false where the caller does.
            after_s: Write lines only if it takes longer.
        """
        with self._showing(what, None, log, after_s) as activity:
            if not after_s:
                self._tell(activity, f"{what}: started")
            yield
            if ends and activity.is_said:
                self.say(f"{what}: done in {duration(activity.seconds)}", log)

    def _tell(self, activity: Activity, message: str) -> None:
        """Write a line of an activity; a terminal shows its bar instead."""
        if not self.is_live:
            self._print(message)
        if activity.log is not None:
            activity.log(message)

    @contextmanager
    def _showing(self, what: str, total: int | None, log: Log | None, after_s: float = 0.0) -> Iterator[Activity]:
        """Begin an activity and end it, whatever happens in between."""
        with self._lock:
            if self._bars is None:
                self._begin()
            assert self._bars is not None
            task_id = self._bars.add_task(what, total=total)
            task = next(task for task in self._bars.tasks if task.id == task_id)
            activity = Activity(what, task, log, is_said=not after_s)
            self._active.append(activity)
            self._due = time.monotonic() + (after_s or self.interval_s)
            self._woken.set()
        try:
            yield activity
        except BaseException as error:
            if error is not self._reported:  # the innermost activity says it
                self._tell(activity, f"{what}: stopped after {duration(activity.seconds)}")
            self._reported = error
            raise
        finally:
            with self._lock:
                self._active.remove(activity)
                self._due = time.monotonic() + self.interval_s
                self._bars.remove_task(task_id)
                ended = None
                if not self._active:
                    ended, self._reported = self._finish(), None
            if ended is not None:
                ended.join()

    def _begin(self) -> None:
        """Draw bars, and start the thread that writes lines."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=16),
            _Numbers(table_column=Column(no_wrap=True)),
        )
        self._bars = Bars(
            *columns, console=self.console, transient=True, disable=not self.is_live, redirect_stdout=False,
            speed_estimate_period=SPEED_WINDOW_S,
        )  # fmt: skip
        self._bars.start()
        self._stop, self._woken = threading.Event(), threading.Event()
        self._due = time.monotonic() + self.interval_s
        self._thread = threading.Thread(
            target=self._tick, args=(self._stop, self._woken), name="rass-progress", daemon=True
        )
        self._thread.start()

    def _finish(self) -> threading.Thread | None:
        """Take the bars away and stop the thread; return it, to be joined without the lock."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._stop.set()
        self._woken.set()
        thread, self._thread = self._thread, None
        return thread

    def _tick(self, stop: threading.Event, woken: threading.Event) -> None:
        """Write a line of the innermost activity every so often, until there is none left."""
        while not stop.is_set():
            woken.wait(max(self._due - time.monotonic(), 0.0))
            with self._lock:
                woken.clear()
                if stop.is_set() or not self._active:
                    return
                if time.monotonic() < self._due:
                    continue  # another line came meanwhile
                self._due = time.monotonic() + self.interval_s
                activity = self._active[-1]
                line = activity.line() if activity.is_said else f"{activity.what}: started"
                activity.is_said = True
            if not self.is_live:
                self._print(line)
            if activity.log is not None:
                activity.context.run(activity.log, line)

    def _print(self, message: str) -> None:
        # Soft: a terminal folds a long line by itself, and a pipe gets it whole.
        self.console.print(f"{datetime.now():%H:%M:%S} {message}", markup=False, soft_wrap=True)


class _Numbers(ProgressColumn):
    """Done, total, rate and time left of an activity that counts, the time of one that does not."""

    def render(self, task: Task) -> Text:
        """Return the text after the bar."""
        if task.total is None:
            return Text(duration(task.elapsed or 0.0))
        parts = [f"{int(task.completed):,}/{int(task.total):,}", _rate(task), _left(task)]
        return Text(", ".join(part for part in parts if part))


def _rate(task: Task) -> str:
    """Return how many are done in a second, or in a minute where that is less than one."""
    speed = task.speed
    if not speed:
        return ""
    if speed >= 10:
        return f"{speed:,.0f}/s"
    return f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min"


def _left(task: Task) -> str:
    """Return how long the rest takes at that rate."""
    speed = task.speed
    if not speed or task.remaining is None or task.remaining <= 0:
        return ""
    return f"{duration(task.remaining / speed)} left"


PROGRESS = Progress(CONSOLE)
"""The one of this process: two live displays would draw over each other."""
