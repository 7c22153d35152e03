"""The lake: folders of Parquet files that are committed atomically, with DuckDB views over them.

    _lake.json                                   the format's version
    _commits/RUN/KEY.parquet                     commit records: which files a commit consists of
    TABLE/run_id=RUN/shard=KEY/part-0.parquet    rows
    _schema/…                                    a file without rows a table: columns and types
    _staging/…                                   unfinished work
    views.sql                                    the views, for the stock DuckDB command line

A commit is written below `_staging`, synced, and renamed into place, its record last. Readers take
the list of files from the records, so that they see a whole commit or none.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.errors import LakeError
from rass_core.lake.parquet import CommittedFile, sync, write_table
from rass_core.lake.reading_sql import check_reads
from rass_core.lake.schema import TABLES
from rass_core.lake.views import (
    VIEWS_HEAD,
    error_line,
    parquet_files,
    quoted,
    run_sql,
    schema_path,
    unknown_table,
    views_sql,
)
from rass_core.paths import check_writable, user_path

FORMAT = 1

_RECORD = pa.schema([
    ("run_id", pa.string()), ("key", pa.string()), ("table_name", pa.string()), ("path", pa.string()),
    ("rows", pa.int64()), ("bytes", pa.int64()), ("committed_at", pa.timestamp("us", tz="UTC")),
])  # fmt: skip
_FILE_COLUMNS = ("table_name", "path", "rows", "bytes")

REPAIR = "restore it, run the configuration again, or delete its commit record to do without"
"""What a damaged lake needs."""
_OF_THE_QUERY = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.ConversionException)
"""Errors that say nothing of the files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commit:
    """What one stage of one run wrote, under the digest of all that determined it."""

    run_id: str
    key: str
    files: tuple[CommittedFile, ...]
    root: Path | None = None

    @property
    def content(self) -> str:
        """Return the digest of its rows: equal rows give equal content, whoever wrote them, and when."""
        digests = sorted(
            f"{file.table} {hashlib.sha256(((self.root or Path()) / file.path).read_bytes()).hexdigest()}"
            for file in self.files if file.table != "stages"
        )  # fmt: skip
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class Lake:
    """A lake that is there; get one by `Lake.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path, create: bool = True) -> "Lake":
        """Open a lake, create it if new, and sweep up after writers that died on this machine.

        Raises:
            LakeError: No lake and `create` is false, a newer format, or a folder that cannot be written.
        """
        root = cls._root(path)
        lake = cls(root)
        if not create and not (root / "_lake.json").exists():
            raise LakeError(f"{root}: no lake here; name the folder that a run wrote")
        with _disk(root):
            lake._write_new("_lake.json", json.dumps({"format": FORMAT}))
            lake._check_format()
            lake._write_schemas()
            lake._write_new("views.sql", VIEWS_HEAD + views_sql(""), replace=True)
            lake._sweep()
        return lake

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Tell before the work whether a lake can be opened or made at a path; nothing is written.

        Raises:
            LakeError: As `open`.
        """
        root = cls._root(path)
        if (root / "_lake.json").exists():
            with _disk(root):
                cls(root)._check_format()
        check_writable(root / "_lake.json", LakeError, "--lake")

    @staticmethod
    def _root(path: str | Path) -> Path:
        root = user_path(path, LakeError, "--lake").absolute()
        if root.exists() and not root.is_dir():
            raise LakeError(f"{root}: a file; name the folder of a lake")
        if re.search(r"[*?\[\]{}]", str(root)):
            raise LakeError(f"{root}: DuckDB takes *?[]{{}} in a path for a pattern; choose another folder")
        return root

    def commit(self, run_id: str, key: str, tables: Mapping[str, pa.Table | Iterable[pa.RecordBatch]]) -> Commit:
        """Write all tables of one stage, or nothing; a stage that is already there is not written again.

        Args:
            run_id: Run that writes, a folder name.
            key: Content key of the stage, hexadecimal: equal keys promise equal rows.
            tables: table → rows, which are streamed a row group at a time if they are an iterator.
                Vectors are stored exactly; rounded to bfloat16 before, they take less than half the space.

        Raises:
            LakeError: Rows that do not fit the table, a full disk, an unwritable folder. Nothing shows then.
        """
        _check_names(run_id, key, tables)
        done = self.committed(key)
        if done is not None:
            return done
        with _disk(self.path), self._staging() as staging:
            files = tuple(
                write_table(staging / table, table, rows, f"{table}/run_id={run_id}/shard={key}")
                for table, rows in tables.items()
            )
            commit = Commit(run_id, key, files, self.path)
            _write_record(staging / "record", commit)
            for file in files:
                self._publish(staging / file.table, (self.path / file.path).parent)
            record = self._record(run_id, key)
            _make_folder(record.parent)
            os.replace(staging / "record", record)
            sync(record.parent)
        return commit

    def committed(self, key: str) -> Commit | None:
        """Return the stage of this key, whichever run wrote it; None where none is whole."""
        found = []
        for record in (self.path / "_commits").glob(f"*/{key}.parquet"):
            try:
                table = pq.ParquetFile(record).read()
            except (pa.ArrowException, OSError) as error:
                _log.warning("%s: unreadable commit record (%s), does not count", record, error_line(error))
                continue
            rows = table.to_pylist()
            files = tuple(CommittedFile(*(row[name] for name in _FILE_COLUMNS)) for row in rows)
            commit = Commit(record.parent.name, key, files, self.path)
            damaged = self._damaged(commit)
            if damaged:
                _log.warning("%s: missing or damaged, its commit does not count", self.path / damaged[0])
            else:
                found.append((rows[0]["committed_at"], commit.run_id, commit))
        return min(found)[2] if found else None

    def commits_of(self, run: Mapping[str, Any]) -> list[Commit]:
        """Return the commits of a run, every one of them whole.

        Args:
            run: Row of table `runs`.

        Raises:
            LakeError: A commit record that is gone or unreadable, or a file that is missing or damaged: what was
                computed without its rows would be wrong.
        """
        found = []
        for key in run["commits"] or ():
            commit = self.committed(key)
            if commit is None:
                raise LakeError(f"{self._what_is_wrong_with(key)}, of run {run['run_id']}; {REPAIR}")
            found.append(commit)
        return found

    def check_whole(self, *tables: str) -> None:
        """Raise where a commit with rows of these tables is damaged and was not made again.

        Raises:
            LakeError: Naming the file that is missing or damaged.
        """
        _check_whole(self.connect(), self.path, tables)

    def answer(self, sql: str) -> pa.Table:
        """Return the result of one query of a user, which can change nothing.

        Raises:
            LakeError: As `query`; several statements, one that writes, or a damaged commit with rows that it asks for.
        """
        check_reads(sql)
        connection = self.connect()
        words = {word.casefold() for word in re.findall(r"\w+", sql)}
        asked = [table for table in TABLES if table in words]
        _check_whole(connection, self.path, asked)
        files = "SELECT path FROM commits WHERE list_contains($asked, table_name) ORDER BY path"
        with _naming([path for (path,) in connection.execute(files, {"asked": asked}).fetchall()]):
            return run_sql(connection, sql)

    def _what_is_wrong_with(self, key: str) -> str:
        """Return the file because of which a commit does not count, and why."""
        records = sorted((self.path / "_commits").glob(f"*/{key}.parquet"))
        if not records:
            return f"{self.path / '_commits'}: no commit record {key}.parquet"
        for record in records:
            try:
                rows = pq.ParquetFile(record).read().to_pylist()
                files = tuple(CommittedFile(*(row[name] for name in _FILE_COLUMNS)) for row in rows)
            except (pa.ArrowException, OSError, KeyError):
                return f"{record}: an unreadable commit record"
            for path in self._damaged(Commit("", key, files)):
                return f"{self.path / path}: missing or damaged"
        return f"{records[0]}: a commit record without files"

    def read(
        self,
        table: str,
        commits: Sequence[Commit] | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Return rows of a table, with the column `run_id`.

        Args:
            table: One of the lake's tables.
            commits: Exactly the rows of these; by default those of the table's view.
            columns: By default all of the table and `run_id`.
            where: A condition in SQL.

        Raises:
            LakeError: An unknown table or column, a condition that is no SQL, or a file that is gone.
        """
        _check_table(table)
        connection = self._session() if commits is not None else self.connect()
        source = self._rows_of(table, commits) if commits is not None else f'"{table}"'
        names = list(columns) if columns is not None else [*TABLES[table].names, "run_id"]
        chosen = ", ".join(f'"{name}"' for name in names)
        files = [self.path / file.path for commit in commits or () for file in commit.files if file.table == table]
        with _naming(files):
            rows = run_sql(connection, f"SELECT {chosen} FROM {source}" + (f" WHERE {where}" if where else ""))
        try:
            return rows.cast(pa.schema([_field(table, name) for name in names]))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise LakeError(
                f"{self.path / table}: rows of another type than RASS writes ({error_line(error)}); {REPAIR}"
            ) from error

    def connect(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection with one view a table, over what is committed by now.

        `prompts` holds the newest row of each prompt_id and `runs` that of each run_id; `commits` lists the
        files, `damaged` the commits that do not count because a file is missing or has the wrong size.

        Args:
            memory_limit: Such as '2GB', beyond which DuckDB spills into the lake; null takes DuckDB's own.
        """
        connection = self._session(memory_limit)
        with _naming((self.path / "_commits").glob("*/*.parquet"), "restore it, or delete it to do without its rows"):
            run_sql(connection, views_sql(f"{self.path}/"), str(self.path))
        for run_id, key in connection.sql("SELECT run_id, key FROM damaged").fetchall():
            _log.warning("%s: a file is missing or damaged, does not count", self._record(run_id, key))
        return connection

    def connect_to(self, commits: Sequence[Commit], memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection whose views hold exactly the rows of these commits.

        Args:
            commits: Of one run, say, so that what other runs wrote cannot change a result.
            memory_limit: As `connect`.
        """
        connection = self._session(memory_limit)
        for table in TABLES:
            run_sql(
                connection, f'CREATE VIEW "{table}" AS SELECT * FROM {self._rows_of(table, commits)}', str(self.path)
            )
        return connection

    def query(self, sql: str, memory_limit: str | None = None) -> pa.Table:
        """Return the result of a query over the views.

        Raises:
            LakeError: Whatever DuckDB has against the query, in one line.
        """
        return run_sql(self.connect(memory_limit), sql)

    def _rows_of(self, table: str, commits: Sequence[Commit]) -> str:
        """Return what SQL reads the rows of these commits from."""
        paths = [file.path for commit in commits for file in commit.files if file.table == table]
        listed = ", ".join(quoted(f"{self.path}/{path}") for path in [schema_path(table), *paths])
        return parquet_files(f"[{listed}]")

    def _session(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        connection.execute(f"SET TimeZone = 'UTC'; SET temp_directory = {quoted(self._staging_path())}")
        if memory_limit is not None:
            run_sql(connection, f"SET memory_limit = {quoted(memory_limit)}", "memory_limit")
        return connection

    def _check_format(self) -> None:
        path = self.path / "_lake.json"
        try:
            version = json.loads(path.read_bytes())["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LakeError(f'{path}: no {{"format": {FORMAT}}} in it; restore it') from error
        if type(version) is not int or version < FORMAT:
            raise LakeError(f"{path}: format {version!r}, which is unknown; restore it or name another lake")
        if version > FORMAT:
            raise LakeError(f"{self.path}: lake of format {version}, this RASS reads {FORMAT}; update RASS")

    def _write_schemas(self) -> None:
        """Write one file without rows a table: no view is ever without files, columns or types."""
        schemas = {schema_path(table): schema for table, schema in TABLES.items()}
        for path, schema in {**schemas, "_commits/_/_.parquet": _RECORD}.items():
            target = self.path / path
            if _has_schema(target, schema):
                continue
            with self._staging() as staging:
                pq.write_table(schema.empty_table(), staging / "schema")
                sync(staging / "schema")
                _make_folder(target.parent)
                os.replace(staging / "schema", target)

    def _write_new(self, name: str, text: str, replace: bool = False) -> None:
        target = self.path / name
        if target.exists() and (not replace or target.read_bytes() == text.encode()):
            return
        with self._staging() as staging:
            (staging / name).write_bytes(text.encode())
            sync(staging / name)
            os.replace(staging / name, target)
        sync(self.path)

    def _sweep(self) -> None:
        """Remove what dead processes of this machine left in `_staging`."""
        for folder in (self.path / "_staging").glob("*"):
            writer = re.fullmatch(r"(.*)-(\d+)-[0-9a-f]{8}", folder.name)
            if writer and writer[1] == socket.gethostname() and not _is_alive(int(writer[2])):
                shutil.rmtree(folder, ignore_errors=True)

    def _staging_path(self) -> Path:
        return self.path / "_staging" / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        folder = self._staging_path()
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, folder: Path, target: Path) -> None:
        """Rename a finished folder into place, and aside what a killed writer left there without a record."""
        sync(folder)
        _make_folder(target.parent)
        while True:
            try:
                os.rename(folder, target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            os.rename(target, folder.with_name(f"replaced-{uuid.uuid4().hex[:8]}"))
        sync(target.parent)

    def _record(self, run_id: str, key: str) -> Path:
        return self.path / "_commits" / run_id / f"{key}.parquet"

    def _damaged(self, commit: Commit) -> list[str]:
        def size(path: str) -> int | None:
            try:
                return os.stat(self.path / path).st_size
            except OSError:
                return None

        return [file.path for file in commit.files if size(file.path) != file.bytes]


def _check_whole(connection: duckdb.DuckDBPyConnection, root: Path, tables: Collection[str]) -> None:
    """Raise where a damaged commit has rows of these tables that no other commit has."""
    records = quoted(f"{root}/_commits/*/*.parquet")
    lost = connection.execute(
        f"SELECT run_id, path, bytes FROM read_parquet({records}) SEMI JOIN damaged USING (run_id, key)"
        f" ANTI JOIN commits USING (key) WHERE key IN (SELECT key FROM read_parquet({records})"
        " WHERE list_contains($tables, table_name)) ORDER BY run_id, path",
        {"tables": list(tables)},
    ).fetchall()
    for run_id, path, size in lost:
        file = root / path
        if not file.exists():
            raise LakeError(f"{file}: missing, and without it the rows of run {run_id} would be left out; {REPAIR}")
        if file.stat().st_size != size:
            was = f"damaged, it has {file.stat().st_size:,} bytes in place of {size:,}"
            raise LakeError(f"{file}: {was}, and the rows of run {run_id} would be left out; {REPAIR}")


@contextmanager
def _naming(files: Iterable[str | Path], advice: str | None = None) -> Iterator[None]:
    """Inside, name the file where one of these cannot be read: DuckDB does not always."""
    try:
        yield
    except LakeError as error:
        if not isinstance(error.__cause__, _OF_THE_QUERY):
            for file in files:
                try:
                    with pq.ParquetFile(file) as content:
                        content.read()
                except (pa.ArrowException, OSError) as broken:
                    raise LakeError(f"{file}: damaged ({error_line(broken)}); {advice or REPAIR}") from broken
        raise


def _has_schema(path: Path, schema: pa.Schema) -> bool:
    """Return whether a Parquet file is there with these columns."""
    try:
        return bool(pq.read_schema(path).equals(schema))
    except (pa.ArrowException, OSError):
        return False


def _write_record(path: Path, commit: Commit) -> None:
    now = datetime.now(UTC)
    rows = [
        {"run_id": commit.run_id, "key": commit.key, "table_name": file.table, "path": file.path,
         "rows": file.rows, "bytes": file.bytes, "committed_at": now}
        for file in commit.files
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=_RECORD), path)
    sync(path)


def _field(table: str, name: str) -> pa.Field:
    return TABLES[table].field(name) if name in TABLES[table].names else pa.field(name, pa.string())


def _check_names(run_id: str, key: str, tables: Collection[str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
        raise LakeError(f"run_id {run_id!r}: not a folder name; use letters, digits, '.', '_' and '-'")
    if not re.fullmatch(r"[0-9a-f]{1,128}", key):
        raise LakeError(f"key {key!r}: not a digest; use hexadecimal digits")
    if not tables:
        raise LakeError(f"commit {key}: no tables; a stage without rows still gives its empty table")
    for table in tables:
        _check_table(table)


def _check_table(table: str) -> None:
    if table not in TABLES:
        raise LakeError(unknown_table(table))


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn the system's refusals, which carry an errno, into one line each."""
    try:
        yield
    except LakeError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LakeError(f"{path}: disk full, nothing was committed; free space and run again") from error
        what = os.strerror(error.errno)
        raise LakeError(f"{path}: cannot be written ({what}); fix it or choose another folder") from error
