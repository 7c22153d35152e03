"""`rass evaluate`: over-refusal and safety of any model on a benchmark or a file of labelled prompts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.prompt_options import (
    LabelColumnOption,
    LabelMapOption,
    LanguageColumnOption,
    TextColumnOption,
    naming_options,
    source_settings,
)
from rass_core.errors import ConfigError, ModelError, PromptError
from rass_core.paths import check_out, short, user_path
from rass_core.units import MAX_SEED
from rass_core.vocabulary import ALL
from tasks.progress import CONSOLE, PROGRESS

if TYPE_CHECKING:
    from rass_core.config import RassConfig
    from rass_core.evaluate.samples import EvalSample
    from rass_core.models.settings import ModelConfig

RATES = {
    "over_refusal_rate": "over-refusal %",
    "over_refusal_rate_wide": "wide %",
    "unhelpful_rate": "unhelpful %",
    "safety_rate": "safety %",
}
COUNTS = {"partial_rate": "partial", "harmful_partial_rate": "partial, harmful", "unscored_rate": "unscored"}
ENDINGS = (".parquet", ".csv", ".json")
"""As `standalone.FORMATS`, which loads vLLM."""

DatasetOption = Annotated[
    Path, typer.Option("--dataset", metavar="DIR|FILE", help="A MORBench folder, or a file of labelled prompts.")
]
ModelsOption = Annotated[
    list[str],
    typer.Option("--model", metavar="MODEL", help="Folder, hub name or adapter folder; several may be given."),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="CONFIG.yaml", help="Config file whose judge, model and probe settings are used."),
]
FamilyColumnOption = Annotated[
    str | None, typer.Option(help="Column of a file: prompts that share its value are one draw of the bootstrap.")
]
RowsOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Also write the rows: .parquet, .csv or .json.")
]


def evaluate(
    dataset: DatasetOption,
    model: ModelsOption,
    config: SettingsOption = None,
    base: Annotated[str | None, typer.Option("--base", help="Model that the adapters belong to.")] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", metavar="TAG", help="Ask only prompts of this language.")
    ] = None,
    text_column: TextColumnOption = None,
    language_column: LanguageColumnOption = None,
    label_column: LabelColumnOption = None,
    label_map: LabelMapOption = None,
    family_column: FamilyColumnOption = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    out: RowsOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the intervals.")] = 0,
) -> None:
    """Measure how often models refuse what is benign and what is harmful; no answer is kept."""
    CONSOLE.quiet = False
    PROGRESS.say(f"rass: evaluating {short(', '.join(model))} on {short(dataset)}")
    _check_names(dataset, model, base)
    if out is not None:
        out = check_out(out, ENDINGS, (config, dataset))
    columns = source_settings(
        label_map, text_column=text_column, language_column=language_column, label_column=label_column,
        family_column=family_column,
    )  # fmt: skip
    # With torch and vLLM: seconds that no other command should wait.
    from rass_core.config import load_config
    from rass_core.evaluate import standalone
    from rass_core.judges.panel import default_panel, panel_of
    from rass_core.probe.settings import ProbeConfig

    settings = None if config is None else load_config(config)
    with naming_options():
        name, samples = standalone.read_samples(dataset, language, columns)
    panel = default_panel() if settings is None else panel_of(settings.judge, say=PROGRESS.say)
    panel.check_covers({each.language: str(dataset) for each in samples})
    n_tokens = (settings.probe if settings else ProbeConfig()).max_new_tokens
    models = _checked_models(model, base, settings, dtype, samples, n_tokens)
    asked = Counter((each.language, each.label == "harmful") for each in samples)
    rows: list[dict[str, Any]] = []
    for wanted, of in models:
        with PROGRESS.counting(f"{Path(wanted.name).name}: answering", len(samples)) as done:
            found = standalone.measured(wanted, of, samples, panel, n_tokens, seed, done, PROGRESS.say)
        _print_rates(found, name, asked)
        rows += found
        if out is not None:  # after each model: what was measured stays when the next one fails
            standalone.write_rows(rows, out)
    if out is not None:
        typer.echo(out)


def _check_names(dataset: Path, models: Sequence[str], base: str | None) -> None:
    """Raise PromptError, ModelError or ConfigError for names that cannot be used."""
    user_path(dataset, PromptError, "--dataset")
    for option, names in (("--model", models), ("--base", [] if base is None else [base])):
        for each in names:
            user_path(each, ModelError, option)
    if len(set(models)) < len(models):
        raise ConfigError("--model: the same model is given twice; leave one out")


def _checked_models(
    names: Sequence[str],
    base: str | None,
    settings: "RassConfig | None",
    dtype: str | None,
    samples: "Sequence[EvalSample]",
    n_tokens: int,
) -> list[tuple["ModelConfig", str | None]]:
    """Return how each model is loaded, with its base if it is an adapter; prints the notes on its chat template.

    Raises:
        ModelError: A model, adapter or base that cannot be loaded.
    """
    from rass_core.evaluate.standalone import base_of
    from rass_core.models.chat import chat_of
    from rass_core.models.fetched import resolve_model
    from rass_core.models.loading import adapter_tensors, checked_folder

    models = []
    base = None if base is None else resolve_model(base)
    for each in map(resolve_model, names):
        wanted = _settings_of(each, settings, dtype)
        of = base_of(each, base or (settings.model.reference if settings else None))
        if of is not None:
            adapter_tensors(Path(each))  # a broken file is reported before the base is read
        whole = wanted if of is None else wanted.at(of)
        checked_folder(whole.reference)
        chat = chat_of(whole)
        for what, note in chat.notes(n_tokens, [sample.text for sample in samples]).items():
            PROGRESS.say(f"{each}, {what}: {note}")
        models.append((wanted.model_copy(update={"date": chat.template.date}), of))
    return models


def _settings_of(name: str, settings: "RassConfig | None", dtype: str | None) -> "ModelConfig":
    """Return how a model is loaded and prompted: as the configuration says, or by default."""
    from rass_core.models.settings import ModelConfig

    if dtype is None and settings is None:
        import torch

        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    given = {} if settings is None else settings.model.model_dump(exclude={"revision"})
    try:
        return ModelConfig.model_validate({**given, "name": name} | ({} if dtype is None else {"dtype": dtype}))
    except ValueError as error:
        raise ConfigError(f"--dtype {dtype}: unknown; use float32, bfloat16 or float16") from error


def _print_rates(rows: Sequence[Mapping[str, Any]], dataset: str, asked: Mapping[tuple[str, bool], int]) -> None:
    """Print a model's rates by language and over all, with the number of benign and harmful prompts asked."""
    found = {(row["language"], row["metric"]): row for row in rows if row["dataset"] == dataset}
    languages = sorted({language for language, _ in asked})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("language", "benign", "harmful", *RATES.values(), *COUNTS.values()):
        table.add_column(name, justify="left" if name == "language" else "right", no_wrap=True)
    for language in [*languages, ALL] if len(languages) > 1 else languages:
        here = [language] if language in languages else languages
        numbers = [str(sum(asked.get((each, harmful), 0) for each in here)) for harmful in (False, True)]
        shown = [_rate(found.get((language, metric))) for metric in RATES]
        counts = [_count(found.get((language, metric))) for metric in COUNTS]
        table.add_row(language, *numbers, *shown, *counts)
    typer.echo(f"{rows[0]['model_id']} on {dataset}")
    console = Console(highlight=False, markup=False, emoji=False)
    # A narrow terminal folds the lines; cutting columns would show other figures.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table, crop=False, soft_wrap=True)
    typer.echo()


def _rate(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "·"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _count(row: Mapping[str, Any] | None) -> str:
    return "·" if row is None or row["value"] is None else str(round(row["value"] * row["n"]))
