"""Tables are declared once: types, checks, comments, dictionary and documentation follow."""

import re
import subprocess
import sys
import typing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows import tables_cli
from rass_core.errors import LakeError
from rass_core.lake.declaration import VECTOR, Column, DeclaredTable, Int32, Vector
from rass_core.lake.reference import COMMAND, page
from rass_core.lake.schema import DECLARED, TABLES, rows_table
from rass_core.lake.store import Lake
from rass_core.lake.tables.probe import Margins
from tests.report_pages import TARGET, plausible, with_harm
from tests.unit.test_store import DUCKDB

ROOT = Path(__file__).parents[2]


class Part(TypedDict, total=False):
    """A record."""

    n: Required[Annotated[Int32, Column("Number.", "parts")]]
    name: Annotated[str | None, Column("Name.")]


class OldThings(TypedDict, total=False):
    """One thing.

    More about
    it.

    Example:
        SELECT *
        FROM old_things
    """

    thing_id: Required[Annotated[str, Column("Id.")]]
    small: Annotated[Int32 | None, Column("Small.", "rows")]
    large: Annotated[int | None, Column("Large.")]
    at: Annotated[datetime | None, Column("When.")]
    vector: Annotated[Vector | None, Column("Stream.")]
    blocks: Annotated[list[Int32] | None, Column("Blocks.")]
    parts: Annotated[list[Part] | None, Column("Parts.")]


def test_a_declaration_says_everything() -> None:
    table = DeclaredTable(OldThings)
    assert (table.name, table.sentence, table.notes) == ("old_things", "One thing.", ["More about it."])
    assert table.example == "SELECT *\nFROM old_things"
    record = pa.struct([("n", pa.int32()), ("name", pa.string())])
    assert table.schema == pa.schema([
        ("thing_id", pa.string()), ("small", pa.int32()), ("large", pa.int64()), ("at", pa.timestamp("us", "UTC")),
        ("vector", VECTOR), ("blocks", pa.list_(pa.int32())), ("parts", pa.list_(record)),
    ])  # fmt: skip
    flat = [each for column in table.columns for each in column.flat()]
    assert [(each.name, each.sql_type, each.can_be_null) for each in flat] == [
        ("thing_id", "VARCHAR", False), ("small", "INTEGER", True), ("large", "BIGINT", True),
        ("at", "TIMESTAMPTZ", True), ("vector", "FLOAT[]", True), ("blocks", "INTEGER[]", True),
        ("parts", "STRUCT[]", True), ("parts[].n", "INTEGER", False), ("parts[].name", "VARCHAR", True),
    ]  # fmt: skip
    assert table.columns[1].comment == "Small. Unit: rows."


@pytest.mark.parametrize("name", DECLARED)
def test_every_column_is_explained(name: str) -> None:
    table = DECLARED[name]
    assert table.sentence.endswith(".") and table.example
    assert TABLES.get(name, table.schema) == table.schema
    for column in table.columns:
        for each in column.flat():
            assert each.column.meaning.endswith("."), each.name
        assert (column.name in table.row.__required_keys__) is not column.can_be_null, column.name
    assert typing.is_typeddict(table.row)


def test_rows_become_a_table() -> None:
    margin = Margins(prompt_id="p", model_id="m", direction_id="d", split="test", margin=0.5)
    found = rows_table("margins", iter([margin, {"prompt_id": "q", "other": 1}]))
    assert found.schema == TABLES["margins"]
    assert found["prompt_id"].to_pylist() == ["p", "q"]
    assert found["margin"].to_pylist() == [0.5, None]
    assert rows_table("margins", []).num_rows == 0


def test_mypy_sees_a_missing_and_a_misspelt_column(tmp_path: Path) -> None:
    source = tmp_path / "rows.py"
    source.write_text(
        "from rass_core.lake.tables.probe import Margins\n"
        "Margins(prompt_id='p', model_id='m', direction_id='d', split='test', margin=0.5)\n"
        "Margins(prompt_id='p', model_id='m', direction_id='d', split='test', orthogonal=0.5)\n"
        "Margins(prompt_id='p', model_id='m', split='test')\n"
        "Margins(prompt_id='p', model_id='m', direction_id='d', split='test', margin='wide')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(source)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert 'rows.py:3: error: Extra key "orthogonal"' in said
    assert 'rows.py:4: error: Missing key "direction_id"' in said
    assert "rows.py:5: error: Incompatible types" in said
    assert "rows.py:2" not in said and "Found 3 errors" in said


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert written == page(), f"docs/tables.md is not what the declarations say; renew it: {COMMAND}"


def small_rows() -> dict[str, list[dict[str, Any]]]:
    """Return rows of every table, one of them at least such that the example finds it."""
    rows: dict[str, list[dict[str, Any]]] = with_harm(plausible(("en",), 30, 10))
    model = {"model_id": TARGET}
    now = datetime(2026, 11, 4, tzinfo=UTC)
    written = {"n_candidates": 9, "n_coherent": 8, "n_new": 8, "n_benign": 7, "n_refused": 5, "n_accepted": 4}
    return rows | {
        "runs": [{"flow": "refresh", "state": "Completed", "started_at": now, "finished_at": now}],
        "stages": [{"stage": "responses", "parts": ["0b"]}],
        "generations": [{"generation_id": "g", "generator_id": TARGET, "operator": "rewrite", "finish_reason": "stop"}],
        "gradients": [model | {"prompt_id": "p", "log_odds": 0.5, "vector": np.zeros(4).tolist()}],
        "activations": [model | {"prompt_id": "p", "layer": 1, "position": -1, "vector": np.zeros(4).tolist()}],
        "preferences": [model | {"prompt_id": rows["prompts"][0]["prompt_id"], "kind": "safety", "chosen": "No"}],
        "variants": [model | {"variant": "dpo", "folder": "models/dpo", "n_pairs": 1}],
        "gates": [model | {"variant": "dpo", "passed": False, "refusals": ["it fell"], "warnings": []}],
        "writers": [model | written | {"role": "user", "steering": "none", "n_tokens": 100, "chosen": True}],
    }


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake.open(tmp_path_factory.mktemp("tables") / "lake")
    lake.commit("run-1", "0a", {name: rows_table(name, rows) for name, rows in small_rows().items()})
    gone = lake.commit("run-2", "0b", {"margins": TABLES["margins"].empty_table()})
    (lake.path / gone.files[0].path).unlink()
    return lake


@pytest.mark.parametrize("name", DECLARED)
def test_every_example_finds_rows(name: str, lake: Lake) -> None:
    example = DECLARED[name].example
    assert name in example
    assert lake.query(example).num_rows
    if name not in ("commits", "damaged", "margins"):
        assert lake.answer(example).num_rows


def test_types_are_those_that_duckdb_has(lake: Lake) -> None:
    found = {
        (row["table_name"], row["column_name"]): row["data_type"]
        for row in lake.query("SELECT table_name, column_name, data_type FROM duckdb_columns()").to_pylist()
    }
    for table in DECLARED.values():
        for column in table.columns:
            kind = found.pop((table.name, column.name)).replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")
            assert kind == column.sql_type or (column.fields and kind.startswith("STRUCT(") and kind.endswith("[]"))
    assert {name for _, name in found if name in ("run_id", "shard")} == {"run_id", "shard"}


COMMENTS = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE database_name = 'temp' ORDER BY ALL"


def test_duckdb_says_what_views_and_columns_hold(lake: Lake) -> None:
    connection = lake.connect()
    comments = {(table, column): comment for table, column, comment in connection.sql(COMMENTS).fetchall()}
    for table in DECLARED.values():
        for column in table.columns:
            assert comments[table.name, column.name] == column.comment
        if table.name in TABLES:
            assert comments[table.name, "run_id"] and comments[table.name, "shard"]
    views = dict(connection.sql("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall())
    assert views == {name: DECLARED[name].sentence for name in TABLES}
    assert lake.answer("SELECT comment FROM duckdb_columns() WHERE column_name = 'orthogonal_score'").num_rows == 1


@pytest.mark.skipif(DUCKDB is None, reason="no duckdb command line here")
def test_so_does_the_stock_command_line(lake: Lake) -> None:
    sql = "SELECT comment FROM duckdb_columns() WHERE table_name = 'margins' AND column_name = 'harm_score'"
    command = [DUCKDB or "", "-init", "views.sql", "-list", "-noheader", "-c", sql]
    output = subprocess.run(command, cwd=lake.path, capture_output=True, text=True, check=True).stdout
    (column,) = (each for each in DECLARED["margins"].columns if each.name == "harm_score")
    assert output.strip() == column.comment


@pytest.fixture
def rass(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what `rass tables` prints, into a pipe or a terminal of some columns."""
    import typer

    app = typer.Typer()
    app.command()(tables_cli.tables)

    def run(*arguments: str, columns: int | None = None) -> list[str]:
        if columns is None:
            monkeypatch.delenv("FORCE_COLOR", raising=False)
        else:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("TERM", "xterm")
        found = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        return [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in found.output.splitlines()]

    return run


def test_the_terminal_lists_the_tables(rass: Any) -> None:
    lines = rass()
    assert [line.split()[0] for line in lines] == ["table", *DECLARED]
    assert f"margins      {DECLARED['margins'].sentence}" in lines


def test_the_terminal_explains_a_table(rass: Any) -> None:
    lines = rass("margins")
    for column in DECLARED["margins"].columns:
        (line,) = (line for line in lines if line.split()[:1] == [column.name])
        assert column.sql_type in line and line.endswith(column.column.meaning), "a pipe takes lines whole"
    assert "\n".join(lines).endswith(f'rass sql "{DECLARED["margins"].example}"')


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_column_is_cut_off(columns: int, rass: Any) -> None:
    lines = rass("gates", columns=columns)
    said = " ".join(" ".join(lines).split())
    for column in DECLARED["gates"].columns:
        for each in column.flat():
            assert each.name in said
            assert all(word in said for word in each.column.meaning.split())
    assert "…" not in said
    until = next(number for number, line in enumerate(lines) if line.startswith("rass sql"))
    assert max(map(len, lines[:until])) <= columns


def test_a_table_that_does_not_exist(rass: Any) -> None:
    with pytest.raises(LakeError, match="no table 'margin'; did you mean 'margins'?"):
        rass("margin")
