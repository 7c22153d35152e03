"""Runs that have not ended: each holds a lock, so that whoever opens the lake afterwards knows which of them died."""

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rass_core.lake.files import write_whole
from rass_core.lake.holding import Locks
from rass_core.lake.schema import rows_table
from rass_core.lake.views import quoted
from rass_core.text import digest

if TYPE_CHECKING:
    from rass_core.lake.store import Lake

HEARTBEAT_S = 30.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Process(NamedTuple):
    """The process of a run, as columns of table `runs` say."""

    host: str
    boot_id: str | None
    process_id: int

    @classmethod
    def this(cls) -> "Process":
        """Return this process."""
        boot_id = _BOOT_ID.read_text(encoding="utf-8").strip() if _BOOT_ID.exists() else None
        return cls(socket.gethostname(), boot_id, os.getpid())


class DeadRun(NamedTuple):
    """A run whose process is gone though it has not ended."""

    run_id: str
    process: Process
    seen_at: datetime
    """When it last said that it was alive."""
    path: Path


class RunningRuns:
    """The files of the runs that have not ended.

    Args:
        folder: Holds one per run.
        locks: Of the lake's processes.
    """

    def __init__(self, folder: Path, locks: Locks) -> None:
        self._folder, self._locks = folder, locks

    @contextmanager
    def alive(self, run_id: str) -> Iterator[None]:
        """Within it, the run counts as alive for as long as this process lives.

        Raises:
            OSError: The folder cannot be written.
        """
        path, ended = self._folder / f"{run_id}.json", threading.Event()
        content = {"lock": self._locks.own(), **Process.this()._asdict()}
        write_whole(path, json.dumps(content))

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                with suppress(OSError):
                    os.utime(path)

        heart = threading.Thread(target=beat, name=f"heartbeat of {run_id}", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            with suppress(OSError):
                path.unlink()

    def dead(self) -> Iterator[DeadRun]:
        """Yield the runs whose process is gone; remove their file when that is recorded (`forget`)."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                seen_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                process = Process(content["host"], content["boot_id"], content["process_id"])
                lock = str(content["lock"])
            except FileNotFoundError:  # it ended just now
                continue
            except (OSError, ValueError, KeyError, TypeError):  # damaged: not known whose it is
                continue
            if not self._locks.is_held(lock):
                yield DeadRun(path.stem, process, seen_at, path)

    @staticmethod
    def forget(run: DeadRun) -> None:
        """Remove the file of a dead run whose end is recorded."""
        with suppress(OSError):
            run.path.unlink()

    def has(self, run_id: str) -> bool:
        """Return whether a run has a file here: it has not ended, or its death is not recorded yet."""
        return (self._folder / f"{run_id}.json").exists()


def end_dead_runs(lake: "Lake", of_older_versions: bool = False) -> list[str]:
    """Record the runs whose process is gone as Crashed, and return a line for each.

    Args:
        lake: Holds them.
        of_older_versions: Also those that are Running without a lock, as versions before this one left them.

    Raises:
        LakeError: The lake cannot be written.
    """
    lines = []
    for run in lake.running.dead():
        process = f"process {run.process.process_id} on {run.process.host}"
        note = f"{process} was last seen {run.seen_at:%Y-%m-%d %H:%M:%S} UTC and is gone"
        lines += _crash(lake, run.run_id, note, run.seen_at)
        lake.running.forget(run)
    if of_older_versions:
        rows = lake.query("SELECT run_id, started_at FROM runs WHERE state = 'Running' ORDER BY started_at").to_pylist()
        for row in rows:
            if not lake.running.has(row["run_id"]):
                lines += _crash(lake, row["run_id"], "it holds no lock, so its process is gone", row["started_at"])
    return lines


def _crash(lake: "Lake", run_id: str, note: str, seen_at: datetime) -> list[str]:
    """Write the end of a run, unless it wrote that itself."""
    rows = lake.read("runs", where=f"run_id = {quoted(run_id)}").to_pylist()
    if not rows or rows[0]["state"] != "Running":
        return []
    row = {name: value for name, value in rows[0].items() if name != "run_id"}
    ended = row | {"state": "Crashed", "finished_at": seen_at, "note": note}
    lake.commit(run_id, digest(run_id, "Crashed"), {"runs": rows_table("runs", [ended])})
    return [f"run {run_id} crashed: {note}; what it finished is in the lake, run the same command again to resume"]
