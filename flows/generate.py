"""Flow `generate`: write prompts towards the boundary, steered, in rounds."""

from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.probe import probe_steps
from rass_core.config import RassConfig
from rass_core.lake.store import Commit
from tasks.generate import TRAINED_SPLITS, Probed, try_writers, write_round
from tasks.moderators import check_moderators
from tasks.prompts import read_prompts
from tasks.report import report, show_report, show_run
from tasks.run import Run, recorded


def generate_steps(run: Run, probed: Probed, splits: Sequence[str] = TRAINED_SPLITS) -> list[Commit]:
    """Return the commits of what was written: the trial's, where there is one, then one per round.

    Each sees all that came before it, and starts from given prompts of these splits.
    """
    if not is_identified(run, probed):
        run.say("generate: left out, no language has an identified boundary")
        return []
    n_rounds = run.config.generate.rounds
    artifact = create_progress_artifact(progress=0.0, key="rass-rounds", description="Steered rounds done")
    trial = try_writers(run, probed, splits)
    rounds: list[Commit] = []
    for number in range(n_rounds):
        rounds.append(write_round(run, number, probed, trial, list(rounds), splits))
        update_progress_artifact(artifact, 100.0 * len(rounds) / n_rounds)  # type: ignore[arg-type]
    return [*([trial] if trial else []), *rounds]


def is_identified(run: Run, probed: Probed) -> bool:
    """Return whether any language has a boundary."""
    return any(row["b"] is not None for row in run.read("boundaries", probed.boundaries).to_pylist())


@flow(name="generate", flow_run_name="{config.name}")
def generate(config: RassConfig) -> str:
    """Write prompts near the boundary that is in the lake."""
    with recorded("generate", config) as run:
        with run.from_lake("rass probe"):
            probed = probe_steps(run, read_prompts(run))
        check_moderators(run, probed.prompts)
        generate_steps(run, probed)
        show_run(run)
        path = report(run)
        show_report(run, path)
        return str(path)
