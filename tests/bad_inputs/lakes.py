"""Lakes: none, damaged, of another version, and what is asked of them."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_inputs.case import Case
from tests.bad_inputs.lake_damage import (
    KEYS,
    OLD_REPORT,
    OLDER,
    RUN,
    Damage,
    cut,
    empty,
    garbage,
    gone,
    lake,
    new_run,
    no_folder,
    part,
    record,
    retyped,
    rewritten,
    text,
    words_for,
    wrong_middle,
    zeroed,
)

LONG = "x" * 300


SELECT = "SELECT * FROM margins"
JOIN = f"SELECT r.run_id, s.run_id FROM boundaries r, boundaries s WHERE r.run_id = '{RUN}' AND s.run_id = '{OLDER}'"


def sql(name: str, query: str, *words: str, damage: Damage | None = None, options: str = "") -> Case:
    """Return a case of `rass sql`."""
    made = lake(damage) if damage else lake()
    return Case(f"sql: {name}", ["sql", query, "--lake", "{tmp}/lake", *options.split()], words, {"lake": made})


def of(name: str, command: str, *words: str, at: Damage) -> Case:
    """Return a case of another command on a lake."""
    return Case(f"lake: {name}", command, words, {"lake": at})


READERS = {
    "report": "report --lake {tmp}/lake",
    "sql": ["sql", SELECT, "--lake", "{tmp}/lake"],
    "compare": "compare --lake {tmp}/lake",
    "publish": "publish --lake {tmp}/lake --to {tmp}/to",
    "review export": "review export --lake {tmp}/lake --what prompts --out {tmp}/o.csv",
    "review import": "review import {tmp}/in.csv --lake {tmp}/lake --reviewer ann",
    "calibrate": "judge calibrate --lake {tmp}/lake --out {tmp}/o.parquet",
}
"""Command → its line: each on each kind of lake that is none."""
SHEET = "id,label\nx,harmless\n"


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("gone")


NO_LAKES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "missing": (None, ("lake: no lake here", "name the folder")),
    "a file": ("text", ("lake: a file", "name the folder")),
    "an empty folder": (lambda path: path.mkdir(), ("lake: no lake here",)),
    "a folder of other files": (lambda path: (path.mkdir(), (path / "a.parquet").touch()), ("lake: no lake here",)),
    "dangling link": (link_to_nowhere, ("lake: no lake here",)),
    "newer format": (lake(text("_lake.json", '{"format": 999}')), ("format 999", "update RASS")),
    "format 0": (lake(text("_lake.json", '{"format": 0}')), ("_lake.json", "format 0")),
}
NONE = [
    Case(f"{command} on a lake that is {kind}", line, words, ({"lake": made} if made else {}) | {"in.csv": SHEET})
    for command, line in READERS.items()
    for kind, (made, words) in NO_LAKES.items()
]
FORMATS = [
    Case(f"sql on a lake whose format is {content[:30]!r}", READERS["sql"], ("_lake.json", "restore it"),
         {"lake": lake(text("_lake.json", content))})
    for content in ("", "{}", "[]", "1", "null", "not JSON", '{"format": "1"}', '{"format": true}', '{"format": 1.5}',
                    '{"format": -1}', '{"format": null}', '{"format": [1]}', b"\xff\xfe\x00", "[" * 3000)
]  # fmt: skip
NAMES = [
    Case(f"{command.split()[0]}: lake {name}", [*command.split(), option.replace("BLANK", "")], words)
    for command in ("sql SHOW --lake", "report --lake", "compare --lake", "publish --to {tmp}/to --lake")
    for name, option, words in (
        ("of 300 characters", LONG, ("255 bytes",)),
        ("of an unknown user", "~nosuchuser/lake", ("no user 'nosuchuser'",)),
        ("with a zero byte", "a\0b", ("zero byte",)),
        ("empty", "BLANK", ("empty path",)),
        ("with a pattern", "{tmp}/l*ke", ("pattern", "choose another folder")),
    )
]
DAMAGED = [
    of("report, a table file cut", READERS["report"], part("margins"), "restore it", at=lake(cut(part("margins")))),
    of("report, a table file gone", READERS["report"], part("margins"), "restore it", at=lake(gone(part("margins")))),
    of("report, a table file of 0 bytes", READERS["report"], part("margins"), at=lake(zeroed(part("margins")))),
    of("report, a table file of other bytes", READERS["report"], part("margins"), at=lake(garbage(part("margins")))),
    of("report, broken pages", READERS["report"], part("margins"), at=lake(wrong_middle(part("margins")))),
    of("report, a table's folder gone", READERS["report"], "margins", at=lake(no_folder("margins"))),
    of("report, boundaries cut", READERS["report"], part("boundaries", "other"),
       at=lake(cut(part("boundaries", "other")))),
    of("report, the runs cut", READERS["report"], part("runs"), at=lake(cut(part("runs")))),
    of("report, the runs gone", READERS["report"], "no finished run", at=lake(no_folder("runs"), gone(record("runs")))),
    of("report, a record gone", READERS["report"], KEYS["margins"], at=lake(gone(record("margins")))),
    of("report, a record cut", READERS["report"], record("margins"), at=lake(cut(record("margins")))),
    of("report, a record of 0 bytes", READERS["report"], record("margins"), at=lake(zeroed(record("margins")))),
    of("report, all records gone", READERS["report"], "no finished run", at=lake(no_folder(f"_commits/{RUN}"))),
    of("report, a column of another type", READERS["report"], "margins",
       at=lake(rewritten("margins", "margins", retyped("margin", words_for)))),
    of("report, a failed run alone", READERS["report"], "no finished run",
       at=lake(new_run(state="Failed"), no_folder(f"runs/run_id={RUN}"), gone(record("runs")))),
    of("report of an empty lake", READERS["report"], "no finished run", "rass run", at=empty),
    of("report, newest run without a configuration", READERS["report"], "20261105T000000-bbbb", "no configuration",
       at=lake(new_run(config=None))),
    of("report, newest run with a broken configuration", READERS["report"], "20261105T000000-bbbb",
       at=lake(new_run(config='{"model": '))),
    of("report, newest run of a newer version", READERS["report"], "does not know its colour",
       at=lake(new_run(config='{"model": {"name": "m"}, "prompts": {"sources": [{"path": "p"}]}, "colour": 1}'))),
    of("report, newest run whose commits are not there", READERS["report"], "7777", "restore it",
       at=lake(new_run(commits=["7777"]))),
    of("report, report.html is a folder", READERS["report"], "report.html",
       at=lake(gone("report.html"), lambda path: (path / "report.html").mkdir())),
    of("compare, boundaries cut", READERS["compare"], part("boundaries", "other"),
       at=lake(cut(part("boundaries", "other")))),
    of("compare, boundaries of other bytes", READERS["compare"], part("boundaries", "other"),
       at=lake(garbage(part("boundaries", "other")))),
    of("compare, a record cut", READERS["compare"], record("other"), at=lake(cut(record("other")))),
    of("compare, one model", READERS["compare"], "has one model",
       at=lake(no_folder(f"_commits/{OLDER}"), no_folder(f"boundaries/run_id={OLDER}"))),
    of("compare, empty lake", READERS["compare"], "no boundary", "rass probe", at=empty),
    of("publish, preferences cut", READERS["publish"], part("preferences"), at=lake(cut(part("preferences")))),
    of("publish, preferences of other bytes", READERS["publish"], part("preferences"),
       at=lake(garbage(part("preferences")))),
    of("publish, prompts gone", READERS["publish"], part("prompts"), at=lake(gone(part("prompts")))),
    of("publish, gates cut", READERS["publish"], part("gates", "preferences"),
       at=lake(cut(part("gates", "preferences")))),
    of("publish, a record gone", READERS["publish"], KEYS["preferences"], at=lake(gone(record("preferences")))),
    of("publish, the model's folder gone", READERS["publish"], "models/dpo", "missing", at=lake(no_folder("models"))),
    of("publish, no such variant", f"{READERS['publish']} --variant sft", "'sft'", "dpo", at=lake()),
    of("publish, empty lake", READERS["publish"], "no gated run", at=empty),
    of("publish, a broken configuration", READERS["publish"], "does not know",
       at=lake(new_run(config="{}"))),
    of("publish, folder not empty", "publish --lake {tmp}/lake --to {tmp}/lake", "not empty", at=lake()),
    of("publish, a file in the place", "publish --lake {tmp}/lake --to {tmp}/lake/views.sql", "views.sql", at=lake()),
    of("publish, below a file", "publish --lake {tmp}/lake --to {tmp}/lake/views.sql/to", "views.sql", at=lake()),
    of("publish, nowhere to write", "publish --lake {tmp}/lake --to /sys/to", "/sys", at=lake()),
    of("publish, folder of 300 characters", f"publish --lake {{tmp}}/lake --to {LONG}", "255 bytes", at=lake()),
    of("publish, unknown user", "publish --lake {tmp}/lake --to ~nosuchuser/to", "nosuchuser", at=lake()),
    of("publish, hub without a name", "publish --lake {tmp}/lake --to hf://", "hf://", "ORGANISATION/NAME", at=lake()),
    of("publish, hub name of three parts", "publish --lake {tmp}/lake --to hf://a/b/c", "hf://", at=lake()),
    of("review export, prompts cut", READERS["review export"], part("prompts"), at=lake(cut(part("prompts")))),
    of("review export, verdicts of other bytes", READERS["review export"], part("verdicts", "prompts"),
       at=lake(garbage(part("verdicts", "prompts")))),
    of("review export, empty lake", READERS["review export"], "no prompts", at=empty),
    of("calibrate, responses cut", READERS["calibrate"], part("responses", "prompts"),
       at=lake(cut(part("responses", "prompts")))),
    of("calibrate, nothing labelled", READERS["calibrate"], "no responses labelled by people", at=lake()),
    of("calibrate, empty lake", READERS["calibrate"], "no responses labelled by people", at=empty),
]  # fmt: skip
SQL = [
    sql("a table file cut", SELECT, part("margins"), "restore it", damage=cut(part("margins"))),
    sql("a table file gone", SELECT, part("margins"), "missing", damage=gone(part("margins"))),
    sql("a table file of 0 bytes", SELECT, part("margins"), "0 bytes", damage=zeroed(part("margins"))),
    sql("a table file of other bytes", SELECT, part("margins"), damage=garbage(part("margins"))),
    sql("broken pages", SELECT, part("margins"), damage=wrong_middle(part("margins"))),
    sql("a table's folder gone", SELECT, part("margins"), damage=no_folder("margins")),
    sql("a count over a cut table", "select count(*) from MARGINS", part("margins"), damage=cut(part("margins"))),
    sql("another table of a damaged commit", "FROM verdicts", part("prompts"), damage=cut(part("prompts"))),
    sql("a quoted table that is cut", 'SELECT "margin" FROM "margins"', part("margins"), damage=cut(part("margins"))),
    sql("a table by its name in a text", "FROM query_table('margins')", part("margins"), damage=cut(part("margins"))),
    sql("a record cut", SELECT, record("margins"), damage=cut(record("margins"))),
    sql("a record of 0 bytes", SELECT, record("margins"), damage=zeroed(record("margins"))),
    sql("a record of other bytes", "SHOW TABLES", record("margins"), damage=garbage(record("margins"))),
    sql("a record that is none", SELECT, record("margins"), damage=lambda path: pq.write_table(
        pa.table({"a": [1]}), path / record("margins"))),
    sql("no such table", "SELECT * FROM promts", "'promts'", "did you mean 'prompts'?"),
    sql("no such table, nothing near", "SELECT * FROM xyzzy", "'xyzzy'", "there are runs"),
    sql("no such column", "SELECT txet FROM prompts", "txet"),
    sql("no SQL", "show me all prompts", "query"),
    sql("half a query", "SELECT", "query"),
    sql("open quote", "SELECT 'a FROM prompts", "query"),
    sql("open bracket", "SELECT (1", "query"),
    sql("empty", "", "no statement", "SHOW TABLES"),
    sql("blanks", "  \n ", "no statement"),
    sql("only a comment", "/* nothing */", "no statement"),
    sql("only a semicolon", ";", "no statement"),
    sql("two queries", "SELECT 1; SELECT 2", "several statements"),
    sql("a text that is no number", "SELECT 'a'::INT", "query"),
    sql("overflow", "SELECT 9223372036854775807::BIGINT + 1::BIGINT", "query"),
    sql("3,000 brackets", "SELECT " + "(" * 3000 + "1" + ")" * 3000, "query"),
    sql("no such file", "FROM 'nowhere.parquet'", "nowhere.parquet"),
    sql("not grouped", "SELECT text, count(*) FROM prompts", "text"),
    sql("delete", "DELETE FROM prompts", "DELETE could write"),
    sql("drop", "DROP VIEW prompts", "DROP could write"),
    sql("update", "UPDATE prompts SET text = ''", "UPDATE could write"),
    sql("insert", "INSERT INTO prompts VALUES (1)", "INSERT could write"),
    sql("truncate", "TRUNCATE prompts", "DELETE could write"),
    sql("create", "CREATE TABLE t AS SELECT 1", "CREATE could write"),
    sql("copy", "COPY (SELECT 1) TO '{tmp}/lake/views.sql'", "COPY could write", "--format csv"),
    sql("copy in small letters", "copy prompts to '{tmp}/o.csv'", "COPY could write"),
    sql("copy behind a comment", "/* x */ COPY prompts TO '{tmp}/o.csv'", "COPY could write"),
    sql("copy of a pivot", "COPY (PIVOT prompts ON language) TO '{tmp}/o.csv'", "could write"),
    sql("explain analyze copy", "EXPLAIN ANALYZE COPY prompts TO '{tmp}/o.csv'", "EXPLAIN ANALYZE could write"),
    sql("explain (analyze) copy", "EXPLAIN (ANALYZE) COPY prompts TO '{tmp}/o.csv'", "EXPLAIN ANALYZE could write"),
    sql("copy behind a query", "SELECT 1; COPY prompts TO '{tmp}/o.csv'", "several statements"),
    sql("export", "EXPORT DATABASE '{tmp}/o'", "EXPORT could write"),
    sql("attach", "ATTACH '{tmp}/o.db'", "ATTACH could write"),
    sql("install", "INSTALL httpfs", "LOAD could write"),
    sql("set", "SET threads = 1", "SET could write"),
    sql("pragma", "PRAGMA database_size", "PRAGMA could write"),
    sql("call", "CALL pragma_version()", "CALL could write"),
    sql("two columns of one name as JSON", "SELECT 1 AS a, 2 AS a", "'a'", "AS", options="--format json"),
    sql("a join with *, as JSON", "SELECT * FROM margins m JOIN prompts p USING (prompt_id)", "'run_id'", "AS",
        options="--format json"),
    sql("unknown format", "SELECT 1", "--format", "xml", options="--format xml"),
]  # fmt: skip


def answers(name: str, query: str, form: str, expected: str, damage: Damage | None = None) -> Case:
    """Return a case of `rass sql` that is answered."""

    def check(folder: Path, out: str) -> None:
        assert out == expected

    made = lake(damage) if damage else lake()
    return Case(f"sql answers: {name}", ["sql", query, "--lake", "{tmp}/lake", "--format", form], files={"lake": made},
                code=0, check=check, may_write=False)  # fmt: skip


def as_json(name: str, query: str, expected: Any) -> Case:
    return answers(name, query, "json", json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


def _old_report_replaced(folder: Path, out: str) -> None:
    page = (folder / "lake" / "report.html").read_text(encoding="utf-8")
    assert OLD_REPORT not in page
    assert "margin b = " in page and "no boundary was fitted" not in page


def _two_columns(folder: Path, out: str) -> None:
    header, row = list(csv.reader(io.StringIO(out)))
    assert header == ["run_id", "run_id"] and row == [RUN, OLDER]


def _released(folder: Path, out: str) -> None:
    rows = pq.read_table(folder / "to" / "dataset" / "data" / "train-00000-of-00001.parquet")
    assert rows.num_rows == 4


def _made_again(path: Path) -> None:
    """Write a damaged commit again by another run, as resuming does."""
    from rass_core.lake.store import Lake

    file = path / part("margins")
    rows = pq.ParquetFile(file).read()
    file.write_bytes(b"PAR1")
    Lake.open(path).commit("20261106T000000-cccc", KEYS["margins"], {"margins": rows})
    shutil.rmtree(path / "_staging", ignore_errors=True)


GOOD = [
    answers("two columns of one name", "SELECT 1 AS a, 2 AS a", "csv", "a,a\n1,2\n"),
    answers("two columns of one name in a table", "SELECT 1 AS a, 2 AS a", "table", "a  a\n1  2\n"),
    Case("sql answers: a join", ["sql", JOIN, "--lake", "{tmp}/lake", "--format", "csv"], code=0,
         files={"lake": lake()}, check=_two_columns),
    as_json("no rows", "SELECT prompt_id FROM prompts WHERE false", []),
    as_json("decimals and sums", "SELECT 1.5 AS a, sum(2) AS b, 10::DECIMAL(5, 2) AS c", [{"a": 1.5, "b": 2, "c": 10}]),
    as_json("numbers that are none", "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, NULL AS c",
            [{"a": None, "b": None, "c": None}]),
    as_json("lists", "SELECT [1.5, NULL] AS a, {'x': 2.5} AS b", [{"a": [1.5, None], "b": {"x": 2.5}}]),
    as_json("dates beyond Python's", "SELECT DATE '20000-01-01' AS a", [{"a": "20000-01-01"}]),
    as_json("a count", "SELECT count(*) AS n FROM margins WHERE split = 'candidate'", [{"n": 40}]),
    as_json("semicolon and comment", "SELECT 1 AS a; -- one", [{"a": 1}]),
    as_json("brackets around it", "(SELECT 1 AS a)", [{"a": 1}]),
    as_json("a pivot", "FROM (PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b))", [{"1": 2}]),
    answers("a table that is whole beside a damaged one", "SELECT count(*) AS n FROM boundaries", "csv", "n\n2\n",
            damage=cut(part("margins"))),
    answers("which commits are damaged", "SELECT key FROM damaged", "csv", f"key\n{KEYS['margins']}\n",
            damage=cut(part("margins"))),
    answers("a damaged commit that was made again", "SELECT count(*) > 0 AS n FROM margins", "csv", "n\nTrue\n",
            damage=_made_again),
    Case("report: written again", "report --lake {tmp}/lake", files={"lake": lake()}, code=0, may_write=True,
         shows=("report.html",), check=_old_report_replaced),
    Case("report: lake with blanks and a quote in its name", ["report", "--lake", "{tmp}/my lake's"],
         files={"my lake's": lake()}, code=0, may_write=True, shows=("my lake's/report.html",)),
    Case("publish: what passed", "publish --lake {tmp}/lake --to {tmp}/to", files={"lake": lake()}, code=0,
         may_write=True, shows=("to/dataset",), check=_released),
]  # fmt: skip

CASES = [*NONE, *FORMATS, *NAMES, *DAMAGED, *SQL, *GOOD]
