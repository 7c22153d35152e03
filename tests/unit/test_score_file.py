"""Files that are judged a batch at a time, whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rass_core.data.readers import ROWS_PER_BATCH
from rass_core.errors import JudgeError
from rass_core.judges import Exchange, PhraseJudge, Verdict
from rass_core.judges.panel import Member, Panel
from rass_core.judges.responses_file import ResponsesFile, layout_of
from rass_core.judges.score_file import score_file
from tests.response_files import REFUSAL, left, read, write


class Failing:
    """A judge that breaks down on responses that say so."""

    name = "failing"
    languages: frozenset[str] | None = None
    tells_partial = False

    def __init__(self) -> None:
        self.n_seen: list[int] = []

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.n_seen.append(len(exchanges))
        return [
            Verdict("unscored", None, "endpoint down", has_failed=True)
            if "down" in each.response
            else Verdict("compliance", 0.2, "fine")
            for each in exchanges
        ]


def panel() -> tuple[Panel, Failing]:
    failing = Failing()
    return Panel([Member(PhraseJudge()), Member(failing, 0.5)]), failing


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_a_judge_that_fails_too_often_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    source = ResponsesFile(write(tmp_path / f"in{kind}", [{"response": "down", "language": "en"}] * 10))
    out = tmp_path / "out.csv"
    out.write_text("before", encoding="utf-8")
    with pytest.raises(JudgeError, match="failed on 10 of 10"):
        score_file(source, out, panel()[0], layout_of(source))
    assert out.read_text(encoding="utf-8") == "before"
    assert left(tmp_path) == [source.path.name, "out.csv"]


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_long_files_are_judged_in_batches(tmp_path: Path, kind: str) -> None:
    n = 3 * ROWS_PER_BATCH + 3
    rows = [{"response": f"{REFUSAL} {i}", "language": "en", "i": str(i)} for i in range(n)]
    rows[-1]["response"] = "down"  # one of three in a small rest is not too often of all
    path = write(tmp_path / f"in{kind}", rows)
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    source, (judges, failing) = ResponsesFile(path), panel()
    told: list[tuple[int, int]] = []
    counts = score_file(
        source, tmp_path / "out.parquet", judges, layout_of(source), lambda done, total: told.append((done, total))
    )
    assert counts == {("en", "refusal"): n - 1, ("en", "compliance"): 1}
    assert sum(failing.n_seen) == n and max(failing.n_seen) <= ROWS_PER_BATCH
    assert told[-1] == (n, n) and len(told) == len(failing.n_seen)
    found = read(tmp_path / "out.parquet")
    assert [row["i"] for row in found] == [str(i) for i in range(n)]
    assert found[0]["disagreement"] == pytest.approx(1 / 3) and found[0]["vote_failing"] == "compliance"
    assert found[-1]["vote_failing"] == "unscored"
