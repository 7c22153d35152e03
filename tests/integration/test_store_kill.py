"""Writers killed at random moments beside a reader: no partial commit is ever seen."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rass_core.lake.store import Lake

N_KILLS, N_COMMITS = 20, 600
N_PROMPTS, N_MARGINS = 3, 2000
ROOT = Path(__file__).resolve().parents[2]

WRITERS = f"""
import os, sys
import pyarrow as pa
from rass_core.lake.store import Lake
from rass_core.lake.schema import TABLES
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake

def write(run_id, first):
    lake = Lake.open(sys.argv[1])
    margins = pa.Table.from_pylist([{{"margin": 0.5}}] * {N_MARGINS}, schema=TABLES["margins"])
    for i in (*range(first, {N_COMMITS}), *range(first)):
        prompts = [{{"prompt_id": f"{{i}}-{{j}}"}} for j in range({N_PROMPTS})]
        lake.commit(run_id, f"{{i:04x}}", {{
            "prompts": pa.Table.from_pylist(prompts, schema=TABLES["prompts"]),
            "margins": iter(margins.to_batches(500)),
        }})

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        write(line.split()[0], int(line.split()[1]))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""For each "RUN FIRST" on stdin: fork a writer of all commits from FIRST on, print its pid and its ending."""

PARTIAL = f"""
SELECT coalesce(p.shard, m.shard) AS shard, p.n AS n_prompts, m.n AS n_margins
FROM (SELECT shard, count(*) AS n FROM prompts GROUP BY shard) p
FULL JOIN (SELECT shard, count(*) AS n FROM margins GROUP BY shard) m USING (shard)
WHERE p.n IS DISTINCT FROM {N_PROMPTS} OR m.n IS DISTINCT FROM {N_MARGINS}
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


@pytest.fixture
def writers(lake: Lake) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(lake.path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.communicate()


def test_killed_writers_leave_whole_commits_only(lake: Lake, writers: "subprocess.Popen[str]") -> None:
    seen: list[list[dict[str, object]]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.1):
            try:
                seen.append(lake.query(PARTIAL).to_pylist())
            except Exception as error:
                seen.append([{"error": str(error)}])

    reader = threading.Thread(target=read)
    reader.start()
    moments = random.Random(0)
    try:
        endings = [write_and_kill(writers, lake, f"run-{i % 2}", moments) for i in range(N_KILLS)]
    finally:
        stop.set()
        reader.join()
    assert endings == [-signal.SIGKILL] * N_KILLS
    n_committed = lake.query("SELECT count(DISTINCT key) AS n FROM commits")["n"].to_pylist()[0]
    assert 0 < n_committed < N_COMMITS
    assert len(seen) >= 5
    assert [rows for rows in seen if rows] == []

    start(writers, "run-0", first=0)
    assert ending(writers) == 0
    assert lake.query(PARTIAL).to_pylist() == []
    counts = "SELECT count(*) AS n, count(DISTINCT shard) AS shards FROM margins"
    assert lake.query(counts).to_pylist() == [{"n": N_COMMITS * N_MARGINS, "shards": N_COMMITS}]
    assert list((lake.path / "_staging").iterdir()) == []


def write_and_kill(writers: "subprocess.Popen[str]", lake: Lake, run_id: str, moments: random.Random) -> int:
    """Kill a writer a random moment after its first new commit; return how it ended."""
    n_before = n_records(lake)
    pid = start(writers, run_id, first=n_before)
    deadline = time.monotonic() + 10
    while n_records(lake) == n_before and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.04))
    os.kill(pid, signal.SIGKILL)
    return ending(writers)


def start(writers: "subprocess.Popen[str]", run_id: str, first: int) -> int:
    """Fork a writer and return its pid."""
    assert writers.stdin is not None and writers.stdout is not None
    writers.stdin.write(f"{run_id} {first}\n")
    writers.stdin.flush()
    return int(writers.stdout.readline())


def ending(writers: "subprocess.Popen[str]") -> int:
    """Wait for the writer and return its exit code."""
    assert writers.stdout is not None
    return int(writers.stdout.readline())


def n_records(lake: Lake) -> int:
    """Count the commit records."""
    return sum(1 for _ in lake.path.glob("_commits/run-*/*.parquet"))
