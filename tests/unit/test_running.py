"""A lock ends with its process; a run whose process is gone is recorded as Crashed by whoever opens the lake."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rass_core.lake.holding import Locks
from rass_core.lake.running import end_dead_runs
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Lake

RUN = """
import sys, time
from datetime import UTC, datetime
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Lake
lake = Lake.open(sys.argv[1])
now = datetime(2026, 11, 29, tzinfo=UTC)
row = {"flow": "probe", "code_version": "0", "started_at": now, "state": "Running"}
with lake.running.alive("one"):
    lake.commit("one", "aa", {"runs": rows_table("runs", [row])})
    with lake.files.staging.folder() as folder:
        (folder / "half").touch()
        print(folder.name, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


@contextmanager
def running(lake: Lake) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Give a process within a run, and the folder that it fills."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(lake.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = lake.path / "_staging" / process.stdout.readline().strip()
    try:
        yield process, folder
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run_of(lake: Lake) -> dict[str, Any]:
    (row,) = lake.query("SELECT * FROM runs").to_pylist()
    return dict(row)


def test_a_killed_run_is_recorded_as_crashed_and_swept_up(lake: Lake) -> None:
    with running(lake) as (process, folder):
        alive = Lake.open(lake.path)
        assert (alive.crashed, run_of(alive)["state"]) == ([], "Running")
        assert (folder / "half").exists(), "work of a living process is left alone"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        opened = Lake.open(lake.path)
    (line,) = opened.crashed
    assert line.startswith(f"run one crashed: process {process.pid} on ")
    row = run_of(opened)
    assert row["state"] == "Crashed"
    assert row["finished_at"] > datetime(2026, 11, 29, tzinfo=UTC)
    assert f"process {process.pid}" in row["note"]
    assert not folder.exists()
    assert list((lake.path / "_running").iterdir()) == []
    assert Lake.open(lake.path).crashed == [], "it is said once"


def test_a_run_that_ends_leaves_no_file_and_is_not_crashed(lake: Lake) -> None:
    row = {"flow": "probe", "code_version": "0", "started_at": datetime(2026, 11, 29, tzinfo=UTC)}
    with lake.running.alive("one"):
        lake.commit("one", "aa", {"runs": rows_table("runs", [row | {"state": "Running"}])})
        assert [path.name for path in (lake.path / "_running").iterdir()] == ["one.json"]
    assert list((lake.path / "_running").iterdir()) == []


def test_a_run_that_recorded_its_end_stays_as_it_is(lake: Lake) -> None:
    row = {"flow": "probe", "code_version": "0", "started_at": datetime(2026, 11, 29, tzinfo=UTC)}
    lake.commit("one", "aa", {"runs": rows_table("runs", [row | {"state": "Completed"}])})
    (lake.path / "_running").mkdir()
    content = {"lock": "0" * 32, "host": "h", "boot_id": None, "process_id": 1}
    (lake.path / "_running" / "one.json").write_text(json.dumps(content), encoding="utf-8")
    opened = Lake.open(lake.path)
    assert (opened.crashed, run_of(opened)["state"]) == ([], "Completed")
    assert list((lake.path / "_running").iterdir()) == []


def test_runs_of_older_versions_that_hold_no_lock_are_ended_by_the_next_run(lake: Lake) -> None:
    row = {"flow": "probe", "code_version": "0", "started_at": datetime(2026, 11, 29, tzinfo=UTC), "state": "Running"}
    lake.commit("old", "aa", {"runs": rows_table("runs", [row])})
    assert end_dead_runs(lake) == []
    (line,) = end_dead_runs(lake, of_older_versions=True)
    assert line.startswith("run old crashed: it holds no lock")
    assert run_of(lake)["state"] == "Crashed"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lock": 1}'])
def test_a_damaged_file_of_a_run_is_left_alone(lake: Lake, content: str) -> None:
    (lake.path / "_running").mkdir()
    (lake.path / "_running" / "one.json").write_text(content, encoding="utf-8")
    assert Lake.open(lake.path).crashed == []


def test_the_own_lock_is_held_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "locks")
    own = locks.own()
    assert locks.own() == own
    assert locks.is_held(own) and locks.is_held(own), "asking does not free it"
    assert not locks.is_held("0" * 32)
    other = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; from rass_core.lake.holding import Locks;"
         "print(Locks(Path(sys.argv[1])).is_held(sys.argv[2]))", str(tmp_path / "locks"), own],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() == "True"


def test_a_child_that_outlives_its_parent_does_not_keep_its_lock(tmp_path: Path) -> None:
    source = (
        "import os, sys, time\nfrom pathlib import Path\nfrom rass_core.lake.holding import Locks\n"
        "locks = Locks(Path(sys.argv[1]))\nname = locks.own()\n"
        "if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"
        "print(name, flush=True)\nos._exit(0)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    name = started.stdout.readline().strip()
    started.wait()
    deadline = time.monotonic() + 20
    locks = Locks(tmp_path)
    while locks.is_held(name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not locks.is_held(name)
    started.stdout.close()
