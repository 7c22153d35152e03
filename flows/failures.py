"""How a command ends: what a user can fix is one line and exit code 2, a fault of RASS one line and 70."""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from rass_core.errors import RassError

ERRORS = Console(stderr=True, highlight=False, emoji=False)
TRACEBACK_VARIABLE = "RASS_TRACEBACK"
"""Environment variable that, when set, lets every error through with its traceback."""
WRONG, STOPPED, TERMINATED, INTERNAL = 2, 130, 143, 70
"""Exit codes: what a user can fix; stopped by Ctrl-C; stopped by SIGTERM; a fault of RASS."""
_UsageError: Any = typer.BadParameter.__base__
"""The class in typer, which takes it from click or has its own."""
_ClickError: Any = _UsageError.__base__


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command, print its error in one line if it has one, and return the exit code.

    Args:
        command: Called without arguments; what it returns is the exit code if it is a number.
    """
    try:
        code = command()
    except RassError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        return fail(str(error), WRONG)
    except _ClickError as error:
        return _wrong_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return fail("stopped", STOPPED)
    except BrokenPipeError:  # `rass sql … | head` has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        return fail(_internal(error), INTERNAL)
    return code if isinstance(code, int) else 0


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM, as from a container that is stopped."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM raises Terminated, so that a run can record its end."""

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str, code: int) -> int:
    """Print an error in one line, and return the exit code."""
    ERRORS.print(f"rass: {' '.join(message.split())}", markup=False, soft_wrap=True)
    return code


def _wrong_usage(error: Any) -> int:
    """Say in one line what is wrong on the command line; a group of commands without one shows its help."""
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return WRONG
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "rass"
    return fail(f"{message.rstrip('.')}; `{command} --help` lists what it takes", WRONG)


def _internal(error: Exception) -> str:
    """Write the traceback to a file, and return the line that names it."""
    what = " ".join(traceback.format_exception_only(error)[-1].split())[:300]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="rass-", suffix=".log", delete=False, encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        where = f"its traceback is in {file.name}"
    except OSError:
        where = f"{TRACEBACK_VARIABLE}=1 shows its traceback"
    return f"internal error, a fault of RASS: {what}; {where}, please report it"
