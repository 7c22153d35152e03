"""The lab's configuration with few prompts, for runs of the command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows.cli import DEMO_CONFIG

N_PROMPTS = 240
ROOT = Path(__file__).resolve().parents[1]


def config_of(folder: Path, **executor: Any) -> Path:
    """Write a configuration of the lab with N_PROMPTS prompts in two languages, and return its path.

    Args:
        folder: Where it is written, with its prompts.
        executor: Settings of the section `executor`.
    """
    given = pq.read_table(Path(DEMO_CONFIG).with_name("prompts.parquet")).to_pylist()
    few = [row for row in given if row["language"] in ("en", "de")]
    step = len(few) // N_PROMPTS
    pq.write_table(pa.Table.from_pylist(few[:: step or 1][:N_PROMPTS]), folder / "prompts.parquet")
    content = yaml.safe_load(Path(DEMO_CONFIG).read_text(encoding="utf-8"))
    content["model"]["name"] = str(Path(DEMO_CONFIG).parent / "weights" / "balanced")
    content["prompts"]["sources"][0]["path"] = str(folder / "prompts.parquet")
    content["executor"] = executor
    content["probe"]["n_bootstrap"] = 100
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "config.yaml"


def start(config: Path, lake: Path) -> "subprocess.Popen[str]":
    """Start `rass probe` in a process group of its own; what it says is in its standard error."""
    command = [sys.executable, "-m", "flows.cli", "probe", str(config), "--lake", str(lake)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
