"""Links, commands, names and paths in the docs exist, and so do the pages that the code names."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import rass_core
from flows.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")],
    key=lambda path: str(path),
)
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages that describe the tree as it is; the changelog also names what was."""
CODE = [
    path for folder in ("rass_core", "tasks", "flows", "benchmarks", "tests", "configs")
    for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".yaml") and path != Path(__file__)
]  # fmt: skip
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```|((?:^    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"\brass_core(?:\.\w+)+")
PATH = re.compile(r"`((?:rass_core|tasks|flows|tests|benchmarks|configs|docs)/[\w./*-]+)`")


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page, and those that it names itself."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def problem(target: str, folder: Path) -> str | None:
    """Return what is wrong with a link, None where it leads to a page and a heading."""
    if re.match(r"[a-z]+:", target):
        return None
    name, _, anchor = target.partition("#")
    page = (folder / name).resolve() if name else None
    if page is not None and not page.exists():
        return "no such file"
    if anchor and page is not None and anchor not in anchors(page):
        return "no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [
        f"{target}: {why}" for target in LINK.findall(text)
        if (why := problem(page.name + target if target.startswith("#") else target, page.parent))
    ]  # fmt: skip
    assert wrong == []


def test_pages_that_the_code_names_exist() -> None:
    wrong = []
    for path in CODE:
        for target in re.findall(r"\bdocs/[\w-]+\.(?:md|png)(?:#[\w-]+)?", path.read_text(encoding="utf-8")):
            why = problem(target, ROOT)
            if why:
                wrong.append(f"{path.relative_to(ROOT)}: {target}: {why}")
    assert wrong == []


def exists(path: str) -> bool:
    """Return whether a path of the docs exists; NAME is any name, * for any text."""
    return any(ROOT.glob(path.rstrip("/").replace("NAME", "*")))


def definition(dotted: str) -> str | None:
    """Return what is wrong with a dotted name, None where it is a module or defined in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:n])
        module = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
        if module.exists():
            rest = parts[n:]
            tree = ast.parse(module.read_text(encoding="utf-8"))
            defined = {getattr(node, "name", None) for node in ast.walk(tree)}
            defined |= {
                alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
            }
            return None if not rest or rest[0] in defined else f"{dotted}: not in {module.relative_to(ROOT)}"
    return f"{dotted}: no such module"


@pytest.mark.parametrize("page", CURRENT, ids=names(CURRENT))
def test_names_and_paths_of_code_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [why for dotted in NAME.findall(text) if (why := definition(dotted))]
    wrong += [path for path in PATH.findall(text) if not exists(path)]
    assert wrong == []


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of the commands on a page, from its blocks of code, one per line, and between backticks."""
    blocks = [match.group(1) or match.group(2) for match in FENCE.finditer(text)]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`((?:rass|python) [^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        for part in re.split(r" && ", line.strip().removeprefix("$ ")):
            if re.match(r"(\.venv/bin/)?(rass|python) ", part):
                yield shlex.split(part, comments=True)


def unknown_in(words: list[str]) -> str | None:
    """Return what of a command `rass …` or `python -m …` does not exist."""
    program, *rest = words
    if program.endswith("python"):
        if rest[0] == "-m" and not rest[1].startswith("pytest"):
            return None if importlib.util.find_spec(rest[1]) else f"no module {rest[1]}"
        return None if rest[0].startswith("-") or (ROOT / rest[0]).exists() else f"no file {rest[0]}"
    command = typer.main.get_command(app)
    while rest and hasattr(command, "commands"):
        found = command.commands.get(rest[0])
        if found is None:
            return f"no command {rest[0]}"
        command, rest = found, rest[1:]
    options = {option for each in command.params for option in [*each.opts, *each.secondary_opts]} | {"--help"}
    unknown = [word for word in rest if re.match(r"--\w", word) and word.partition("=")[0] not in options]
    return f"{command.name}: no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", CURRENT, ids=names(CURRENT))
def test_commands_exist_with_their_options(page: Path) -> None:
    found = list(commands(page.read_text(encoding="utf-8")))
    assert [f"{shlex.join(words)}: {why}" for words in found if (why := unknown_in(words))] == []
    if page.name == "README.md" and page.parent == ROOT:
        assert len(found) > 10


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("rass runn my.yaml", "no command runn"),
        ("rass judge score a --outt b", "score: no option --outt"),
        ("python -m benchmarks.nothing", "no module benchmarks.nothing"),
        ("python benchmarks/nothing.py", "no file benchmarks/nothing.py"),
        ("rass run my.yaml --lake DIR", None),
    ],
)
def test_mistakes_in_commands_are_seen(line: str, why: str | None) -> None:
    assert [unknown_in(words) for words in commands(f"```\n{line}   # comment\n```\n")] == [why]


def test_mistakes_in_links_and_names_are_seen() -> None:
    assert problem("docs/nothing.md", ROOT) == "no such file"
    assert problem("docs/models.md#nothing", ROOT) == "no such heading"
    assert problem("docs/models.md#self-check", ROOT) == "no such heading"
    assert problem("docs/models.md#the-self-check", ROOT) is None
    assert definition("rass_core.probe.boundary.nothing") is not None
    assert definition("rass_core.nothing.x") is not None


@pytest.mark.xfail(not hasattr(rass_core, "Lake"), reason="rass_core has no public names yet", strict=True)
def test_the_readmes_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    from rass_core.lake.store import Lake

    monkeypatch.chdir(tmp_path)
    Lake.open("lake")
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("refusal 0.99")
