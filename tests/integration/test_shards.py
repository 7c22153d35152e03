"""A run that is killed continues at the first missing shard; two Ray nodes give the rows of this process."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rass_core.config import RassConfig, load_config
from rass_core.lake.store import Lake
from tests.small_lab import N_PROMPTS, config_of, start

PER_SHARD = 20
COMPARED = {
    "prompts": "prompt_id", "responses": "response_id, text, n_tokens", "verdicts": "subject_id, judge, outcome, kind",
    "boundaries": "language, round(b, 4) AS b, n, n_refused", "margins": "prompt_id, round(margin, 4) AS margin",
    "directions": "kind, method, layer, position, language",
}  # fmt: skip
"""What must be equal, row for row; floats to the fourth place: a batch of other rows adds up in another order."""


def rows_of(lake: Path) -> dict[str, list[dict[str, Any]]]:
    opened = Lake.open(lake)
    newest = opened.query("SELECT * FROM runs WHERE state = 'Completed' ORDER BY started_at DESC LIMIT 1").to_pylist()[
        0
    ]
    with opened.connect_to(opened.commits_of(newest)) as connection:
        return {
            table: connection.sql(f"SELECT {columns} FROM {table} ORDER BY ALL").to_arrow_table().to_pylist()
            for table, columns in COMPARED.items()
        }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = start(config_of(folder, rows_per_shard=10_000), folder / "lake")
    _, said = run.communicate(timeout=500)
    assert run.returncode == 0, said
    return rows_of(folder / "lake")


def n_answered(lake: Path) -> int:
    """Return how many answers are committed."""
    files = list(lake.glob("responses/run_id=*/shard=*/part-0.parquet"))
    return sum(pq.read_metadata(file).num_rows for file in files)


def test_a_killed_run_continues_within_the_stage(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    config, lake = config_of(tmp_path, rows_per_shard=PER_SHARD), tmp_path / "lake"
    run = start(config, lake)
    deadline = time.monotonic() + 300
    while n_answered(lake) < 3 * PER_SHARD and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    held = n_answered(lake)
    assert 3 * PER_SHARD <= held < N_PROMPTS, "it was killed in the middle of the stage"
    again = start(config, lake)
    _, said = again.communicate(timeout=500)
    assert again.returncode == 0, said
    # All others were asked, and none of these again.
    asked = re.findall(r"answering the given prompts(?:, harmful ones)?: 0 of ([\d,]+)", said)
    assert f"{held} of" in said
    assert sum(map(int, asked)) == N_PROMPTS - held
    assert rows_of(lake) == undisturbed


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two Ray nodes of one core each, the first of them without work."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def ray_config(folder: Path, cluster: Any, lake: Path) -> RassConfig:
    path = config_of(
        folder, rows_per_shard=PER_SHARD, kind="ray", address=cluster.address, n_workers=2, cpus_per_worker=1
    )
    return load_config(str(path), lake=str(lake))


def test_two_nodes_give_the_same_rows_though_one_is_killed(
    undisturbed: dict[str, Any], cluster: Any, tmp_path: Path, prefect_server: None
) -> None:
    import threading

    from flows.probe import probe

    lost, lake = cluster.add_node(num_cpus=1), tmp_path / "lake"
    cluster.add_node(num_cpus=1)
    killed = threading.Event()

    def kill_in_the_middle() -> None:
        while n_answered(lake) < 2 * PER_SHARD:
            time.sleep(0.05)
        if n_answered(lake) < N_PROMPTS:
            killed.set()
        cluster.remove_node(lost, allow_graceful=False)

    threading.Thread(target=kill_in_the_middle, daemon=True).start()
    probe(ray_config(tmp_path, cluster, lake))
    assert killed.is_set()
    assert rows_of(lake) == undisturbed
