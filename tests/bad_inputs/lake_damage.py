"""A whole lake, and what may have happened to one."""

import shutil
import tempfile
from atexit import register
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KEYS = {"prompts": "a" * 32, "margins": "b" * 32, "other": "c" * 32, "preferences": "d" * 32, "runs": "e" * 32}
RUN, OLDER = "20261104T101500-3f2a", "20261103T101500-aaaa"
OLD_REPORT = "<p>the good report</p>"
Damage = Callable[[Path], object]


@cache
def whole_lake() -> Path:
    """Return a lake with a finished, gated run of one model and an older probe of another, its report in it."""
    from rass_core.config import RassConfig
    from rass_core.lake.store import Lake
    from tests.report_pages import TARGET, boundary, plausible

    folder = Path(tempfile.mkdtemp(prefix="rass-bad-inputs-"))
    register(shutil.rmtree, folder, ignore_errors=True)
    lake = Lake.open(folder / "lake")
    rows: Any = plausible(("en",), 20, 10)
    refused = [row["prompt_id"] for row in rows["prompts"][:4]]
    rows["preferences"] = [
        {"prompt_id": each, "model_id": TARGET, "kind": "over_refusal", "language": "en", "chosen": f"Yes {each}",
         "rejected": "No", "alpha": 1.0}
        for each in refused
    ]  # fmt: skip
    rows["variants"] = [
        {"model_id": TARGET, "variant": "dpo", "folder": "models/dpo", "is_adapter": True, "settings": "{}"}
    ]
    rows["gates"] = [{"model_id": TARGET, "variant": "dpo", "passed": True, "refusals": [], "warnings": []}]
    config = RassConfig.model_validate({"model": {"name": "org/m"}, "prompts": {"sources": [{"path": "p.jsonl"}]}})
    groups = {
        "prompts": ("prompts", "responses", "verdicts"),
        "margins": ("margins",),
        "other": ("directions", "boundaries", "rounds", "selections", "quotas", "derivations", "evaluations"),
        "preferences": ("preferences", "variants", "gates"),
    }
    for group, names in groups.items():
        lake.commit(RUN, KEYS[group], {name: table(name, rows.get(name, [])) for name in names})
    older = [boundary("en", 0.1, 0.4, model_id="lenient")]
    lake.commit(OLDER, "f" * 32, {"boundaries": table("boundaries", older)})
    start = datetime(2026, 11, 4, 10, 15, tzinfo=UTC)
    run = {
        "flow": "refresh", "config": config.model_dump_json(), "code_version": "0.1.0+0", "seed": 0,
        "commits": [KEYS[group] for group in groups], "started_at": start, "finished_at": start, "state": "Completed",
    }  # fmt: skip
    lake.commit(RUN, KEYS["runs"], {"runs": table("runs", [run])})
    adapter = lake.path / "models" / "dpo" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "README.md").write_text("card", encoding="utf-8")
    (lake.path / "report.html").write_text(OLD_REPORT, encoding="utf-8")
    shutil.rmtree(lake.path / "_staging", ignore_errors=True)
    return lake.path


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    from rass_core.lake.schema import TABLES

    return pa.Table.from_pylist(rows, schema=TABLES[name])


def lake(*damages: Damage) -> Damage:
    """Return what makes a lake at a path, damaged."""

    def make(path: Path) -> None:
        shutil.copytree(whole_lake(), path)
        for damage in damages:
            damage(path)

    return make


def empty(path: Path) -> None:
    from rass_core.lake.store import Lake

    Lake.open(path)
    shutil.rmtree(path / "_staging", ignore_errors=True)


def part(name: str, group: str | None = None) -> str:
    """Return where the file of a table is."""
    return f"{name}/run_id={RUN}/shard={KEYS[group or name]}/part-0.parquet"


def record(group: str) -> str:
    """Return where a commit record is."""
    return f"_commits/{RUN}/{KEYS[group]}.parquet"


def gone(name: str) -> Damage:
    return lambda path: (path / name).unlink()


def no_folder(name: str) -> Damage:
    return lambda path: shutil.rmtree(path / name)


def zeroed(name: str) -> Damage:
    return lambda path: (path / name).write_bytes(b"")


def cut(name: str) -> Damage:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return damage


def garbage(name: str) -> Damage:
    """Return what fills a file with as many other bytes: the size says nothing."""

    def damage(path: Path) -> None:
        (path / name).write_bytes(b"\x55" * (path / name).stat().st_size)

    return damage


def wrong_middle(name: str) -> Damage:
    """Return what breaks the pages of a file, its footer left."""

    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        n = len(content)
        (path / name).write_bytes(content[:4] + b"\x55" * (n // 3) + content[4 + n // 3 :])

    return damage


def text(name: str, content: str | bytes) -> Damage:
    def damage(path: Path) -> None:
        target = path / name
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def rewritten(name: str, group: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    """Return what changes a file of a table, and its commit record so that it counts."""

    def damage(path: Path) -> None:
        file = path / part(name, group)
        pq.write_table(change(pq.ParquetFile(file).read()), file)
        at = path / record(group)
        rows = pq.ParquetFile(at).read().to_pylist()
        for row in rows:
            if row["table_name"] == name:
                row["bytes"] = file.stat().st_size
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(at)), at)

    return damage


def retyped(column: str, values: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.column_names.index(column), column, values(rows[column]))


def words_for(rows: pa.ChunkedArray) -> pa.Array:
    return pa.array(["much"] * len(rows))


def new_run(**changes: Any) -> Damage:
    """Return what adds a newer run, a copy of the finished one with changes."""

    def damage(path: Path) -> None:
        from rass_core.lake.store import Lake

        there = Lake.open(path)
        row = there.query("SELECT * FROM runs").to_pylist()[0]
        row = {name: row[name] for name in row if name not in ("run_id", "shard")}
        row |= {"started_at": datetime(2026, 11, 5, tzinfo=UTC), **changes}
        there.commit("20261105T000000-bbbb", "9" * 32, {"runs": table("runs", [row])})
        shutil.rmtree(path / "_staging", ignore_errors=True)

    return damage
