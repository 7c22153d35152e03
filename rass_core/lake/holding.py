"""Which processes are alive: each that works in a lake holds a lock there, which ends with it, however it ends.

The lock is a record lock (POSIX) on a file of its own. The kernel, or the file server, frees it when the process ends:
by `kill -9`, in another container, on another machine of the same file system. Neither host names nor process ids are
compared, which containers share.
"""

import atexit
import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path

_held: dict[Path, tuple[str, int]] = {}
"""Folder of locks → name and descriptor of the one that this process holds there."""
os.register_at_fork(after_in_child=_held.clear)  # record locks are the parent's alone


class Locks:
    """The locks of a lake's processes, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def own(self) -> str:
        """Return the name of the lock that this process holds, taken when first asked for and kept until it ends.

        Where the folder cannot be written the name has no lock: nothing can be left there to be swept up.
        """
        key = self._folder.resolve()
        if key not in _held:
            name = uuid.uuid4().hex
            try:
                descriptor = _locked(self._folder, name)
            except OSError:
                return name
            _held[key] = (name, descriptor)
            atexit.register(_release, key, self._folder / name, os.getpid())
        return _held[key][0]

    def release(self) -> None:
        """Give up the lock that this process holds: a file system on which a file is open cannot be unmounted."""
        key = self._folder.resolve()
        if key in _held:
            _release(key, self._folder / _held[key][0], os.getpid())

    def is_held(self, name: str) -> bool:
        """Return whether the process that took a lock is alive; where that cannot be known, it is taken for alive."""
        own = _held.get(self._folder.resolve())
        if own is not None and own[0] == name:  # closing another descriptor of it would free it
            return True
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            with suppress(OSError):
                path.unlink()
            return False
        finally:
            os.close(descriptor)


def _locked(folder: Path, name: str) -> int:
    """Return the descriptor of a new file, which is locked before it has its name, so that nobody finds it without."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{name}"
    descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with suppress(OSError):  # a file system without locks: nobody can take it either
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(made, folder / name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _release(key: Path, path: Path, process: int) -> None:
    if os.getpid() == process and key in _held:
        with suppress(OSError):
            path.unlink()
        os.close(_held.pop(key)[1])
