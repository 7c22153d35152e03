"""Paths as users give them, checked before the work."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rass_core.errors import ConfigError, RassError

_SHOWN = 80
"""Characters of a name in a message."""
_LONGEST_NAME = 255
"""Bytes of a file's name that disks take."""
_LONGEST_MARK = 40
"""Bytes that a file's name has more while it is written."""


def short(text: object) -> str:
    """Return a name that a message can hold, in one line."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    return name if len(name) <= 2 * _SHOWN else f"{name[:_SHOWN]}… ({len(name)} characters)"


def user_path(name: str | Path, kind: type[RassError] = ConfigError, option: str = "") -> Path:
    """Return the path that a user named, with `~` resolved; nothing needs to be there.

    Args:
        name: As it was given.
        kind: Class of the error.
        option: Option of the command line that names it, for the message.

    Raises:
        RassError: A name that no file can have, a `~name` without such a user, or a folder that may not be searched.
    """
    text, before = str(name), f"{option}: " if option else ""
    if not text.strip():
        raise kind(f"{before}an empty path; name a file or folder")
    if "\0" in text:
        raise kind(f"{before}{short(text)}: a zero byte in the path; fix the path")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise kind(
            f"{before}{short(text)}: there is no user {short(text.split('/')[0][1:])!r}; write the path out"
        ) from error
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise kind(
            f"{before}{short(text)}: a name of more than {_LONGEST_NAME} bytes, which no disk takes; fix the path"
        )
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise kind(f"{before}{short(text)}: {error.strerror}; fix the path or its permissions") from error
    return path


def input_file(name: str | Path, kind: type[RassError] = ConfigError, hint: str = "fix the path") -> Path:
    """Return the path of a file that is to be read.

    Args:
        name: As it was given.
        kind: Class of the error.
        hint: What to do where it is missing.

    Raises:
        RassError: As `user_path`, no such file, a folder, or a pipe or device, which would be waited for.
    """
    path = user_path(name, kind)
    if path.is_file():
        return path
    if path.is_dir():
        raise kind(f"{short(name)}: cannot be read, it is a folder; name a file in it")
    if path.exists():
        raise kind(f"{short(name)}: cannot be read, it is a pipe or device; save it as a file")
    if path.is_symlink():
        raise kind(f"{short(name)}: a link to {short(os.readlink(path))}, which does not exist; {hint}")
    raise kind(f"{short(name)}: no such file; {hint}")


def check_out(
    out: str | Path, endings: Sequence[str] = (), inputs: Iterable[str | Path | None] = (),
    kind: type[RassError] = ConfigError, option: str = "--out",
) -> Path:  # fmt: skip
    """Return the path of a file that is to be written, checked before the work: so that no hour of it is lost.

    What is there is left as it is; folders that are missing are made only when the file is written.

    Args:
        out: As it was given.
        endings: One of which it must have, in any case; none lets it have any.
        inputs: Files that are read for it; it may be none of them.
        kind: Class of the error.
        option: Which names it.

    Raises:
        RassError: As `user_path`, another ending, a folder, an input, or a place where no file can be made.
    """
    path = user_path(out, kind)
    if path.is_dir():
        raise kind(f"{short(out)}: a folder; name a file in it with {option}")
    if endings and path.suffix.lower() not in endings:
        raise kind(f"{short(out)}: {option} must end in {' or '.join(endings)}; name such a file")
    if path.exists() and not path.is_file():
        raise kind(f"{short(out)}: a pipe or device; name a file with {option}")
    for given in inputs:
        if given is not None and is_same(path, Path(given)):
            raise kind(f"{short(out)}: is the input; name another file with {option}")
    check_writable(path, kind, option)
    return path


def check_writable(path: Path, kind: type[RassError] = ConfigError, option: str = "--out") -> None:
    """Raise where a file or folder cannot be made at a path, by making one beside it and taking it away.

    Raises:
        RassError: Naming the path and the reason.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME - _LONGEST_MARK:
        raise kind(f"{short(path)}: too long a name; choose another with {option}")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot be written, {folder} takes no files ({error.strerror})"
        raise kind(f"{short(path)}: {reason}; choose another place with {option}") from error


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths name one file, by another spelling or a link too."""
    try:
        return os.path.samefile(one.expanduser(), other.expanduser())
    except (OSError, RuntimeError, ValueError):
        return False
