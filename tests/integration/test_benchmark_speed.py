"""The benchmarks of speed compare like with like: both ways give the same numbers on a tiny model."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.speed import extraction, gradients
from benchmarks.speed.common import SOURCES
from tests.tiny_models import build


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, source in enumerate(SOURCES):
        texts = [f"What is {'very ' * k}large?" for k in range(number, 9, 2)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{source}.parquet")
    return tmp_path


def test_both_ways_of_extraction_give_the_same_streams(data: Path, tmp_path: Path) -> None:
    rows = extraction.measure(build("llama", tmp_path / "model"), data)
    assert [row["what"] for row in rows] == [
        f"extraction, block 2: {way}" for way in ("as published", "budget alone", "bare forward")
    ]
    assert rows[0]["max_difference"] < 1e-4 and rows[1]["max_difference"] < 1e-4
    assert rows[2]["max_difference"] is None
    assert all(row["tokens"] == rows[0]["tokens"] > 0 for row in rows)


def test_both_ways_of_the_gradients_give_the_same_vectors(data: Path, tmp_path: Path) -> None:
    (row,) = gradients.measure(build("llama", tmp_path / "model"), data)
    assert row["max_difference"] < 1e-3
