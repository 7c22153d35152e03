"""The lake: what is committed is read back, and what is not whole is not seen."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rass_core.errors import LakeError
from rass_core.lake.schema import TABLES, VECTOR
from rass_core.lake.store import Commit, Lake

KEY, OTHER_KEY = "0a", "0b"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def prompts(texts: list[str], label: str = "harmless") -> pa.Table:
    rows = [{"prompt_id": text, "text": text, "language": "en", "label": label} for text in texts]
    return pa.Table.from_pylist(rows, schema=TABLES["prompts"])


def activations(vectors: list[list[float] | None], kind: pa.DataType = VECTOR) -> pa.Table:
    n = len(vectors)
    ids = {"prompt_id": [f"p{i}" for i in range(n)], "model_id": ["m"] * n}
    return pa.table({**ids, "layer": [3] * n, "position": [-1] * n, "vector": pa.array(vectors, kind)})


def test_rows_come_back_with_their_run(lake: Lake) -> None:
    commit = lake.commit("run-1", KEY, {"prompts": prompts(["a", "b"]), "activations": activations([[1, 2]])})
    assert [(file.table, file.rows) for file in commit.files] == [("prompts", 2), ("activations", 1)]
    assert lake.committed(KEY) == commit
    assert lake.read("prompts", [commit], ["text", "run_id"]).to_pylist() == [
        {"text": "a", "run_id": "run-1"}, {"text": "b", "run_id": "run-1"},
    ]  # fmt: skip
    assert lake.read("prompts", where="text > 'a'")["text"].to_pylist() == ["b"]
    vectors = lake.read("activations")
    assert vectors.schema.field("vector").type == VECTOR
    assert vectors["vector"].to_pylist() == [[1.0, 2.0]]


def test_tables_without_rows_have_typed_views(lake: Lake) -> None:
    for table, schema in TABLES.items():
        rows = lake.read(table)
        assert rows.num_rows == 0
        assert rows.schema == schema.append(pa.field("run_id", pa.string()))


def test_a_second_run_finds_the_stage_done(lake: Lake) -> None:
    first = lake.commit("run-1", KEY, {"prompts": prompts(["a"])})

    def never() -> Iterator[pa.RecordBatch]:
        raise AssertionError("computed again")
        yield

    assert lake.commit("run-2", KEY, {"prompts": never()}) == first
    assert lake.committed(OTHER_KEY) is None


def test_two_runs_that_raced_for_a_stage_count_once(lake: Lake) -> None:
    lake.commit("run-1", KEY, {"margins": TABLES["margins"].empty_table(), "prompts": prompts(["a"])})
    record, aside = lake.path / "_commits/run-1/0a.parquet", lake.path / "aside"
    record.rename(aside)
    lake.commit("run-2", KEY, {"margins": TABLES["margins"].empty_table(), "prompts": prompts(["a"])})
    aside.rename(record)
    assert lake.query("SELECT DISTINCT run_id FROM commits").to_pylist() == [{"run_id": "run-1"}]
    committed = lake.committed(KEY)
    assert committed is not None and committed.run_id == "run-1"


def test_vectors_are_fixed_size_split_and_in_small_row_groups(lake: Lake) -> None:
    commit = lake.commit("run-1", KEY, {"activations": activations([[1, 2, 3]] * 5000)})
    file = pq.ParquetFile(lake.path / commit.files[0].path)
    kind = file.schema_arrow.field("vector").type
    assert kind == pa.list_(pa.field("element", pa.float32(), nullable=False), 3)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2048, 2048, 904]
    column = file.metadata.row_group(0).column(4)
    assert column.path_in_schema == "vector.list.element"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.compression == "ZSTD"


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)], ids=str
)
def test_every_kind_of_list_is_a_vector_and_may_be_null(lake: Lake, kind: pa.DataType) -> None:
    rows = activations([None, [1, 2], [3, 4], None, [5, 6]], kind)
    lake.commit("run-1", KEY, {"activations": iter(rows.to_batches(max_chunksize=2))})
    assert lake.read("activations")["vector"].to_pylist() == [None, [1, 2], [3, 4], None, [5, 6]]


def test_a_table_of_null_vectors_only(lake: Lake) -> None:
    lake.commit("run-1", KEY, {"activations": activations([None, None])})
    assert lake.read("activations")["vector"].to_pylist() == [None, None]


def test_content_is_that_of_the_rows_whoever_wrote_them(lake: Lake, tmp_path: Path) -> None:
    vectors = activations([[float(i), 0.5] for i in range(5000)])
    texts = prompts([f"text {i}" * 20 for i in range(40_000)])

    def written(run_id: str, key: str, size: int, **tables: pa.Table) -> Commit:
        return lake.commit(run_id, key, {name: iter(rows.to_batches(size)) for name, rows in tables.items()})

    whole = Lake.open(tmp_path / "other").commit("run-1", KEY, {"prompts": texts, "activations": vectors})
    parts = written("run-2", OTHER_KEY, 333, activations=vectors, prompts=texts)
    assert parts.content == whole.content
    assert re.fullmatch("[0-9a-f]{64}", whole.content)
    others = [
        written("run-2", "0c", 333, activations=vectors.slice(1), prompts=texts),
        written("run-2", "0d", 333, activations=vectors),
        written("run-2", "0e", 333, activations=vectors.slice(0, 0), prompts=texts),
    ]
    assert len({whole.content, *(each.content for each in others)}) == 4


def test_the_record_has_the_digest_of_each_file(lake: Lake) -> None:
    commit = lake.commit("run-1", KEY, {"prompts": prompts(["a"]), "activations": activations([[1, 2]])})
    for file in commit.files:
        assert file.sha256 == hashlib.sha256((lake.path / file.path).read_bytes()).hexdigest()
    rows = lake.query("SELECT table_name, sha256 FROM commits ORDER BY table_name").to_pylist()
    assert rows == [{"table_name": file.table, "sha256": file.sha256} for file in commit.files[::-1]]
    found = lake.committed(KEY)
    assert found is not None and found.content == commit.content


def test_an_unreadable_record_does_not_count(lake: Lake, caplog) -> None:
    lake.commit("run-1", KEY, {"prompts": prompts(["a"])})
    for content in (pa.table({"a": [1]}), pq.read_schema(lake.path / "_commits/_/_.parquet").empty_table()):
        pq.write_table(content, lake.path / "_commits/run-1/0a.parquet")
        assert lake.committed(KEY) is None
    assert caplog.text.count("unreadable commit record") == 2


def test_streams_are_not_collected(lake: Lake) -> None:
    held: list[int] = []
    before = pa.total_allocated_bytes()
    n_batches, width = 120, 256
    n_bytes = 500 * width * 4

    def stream() -> Iterator[pa.RecordBatch]:
        for _ in range(n_batches):
            yield activations([[0.5] * width] * 500).to_batches()[0]
            held.append(pa.total_allocated_bytes() - before)

    lake.commit("run-1", KEY, {"activations": stream()})
    assert lake.query("SELECT count(*) AS n FROM activations")["n"].to_pylist() == [500 * n_batches]
    assert max(held) < n_batches * n_bytes / 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (prompts(["a"]).drop_columns(["text"]), r"prompts: missing columns \['text'\]"),
        (prompts(["a"]).append_column("txet", [["a"]]), r"unknown columns \['txet'\]"),
        (prompts(["a"]).set_column(1, "text", [[["a"]]]), r"prompts\.text: list<.*> does not fit string"),
    ],
)
def test_rows_that_do_not_fit_are_refused(lake: Lake, rows: pa.Table, message: str) -> None:
    with pytest.raises(LakeError, match=message) as caught:
        lake.commit("run-1", KEY, {"prompts": rows})
    assert "\n" not in str(caught.value)
    assert lake.committed(KEY) is None


@pytest.mark.parametrize(
    ("vectors", "message"),
    [([[1, 2], [3]], "vectors of two widths"), ([[1, 2], [3, None]], "a null inside a vector")],
)
def test_ragged_vectors_are_refused(lake: Lake, vectors: list[list[float] | None], message: str) -> None:
    with pytest.raises(LakeError, match=message):
        lake.commit("run-1", KEY, {"activations": activations(vectors, pa.list_(pa.float32()))})


@pytest.mark.parametrize(
    ("run_id", "key", "tables", "message"),
    [
        ("../x", KEY, {"prompts": prompts([])}, "not a folder name"),
        ("r", "xyz", {"prompts": prompts([])}, "not a digest"),
        ("r", KEY, {"promts": prompts([])}, "did you mean 'prompts'"),
        ("r", KEY, {}, "no tables"),
    ],
)
def test_names_are_checked(lake: Lake, run_id: str, key: str, tables: dict[str, pa.Table], message: str) -> None:
    with pytest.raises(LakeError, match=message):
        lake.commit(run_id, key, tables)


def test_a_source_that_fails_leaves_nothing(lake: Lake) -> None:
    def fails() -> Iterator[pa.RecordBatch]:
        yield prompts(["a"]).to_batches()[0]
        raise RuntimeError("the model died")

    with pytest.raises(RuntimeError, match="the model died"):
        lake.commit("run-1", KEY, {"margins": TABLES["margins"].empty_table(), "prompts": fails()})
    assert lake.committed(KEY) is None
    assert not (lake.path / "margins").exists()
    assert list((lake.path / "_staging").iterdir()) == []


def test_what_a_killed_writer_left_without_a_record_is_replaced(lake: Lake) -> None:
    lake.commit("run-1", KEY, {"prompts": prompts(["half"])})
    (lake.path / "_commits/run-1/0a.parquet").unlink()
    assert lake.read("prompts").num_rows == 0
    lake.commit("run-1", KEY, {"prompts": prompts(["whole"])})
    assert lake.read("prompts")["text"].to_pylist() == ["whole"]
    assert list((lake.path / "_staging").iterdir()) == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_damaged_commit_does_not_count_and_is_written_again(lake: Lake, damage, caplog) -> None:
    tables = {"prompts": prompts(["a"]), "activations": activations([[1, 2]])}
    commit = lake.commit("run-1", KEY, tables)
    lake.commit("run-1", OTHER_KEY, {"prompts": prompts(["b"])})
    damage(lake.path / commit.files[1].path)
    assert lake.committed(KEY) is None
    assert "missing or damaged" in caplog.text
    assert lake.read("prompts")["text"].to_pylist() == ["b"], "a whole commit or none"
    assert lake.query("SELECT key FROM damaged").to_pylist() == [{"key": KEY}]
    assert lake.commit("run-2", KEY, tables).run_id == "run-2"
    assert sorted(lake.read("prompts")["text"].to_pylist()) == ["a", "b"]
    assert lake.read("activations").num_rows == 1


def test_reading_a_commit_whose_file_is_gone(lake: Lake) -> None:
    commit = lake.commit("run-1", KEY, {"prompts": prompts(["a"])})
    (lake.path / commit.files[0].path).unlink()
    with pytest.raises(LakeError, match="part-0.parquet"):
        lake.read("prompts", [commit])


def test_prompts_and_runs_show_the_newest_row(lake: Lake) -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    for i, state in enumerate(["Running", "Failed", "Resumed"]):
        row = {"flow": "refresh", "state": state, "started_at": start - timedelta(hours=i)}
        lake.commit("run-1", f"{9 - i}", {"runs": pa.Table.from_pylist([row], schema=TABLES["runs"])})
    runs = lake.query("SELECT run_id, state FROM runs").to_pylist()
    assert runs == [{"run_id": "run-1", "state": "Resumed"}]
    lake.commit("run-2", KEY, {"prompts": prompts(["a", "b"], "harmful")})
    lake.commit("run-1", OTHER_KEY, {"prompts": prompts(["b", "c"], "harmless")})
    labels = {row["text"]: row["label"] for row in lake.read("prompts").to_pylist()}
    assert labels == {"a": "harmful", "b": "harmless", "c": "harmless"}
    assert lake.read("prompts").num_rows == 3


def test_files_of_an_older_rass_lack_a_column(lake: Lake) -> None:
    commit = lake.commit("run-1", KEY, {"prompts": prompts(["a"])})
    path = lake.path / commit.files[0].path
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["family"]), path)
    record = lake.path / "_commits/run-1/0a.parquet"
    row = {**pq.ParquetFile(record).read().to_pylist()[0], "bytes": path.stat().st_size}
    pq.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(record)), record)
    assert lake.read("prompts", columns=["text", "family"]).to_pylist() == [{"text": "a", "family": None}]


@pytest.mark.parametrize("sql", ["SELECT * FROM promts", "SELEC", "SELECT txet FROM prompts", "SELECT 'a'::INT"])
def test_errors_of_a_query_are_one_line(lake: Lake, sql: str) -> None:
    with pytest.raises(LakeError) as caught:
        lake.query(sql)
    assert "\n" not in str(caught.value)
    if "promts" in sql:
        assert "did you mean 'prompts'?" in str(caught.value)


def test_memory_limit_is_set_and_spills_stay_in_the_lake(lake: Lake) -> None:
    connection = lake.connect(memory_limit="200MB")
    setting = "SELECT current_setting('memory_limit'), current_setting('temp_directory')"
    limit, folder = connection.sql(setting).fetchall()[0]
    assert limit.startswith("190.7")
    assert folder.startswith(str(lake.path / "_staging"))
    with pytest.raises(LakeError, match="memory"):
        lake.connect(memory_limit="much")


def test_views_sql_gives_the_same_rows_without_rass(lake: Lake) -> None:
    lake.commit("run-1", KEY, {"prompts": prompts(["a", "b"]), "activations": activations([[1, 2]])})
    lake.commit("run-2", OTHER_KEY, {"prompts": prompts(["b", "it's"])})
    commit = lake.commit("run-2", "0c", {"prompts": prompts(["gone"])})
    (lake.path / commit.files[0].path).unlink()
    sql = "SELECT text, run_id FROM prompts ORDER BY text"
    code = (
        "import duckdb; connection = duckdb.connect(); connection.execute(open('views.sql').read());"
        f" print(connection.sql({sql!r}).fetchall())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=lake.path, capture_output=True, text=True, check=True
    ).stdout
    expected = [("a", "run-1"), ("b", "run-2"), ("it's", "run-2")]
    assert output.strip() == str(expected)
    assert [tuple(row.values()) for row in lake.query(sql).to_pylist()] == expected


DUCKDB = shutil.which("duckdb", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(DUCKDB is None, reason="no duckdb command line here")
def test_the_stock_command_line_reads_views_sql(lake: Lake) -> None:
    lake.commit("run-1", KEY, {"prompts": prompts(["a", "b"])})
    sql = "SELECT text FROM prompts ORDER BY text"
    command = [DUCKDB or "", "-init", "views.sql", "-csv", "-noheader", "-c", sql]
    output = subprocess.run(command, cwd=lake.path, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["a", "b"]


def test_a_lake_can_be_moved(lake: Lake, tmp_path: Path) -> None:
    lake.commit("run-1", KEY, {"prompts": prompts(["a"])})
    lake.path.rename(tmp_path / "it's elsewhere")
    assert Lake.open(tmp_path / "it's elsewhere").read("prompts").num_rows == 1


def test_a_newer_format_is_refused(lake: Lake) -> None:
    (lake.path / "_lake.json").write_text(json.dumps({"format": 3}))
    with pytest.raises(LakeError, match="lake of format 3, this RASS reads 2; update RASS"):
        Lake.open(lake.path)
    (lake.path / "_lake.json").write_text("{}")
    with pytest.raises(LakeError, match="_lake.json"):
        Lake.open(lake.path)


def test_a_lake_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no lake here"):
        Lake.open(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(LakeError, match="pattern"):
        Lake.open(tmp_path / "a*b")


def test_staging_without_a_lock_is_swept_after_a_day(lake: Lake) -> None:
    for name, age_s in (("a-machine-12-00000000", 90_000), ("another-12-00000000", 80_000)):
        folder = lake.path / "_staging" / name
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    Lake.open(lake.path)
    assert [folder.name for folder in (lake.path / "_staging").iterdir()] == ["another-12-00000000"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match="cannot be written"):
        Lake.open(tmp_path / "file" / "lake")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    Lake.open(folder / "lake").files.locks.release()
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    lake = Lake.open(small_disk / "lake")
    lake.commit("run-1", KEY, {"prompts": prompts(["a"])})
    noise = [os.urandom(500).hex() for _ in range(4000)]
    with pytest.raises(LakeError, match="disk full") as caught:
        margins = TABLES["margins"].empty_table()
        lake.commit("run-1", OTHER_KEY, {"margins": margins, "prompts": prompts(noise)})
    assert "\n" not in str(caught.value)
    assert list((lake.path / "_staging").iterdir()) == []
    assert not (lake.path / "margins").exists()
    assert lake.read("prompts")["text"].to_pylist() == ["a"]
    lake.commit("run-1", OTHER_KEY, {"prompts": prompts(["b"])})
    assert lake.read("prompts").num_rows == 2


def test_a_read_only_lake_is_read_and_refuses_commits(small_disk: Path) -> None:
    lake = Lake.open(small_disk / "lake")
    lake.commit("run-1", KEY, {"prompts": prompts(["a"])})
    lake.files.locks.release()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    lake = Lake.open(lake.path)
    assert lake.read("prompts").num_rows == 1
    with pytest.raises(LakeError, match="cannot be written"):
        lake.commit("run-1", OTHER_KEY, {"prompts": prompts(["b"])})
