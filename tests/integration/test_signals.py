"""A run that is stopped says how it ended, whatever stopped it: Ctrl-C, SIGTERM, or a kill that it cannot see."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rass_core.lake.store import Lake
from tests.small_lab import ROOT, config_of, start

RESUME = "finished work is in the lake, run the same command again to resume"


def stopped(folder: Path, number: signal.Signals) -> tuple[int, str, dict[str, str]]:
    """Stop a run in the middle of a stage; return its exit code, what it said, and its row of `runs`."""
    lake = folder / "lake"
    run = start(config_of(folder), lake)
    assert run.stderr is not None
    lines, deadline = list[str](), time.monotonic() + 300
    for line in run.stderr:
        lines.append(line)
        if "reading residual streams: 0 of" in line or time.monotonic() > deadline:
            break
    run.send_signal(number)
    _, rest = run.communicate(timeout=120)
    (row,) = Lake.open(lake).query("SELECT run_id, state, note FROM runs").to_pylist()
    return run.returncode, "".join([*lines, rest]), dict(row)


@pytest.mark.parametrize(
    ("number", "code", "how", "note"),
    [
        (signal.SIGINT, 130, "by Ctrl-C", "stopped by the user"),
        (signal.SIGTERM, 143, "by SIGTERM", "stopped by SIGTERM"),
    ],
)
def test_a_stopped_run_is_cancelled(tmp_path: Path, number: signal.Signals, code: int, how: str, note: str) -> None:
    ended, said, row = stopped(tmp_path, number)
    assert f"rass: stopped {how}; {RESUME}" in said.splitlines()[-1], said
    assert (ended, row["state"]) == (code, "Cancelled")
    assert row["note"].startswith(note)
    assert "Traceback" not in said


def test_a_killed_run_is_crashed_and_the_next_command_says_so(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    run = start(config_of(tmp_path), lake)
    assert run.stderr is not None
    for line in run.stderr:
        if "reading residual streams: 0 of" in line:
            break
    run.kill()
    run.wait()
    run.stderr.close()
    command = [sys.executable, "-m", "flows.cli", "sql", "SELECT state FROM runs", "--lake", str(lake)]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Crashed" in asked.stdout
    assert "crashed: process" in asked.stderr
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "crashed" not in again.stderr
