"""Flow `generate`: write prompts towards the boundary, steered, in rounds."""

from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.probe import probe_steps
from rass_core.config import RassConfig
from rass_core.lake.store import Commit
from tasks.candidates import TRAINED_SPLITS, given_writers
from tasks.moderators import check_moderators
from tasks.probed import Probed
from tasks.prompts import read_prompts
from tasks.recording import recorded
from tasks.report import report, show_report, show_run
from tasks.rounds import write_round
from tasks.session import Session
from tasks.trial import try_writers


def generate_steps(session: Session, probed: Probed, splits: Sequence[str] = TRAINED_SPLITS) -> list[Commit]:
    """Return the commits of what was written: the trial's, where there is one, then one per round.

    Each sees all that came before it, and starts from given prompts of these splits.
    """
    if not is_identified(session, probed):
        session.say("generate: left out, no language has an identified boundary")
        return []
    n_rounds = session.config.generate.rounds
    artifact = create_progress_artifact(progress=0.0, key="rass-rounds", description="Steered rounds done")
    trial = try_writers(session, probed, splits) if given_writers(session, probed) is None else None
    rounds: list[Commit] = []
    for number in range(1, n_rounds + 1):
        rounds.append(write_round(session, number, probed, trial, list(rounds), splits))
        update_progress_artifact(artifact, 100.0 * len(rounds) / n_rounds)  # type: ignore[arg-type]
    return [*([trial] if trial else []), *rounds]


def is_identified(session: Session, probed: Probed) -> bool:
    """Return whether any language has a boundary."""
    return any(row["b"] is not None for row in session.read("boundaries", probed.boundaries).to_pylist())


@flow(name="generate", flow_run_name="{config.name}")
def generate(config: RassConfig) -> str:
    """Write prompts near the boundary that is in the lake."""
    with recorded("generate", config) as session:
        with session.from_lake("rass probe"):
            probed = probe_steps(session, read_prompts(session))
        check_moderators(session, probed.prompts)
        generate_steps(session, probed)
        show_run(session)
        path = report(session)
        show_report(session, path)
        return str(path)
