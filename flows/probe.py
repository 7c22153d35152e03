"""Flow `probe`: measure the model's safety decision boundary."""

from prefect import flow

from rass_core.config import RassConfig
from rass_core.lake.store import Commit
from rass_core.models.settings import ModelConfig
from tasks.activations import extract_activations
from tasks.boundaries import measure_boundaries
from tasks.directions import find_directions
from tasks.first_tokens import compare_first_token
from tasks.probed import Probed
from tasks.prompts import read_prompts
from tasks.recording import recorded
from tasks.report import report, show_boundaries, show_report, show_run
from tasks.respond import respond
from tasks.session import Session
from tasks.steering import verify_steering


def probe_steps(session: Session, prompts: Commit) -> Probed:
    """Return what the probe measured on the given prompts; the method's first step, a line each."""
    responses = respond(session, session.config.model, prompts)
    activations = extract_activations(session, session.config.model, prompts)
    directions = find_directions(session, session.config.model, prompts, responses, activations)
    boundaries = measure_boundaries(session, prompts, responses, activations, directions)
    generator_directions = directions
    if session.config.generator is not None and session.config.generate.is_steered:
        generator_directions = _generator_directions(session, session.config.generator, prompts)
    verify_steering(session, session.config.model, prompts, directions)
    compare_first_token(session, prompts, responses)
    return Probed(prompts, responses, activations, directions, boundaries, generator_directions)


def compare_steps(session: Session, prompts: Commit) -> list[Probed]:
    """Return what the probe measured of the further models, to be set beside the target."""
    found = []
    for model in session.config.models:
        other = session.aimed_at(model)
        session.say(f"model {other.target_id}:")
        found.append(probe_steps(other, prompts))
        show_boundaries(other, found[-1].boundaries)
    return found


def _generator_directions(session: Session, generator: ModelConfig, prompts: Commit) -> Commit:
    """Return the directions of a generator that is not the target: it is steered by its own."""
    responses = respond(session, generator, prompts)
    activations = extract_activations(session, generator, prompts)
    return find_directions(session, generator, prompts, responses, activations)


@flow(name="probe", flow_run_name="{config.name}", validate_parameters=True)
def probe(config: RassConfig) -> str:
    """Measure where the model of the configuration begins to refuse, per language."""
    with recorded("probe", config) as session:
        prompts = read_prompts(session)
        probed = probe_steps(session, prompts)
        show_boundaries(session, probed.boundaries)
        compare_steps(session, prompts)
        show_run(session)
        path = report(session)
        show_report(session, path)
        return str(path)
