"""`rass judge` and `rass review`: judges on any responses, their measured errors, and people's labels."""

# The core is imported where it is used: every command reads this module, and few judge.
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.renamed_options import TAKES_OLD_NAMES
from rass_core.errors import JudgeError
from rass_core.paths import check_out, input_file
from rass_core.units import MAX_SEED
from tasks.progress import CONSOLE, PROGRESS

if TYPE_CHECKING:
    import pyarrow as pa

    from rass_core.judges.calibration import Labelled
    from rass_core.judges.panel import Panel
    from rass_core.lake.store import Lake
    from rass_core.vocabulary import Exchange, Verdict

judge = typer.Typer(no_args_is_help=True, help="Judge responses, and measure the errors of the judges.")
review = typer.Typer(no_args_is_help=True, help="Let people label prompts and responses in a spreadsheet.")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG.yaml", help="Config file whose `judge:` defines the panel.")
]
PromptOption = Annotated[str | None, typer.Option(help="Column with the prompt; by default prompt, if it exists.")]
PromptLabelOption = Annotated[
    str | None,
    typer.Option(
        help="Column with the prompt's label (harmful, pseudo_harmful, harmless); default prompt_label, if it exists."
    ),
]
ResponseOption = Annotated[str, typer.Option(help="Column with the response.")]
LanguageColumnOption = Annotated[
    str | None, typer.Option(help="Column with the prompt's language; by default language.")
]
LanguageOption = Annotated[str | None, typer.Option(help="Language of all prompts, in place of a column.")]


class What(StrEnum):
    """What people label."""

    prompts = "prompts"
    responses = "responses"


@judge.command()
def score(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Responses: .parquet, .csv, .tsv, .json, .jsonl, or .gz.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write: .parquet, .csv or .jsonl.")],
    prompt_column: PromptOption = None,
    prompt_label_column: PromptLabelOption = None,
    response_column: ResponseOption = "response",
    language_column: LanguageColumnOption = None,
    language: LanguageOption = None,
    config: ConfigOption = None,
) -> None:
    """Write responses with the panel's outcome and each judge's vote beside them."""
    CONSOLE.quiet = False
    PROGRESS.say(f"rass: judging the responses of {file} into {out}")
    from rass_core.judges.responses_file import ResponsesFile, layout_of
    from rass_core.judges.score_file import WRITTEN_KINDS, score_file
    from rass_core.vocabulary import ALL, OUTCOMES

    input_file(file, JudgeError)
    out = check_out(out, WRITTEN_KINDS, (file, config), JudgeError)
    source = ResponsesFile(file)
    layout = layout_of(source, response_column, prompt_column, language_column, language, prompt_label_column)
    panel = _panel(config)
    with PROGRESS.counting("judging responses", None) as done:
        counts = score_file(source, out, panel, layout, done, PROGRESS.say)
    languages = sorted({spoken for spoken, _ in counts})
    rows = [(spoken, [counts[spoken, outcome] for outcome in OUTCOMES]) for spoken in languages]
    if len(rows) > 1:
        rows.append((ALL, [sum(column) for column in zip(*(each for _, each in rows), strict=True)]))
    _print(["language", "n", *OUTCOMES], [[spoken, sum(each), *each] for spoken, each in rows])


@judge.command("calibrate", context_settings=TAKES_OLD_NAMES)
def calibrate_command(
    labels: Annotated[Path | None, typer.Option("--labels", metavar="FILE", help="Labelled responses.")] = None,
    lake: Annotated[
        str | None, typer.Option("--lake", metavar="DIR", help="Use what people labelled with `rass review`.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.parquet", help="Table to write; the page is written beside it.")
    ] = Path("calibration.parquet"),
    label_column: Annotated[str, typer.Option(help="Column with refusal, partial or compliance.")] = "label",
    model_column: Annotated[
        str | None, typer.Option(help="Column with the model that answered; by default model, if it exists.")
    ] = None,
    prompt_column: PromptOption = None,
    prompt_label_column: PromptLabelOption = None,
    response_column: ResponseOption = "response",
    language_column: LanguageColumnOption = None,
    language: LanguageOption = None,
    group_column: Annotated[
        str | None, typer.Option(help="Column that names the prompt; responses to one prompt are one draw.")
    ] = None,
    max_chars: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Judge only this many characters from the beginning.")
    ] = None,
    config: ConfigOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Measure the judges' errors on labelled responses; writes a table and a page beside it."""
    out = _check_files(labels, lake, config, out)
    CONSOLE.quiet = False
    PROGRESS.say(f"rass: calibrating the judges on {labels or lake} into {out}")
    from rass_core.judges.calibration import calibrate
    from rass_core.judges.calibration_page import page
    from rass_core.judges.responses_file import ResponsesFile, layout_of
    from rass_core.judges.score_file import read_labelled
    from rass_core.lake.store import Lake

    panel = _panel(config)
    if labels is not None:
        source = ResponsesFile(labels)
        layout = layout_of(source, response_column, prompt_column, language_column, language, prompt_label_column)
        labelled, exchanges, n_left_out = read_labelled(source, layout, label_column, model_column, group_column)
        if n_left_out:
            PROGRESS.say(f"{n_left_out:,} rows without a label left out")
    else:
        labelled, exchanges = _labelled_in(Lake.open(str(lake), create=False))
    verdicts = _judged(panel, exchanges if max_chars is None else [_cut(each, max_chars) for each in exchanges])
    table = calibrate(labelled, verdicts, seed)
    beside = _write_calibration(table, page(table, labelled, verdicts, Path(labels or lake or out).name), out)
    _print_calibration(table.to_pylist())
    typer.echo(f"{out}\n{beside}")


@review.command(context_settings=TAKES_OLD_NAMES)
def export(
    lake: Annotated[str, typer.Option("--lake", metavar="DIR", help="Lake with what the judges saw.")],
    what: Annotated[What, typer.Option("--what", help="What people label.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Spreadsheet to write: .xlsx or .csv.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Most rows.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the sample.")] = 0,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", metavar="NAME", help="Leave out what this person labelled before.")
    ] = None,
) -> None:
    """Write a spreadsheet for people to label, without the judges' verdicts."""
    from rass_core.judges.human_review import export as write
    from rass_core.lake.store import Lake

    done = write(Lake.open(lake, create=False), what.value, out, n=limit, seed=seed, reviewer=reviewer)
    typer.echo(f"{out}: {done.n} {what.value} to label")
    if done.n_not_stored:
        typer.echo(f"left out: {done.n_not_stored} responses to harmful prompts, whose text is not stored")


@review.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labelled spreadsheet: .xlsx or .csv.")],
    lake: Annotated[str, typer.Option("--lake", metavar="DIR", help="Lake that it was exported from.")],
    reviewer: Annotated[str, typer.Option("--reviewer", metavar="NAME", help="Who labelled.")],
) -> None:
    """Import a person's labels as verdicts; they override the judges'."""
    from rass_core.judges.human_review import import_labels
    from rass_core.lake.store import Lake

    done = import_labels(Lake.open(lake, create=False), file, reviewer)
    typer.echo(
        f"{done.n_new} labels of {reviewer} imported; {done.n_known} were there already; "
        f"{done.n_empty} rows without a label skipped"
    )


def _panel(config: Path | None) -> "Panel":
    from rass_core.config import load_config
    from rass_core.judges.panel import default_panel, panel_of

    return default_panel() if config is None else panel_of(load_config(config).judge, say=PROGRESS.say)


def _check_files(labels: Path | None, lake: str | None, config: Path | None, out: Path) -> Path:
    """Return the path of the table to write, once inputs and outputs are checked.

    Raises:
        JudgeError: Not exactly one source of labels, or a file that cannot be read or written.
    """
    if (labels is None) == (lake is None):
        raise JudgeError("calibrate: give either --labels FILE or --lake DIR")
    if labels is not None:
        input_file(labels, JudgeError)
    out = check_out(out, (".parquet",), (labels, config), JudgeError)
    check_out(out.with_suffix(".html"), (), (labels, config), JudgeError)
    return out


def _labelled_in(lake: "Lake") -> tuple["Labelled", list["Exchange"]]:
    """Read the responses that people labelled in a lake."""
    from rass_core.judges.calibration import Labelled
    from rass_core.judges.human_review import labelled_responses
    from rass_core.vocabulary import Exchange

    rows = labelled_responses(lake)
    column = {name: [row[name] for row in rows] for name in ("label", "language", "model", "family", "weight")}
    labelled = Labelled(column["label"], column["language"], column["model"], column["family"], column["weight"])
    return labelled, [Exchange(row["response"], row["language"], row["prompt"], row["prompt_label"]) for row in rows]


def _judged(panel: "Panel", exchanges: Sequence["Exchange"]) -> dict[str, list["Verdict"]]:
    from rass_core.judges.panel import PANEL

    panel.check_covers(sorted({each.language for each in exchanges}))
    with PROGRESS.running(f"judging {len(exchanges):,} responses"):
        judged = panel.judge(exchanges)
    return {PANEL: judged.final, **judged.votes}


def _cut(exchange: "Exchange", max_chars: int) -> "Exchange":
    return replace(exchange, response=exchange.response[:max_chars])


def _write_calibration(table: "pa.Table", page: str, out: Path) -> Path:
    """Write the table and its page beside it; return the page's path."""
    import pyarrow.parquet as pq

    from rass_core.judges.score_file import whole_file

    beside = out.with_suffix(".html")
    with whole_file(beside) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with whole_file(out) as temporary:
        pq.write_table(table, temporary)
    return beside


def _print_calibration(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the panel by language and by family of models, and each judge."""
    from rass_core.judges.calibration_page import shown
    from rass_core.judges.panel import PANEL
    from rass_core.vocabulary import ALL

    of_all = [row for row in rows if row["model"] == ALL]
    parts = {
        "language": [row for row in of_all if row["judge"] == PANEL and row["family"] == ALL],
        "family": [row for row in of_all if row["judge"] == PANEL and row["language"] == ALL and row["family"] != ALL],
        "judge": [row for row in of_all if row["language"] == row["family"] == ALL],
    }
    heads = {
        "n": "n", "n_unscored": "unscored", "kappa": "kappa", "missed": "missed %", "false_alarms": "false alarms %",
        "ece": "ECE",
    }  # fmt: skip
    for name, chosen in parts.items():
        if chosen:
            _print([name, *heads.values()], [[row[name], *(shown(row, column) for column in heads)] for row in chosen])
            typer.echo()


def _print(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    # A narrow terminal folds the lines; cutting columns would show other figures.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table, crop=False, soft_wrap=True)
