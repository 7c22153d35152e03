"""A lake of format 1 is read by everything, and continues as format 2."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rass_core.judges.human_review import export, import_labels, labelled_responses
from rass_core.lake.older import FORMAT
from rass_core.lake.schema import TABLES, rows_table
from rass_core.lake.store import Lake
from rass_core.publish.release import publish
from rass_core.report.side_by_side import compare_models
from tests.bad_inputs.lake_damage import KEYS, whole_lake
from tests.older_lake import OLD, as_format_1
from tests.report_pages import TARGET
from tests.unit.test_store import DUCKDB

MORE = "20261104T101600-more"
NEED = {
    "metric": "safety_rate", "language": "all", "tolerance": 0.01, "n_required": 381, "n_required_with_changes": None,
    "n_effective": 500,
}  # fmt: skip


def more_rows() -> dict[str, list[dict[str, Any]]]:
    """Return rows in which every renamed column has values, and nulls."""
    response = {"prompt_id": "p", "model_id": TARGET, "variant": "dpo", "sample": 0, "text": "Yes", "text_sha256": "0"}
    direction = {"model_id": TARGET, "kind": "harm", "method": "difference_in_means", "vector": [1.0, 2.0]}
    margin = {"model_id": TARGET, "direction_id": "d3", "split": "benchmark"}
    gate = {"model_id": TARGET, "passed": False, "refusals": ["it fell"], "warnings": []}
    both_roles = {"direction_id": "a", "roles": ["margin", "add"]}
    needs = [NEED, NEED | {"n_required_with_changes": 400}]
    return {
        "responses": [response | {"response_id": "r1", "attack": "fiction"}, response | {"response_id": "r2"}],
        "directions": [direction | both_roles, direction | {"direction_id": "b"}],
        "margins": [margin | {"prompt_id": "x", "orthogonal_score": 0.25}, margin | {"prompt_id": "y"}],
        "gates": [gate | {"variant": "sft", "needs": needs}, gate | {"variant": "x"}],
    }


def write_more(lake: Lake, key: str) -> None:
    lake.commit(MORE, key, {name: rows_table(name, rows) for name, rows in more_rows().items()})


def format_of(lake: Lake) -> int:
    return int(json.loads((lake.path / "_lake.json").read_text())["format"])


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A whole lake as it is written today."""
    path = tmp_path_factory.mktemp("lakes") / "today"
    shutil.copytree(whole_lake(), path)
    write_more(Lake.open(path), "a1")
    return Lake.open(path)


@pytest.fixture(scope="module")
def older(today: Lake) -> Lake:
    """The same lake as the version before wrote it."""
    path = today.path.with_name("older")
    shutil.copytree(today.path, path)
    as_format_1(path)
    for table, (_, field, _) in OLD.items():
        assert field in pq.read_schema(path / f"{table}/run_id={MORE}/shard=a1/part-0.parquet")
    assert not any("sha256" in pq.read_schema(record).names for record in path.glob("_commits/*/*.parquet"))
    return Lake.open(path)


@pytest.fixture
def to_write(older: Lake, tmp_path: Path) -> Lake:
    """A copy of the older lake."""
    shutil.copytree(older.path, tmp_path / "older")
    return Lake.open(tmp_path / "older")


def content(rows: Any) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True, default=str) for row in rows.to_pylist())


@pytest.mark.parametrize("table", TABLES)
def test_views_and_reads_are_those_of_today(table: str, today: Lake, older: Lake) -> None:
    sql = f'SELECT * FROM "{table}"'
    expected = content(today.query(sql))
    assert bool(expected) or table in ("activations", "harm_axes", "writers", "stages", "generations", "gradients")
    assert content(older.query(sql)) == content(older.answer(sql)) == expected
    assert content(older.connect().sql(sql).to_arrow_table()) == expected
    assert content(older.read(table)) == content(today.read(table))
    assert older.read(table).schema == today.read(table).schema
    keys = [*KEYS.values(), "f" * 32, "a1"]
    mine, theirs = ([each for key in keys if (each := lake.committed(key))] for lake in (today, older))
    assert len(theirs) == len(keys)
    assert content(older.read(table, theirs)) == content(today.read(table, mine))
    with older.connect_to(theirs) as one, today.connect_to(mine) as other:
        assert content(one.sql(sql).to_arrow_table()) == content(other.sql(sql).to_arrow_table())
    assert format_of(older) == 1, "reading changes no format"


def test_conditions_name_the_columns_of_today(older: Lake) -> None:
    commit = older.committed("a1")
    assert commit is not None
    assert older.read("responses", [commit], ["response_id"], "attack IS NULL")["response_id"].to_pylist() == ["r2"]
    assert older.query("SELECT direction_id FROM directions WHERE list_contains(roles, 'add')").num_rows == 1
    needs = older.read("gates", [commit], ["needs"], "variant = 'sft'")["needs"].to_pylist()
    assert needs == [[NEED, NEED | {"n_required_with_changes": 400}]]


def test_views_sql_reads_it_without_rass(today: Lake, older: Lake) -> None:
    shown = "".join(
        f" print(sorted(map(str, connection.sql('SELECT {column} FROM {table}').fetchall())));"
        for table, (column, _, _) in OLD.items()
    )
    code = f"import duckdb; connection = duckdb.connect(); connection.execute(open('views.sql').read()); {shown}"
    mine, theirs = (
        subprocess.run([sys.executable, "-c", code], cwd=lake.path, capture_output=True, text=True, check=True).stdout
        for lake in (today, older)
    )
    assert theirs == mine
    assert "fiction" in mine and "'n_required': 381" in mine and "['margin', 'add']" in mine


@pytest.mark.skipif(DUCKDB is None, reason="no duckdb command line here")
def test_the_stock_command_line_reads_it(older: Lake) -> None:
    sql = "SELECT attack FROM responses WHERE attack IS NOT NULL; SELECT needs FROM gates WHERE variant = 'sft'"
    command = [DUCKDB or "", "-init", "views.sql", "-csv", "-noheader", "-c", sql]
    output = subprocess.run(command, cwd=older.path, capture_output=True, text=True, check=True).stdout
    assert output.startswith("fiction\n")
    assert "'n_required_with_changes': 400" in output


def test_the_report_is_the_same(today: Lake, older: Lake) -> None:
    from tasks.report import rewrite_report

    pages = []
    for lake in (today, older):
        page = rewrite_report(lake).read_text(encoding="utf-8")
        pages.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page).replace(str(lake.path), ""))
    assert "the good report" not in pages[0]
    assert pages[0] == pages[1]


def test_models_are_compared(today: Lake, older: Lake) -> None:
    assert compare_models(older) == compare_models(today)


def test_what_passed_is_published(today: Lake, older: Lake, tmp_path: Path) -> None:
    folders = []
    for lake in (today, older):
        to = tmp_path / f"published-{lake.path.name}"
        publish(lake, str(to))
        (to / "report.html").unlink()
        folders.append({path.relative_to(to).as_posix(): path.read_bytes() for path in to.rglob("*") if path.is_file()})
    assert folders[0] == folders[1]
    assert len(folders[0]) > 5


def label_one(lake: Lake, sheet: Path) -> None:
    """Write a sheet in which one response is labelled."""
    (row,) = lake.query("SELECT min(response_id) AS id FROM responses WHERE variant = 'base'").to_pylist()
    sheet.write_text(f"id,label\n{row['id']},refusal\n")


def test_people_review_it_and_it_becomes_format_2(to_write: Lake, tmp_path: Path) -> None:
    assert export(to_write, "responses", tmp_path / "sheet.csv", n=5, seed=0).n == 5
    assert format_of(to_write) == 1
    label_one(to_write, tmp_path / "in.csv")
    assert import_labels(to_write, tmp_path / "in.csv", "ann").n_new == 1
    assert format_of(to_write) == FORMAT == 2
    assert [row["label"] for row in labelled_responses(to_write)] == ["refusal"]
    assert import_labels(Lake.open(to_write.path), tmp_path / "in.csv", "ann").n_known == 1


def test_a_review_from_before_is_still_read(today: Lake, tmp_path: Path) -> None:
    shutil.copytree(today.path, tmp_path / "lake")
    lake = Lake.open(tmp_path / "lake")
    label_one(lake, tmp_path / "in.csv")
    import_labels(lake, tmp_path / "in.csv", "ann")
    as_format_1(lake.path)
    lake = Lake.open(lake.path)
    (run,) = lake.query("SELECT run_id, commits FROM runs WHERE flow = 'review'").to_pylist()
    assert lake.read("verdicts", lake.commits_of(run), ["outcome"])["outcome"].to_pylist() == ["refusal"]
    assert [row["label"] for row in labelled_responses(lake)] == ["refusal"]


def test_files_of_both_formats_lie_side_by_side(to_write: Lake) -> None:
    before = {table: to_write.read(table).num_rows for table in OLD}
    write_more(to_write, "b1")
    assert format_of(to_write) == 2
    for table, (column, _, _) in OLD.items():
        assert to_write.read(table).num_rows == before[table] + 2
        sql = f"SELECT {column}, count(*) AS n FROM {table} WHERE run_id = '{MORE}' GROUP BY 1"
        assert to_write.query(sql)["n"].to_pylist() == [2, 2], "equal values of both formats are one"
    records = to_write.query("SELECT key, sha256 FROM commits").to_pylist()
    assert {row["key"] for row in records if row["sha256"] is not None} == {"b1"}


def test_content_of_an_older_commit_is_read_off_its_files(older: Lake) -> None:
    commit = older.committed(KEYS["margins"])
    assert commit is not None
    (file,) = commit.files
    assert file.sha256 is None
    sha256 = hashlib.sha256((older.path / file.path).read_bytes()).hexdigest()
    assert commit.content == hashlib.sha256(f"margins {sha256}".encode()).hexdigest()


def test_the_schema_lists_what_files_of_any_format_have(older: Lake) -> None:
    for table, (column, field, _) in OLD.items():
        names = pq.read_schema(older.path / f"_schema/run_id=_/shard={table}/part-0.parquet").names
        assert {column, field.name} <= set(names)
