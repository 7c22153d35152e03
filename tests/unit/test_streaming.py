"""What grows with the number of prompts is read a batch at a time, and gives the rows that it gives whole."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rass_core.data import gathering
from rass_core.data.prompts import load_prompts
from rass_core.data.sources import PromptSource
from rass_core.errors import LakeError
from rass_core.judges.workers import TO_JUDGE, to_judge
from rass_core.lake import store
from rass_core.lake.schema import TABLES, VECTOR, rows_table
from rass_core.lake.store import Commit, Lake
from rass_core.lake.vectors import matrix, vector_column
from rass_core.models.answering import ASKED, asked, asked_alone
from rass_core.probe.geometry import split_of
from rass_core.select.anchors import first_per_language, nearest_anchors
from rass_core.select.gradients import gradient_table, read_gradients
from rass_core.select.influence import RefusalGradients
from rass_core.text import digest, prompt_id


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def prompts(n: int, start: int = 0) -> pa.Table:
    return rows_table(
        "prompts",
        [
            {"prompt_id": f"p{i:04d}", "text": f"text {i}", "language": "en", "label": "harmless", "category": None}
            for i in range(start, start + n)
        ],
    )


@pytest.mark.parametrize("n_held", [1, 2, 3, 4096])
@pytest.mark.parametrize("per_cell", [None, 2])
def test_given_prompts_do_not_depend_on_how_many_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_held: int, per_cell: int | None
) -> None:
    """Against a plain reading of the rule: first of each id within a source, sampled, first over the sources."""
    monkeypatch.setattr(gathering, "ROWS_HELD", n_held)
    draw, sources, files = random.Random(0), [], []
    for name in ("a", "b", "c"):
        rows = [
            {"text": f"Text {draw.randrange(12)}", "language": draw.choice(["en", "de"]), "label": "harmless"}
            for _ in range(17)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        sources.append(PromptSource(path=str(tmp_path / f"{name}.parquet"), max_rows_per_cell=per_cell))
        files.append((name, rows))
    expected: dict[str, dict[str, Any]] = {}
    n_kept_of_source = 0
    for name, rows in files:
        firsts: dict[str, dict[str, Any]] = {}
        for row in rows:
            firsts.setdefault(prompt_id(row["language"], row["text"]), {**row, "source": name})
        chosen = {
            identity
            for language in ("en", "de")
            for identity in sorted((i for i, r in firsts.items() if r["language"] == language), key=gathering._sha256)[
                :per_cell
            ]
        }
        n_kept_of_source += len(firsts) - len(chosen)
        for identity, row in firsts.items():
            if identity in chosen:
                expected.setdefault(identity, row)
    loaded = load_prompts(sources)
    columns = ["prompt_id", "text", "language", "label", "source"]
    assert loaded.table.schema == TABLES["prompts"]
    assert loaded.table.select(columns).to_pylist() == [{"prompt_id": i} | row for i, row in expected.items()]
    assert loaded.dropped["duplicate"] == 51 - n_kept_of_source - len(expected)
    assert list(loaded.texts()) == loaded.table["text"].to_pylist()


def test_a_query_is_read_in_batches_over_exactly_these_commits(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STREAM_ROWS", 100)
    first, second = (
        lake.commit("run", key, {"prompts": rows}) for key, rows in (("0a", prompts(5000)), ("0b", prompts(5000, 5000)))
    )
    both = list(lake.batches("SELECT prompt_id FROM prompts ORDER BY prompt_id DESC", [first, second]))
    assert pa.Table.from_batches(both)["prompt_id"].to_pylist() == [f"p{i:04d}" for i in reversed(range(10_000))]
    assert max(batch.num_rows for batch in both) < 5000
    rows = pa.Table.from_batches(lake.batches("SELECT * EXCLUDE (run_id, shard) FROM prompts", [second]))
    assert (
        rows.cast(TABLES["prompts"]) == lake.read("prompts", [second], TABLES["prompts"].names) == prompts(5000, 5000)
    )
    assert sum(batch.num_rows for batch in lake.batches("SELECT * FROM verdicts", [first])) == 0


def test_further_tables_join_those_of_the_lake(lake: Lake) -> None:
    commit = lake.commit("run", "0a", {"prompts": prompts(3)})
    given = pa.table({"prompt_id": ["p0002", "p0000"], "n": [7, 8]})
    found = lake.batches(
        "SELECT text, n FROM prompts JOIN more USING (prompt_id) ORDER BY n", [commit], {"more": given}
    )
    assert [row for batch in found for row in batch.to_pylist()] == [
        {"text": "text 2", "n": 7}, {"text": "text 0", "n": 8},
    ]  # fmt: skip


def test_errors_of_a_batched_query_name_their_cause(lake: Lake) -> None:
    commit = lake.commit("run", "0a", {"prompts": prompts(3)})
    with pytest.raises(LakeError, match="query: .*nothing"):
        list(lake.batches("SELECT nothing FROM prompts", [commit]))
    path = lake.path / commit.files[0].path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LakeError, match=rf"{path}: damaged"):
        list(lake.batches("SELECT text FROM prompts", [commit]))


def test_prompts_are_asked_alone(lake: Lake) -> None:
    rows = pa.Table.from_batches(asked_alone(prompts(5).to_batches(max_chunksize=2), "m"))
    assert rows.schema == ASKED
    assert rows.to_pylist()[3] == {
        "response_id": digest("response", "m", "p0003", "base", 0), "prompt_id": "p0003", "variant": "base",
        "attack": None, "language": "en", "label": "harmless", "prompt": "text 3", "messages": None, "opening": None,
    }  # fmt: skip
    assert rows["prompt_id"].to_pylist() == [f"p{i:04d}" for i in range(5)]


def answers_to(rows: pa.Table) -> pa.Table:
    common = {"finish_reason": "stop", "sample": 0, "text_sha256": "", "n_tokens": 1}
    return rows_table("responses", [{**row, **common, "text": f"To {row['prompt']}"} for row in rows.to_pylist()])


def test_what_is_judged_is_what_was_asked_with_its_answer_by_id(lake: Lake) -> None:
    """As a join of whole tables gives it; answers that nobody asks for now are left out."""
    whole = asked({
        "response_id": [digest("r", i) for i in range(300)], "prompt_id": [f"p{i}" for i in range(300)],
        "attack": [None, "shout"] * 150, "prompt": [f"prompt {i}" for i in range(300)],
        "messages": [None, None, "[]"] * 100, "opening": ["Sure", None] * 150,
    })  # fmt: skip
    commits = [
        lake.commit("run", key, {"responses": answers_to(part)})
        for key, part in (("0a", whole.slice(0, 100)), ("0b", whole.slice(100)))
    ]
    answers = Commit("run", "0c", tuple(file for commit in commits for file in commit.files), lake.path)
    now = whole.slice(50)
    texts = lake.read("responses", [answers], ["response_id", "text", "finish_reason"])
    expected = now.join(texts, "response_id").select(TO_JUDGE.names).cast(TO_JUDGE).sort_by("response_id")
    found = pa.Table.from_batches(to_judge(lake, now, answers))
    assert found == expected.combine_chunks()
    assert found.num_rows == 250


def test_vectors_become_a_matrix_and_back() -> None:
    given = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = vector_column(given)
    assert column.type == VECTOR
    assert column.to_pylist() == given.tolist()
    np.testing.assert_array_equal(matrix(column.slice(1, 2)), given[1:3])
    np.testing.assert_array_equal(matrix(column.cast(pa.list_(pa.float32(), 3))), given)
    assert matrix(column.slice(0, 0)).shape == (0, 0)


def gradients(ids: list[str]) -> Iterator[tuple[str, RefusalGradients]]:
    for number, each in enumerate(ids):
        yield each, RefusalGradients(np.array([[number, 1, 2]], np.float32), np.array([number / 2]))


def test_gradients_come_back_in_the_order_of_the_ids(lake: Lake) -> None:
    ids = ["c", "a", "d", "b"]
    commits = [
        lake.commit("run", f"0{each}", {"gradients": gradient_table([each], "m", found)})
        for each, found in gradients(ids)
    ]
    expected = rows_table("gradients", [
        {"prompt_id": "c", "model_id": "m", "log_odds": 0.0, "vector": [0.0, 1.0, 2.0]}
    ])  # fmt: skip
    assert lake.read("gradients", commits[:1], TABLES["gradients"].names) == expected
    found = read_gradients(lake, commits, ["a", "b", "c", "a"])
    np.testing.assert_array_equal(found.vectors[:, 0], [1, 3, 0, 1])
    assert (found.vectors.dtype, found.vectors.shape) == (np.float32, (4, 3))
    np.testing.assert_array_equal(found.log_odds, [0.5, 1.5, 0, 0.5])
    assert read_gradients(lake, commits, []).vectors.shape[0] == 0
    with pytest.raises(LakeError, match="gradients: none of prompt x"):
        read_gradients(lake, commits, ["a", "x"])


def test_anchors_are_those_of_the_label_and_outcome_nearest_first(lake: Lake) -> None:
    draw, rows = random.Random(1), []
    for i in range(400):
        rows.append(
            {
                "prompt_id": f"p{i:03d}", "language": draw.choice(["en", "de"]), "family": f"f{draw.randrange(150)}",
                "label": draw.choice(["harmful", "harmless"]), "outcome": draw.choice(["refusal", "compliance"]),
                "distance": draw.choice([None, *(round(draw.uniform(-1, 1), 1) for _ in range(9))]),
            }
        )  # fmt: skip
    tables = {
        "prompts": [{**row, "text": "t"} for row in rows],
        "responses": [
            {"response_id": f"r{row['prompt_id']}", "prompt_id": row["prompt_id"], "model_id": "m", "variant": "base",
             "sample": 0, "text_sha256": ""} for row in rows],
        "verdicts": [
            {"subject_id": f"r{row['prompt_id']}", "judge": judge, "outcome": outcome}
            for row in rows for judge, outcome in (("panel", row["outcome"]), ("phrases", "refusal"))],
        "margins": [
            {"prompt_id": row["prompt_id"], "model_id": "m", "direction_id": "d", "distance": row["distance"]}
            for row in rows],
    }  # fmt: skip
    commits = [
        lake.commit("run", key, {name: rows_table(name, each[start:stop]) for name, each in tables.items()})
        for key, start, stop in (("0a", 0, 150), ("0b", 150, None))
    ]
    expected = [
        row["prompt_id"]
        for row in sorted(rows, key=lambda row: (abs(row["distance"] or 0), row["prompt_id"]))
        if (row["label"], row["outcome"]) == ("harmful", "refusal")
        and row["distance"] is not None
        and split_of(row["family"], 3) != "test"
    ]
    found = list(nearest_anchors(lake, commits, "harmful", "refusal", 3))
    assert 20 < len(expected) < 100
    assert [row["prompt_id"] for row in found] == expected
    assert set(found[0]) == set(TABLES["prompts"].names)


def test_no_more_rows_are_read_than_the_first_per_language_need() -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            read.append(number)
            yield {"language": ("en", "de", "fr")[number % 3], "number": number}

    assert [row["number"] for row in first_per_language(rows(), {"en": 2, "de": 1})] == [0, 1, 3]
    assert len(read) == 4
    assert first_per_language(rows(), {}) == first_per_language(rows(), {"en": 0}) == []
