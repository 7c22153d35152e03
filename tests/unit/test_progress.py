"""Progress: lines in a pipe, bars on a terminal, the log in both cases, and no thread left."""

import io
import re
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from tasks.progress import Progress

FAST_S = 0.02


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def piped(width: int = 60) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(Console(file=file, width=width, highlight=False, emoji=False), FAST_S), file


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.005)


def left_over() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "rass-progress"]


def test_a_pipe_gets_a_line_at_once_then_regularly_then_at_the_end() -> None:
    progress, file = piped()
    log: list[str] = []
    with progress.counting("reading residual streams of a model with a long name", 26_000, log.append) as done:
        assert file.getvalue().endswith("reading residual streams of a model with a long name: 0 of 26,000\n")
        done(600)
        time.sleep(0.01)
        done(1_200)
        until(lambda: len(log) >= 3)
    lines = file.getvalue().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == log
    pattern = r"\d\d:\d\d:\d\d reading .* name: 1,200 of 26,000 \(4\.6 %\), [\d,]+/s, [\d.]+ (s|min) left"
    assert re.fullmatch(pattern, lines[1]), lines[1]
    assert re.fullmatch(r".* name: 1,200 in [\d.]+ s", lines[-1])
    assert left_over() == []


def test_what_cannot_count_says_that_it_begins_still_runs_and_ends() -> None:
    progress, file = piped()
    with progress.running("loading a model"):
        until(lambda: file.getvalue().count("\n") >= 2)
    lines = [line.split(" ", 1)[1] for line in file.getvalue().splitlines()]
    assert lines[0] == "loading a model: started"
    assert re.fullmatch(r"loading a model: still running, [\d.]+ s so far", lines[1])
    assert re.fullmatch(r"loading a model: done in [\d.]+ s", lines[-1])


def test_only_the_innermost_of_nested_activities_writes() -> None:
    progress, file = piped()
    with progress.running("outer"):
        with progress.running("inner"):
            until(lambda: "inner: still" in file.getvalue())
        assert "outer: still" not in file.getvalue()
        until(lambda: "outer: still" in file.getvalue())


def test_an_error_ends_the_thread_and_is_reported_once() -> None:
    progress, file = piped()
    with pytest.raises(ValueError, match="broken"), progress.running("outer"), progress.counting("inner", 3):
        raise ValueError("broken")
    assert file.getvalue().count("stopped after") == 1
    assert "inner: stopped after" in file.getvalue()
    assert left_over() == []


def test_many_threads_may_report_at_once() -> None:
    progress, file = piped()

    def work(number: int) -> None:
        for _ in range(20):
            with progress.counting(f"thread {number}", 10) as done:
                for n in range(10):
                    done(n + 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(" in 0." in line for line in file.getvalue().splitlines()) == 80
    assert left_over() == []


def test_a_terminal_gets_a_bar_within_its_width_and_the_log_its_lines() -> None:
    file = Terminal()
    console = Console(file=file, width=60, force_terminal=True, highlight=False, legacy_windows=False)
    progress, log = Progress(console, FAST_S), list[str]()
    with progress.counting("answering the given prompts of a long name", 26_000, log.append) as done:
        done(1_200)
        until(lambda: len(log) >= 2)
        until(lambda: "1,200/26,000" in file.getvalue())
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    shown = [line for line in re.split(r"[\r\n]", plain) if "/26,000" in line]
    assert shown and all(len(line) <= 60 for line in shown)
    assert log[0].endswith(": 0 of 26,000")
    assert "0 of 26,000" not in plain, "the bar shows it"


def test_force_color_makes_no_terminal_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    progress = Progress(Console(file=file, width=60, highlight=False), FAST_S)
    assert progress.console.is_terminal
    with progress.counting("answering", 3):
        pass
    assert "\x1b[?25l" not in file.getvalue(), "a live display hides the cursor"
    assert "answering: 0 of 3" in file.getvalue()


def test_no_color_gives_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    progress = Progress(Console(file=file, width=60, force_terminal=True, legacy_windows=False), FAST_S)
    with progress.counting("answering", 3) as done:
        done(1)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])m", file.getvalue())


def test_lines_are_never_broken() -> None:
    progress, file = piped(width=20)
    progress.say("a message [with brackets] that is much longer than twenty characters")
    assert file.getvalue().count("\n") == 1
    assert "[with brackets]" in file.getvalue()


def test_a_short_part_writes_nothing_and_a_long_one_all() -> None:
    progress, file = piped()
    with progress.running("short", after_s=600):
        pass
    assert file.getvalue() == ""
    with progress.running("long", after_s=0.01):
        until(lambda: "long: still running" in file.getvalue())
    lines = [line.split(" ", 1)[1] for line in file.getvalue().splitlines()]
    assert lines[0] == "long: started"
    assert lines[-1].startswith("long: done in")
