"""Commits: the files that a stage wrote, and the records that list them."""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.lake.files import LakeFiles
from rass_core.lake.schema import RECORD

_OF_FILE = {"table_name": "table", "path": "path", "rows": "rows", "bytes": "bytes", "sha256": "sha256"}
"""Column of a record → field of `CommittedFile`."""


@dataclass(frozen=True)
class CommittedFile:
    """One Parquet file; `path` is relative to the lake."""

    table: str
    path: str
    rows: int
    bytes: int
    sha256: str | None = None
    """Digest of its bytes; None in records of lakes of format 1."""


@dataclass(frozen=True)
class Commit:
    """What one stage of one run wrote, under the digest of all that determined it."""

    run_id: str
    key: str
    files: tuple[CommittedFile, ...]
    lake: LakeFiles = field(repr=False, compare=False)
    """Where the files are; their paths are names in it."""

    @cached_property
    def content(self) -> str:
        """Return the digest of the tables and their bytes, 64 hexadecimal digits.

        Whoever writes equal rows with equal libraries gets equal content, whatever the run and the key. Which shards a
        stage consists of does not count.

        Raises:
            OSError: A file without a digest in its record is gone.
        """
        counted = [file for file in self.files if file.table != "stages"]
        digests = sorted(f"{file.table} {file.sha256 or _sha256(self.lake, file.path)}" for file in counted)
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def damaged(self) -> list[str]:
        """Return the paths of the files that are missing or have another size than when they were written."""
        return [file.path for file in self.files if self.lake.size(file.path) != file.bytes]


def file_sha256(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(lake: LakeFiles, name: str) -> str:
    with lake.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: Path, commit: Commit) -> None:
    """Write the record of a commit, a row per file."""
    now = datetime.now(UTC)
    rows = [
        {"run_id": commit.run_id, "key": commit.key, "committed_at": now}
        | {column: getattr(file, name) for column, name in _OF_FILE.items()}
        for file in commit.files
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), path)


def read_record(name: str, lake: LakeFiles) -> tuple[datetime, Commit]:
    """Return when a commit was recorded, and the commit.

    Args:
        name: The record, `_commits/RUN/KEY.parquet`.
        lake: Files of the lake.

    Raises:
        ArrowException, OSError, KeyError, IndexError: It cannot be read, or is no record.
    """
    with lake.open(name) as file:
        rows = pq.ParquetFile(file).read().to_pylist()
    run_id, key = name.removesuffix(".parquet").split("/")[-2:]
    files = [CommittedFile(**{name: row.get(column) for column, name in _OF_FILE.items()}) for row in rows]
    return rows[0]["committed_at"], Commit(run_id, key, tuple(files), lake)
