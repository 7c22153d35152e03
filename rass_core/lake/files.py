"""The files of a lake, and any files and folders that are there whole or not at all.

They are written aside, synced, and renamed into place. Only `LakeFiles` opens, lists, writes and renames the files of a
lake; a store other than this machine's disk is a subclass here, which `files_at` returns for addresses of that store.
"""

import errno
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from rass_core.errors import LakeError
from rass_core.lake.holding import Locks
from rass_core.paths import check_writable, user_path

ABANDONED_S = 86_400.0
"""Age of unfinished work without a lock after which it is removed."""


@contextmanager
def whole_file(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; the file takes the place of `path` unless something is raised.

    Args:
        path: What is there stays until then. Its folder is made.
        aside: Folder of the same disk to write in; by default that of `path`.

    Raises:
        OSError: It cannot be written.
    """
    make_folder(path.parent)
    temporary = (aside or path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        with suppress(PermissionError):  # of a folder that may be written and not read
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, text: str, aside: Path | None = None) -> None:
    """Write a text as UTF-8, as `whole_file`."""
    with whole_file(path, aside) as temporary:
        temporary.write_bytes(text.encode())


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; what is left of it at the end is removed.

    Raises:
        OSError: It cannot be made.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it takes the place of `path`, which is empty or not there, unless something is raised.

    Raises:
        OSError: It cannot be written.
    """
    with folder_beside(path) as made:
        yield made
        os.rename(made, path)


def replace_folder(made: Path, path: Path) -> None:
    """Rename a finished folder into place; what lies there goes aside, beside where the folder was made."""
    sync(made)
    make_folder(path.parent)
    while True:
        try:
            os.rename(made, path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        os.rename(path, made.with_name(f"replaced-{uuid.uuid4().hex[:8]}"))
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder with those above it, where it is not there."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


class Staging:
    """A folder for unfinished work, in which each piece of work has a folder of its own, named by its process's lock.

    Args:
        path: The folder.
        locks: Of the processes that work in it.
    """

    def __init__(self, path: Path, locks: Locks) -> None:
        self.path, self._locks = path, locks

    def new_path(self) -> Path:
        """Return the path of a folder that is not there yet; its name says who works in it."""
        return self.path / f"{self._locks.own()}-{uuid.uuid4().hex[:8]}"

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield a new folder, which is removed at the end."""
        folder = self.new_path()
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes left that are dead."""
        for folder in self.path.glob("*"):
            holder = re.fullmatch(r"([0-9a-f]{32})-[0-9a-f]{8}", folder.name)
            if (holder and not self._locks.is_held(holder[1])) or (not holder and _is_old(folder)):
                shutil.rmtree(folder, ignore_errors=True)


def _is_old(folder: Path) -> bool:
    """Return whether nobody wrote into a folder for a day: one of a version that held no locks."""
    try:
        return time.time() - folder.stat().st_mtime > ABANDONED_S
    except OSError:
        return False


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Inside, turn the system's refusals, which carry an errno, into one line each."""
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


class LakeFiles:
    """The files of a lake, in a folder of this machine.

    Names are relative to the lake: `_commits/RUN/KEY.parquet`. What is large or is opened by other programs, such as
    models and the report, is not among them: it is in `folder`, wherever the tables are.

    Args:
        address: What DuckDB and messages put before the names.
        folder: Folder on this machine, for models, the report and unfinished work.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.locks = Locks(folder / "_locks")
        self.staging = Staging(folder / "_staging", self.locks)

    def path(self, name: str) -> str:
        """Return the whole name of a file, as DuckDB and messages have it."""
        return f"{self.address}/{name}"

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, None where there is none."""
        try:
            return os.stat(self.folder / name).st_size
        except OSError:
            return None

    def open(self, name: str) -> io.BufferedIOBase:
        """Open a file to read it.

        Raises:
            OSError: It is not there or cannot be read.
        """
        return (self.folder / name).open("rb")

    def names(self, pattern: str) -> list[str]:
        """Return the sorted names of the files that a pattern with `*` matches."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """Yield a path on this machine to write to; the file takes the place of `name` unless something is raised.

        Raises:
            OSError: It cannot be written.
        """
        with self.staging.folder() as aside, whole_file(self.folder / name, aside) as temporary:
            yield temporary

    def put_folder(self, made: Path, name: str) -> None:
        """Give a finished folder, made on this machine, its place; what lies there goes.

        Raises:
            OSError: It cannot be written.
        """
        replace_folder(made, self.folder / name)

    def check_writable(self) -> None:
        """Raise where no files can be made; nothing is left behind.

        Raises:
            LakeError: Naming the reason.
        """
        check_writable(self.folder / "_lake.json", LakeError, "--lake")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Inside, turn errors of the store into a LakeError of one line."""
        with disk_errors(self.folder):
            yield

    def connect(self) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection that can read the files at their whole names."""
        return duckdb.connect()


def files_at(address: str | Path) -> LakeFiles:
    """Return the files of the lake at an address; nothing needs to be there.

    Args:
        address: Path of a folder.

    Raises:
        LakeError: A path that no folder can have, a file, or one that DuckDB takes for a pattern.
    """
    folder = user_path(address, LakeError, "--lake").absolute()
    if folder.exists() and not folder.is_dir():
        raise LakeError(f"{folder}: a file; name the folder of a lake")
    if re.search(r"[*?\[\]{}]", str(folder)):
        raise LakeError(f"{folder}: DuckDB takes *?[]{{}} in a path for a pattern; choose another folder")
    return LakeFiles(str(folder), folder)
