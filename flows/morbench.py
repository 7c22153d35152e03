"""Flow `morbench`: build the multilingual benchmark of benign prompts near the boundary with harmful contrasts."""

import json
from collections.abc import Mapping
from pathlib import Path

import typer
from prefect import flow
from rich.console import Console
from rich.table import Table

from flows.generate import generate_steps
from flows.probe import probe_steps
from rass_core.benchmark.card import STATISTICS_FILE
from rass_core.benchmark.contrasts import POOL
from rass_core.benchmark.folder import check_free, read_benchmark
from rass_core.config import RassConfig
from rass_core.errors import PromptError
from rass_core.lake.files import files_at
from rass_core.lake.store import Commit
from rass_core.paths import user_path
from tasks.moderators import check_moderators
from tasks.morbench import (
    HELD_OUT,
    Target,
    build_benchmark,
    candidates_of,
    collect,
    measure_pool,
    resolved,
    translate_back,
    usable,
    write_benchmark,
)
from tasks.prompts import read_prompts
from tasks.recording import recorded
from tasks.report import show_boundaries, show_run
from tasks.session import Session


@flow(name="morbench", flow_run_name="{config.name}")
def morbench(config: RassConfig, out: Path | None = None) -> str:
    """Build the benchmark near the boundaries of the configuration's models, from prompts not used in training."""
    folder = folder_of(config, out)
    with recorded("morbench", config) as session:
        prompts = read_prompts(session)
        check_moderators(session, prompts)
        aimed = [session, *(session.aimed_at(model) for model in session.config.models)]
        targets, languages, missing = usable(session, [target_steps(each, prompts) for each in aimed])
        pool = collect(session, targets)
        margins = [measure_pool(target.session, target.probed, pool) for target in targets]
        settings = resolved(session, pool, languages)
        candidates = candidates_of(session, pool, margins, languages)
        backs = translate_back(session, candidates)
        benchmark = build_benchmark(session, candidates, targets, backs, settings)
        version = write_benchmark(session, benchmark, folder, notes_of(config, missing))
        show_run(session)
        session.say(f"MORBench {version}, {len(benchmark.items)} pairs: {folder}")
        return str(folder)


def folder_of(config: RassConfig, out: Path | None) -> Path:
    """Return where the benchmark goes, having checked that it may.

    Raises:
        PromptError: A file, or a folder with anything but a benchmark.
    """
    folder = user_path(files_at(config.lake).folder / "morbench" if out is None else out, PromptError, "--out")
    check_free(folder)
    return folder


def notes_of(config: RassConfig, missing: Mapping[str, str]) -> list[str]:
    """Return what the card says of how this benchmark came about, and of languages that are not in it."""
    held_out = (
        "All prompts were held out from training, or written by the target models themselves, steered towards their "
        "boundaries, from prompts that were. What was made from several prompts, or translated, has the licence of "
        "what it was made from; its source begins with `rass:` and names how it was made."
    )
    maker = config.morbench.contrasts
    by = "the grammar of the built-in world" if maker == "lab" else f"`{maker}`"
    made = f"Contrasts with the source `rass:contrast` were made by {by}."
    return [
        held_out, *([] if maker == POOL else [made]),
        *(f"{language} is left out: {why}." for language, why in missing.items()),
    ]  # fmt: skip


def print_benchmark(folder: Path) -> None:
    """Print what the cells of a benchmark hold, why some fell short, and its version."""
    figures = json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))
    _, version = read_benchmark(folder)
    pairs = {(cell["language"], cell["category"]): f"{cell['n_pairs']}/{cell['n_wanted']}" for cell in figures["cells"]}
    languages, categories = (sorted({key[i] for key in pairs}) for i in (0, 1))
    table = Table("language", *categories, box=None, pad_edge=False, header_style="bold")
    for language in languages:
        table.add_row(language, *(pairs[language, category] for category in categories))
    Console(highlight=False, markup=False).print(table)
    for cell in figures["cells"]:
        if cell["reason"] is not None:
            typer.echo(f"short: {cell['language']}/{cell['category']}: {cell['reason']}")
    typer.echo(f"{figures['n_pairs']} pairs, version {version}")


def target_steps(session: Session, prompts: Commit) -> Target:
    """Return what is measured of a model, and rounds written towards its boundary from the held-out prompts."""
    session.say(f"model {session.target_id}:")
    probed = probe_steps(session, prompts)
    show_boundaries(session, probed.boundaries)
    target = Target(session, probed, generate_steps(session, probed, HELD_OUT))
    session.release(session.config.model)
    return target
