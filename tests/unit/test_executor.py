"""Shards are cut so that new rows leave the others alone, and an executor gives what each came to."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists

from rass_core.errors import ConfigError
from rass_core.executor.base import (
    EXECUTORS,
    Compute,
    Done,
    ExecutorSettings,
    Shard,
    Tables,
    content,
    cut,
    from_bytes,
    to_bytes,
)
from rass_core.models.pool import ModelPool


def rows(ids: list[str]) -> pa.Table:
    return pa.table({"id": ids, "text": [f"text {name}" for name in ids]})


def ids_of(parts: list[pa.Table]) -> list[list[str]]:
    return [part["id"].to_pylist() for part in parts]


@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_parts_hold_all_rows_in_order_within_their_sizes(size: int) -> None:
    ids = [f"{number:04d}" for number in range(500)]
    parts = ids_of(cut(rows(ids), "id", size))
    assert [name for part in parts for name in part] == ids
    assert all(max(1, size // 2) <= len(part) <= 2 * size for part in parts[:-1])
    assert abs(len(parts) - 500 / size) <= max(2, 0.5 * 500 / size)


def test_a_new_row_changes_at_most_two_parts() -> None:
    draw = random.Random(0)
    ids = [f"{number:05d}" for number in range(0, 4000, 2)]
    before = {content(part) for part in cut(rows(ids), "id", 64)}
    changed = []
    for _ in range(30):
        more = sorted([*ids, f"{2 * draw.randrange(2000) + 1:05d}"])
        changed.append(len({content(part) for part in cut(rows(more), "id", 64)} - before))
    assert sorted(changed)[len(changed) * 8 // 10] <= 2
    assert max(changed) < 12  # two parts that meet again a little later


def test_no_rows_make_no_part() -> None:
    assert list(cut(rows([]), "id", 10)) == []


@given(sizes=lists(integers(0, 40), max_size=12), size=integers(1, 30))
def test_how_rows_come_in_batches_does_not_count(sizes: list[int], size: int) -> None:
    whole, batches, first = rows([f"{number:04d}" for number in range(sum(sizes))]), [], 0
    for n in sizes:
        batches += whole.slice(first, n).to_batches()
        first += n
    expected = list(cut(whole, "id", size))
    assert list(cut(iter(batches), "id", size)) == expected
    assert list(cut(pa.Table.from_batches(batches, whole.schema), "id", size)) == expected


def test_no_more_batches_are_read_than_make_a_part() -> None:
    read = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(100):
            read.append(number)
            yield from rows([f"{number}-{i}" for i in range(10)]).to_batches()

    first = next(cut(batches(), "id", 20))
    assert 10 <= first.num_rows <= 40
    assert len(read) <= 4


def test_content_depends_on_values_alone() -> None:
    whole = rows(["a", "b", "c", "d"])
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert content(whole) == content(chunked) == content(whole.take([0, 1, 2, 3]))
    assert len({content(whole), content(whole.take([1, 0, 2, 3])), content(whole.slice(1)),
                content(whole.rename_columns(["id", "other"]))}) == 4  # fmt: skip


def test_tables_survive_as_bytes() -> None:
    tables = {"one": rows(["a"]), "two": rows([])}
    assert from_bytes(to_bytes(tables)) == tables


@dataclass(frozen=True)
class Doubling:
    built: list[int] = field(default_factory=list, compare=False)

    code = ("rass_core.text",)

    def build(self, pool: ModelPool) -> Compute:
        self.built.append(1)

        def compute(part: pa.Table, done: Done) -> Tables:
            done(part.num_rows)
            return {"twice": pa.table({"id": [2 * name for name in part["id"].to_pylist()]})}

        return compute


def test_the_local_executor_builds_once_and_yields_every_shard() -> None:
    worker, said = Doubling(), list[int]()
    shards = [Shard(name, rows([name] * 3)) for name in "abc"]
    executor = EXECUTORS.find("local").build(ExecutorSettings(), ModelPool())
    found = list(executor.run(worker, shards, said.append))
    assert [(shard.key, tables["twice"]["id"].to_pylist()) for shard, tables in found] == [
        (name, [name * 2] * 3) for name in "abc"
    ]
    assert (len(worker.built), said[-1], sorted(said)) == (1, 9, said)


def test_without_shards_nothing_is_built() -> None:
    worker = Doubling()
    assert list(EXECUTORS.find("local").build(ExecutorSettings(), ModelPool()).run(worker, [], print)) == []
    assert worker.built == []


def test_the_local_executor_takes_a_shard_when_the_one_before_is_done() -> None:
    taken, finished = [], []

    def shards() -> Iterator[Shard]:
        for name in "abc":
            taken.append(name)
            yield Shard(name, rows([name]))

    executor = EXECUTORS.find("local").build(ExecutorSettings(), ModelPool())
    for shard, _ in executor.run(Doubling(), shards(), lambda n: None):
        finished.append(shard.key)
        assert taken == finished


def test_settings_follow_the_kind() -> None:
    assert EXECUTORS.settings("ray", n_workers=3).n_workers == 3
    assert EXECUTORS.settings("local").rows_per_shard == 512
    with pytest.raises(ConfigError, match=r"unknown executor 'locale'; did you mean 'local'\?"):
        EXECUTORS.settings("locale")
