"""`rass lake check` finds each kind of damage, names the file and what to do, and changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from rass_core.lake.checking import check_lake
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake.open(tmp_path / "lake")
    for run, key, ids in (("one", "aa", ["a", "b"]), ("two", "bb", ["c"])):
        rows = [{"prompt_id": each, "text": f"text {each}", "language": "en"} for each in ids]
        made.commit(run, key, {"prompts": rows_table("prompts", rows)})
    return made


def data_file(lake: Lake) -> Path:
    return lake.path / "prompts/run_id=one/shard=aa/part-0.parquet"


def record(lake: Lake) -> Path:
    return lake.path / "_commits/one/aa.parquet"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(bytes(content))


def leave_behind(lake: Lake) -> None:
    folder = lake.path / "prompts/run_id=three/shard=cc"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"prompt_id": ["x"]}), folder / "part-0.parquet")


DAMAGES: dict[str, tuple[Callable[[Lake], object], str, str]] = {
    "a file gone": (lambda lake: data_file(lake).unlink(), "part-0.parquet", "missing"),
    "a file cut": (
        lambda lake: data_file(lake).write_bytes(data_file(lake).read_bytes()[:-9]), "part-0.parquet", "cut or changed",
    ),
    "a file of 0 bytes": (lambda lake: data_file(lake).write_bytes(b""), "part-0.parquet", "0 bytes in place of"),
    "a byte flipped": (lambda lake: flip(data_file(lake)), "part-0.parquet", "its digest is not that of its record"),
    "a record cut": (
        lambda lake: record(lake).write_bytes(record(lake).read_bytes()[:50]), "aa.parquet", "commit record",
    ),
    "a foreign record": (
        lambda lake: pq.write_table(pa.table({"x": [1]}), record(lake)), "aa.parquet", "unreadable",
    ),
    "an empty record": (
        lambda lake: pq.write_table(pq.read_table(record(lake)).slice(0, 0), record(lake)), "aa.parquet", "empty",
    ),
    "a record gone": (lambda lake: record(lake).unlink(), "part-0.parquet", "listed by no commit record"),
    "a file left behind": (leave_behind, "part-0.parquet", "listed by no commit record"),
}  # fmt: skip


def test_a_whole_lake_has_no_findings(lake: Lake) -> None:
    steps: list[tuple[int, int]] = []
    checked = check_lake(lake, lambda n, of: steps.append((n, of)))
    assert (checked.n_commits, checked.n_files, checked.findings, steps) == (2, 2, [], [(1, 2), (2, 2)])
    ended = CliRunner().invoke(app, ["lake", "check", "--lake", str(lake.path)])
    assert (ended.exit_code, ended.stdout.splitlines()[-1].endswith("nothing wrong")) == (0, True)


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_and_named(lake: Lake, name: str) -> None:
    damage, file, what = DAMAGES[name]
    damage(lake)
    findings = [each for each in check_lake(lake).findings if what in each.what]
    assert findings and findings[0].file.endswith(file)
    ended = CliRunner().invoke(app, ["lake", "check", "--lake", str(lake.path)])
    assert ended.exit_code == 1
    assert f"{findings[0].file}: {findings[0].what}; {findings[0].cure}" in ended.stdout.replace("\n", " ")


def test_following_the_advice_makes_the_lake_whole(lake: Lake) -> None:
    flip(data_file(lake))
    (finding,) = check_lake(lake).findings
    Path(finding.file).unlink()
    assert lake.committed("aa") is None, "the next run computes the stage anew"
    rows = [{"prompt_id": each, "text": f"text {each}", "language": "en"} for each in "ab"]
    lake.commit("three", "aa", {"prompts": rows_table("prompts", rows)})
    assert lake.read("prompts").num_rows == 3
    (finding,) = check_lake(lake).findings
    assert finding.cure.startswith(f"delete its record {record(lake)}")
    record(lake).unlink()
    assert check_lake(lake).findings == []
