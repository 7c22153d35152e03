"""Whether a lake is whole: every record and every file is read and compared with its digest."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.lake.commits import Commit, CommittedFile, read_record
from rass_core.lake.damage import UNREADABLE
from rass_core.lake.files import LakeFiles
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from rass_core.lake.views import error_line

AGAIN = "run the configuration again, which computes its stage anew"
MISSING = "missing"
_EMPTY_RECORD = "_commits/_/_.parquet"
"""Keeps the view of the records from being empty."""


class Finding(NamedTuple):
    """What is wrong with one file of a lake."""

    file: str
    what: str
    cure: str


class Checked(NamedTuple):
    """What was looked at, and what is wrong."""

    n_commits: int
    n_files: int
    n_bytes: int
    findings: list[Finding]


def check_lake(lake: Lake, done: Callable[[int, int], None] | None = None) -> Checked:
    """Read every record and file of a lake.

    Args:
        lake: To be checked; nothing is changed.
        done: Called with the number of records done and of all.
    """
    files, findings = lake.files, list[Finding]()
    records = [name for name in files.names("_commits/*/*.parquet") if name != _EMPTY_RECORD]
    listed, n_bytes = set[str](), 0
    for n, record in enumerate(records, start=1):
        commit = _commit(files, record, findings)
        for file in commit.files if commit is not None else ():
            listed.add(file.path)
            n_bytes += file.bytes
            wrong = _what_is_wrong(files, file)
            if commit is not None and wrong is not None:
                findings.append(Finding(files.path(file.path), wrong, _cure(lake, commit, wrong)))
        if done is not None:
            done(n, len(records))
    findings += _unlisted(files, listed)
    return Checked(len(records), len(listed), n_bytes, findings)


def _commit(files: LakeFiles, record: str, findings: list[Finding]) -> Commit | None:
    """Return what a record lists; where it cannot be read, note that."""
    try:
        return read_record(record, files)[1]
    except (*UNREADABLE, IndexError) as error:
        why = "empty" if isinstance(error, IndexError) else f"unreadable ({error_line(error)})"
        findings.append(Finding(files.path(record), f"{why} commit record", f"delete it and {AGAIN}"))
        return None


def _cure(lake: Lake, commit: Commit, wrong: str) -> str:
    """Return what to do about a damaged file of a commit."""
    others = lake.files.names(f"_commits/*/{commit.key}.parquet")
    record = lake.files.path(f"_commits/{commit.run_id}/{commit.key}.parquet")
    if len(others) > 1 and lake.committed(commit.key) is not None and commit.damaged():
        return f"delete its record {record}: another run has made these rows again"
    return AGAIN if wrong == MISSING else f"delete it and {AGAIN}"


def _what_is_wrong(files: LakeFiles, file: CommittedFile) -> str | None:
    size = files.size(file.path)
    if size is None:
        return MISSING
    if size != file.bytes:
        return f"cut or changed: {size:,} bytes in place of {file.bytes:,}"
    try:
        with files.open(file.path) as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        if file.sha256 is not None and content != file.sha256:
            return "changed: its digest is not that of its record"
        with files.open(file.path) as stream, pq.ParquetFile(stream) as parquet:
            n_rows = sum(batch.num_rows for batch in parquet.iter_batches())
    except (pa.ArrowException, OSError) as error:
        return f"unreadable ({error_line(error)})"
    return None if n_rows == file.rows else f"{n_rows:,} rows in place of {file.rows:,}"


def _unlisted(files: LakeFiles, listed: set[str]) -> Iterator[Finding]:
    """Yield files of tables that no record lists: a writer died before it wrote that."""
    for table in TABLES:
        for name in files.names(f"{table}/run_id=*/shard=*/*"):
            if name not in listed:
                cure = "delete it unless a run is writing now; no query reads it"
                yield Finding(files.path(name), "listed by no commit record", cure)
