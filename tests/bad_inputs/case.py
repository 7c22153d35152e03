"""A case of the table: what is there, the command, and how it must end."""

import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Maker = Callable[[Path], object]
"""Makes a file or folder at a path."""
Content = "str | bytes | Maker"

PROGRESS = re.compile(r"\d\d:\d\d:\d\d ")
"""How a line of progress begins."""


@dataclass(frozen=True)
class Case:
    """One command over given files; `{tmp}` in the arguments is the folder in which they are made."""

    name: str
    command: str | list[str]
    words: tuple[str, ...] = ()
    """What the one line of the error holds."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """Path below the folder → its text, its bytes, or what makes it."""
    code: int = 2
    shows: tuple[str, ...] = ()
    """What standard output holds, for commands that succeed."""
    check: Callable[[Path, str], None] | None = None
    """Looks at the folder and at standard output afterwards."""
    may_write: bool = False
    """Whether the folder may be another afterwards; a command that fails may not change it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Return the lines of standard error without those of progress."""
        return [line for line in self.err.splitlines() if line.strip() and not PROGRESS.match(line)]


def make(folder: Path, files: Mapping[str, Any]) -> None:
    """Make the files of a case."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")


def snapshot(folder: Path) -> dict[str, str]:
    """Return what is in a folder: path → digest, target of a link, or kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "_locks" in path.relative_to(folder).parts[:-1]:  # held until this process ends
            continue
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not name.endswith(("_staging", "_locks", "_running")):  # made by the first reader of a lake, and empty
            found[name] = "folder" if path.is_dir() else "other"
    return found


def arguments(case: Case, folder: Path) -> list[str]:
    """Return the command line of a case, in words."""
    words = case.command.split() if isinstance(case.command, str) else case.command
    return [word.replace("{tmp}", str(folder)) for word in words]


def run(words: list[str]) -> Ended:
    """Run the command line in this process."""
    from flows import cli

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["rass", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return Ended(code, out.getvalue(), err.getvalue())
