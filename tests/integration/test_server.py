"""Prefect's temporary server: one clear line when it does not start, and no process left when its parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import DEMO_CONFIG

HOLDER = """
import sys, time
from flows.server import TemporaryServer
server = TemporaryServer({})
server.wait(300)
print(server._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    return {**kept, "PREFECT_HOME": str(tmp_path / "prefect")}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    # A folder in which no database can be made: the server ends by itself.
    (tmp_path / "file").write_text("")
    broken = {**environment, "PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_DATABASE_CONNECTION_URL":
              f"sqlite+aiosqlite:///{tmp_path}/file/no.db"}  # fmt: skip
    command = [sys.executable, "-m", "flows.cli", "probe", DEMO_CONFIG, "--lake", str(tmp_path / "lake")]
    result = subprocess.run(command, capture_output=True, text=True, env=broken, check=False, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("rass: Prefect's temporary server ended with code")
    assert "PREFECT_API_URL" in last
    assert not (tmp_path / "lake").exists()


def test_a_server_that_is_too_slow_is_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    script = "from flows.server import TemporaryServer; TemporaryServer({}).wait(0.0)"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert result.stderr.splitlines()[-1].startswith("flows.server.ServerError: Prefect's temporary server does not")
    assert "RASS_SERVER_TIMEOUT_S" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_the_server_ends_with_a_parent_that_is_killed(environment: dict[str, str]) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, "the server did not start"
        server = int(line)
        assert is_running(server)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while is_running(server):
        assert time.monotonic() < deadline, "the server outlives its parent"
        time.sleep(0.2)
