"""The command line `rass`."""

import atexit
import csv
import io
import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Before prefect and vllm are imported: this tool's own lines are what a terminal shows.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Registered first, so it runs last: DuckDB's binding counts what Prefect's threads still hold at exit as leaks.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))

import typer
from rich.console import Console
from rich.table import Table

from flows.evaluate_cli import evaluate
from flows.failures import STOPPED, TERMINATED, Terminated, exit_code, fail, terminable
from flows.init_cli import init
from flows.judge_cli import judge, review
from flows.lake_cli import lake_commands
from flows.model_cli import model as models
from flows.moderator_cli import moderator
from flows.tables_cli import tables
from rass_core import __version__
from rass_core.errors import ConfigError
from rass_core.paths import user_path
from rass_core.units import MAX_SEED, duration
from tasks.progress import CONSOLE, PROGRESS

if TYPE_CHECKING:
    import pyarrow as pa

    from rass_core.config import RassConfig
    from rass_core.lake.store import Lake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find where a chat model refuses too much, and the prompts that show it.",
)
app.add_typer(judge, name="judge")
app.add_typer(review, name="review")
app.add_typer(models, name="model")
app.add_typer(moderator, name="moderator")
app.add_typer(lake_commands, name="lake")
app.command()(evaluate)
TINY_BYTES = 50_000_000
"""Most bytes of a tiny model's weights; the lab's have one and a half million."""
DEMO_CONFIG = str(resources.files("rass_core.lab").joinpath("demo.yaml"))

LakeOption = Annotated[str | None, typer.Option("--lake", metavar="DIR", help="Folder of tables and report.")]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed, in place of the configuration's.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Folder or hub name of the target, in place of the configuration's.")
]
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A configuration; `rass init` writes one.")]


class Format(StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


@app.command()
def demo(lake: LakeOption = None, seed: SeedOption = None) -> None:
    """Run the whole job on the built-in lab: a small world, a small model, minutes on a laptop."""
    _run_flow("refresh", "the built-in lab", _load(DEMO_CONFIG, lake=lake, seed=seed))


@app.command()
def run(config: ConfigArgument, lake: LakeOption = None, seed: SeedOption = None, model: ModelOption = None) -> None:
    """Probe, generate, select, mitigate if the configuration asks for it, and report: the whole `refresh` flow."""
    _run_flow("refresh", config, _load(config, lake=lake, seed=seed, model_name=model))


@app.command()
def probe(config: ConfigArgument, lake: LakeOption = None, seed: SeedOption = None, model: ModelOption = None) -> None:
    """Measure where the model begins to refuse."""
    _run_flow("probe", config, _load(config, lake=lake, seed=seed, model_name=model))


@app.command()
def generate(
    config: ConfigArgument, lake: LakeOption = None, seed: SeedOption = None, model: ModelOption = None
) -> None:
    """Write prompts near the boundary that is in the lake."""
    _run_flow("generate", config, _load(config, lake=lake, seed=seed, model_name=model))


@app.command()
def select(config: ConfigArgument, lake: LakeOption = None, seed: SeedOption = None, model: ModelOption = None) -> None:
    """Keep the best of the prompts in the lake."""
    _run_flow("select", config, _load(config, lake=lake, seed=seed, model_name=model))


@app.command()
def morbench(
    config: ConfigArgument,
    lake: LakeOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder, by default LAKE/morbench.")] = None,
    seed: SeedOption = None,
) -> None:
    """Build a multilingual benchmark: benign prompts near the boundary, each with a harmful contrast."""
    settings = _load(config, lake=lake, seed=seed)
    _greet("morbench", config, settings)
    from flows.morbench import folder_of, print_benchmark

    folder = folder_of(settings, out)
    _run_flow("morbench", None, settings, out=folder)
    print_benchmark(folder)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='A query over the tables, such as "SELECT * FROM boundaries".')],
    lake: LakeOption = "lake",
    format: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
) -> None:
    """Answer a SQL query over the lake's tables (`SHOW TABLES` lists them)."""
    rows = _lake(lake).answer(query)
    _print_rows(rows.column_names, list(zip(*map(_values, rows.columns), strict=True)), format)


app.command()(tables)


@app.command()
def report(lake: LakeOption = "lake") -> None:
    """Write the report of the newest run again, and print its path."""
    CONSOLE.quiet = False
    PROGRESS.say(f"rass {__version__}: writing the report of {lake}")
    from tasks.report import rewrite_report

    typer.echo(rewrite_report(_lake(lake)))


@app.command()
def publish(
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="New folder, or hf://ORGANISATION/NAME.")],
    lake: LakeOption = "lake",
    variant: Annotated[str | None, typer.Option(help="Only this one of those that passed the gate.")] = None,
) -> None:
    """Copy what passed the gate: training data in several formats, mitigated models, their cards."""
    from rass_core.publish.release import publish as copy_out

    typer.echo("\n".join(copy_out(_lake(lake), to, variant)))


@app.command()
def compare(
    lake: LakeOption = "lake",
    format: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
) -> None:
    """Compare the models whose boundaries are in the lake, by language."""
    from rass_core.report.side_by_side import COLUMNS, compare_models, told_side_by_side

    rows = compare_models(_lake(lake))
    if format is Format.table:
        typer.echo("\n".join(told_side_by_side(rows)))
    else:
        _print_rows(COLUMNS, [tuple(row[name] for name in COLUMNS) for row in rows], format)


app.command()(init)


@app.command()
def plan(config: ConfigArgument, lake: LakeOption = None, seed: SeedOption = None) -> None:
    """Show what a run will do, without running it: time per stage, disk, memory, prompts, tokens, model loads."""
    settings = _load(config, lake=lake, seed=seed)
    _greet("plan", config, settings)
    _spare_threads(settings)
    from rass_core.lake.store import Lake

    Lake.check_place(settings.lake)
    from rass_core.estimate.plan import plan_run

    with PROGRESS.running("reading the prompts and measuring this machine's speed"):
        found = plan_run(settings)
    typer.echo(f"{found.verdict}\n")
    _print_rows(["what", "value", "how it comes about"], found.rows, Format.table)
    if found.stages:
        typer.echo()
        stages = [(each.stage, duration(each.seconds), each.what) for each in found.stages]
        _print_rows(["stage", "time", "work"], stages, Format.table)


@app.command()
def doctor() -> None:
    """Check what works on this machine, what does not, and what to do about it."""
    from flows.doctor import check_up

    CONSOLE.quiet = False
    with PROGRESS.running("looking at this machine and its packages"):
        rows, healthy = check_up()
    _print_dicts(["part", "state", "found", "what to do"], rows)
    if not healthy:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a user can fix is one line and exit code 2."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(exit_code(lambda: app(prog_name="rass", standalone_mode=False)))


def _load(path: str, **overrides: Any) -> "RassConfig":
    from rass_core.config import load_config

    for option, given in (("--lake", overrides.get("lake")), ("--model", overrides.get("model_name"))):
        if given is not None:
            user_path(given, option=option)
    return load_config(path, **overrides)


def _lake(path: str | None) -> "Lake":
    from rass_core.lake.store import Lake

    lake = Lake.open("lake" if path is None else path, create=False)
    for line in lake.crashed:
        typer.echo(f"note: {line}", err=True)
    return lake


def _greet(command: str, source: str, config: "RassConfig") -> None:
    """Write the first line, before the imports that take seconds."""
    CONSOLE.quiet = False
    PROGRESS.say(f"rass {__version__}: {command} with {source} into {config.lake}")


def _run_flow(name: str, source: str | None, config: "RassConfig", **settings: Any) -> str:
    """Run a flow in this process; print and return what it made: the path of a report or folder."""
    if source is not None:
        _greet(name, source, config)
    _spare_threads(config)
    from rass_core.lake.store import Lake

    Lake.check_place(config.lake)
    from tasks.inputs import check_inputs, read_given

    read_given(config)  # before prefect and transformers, whose imports take seconds
    from flows.server import prefect_server

    try:
        with terminable(), prefect_server() as wait:
            with PROGRESS.running("checking the models"):
                check_inputs(config)
            flow = _flow(name)
            wait()
            made = flow(config, **settings)
    except KeyboardInterrupt as error:
        how, code = ("by SIGTERM", TERMINATED) if isinstance(error, Terminated) else ("by Ctrl-C", STOPPED)
        resume = "finished work is in the lake, run the same command again to resume"
        raise typer.Exit(fail(f"stopped {how}; {resume}", code)) from None
    typer.echo(made)
    return made


def _spare_threads(config: "RassConfig") -> None:
    """Give a tiny model one thread: its matrices are too small to be shared, two would wait for each other."""
    weights = Path(config.model.name).expanduser().glob("*.safetensors")
    if 0 < sum(file.stat().st_size for file in weights) < TINY_BYTES:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _flow(name: str) -> Callable[..., str]:
    import importlib

    return getattr(importlib.import_module(f"flows.{name}"), name)  # type: ignore[no-any-return]


def _print_dicts(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    _print_rows(columns, [tuple(row[name] for name in columns) for row in rows], Format.table)


def _print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], format: Format) -> None:
    """Print rows; a column is known by its place, for a query may give two the same name."""
    if format is Format.json:
        double = [name for name, n in Counter(columns).items() if n > 1]
        if double:
            raise ConfigError(f"--format json: two columns are named {double[0]!r}; give one another name with AS")
        objects = [dict(zip(columns, map(_jsonable, row), strict=True)) for row in rows]
        typer.echo(json.dumps(objects, ensure_ascii=False, default=str, indent=1, allow_nan=False))
        return
    if format is Format.csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        typer.echo(text.getvalue(), nl=False)
        return
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold", show_edge=False)
    for row in rows:
        shown.add_row(*map(_cell, row))
    Console(highlight=False, markup=False).print(shown)


def _values(column: "pa.ChunkedArray") -> list[Any]:
    """Return the values of a column as Python's; as text where Python has no such value, such as the year 20000."""
    import pyarrow as pa

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, pa.ArrowException):
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


def _jsonable(value: Any) -> Any:
    """Return a value as JSON has it: a decimal as a number; what is not finite as null, for JSON has no such number."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _jsonable(each) for key, each in value.items()}
    return [_jsonable(each) for each in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    if value is None:
        return "·"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 200 else text[:199] + "…"


if __name__ == "__main__":
    main()
