"""`rass moderator`: train a harm classifier, and measure the moderators of a configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.prompt_options import (
    LabelColumnOption,
    LabelMapOption,
    LanguageColumnOption,
    TextColumnOption,
    naming_options,
    source_settings,
)
from flows.renamed_options import TAKES_OLD_NAMES
from rass_core.errors import JudgeError, PromptError
from rass_core.paths import check_out, user_path
from rass_core.units import MAX_SEED
from rass_core.vocabulary import ALL

moderator = typer.Typer(no_args_is_help=True, help="Train a harm classifier, and measure how good moderators are.")
TERMINAL = Console(stderr=True, highlight=False, emoji=False)


@moderator.command()
def train(
    prompts: Annotated[
        list[str],
        typer.Option("--prompts", metavar="FILE", help="Labelled prompts, a file per source; give it several times."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Classifier to write.")],
    text_column: TextColumnOption = None,
    language_column: LanguageColumnOption = None,
    language: Annotated[str | None, typer.Option(help="Language of all prompts, in place of a column.")] = None,
    label_column: LabelColumnOption = None,
    label_map: LabelMapOption = None,
    family_column: Annotated[
        str | None, typer.Option(help="Column that is equal for a prompt and its translations.")
    ] = None,
) -> None:
    """Train a harm classifier on labelled prompts, and print its errors on each source left out of the training."""
    path = check_out(out, (".npz",), prompts, JudgeError)
    for each in prompts:
        user_path(each, PromptError, "--prompts")
    from rass_core.data.prompts import load_prompts
    from rass_core.data.sources import PromptSource
    from rass_core.moderators.harm_training import LabelledPrompt, usable
    from rass_core.moderators.harm_training import train as fit

    settings = source_settings(
        label_map, language, text_column=text_column, language_column=language_column, label_column=label_column,
        family_column=family_column,
    )  # fmt: skip
    with naming_options(has_language=True):
        rows = load_prompts([PromptSource(path=path, **settings) for path in prompts]).table.to_pylist()
    given = [
        LabelledPrompt(row["text"], row["language"], row["label"], row["source"], _family(row, family_column))
        for row in rows
    ]
    labelled = usable(given)
    if len(labelled) < len(given):
        TERMINAL.print(
            f"{len(given) - len(labelled):,} of {len(given):,} prompts left out: too long, or in a language without "
            "enough harmful and pseudo_harmful ones"
        )
    shown = (TextColumn("fitting without a source"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*shown, console=TERMINAL, transient=True, disable=not TERMINAL.is_terminal) as bars:
        bar = bars.add_task("fitting", total=None)
        classifier = fit(labelled, lambda done, total: bars.update(bar, completed=done, total=total))
    classifier.save(path)
    _print_errors(classifier.figures)
    typer.echo(
        f"{out}: fitted on {classifier.known.size:,} prompts in {', '.join(sorted(classifier.languages))}; use it with "
        f"moderator: {{members: [{{kind: classifier, weights: {out}}}]}}"
    )


@moderator.command(context_settings=TAKES_OLD_NAMES)
def check(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="Configuration with prompts and moderators.")],
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, max=1_000_000, help="Prompts per language and label; by default check_prompts."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the sample.")] = None,
) -> None:
    """Measure the moderators of a configuration on its labelled prompts; exit code 2 if they are no better than chance.

    A moderator of kind llm needs an endpoint here: the generator is only asked within a run.
    """
    from rass_core.config import load_config
    from rass_core.data.prompts import load_prompts
    from rass_core.judges import PANEL
    from rass_core.moderators import check as core
    from rass_core.moderators.panel import moderator_panel_of

    settings = load_config(config, seed=seed)
    quorum = moderator_panel_of(settings.moderator, say=lambda line: TERMINAL.print(line, markup=False, soft_wrap=True))
    rows = load_prompts(settings.prompts.sources, settings.prompts.max_characters).table.to_pylist()
    known = quorum.knows([row["text"] for row in rows], [row["language"] for row in rows])
    unseen = [row for row, is_known in zip(rows, known, strict=True) if not is_known]
    sample = core.sample(unseen, limit or settings.moderator.check_prompts or core.MIN_PROMPTS, settings.seed)
    if not sample:
        raise JudgeError(
            f"{config}: all {len(rows):,} prompts are in the classifier's training data; add other prompts"
        )
    if len(unseen) < len(rows):
        TERMINAL.print(
            f"{len(rows) - len(unseen):,} of {len(rows):,} prompts left out: a classifier was fitted on them"
        )
    with TERMINAL.status(f"moderating {len(sample):,} prompts"):
        words = quorum.words([row["text"] for row in sample], [row["language"] for row in sample])
    found = core.check_rows(sample, words)
    for language in [ALL, *sorted({row["language"] for row in sample})]:
        for name in [*sorted(quorum.members), *([PANEL] if len(quorum.members) > 1 else [])]:
            typer.echo(f"{language}: {core.line(found, name, language)}")
    why, unknown = core.useless(found, PANEL)
    if why is not None:
        raise JudgeError(f"the moderators' quorum {why}; change moderator.members")
    if unknown is not None:
        TERMINAL.print(f"warning: the moderators' quorum {unknown}")


def _family(row: dict[str, Any], column: str | None) -> str:
    """Return a prompt's family; across files where a column names it, so that translations are left out together."""
    return str(row["family"]).split("/", 1)[-1] if column is not None else str(row["family"])


def _print_errors(figures: Sequence[Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = (
        "source left out",
        "language",
        "n",
        "unscored",
        "harmful called benign",
        "benign called harmful",
        "AUC",
        "ECE",
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right")
    for row in figures:
        rates = [_interval(row, name, 100, 0, "%") for name in ("false_benign", "false_harmful")]
        table.add_row(
            row["source"], row["language"], f"{row['n']:,}", f"{row['n_unscored']:,}", *rates,
            _interval(row, "auc", 1, 2, ""), "–" if row["ece"] is None else f"{row['ece']:.2f}",
        )  # fmt: skip
    Console(highlight=False, markup=False, width=max(140, TERMINAL.width)).print(table)


def _interval(row: Any, name: str, scale: int, digits: int, unit: str) -> str:
    if row[name] is None:
        return "–"
    low, high = (f"{scale * row[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
    return f"{scale * row[name]:.{digits}f}{unit} [{low}, {high}]"
