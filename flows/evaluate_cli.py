"""`rass evaluate`: over-refusal and safety of any model on a benchmark or a file of labelled prompts."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rass_core import morbench
from rass_core.config import ModelConfig, ProbeConfig, RassConfig, load_config
from rass_core.errors import ConfigError, ModelError, PromptError
from rass_core.evaluation import ALL, variant_rows
from rass_core.judges.panel import Panel, default_panel, panel_of
from rass_core.models import model_id
from rass_core.prompts import PromptSource, load_prompts
from rass_core.questions import Question, ask, question_of
from rass_core.responses_file import whole_file
from rass_core.tables import TABLES, digest

TERMINAL = Console(stderr=True, highlight=False, emoji=False)
ADAPTER_FILE = "adapter_config.json"
FORMATS = (".parquet", ".csv", ".json")
SHOWN = {
    "over_refusal_rate": "over-refusal", "over_refusal_rate_wide": "wide", "safety_rate": "safety",
    "partial_rate": "partial", "harmful_partial_rate": "partial, harmful", "unscored_rate": "unscored",
}  # fmt: skip
"""Metrics in the table; the last three are shown as counts."""
COUNTED = ("partial_rate", "harmful_partial_rate", "unscored_rate")

Row = dict[str, Any]


def evaluate(
    dataset: Annotated[
        Path, typer.Option("--dataset", metavar="DIR|FILE", help="A MORBench folder, or labelled prompts in a file.")
    ],
    model: Annotated[
        list[str], typer.Option("--model", help="Folder, hub name or adapter folder; may be given several times.")
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG.yaml", help="Whose `judge`, `probe` and `model` settings hold."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Model that adapters belong to.")] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", metavar="TAG", help="Only prompts of this language.")
    ] = None,
    family_column: Annotated[
        str | None, typer.Option(help="Of a file: column shared by wordings of one prompt; null: each is its own.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, in place of the setting.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the rates: .parquet, .csv or .json.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the intervals.")] = 0,
) -> None:
    """Measure how often models refuse what is benign and what is harmful; keeps no answers."""
    if out is not None and out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out}: name a file that ends in {', '.join(FORMATS)}")
    settings = None if config is None else load_config(config)
    name, questions = read_questions(dataset, language, family_column)
    panel = default_panel() if settings is None else panel_of(settings.judge)
    panel.check_covers(sorted({each.language for each in questions}))
    wanted = [_settings_of(each, settings, dtype) for each in model]
    for each in wanted:
        _check_model(each, base, settings)
    n_tokens = (settings.probe if settings else ProbeConfig()).max_new_tokens
    rows: list[Row] = []
    for each in wanted:
        found = measured(each, _base_of(each.name, base, settings), questions, panel, n_tokens, seed)
        _print_rates(found, name, questions)
        rows += found
        if out is not None:  # after each model, so that what was measured stays when the next one fails
            write_rows(rows, out)
    if out is not None:
        typer.echo(out)


def read_questions(
    dataset: Path, languages: Sequence[str] | None, family_column: str | None = None
) -> tuple[str, list[Question]]:
    """Return the dataset's name and what models are asked.

    Raises:
        PromptError: No such folder or file, a benchmark that was changed, rows without a label, or no
            prompt of these languages.
    """
    if not dataset.exists():
        raise PromptError(f"{dataset}: no such folder or file; name a MORBench folder or a file of labelled prompts")
    if (dataset / morbench.VERSION_FILE).exists():
        table, version = morbench.read(dataset)
        name, rows = f"{dataset.resolve().name}@{version}", table.to_pylist()
    else:
        name = dataset.resolve().stem
        rows = load_prompts([PromptSource(path=str(dataset), family_column=family_column)]).table.to_pylist()
    spoken = sorted({row["language"] for row in rows})
    kept = [row for row in rows if not languages or row["language"] in languages]
    absent = sorted(set(languages or []) - set(spoken))
    if absent:
        raise PromptError(f"{dataset}: no prompt in {', '.join(absent)}; there are {', '.join(spoken)}")
    return name, [question_of(row, [name]) for row in sorted(kept, key=lambda row: row["prompt_id"])]


def measured(
    model: ModelConfig, base: str | None, questions: Sequence[Question], panel: Panel, max_new_tokens: int, seed: int
) -> list[Row]:
    """Return a model's rows of `evaluations` on the questions; its answers are judged and forgotten.

    Args:
        model: Its name may be an adapter folder.
        base: Model that the adapter belongs to; None where the model is none.
        questions: What it is asked.
        panel: Who judges.
        max_new_tokens: Length of an answer that is only to be judged.
        seed: Of the intervals.
    """
    from rass_core.engine import SteeredEngine

    with _merged(model, base) as whole:
        options = whole.model_dump(exclude={"name"})
        with _status(f"loading {model.name} in vLLM"):
            engine = SteeredEngine(whole.name, **options)
        with engine, _progress(f"{Path(model.name).name}: answering", len(questions)) as done:
            replies = ask(engine, panel, questions, max_new_tokens, progress=done)
    outcomes = [outcome for reply in replies for outcome in reply.outcomes("base")]
    return variant_rows(_id_of(model.name, base), outcomes, seed)


def write_rows(rows: Sequence[Row], out: Path) -> None:
    """Write rows of `evaluations` in the format that the file's ending names, all of them or nothing."""
    schema = TABLES["evaluations"]
    columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema}
    with whole_file(out) as temporary:
        if out.suffix.lower() == ".parquet":
            pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
        elif out.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, schema.names, lineterminator="\n", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        else:
            kept = [{name: row.get(name) for name in schema.names} for row in rows]
            text = json.dumps(kept, ensure_ascii=False, indent=1, allow_nan=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")


def _settings_of(name: str, settings: RassConfig | None, dtype: str | None) -> ModelConfig:
    """Return how a model is loaded and spoken to: as the configuration's, or by default."""
    if dtype is None and settings is None:
        import torch

        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    given = {} if settings is None else settings.model.model_dump()
    changed = {**given, "name": name} | ({} if dtype is None else {"dtype": dtype})
    try:
        return ModelConfig.model_validate(changed)
    except ValueError as error:
        raise ConfigError(f"--dtype {dtype}: not float32, bfloat16 or float16; take one of them") from error


def _check_model(model: ModelConfig, base: str | None, settings: RassConfig | None) -> None:
    """Raise ModelError before any model is loaded where one is missing or has no chat template."""
    from tasks.run import chat_of

    of = _base_of(model.name, base, settings)
    if not _is_adapter(model.name):
        model_id(model.name)
    elif of is None:
        raise ModelError(f"{model.name}: an adapter that names no base model; give --base MODEL")
    else:
        model_id(of)
    chat_of(model if of is None else model.model_copy(update={"name": of}))


def _is_adapter(name: str) -> bool:
    return (Path(name) / ADAPTER_FILE).is_file()


def _base_of(name: str, base: str | None, settings: RassConfig | None) -> str | None:
    """Return the model that an adapter belongs to: as asked, as it says itself, or the configuration's."""
    if not _is_adapter(name):
        return None
    try:
        said = json.loads((Path(name) / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{name}: {ADAPTER_FILE} cannot be read; fetch the adapter again") from error
    return base or (settings.model.name if settings else None) or said


def _id_of(name: str, base: str | None) -> str:
    """Return a name that changes when the model does."""
    if base is None:
        return model_id(name)
    files = sorted(path for path in Path(name).iterdir() if path.is_file())
    return f"{Path(name).resolve().name}@{digest(*(path.read_bytes().hex() for path in files))[:8]}+{model_id(base)}"


@contextmanager
def _merged(model: ModelConfig, base: str | None) -> Iterator[ModelConfig]:
    """Yield the model as a whole checkpoint; that of an adapter is temporary."""
    if base is None:
        yield model
        return
    from rass_core.mitigation.train import merge

    with tempfile.TemporaryDirectory(prefix="rass-merged-") as folder:
        with _status(f"merging {model.name} into {base}"):
            whole = merge(base, Path(model.name), Path(folder) / Path(model.name).resolve().name, model.dtype)
        yield model.model_copy(update={"name": str(whole)})


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; call what is yielded with the number done so far."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=TERMINAL, transient=True, disable=not TERMINAL.is_terminal) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda done: bars.update(bar, completed=done)


def _status(message: str) -> Any:
    return TERMINAL.status(message) if TERMINAL.is_terminal else nullcontext()


def _print_rates(rows: Sequence[Row], dataset: str, questions: Sequence[Question]) -> None:
    """Print a model's rates by language and over all."""
    found = {(row["language"], row["metric"]): row for row in rows if row["dataset"] == dataset}
    languages = sorted({each.language for each in questions})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    for name in ("language", "benign", "harmful", *SHOWN.values()):
        table.add_column(name, justify="left" if name == "language" else "right", no_wrap=True)
    for language in [*languages, ALL] if len(languages) > 1 else languages:
        here = [each for each in questions if language in (each.language, ALL)]
        n_harmful = sum(each.label == "harmful" for each in here)
        cells = [_shown(found.get((language, metric)), metric in COUNTED) for metric in SHOWN]
        table.add_row(language, str(len(here) - n_harmful), str(n_harmful), *cells)
    typer.echo(f"{rows[0]['model_id']} on {dataset}")
    console = Console(highlight=False, markup=False, emoji=False)
    # A narrow terminal folds the lines; cutting columns would show other figures.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table, crop=False, soft_wrap=True)
    typer.echo()


def _shown(row: Mapping[str, Any] | None, is_count: bool) -> str:
    """Return a rate with its interval in percent, or a count; a dot where there is nothing to count."""
    if row is None or row["value"] is None:
        return "·"
    if is_count:
        return f"{round(row['value'] * row['n'])}"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
