"""The lake: folders of Parquet files that are committed atomically, with DuckDB views over them.

    _lake.json                                   the format's version
    _commits/RUN/KEY.parquet                     commit records: which files a commit has, and their digests
    TABLE/run_id=RUN/shard=KEY/part-0.parquet    rows
    _schema/…                                    one file per table, without rows: columns and types
    _staging/…                                   unfinished work
    _locks/…                                     one per process that works here, freed when it ends
    _running/RUN.json                            one per run that has not ended
    views.sql                                    the views, for the stock DuckDB command line

A commit is written below `_staging`, synced, and renamed into place, its record last. Readers take
the list of files from the records, so that they see a whole commit or none.

A lake of an older format is read under today's names (`rass_core.lake.older`); the first commit raises its format.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.errors import LakeError
from rass_core.lake.commits import Commit, CommittedFile, read_record, write_record
from rass_core.lake.damage import REPAIR, UNREADABLE, check_whole, naming, what_is_wrong
from rass_core.lake.files import LakeFiles, files_at
from rass_core.lake.older import FORMAT, OLDEST_FORMAT, stored_schema
from rass_core.lake.parquet import write_table
from rass_core.lake.reading_sql import check_reads
from rass_core.lake.running import RunningRuns, end_dead_runs
from rass_core.lake.schema import RECORD, TABLES, unknown_table
from rass_core.lake.views import (
    ADVICE,
    VIEWS_HEAD,
    comments_sql,
    error_line,
    quoted,
    rows_sql,
    run_sql,
    schema_path,
    views_sql,
)

__all__ = ["Commit", "CommittedFile", "Lake"]

_log = logging.getLogger(__name__)
STREAM_MEMORY = "256MB"
"""Memory of DuckDB where a result is read a batch at a time."""
STREAM_ROWS = 4096
"""Rows of such a batch, at most."""


class Lake:
    """A lake that is there; get one by `Lake.open`."""

    def __init__(self, files: LakeFiles) -> None:
        self.files = files
        self.running = RunningRuns(files.folder / "_running", files.locks)
        self.crashed: list[str] = []
        """A line for each run that was found dead when the lake was opened."""
        self._kept: duckdb.DuckDBPyConnection | None = None

    def __str__(self) -> str:
        """Return where its files are, as messages name it."""
        return self.files.address

    @property
    def path(self) -> Path:
        """Return the folder on this machine that holds models and the report; of a lake on this disk, all of it."""
        return self.files.folder

    @classmethod
    def open(cls, path: str | Path, create: bool = True) -> "Lake":
        """Open a lake, create it if new, and clean up after processes that died.

        Raises:
            LakeError: No lake and `create` is false, a newer format, or a folder that cannot be written.
        """
        lake = cls(files_at(path))
        is_there = lake.files.size("_lake.json") is not None
        if not create and not is_there:
            raise LakeError(f"{lake}: no lake here; name the folder that a run wrote")
        with lake.files.errors():
            if not is_there:
                lake._write("_lake.json", json.dumps({"format": FORMAT}))
            lake._format()
            lake._write_schemas()
            lake._write("views.sql", VIEWS_HEAD + views_sql("") + comments_sql())
            lake.files.staging.sweep()
            lake.crashed = end_dead_runs(lake)
        return lake

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Check before the work whether a lake can be opened or made at a path; nothing is written.

        Raises:
            LakeError: As `open`.
        """
        files = files_at(path)
        if files.size("_lake.json") is not None:
            with files.errors():
                cls(files)._format()
        files.check_writable()

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
        with self.files.errors(), self.files.staging.folder() as staging:
            files = tuple(
                write_table(staging / table, table, rows, f"{table}/run_id={run_id}/shard={key}")
                for table, rows in tables.items()
            )
            commit = Commit(run_id, key, files, self.files)
            if self._format() < FORMAT:  # what reads the old format alone is to leave these rows alone
                self._write("_lake.json", json.dumps({"format": FORMAT}))
            with self.files.whole(_record(run_id, key)) as temporary:
                write_record(temporary, commit)
                for file in files:
                    self.files.put_folder(staging / file.table, file.path.rpartition("/")[0])
        return commit

    def committed(self, key: str) -> Commit | None:
        """Return the stage of this key, whichever run wrote it; None where none is whole."""
        found = []
        for record in self.files.names(f"_commits/*/{key}.parquet"):
            try:
                committed_at, commit = read_record(record, self.files)
            except (*UNREADABLE, IndexError) as error:
                _log.warning(
                    "%s: unreadable commit record (%s), does not count", self.files.path(record), error_line(error)
                )
                continue
            damaged = commit.damaged()
            if damaged:
                _log.warning("%s: missing or damaged, its commit does not count", self.files.path(damaged[0]))
            else:
                found.append((committed_at, commit.run_id, commit))
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
                raise LakeError(f"{what_is_wrong(self.files, key)}, of run {run['run_id']}; {REPAIR}")
            found.append(commit)
        return found

    def check_whole(self, *tables: str) -> None:
        """Raise where a commit with rows of these tables is damaged and was not made again.

        Raises:
            LakeError: Naming the file that is missing or damaged.
        """
        check_whole(self._connect(), self.files, tables)

    def answer(self, sql: str) -> pa.Table:
        """Return the result of one query of a user, which can change nothing.

        Raises:
            LakeError: As `query`; several statements, one that writes, or a damaged commit with rows that it asks for.
        """
        check_reads(sql)
        connection = self.connect()
        words = {word.casefold() for word in re.findall(r"\w+", sql)}
        asked = [table for table in TABLES if table in words]
        check_whole(connection, self.files, asked)
        files = "SELECT path FROM commits WHERE list_contains($asked, table_name) ORDER BY path"
        paths = [path for (path,) in connection.execute(files, {"asked": asked}).fetchall()]
        with naming(self.files, [path.removeprefix(self.files.path("")) for path in paths]):
            return run_sql(connection, sql)

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
        connection = self._reader() if commits is not None else self._connect()
        source = f"({self._rows_of(table, commits)})" if commits is not None else f'"{table}"'
        names = list(columns) if columns is not None else [*TABLES[table].names, "run_id"]
        selected = ", ".join(f'"{name}"' for name in names)
        files = [file.path for commit in commits or () for file in commit.files if file.table == table]
        with naming(self.files, files):
            rows = run_sql(connection, f"SELECT {selected} FROM {source}" + (f" WHERE {where}" if where else ""))
        try:
            return rows.cast(pa.schema([_field(table, name) for name in names]))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise LakeError(
                f"{self.files.path(table)}: rows of another type than RASS writes ({error_line(error)}); {REPAIR}"
            ) from error

    def batches(
        self, sql: str, commits: Sequence[Commit], given: Mapping[str, pa.Table] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the result of a query over exactly the rows of these commits, a batch at a time.

        DuckDB works one thread in `STREAM_MEMORY` and spills into the lake beyond it. What is committed meanwhile
        changes nothing.

        Args:
            sql: One SELECT over the tables of the lake.
            commits: The files that the tables consist of.
            given: Further tables by their names.

        Raises:
            LakeError: Whatever DuckDB has against the query.
        """
        files = [file.path for commit in commits for file in commit.files if _is_named(file.table, sql)]
        with self._session(STREAM_MEMORY) as connection, naming(self.files, files):
            connection.execute("SET threads = 1")
            for table in TABLES:
                if _is_named(table, sql):
                    run_sql(connection, f'CREATE VIEW "{table}" AS {self._rows_of(table, commits)}', str(self))
            for name, rows in (given or {}).items():
                connection.register(name, rows)
            try:
                yield from connection.sql(sql).to_arrow_reader(STREAM_ROWS)
            except (duckdb.Error, pa.ArrowException) as error:
                raise LakeError(f"query: {error_line(error)}") from error

    def connect(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection with one view a table, over what is committed by now.

        `prompts` holds the newest row of each prompt_id and `runs` that of each run_id; `commits` lists the
        files, `damaged` the commits that do not count because a file is missing or has the wrong size. Comments on
        views and columns say what they hold: `SELECT column_name, comment FROM duckdb_columns()`.

        Args:
            memory_limit: Such as '2GB', beyond which DuckDB spills into the lake; null takes DuckDB's own.
        """
        connection = self._connect(memory_limit)
        run_sql(connection, comments_sql(), str(self))
        return connection

    def connect_to(self, commits: Sequence[Commit], memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection whose views hold exactly the rows of these commits.

        Args:
            commits: Commits of one run, say, so that what other runs wrote cannot change a result.
            memory_limit: As `connect`.
        """
        connection = self._session(memory_limit)
        for table in TABLES:
            run_sql(connection, f'CREATE VIEW "{table}" AS {self._rows_of(table, commits)}', str(self))
        return connection

    def query(self, sql: str, memory_limit: str | None = None) -> pa.Table:
        """Return the result of a query over the views.

        Raises:
            LakeError: Whatever DuckDB has against the query, in one line.
        """
        return run_sql(self._connect(memory_limit), sql)

    def _connect(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """Return a connection as `connect`, without the comments, which take longer than a short query."""
        connection = self._session(memory_limit)
        with naming(self.files, self.files.names("_commits/*/*.parquet"), ADVICE):
            run_sql(connection, views_sql(self.files.path("")), str(self))
        for run_id, key in connection.sql("SELECT run_id, key FROM damaged").fetchall():
            _log.warning("%s: a file is missing or damaged, does not count", self.files.path(_record(run_id, key)))
        return connection

    def _rows_of(self, table: str, commits: Sequence[Commit]) -> str:
        """Return the query for the rows of these commits."""
        paths = dict.fromkeys(file.path for commit in commits for file in commit.files if file.table == table)
        listed = ", ".join(quoted(self.files.path(path)) for path in [schema_path(table), *paths])
        return rows_sql(table, f"[{listed}]")

    def _reader(self) -> duckdb.DuckDBPyConnection:
        """Return a cursor of a connection that is kept, for reads that make no views: a new one takes 30 ms."""
        if self._kept is None:
            self._kept = self._session()
        cursor = self._kept.cursor()
        cursor.execute("SET TimeZone = 'UTC'")
        return cursor

    def _session(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        connection = self.files.connect()
        connection.execute(f"SET TimeZone = 'UTC'; SET temp_directory = {quoted(self.files.staging.new_path())}")
        if memory_limit is not None:
            run_sql(connection, f"SET memory_limit = {quoted(memory_limit)}", "memory_limit")
        return connection

    def _format(self) -> int:
        """Return the format of the lake.

        Raises:
            LakeError: One that cannot be read, or none.
        """
        path = self.files.path("_lake.json")
        try:
            version = json.loads(self._read("_lake.json"))["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LakeError(f'{path}: no {{"format": {FORMAT}}} in it; restore it') from error
        if type(version) is not int or version < OLDEST_FORMAT:
            raise LakeError(f"{path}: format {version!r}, which is unknown; restore it or name another lake")
        if version > FORMAT:
            raise LakeError(f"{self}: lake of format {version}, this RASS reads {FORMAT}; update RASS")
        return version

    def _write_schemas(self) -> None:
        """Write one file without rows per table: no view is ever without files, columns or types."""
        schemas = {schema_path(table): stored_schema(table) for table in TABLES}
        for path, schema in {**schemas, "_commits/_/_.parquet": RECORD}.items():
            if not self._has_schema(path, schema):
                with self.files.whole(path) as temporary:
                    pq.write_table(schema.empty_table(), temporary)

    def _write(self, name: str, text: str) -> None:
        """Write a file of the lake, unless it is there as it is to be."""
        if self.files.size(name) is None or self._read(name) != text.encode():
            with self.files.whole(name) as temporary:
                temporary.write_bytes(text.encode())

    def _read(self, name: str) -> bytes:
        with self.files.open(name) as file:
            return file.read()

    def _has_schema(self, name: str, schema: pa.Schema) -> bool:
        """Return whether a Parquet file is there with these columns."""
        try:
            with self.files.open(name) as file:
                return bool(pq.read_schema(file).equals(schema))
        except (pa.ArrowException, OSError):
            return False


def _record(run_id: str, key: str) -> str:
    return f"_commits/{run_id}/{key}.parquet"


def _field(table: str, name: str) -> pa.Field:
    return TABLES[table].field(name) if name in TABLES[table].names else pa.field(name, pa.string())


def _is_named(table: str, sql: str) -> bool:
    return re.search(rf"\b{table}\b", sql) is not None


def _check_names(run_id: str, key: str, tables: Iterable[str]) -> None:
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
