"""Flow `probe`: measure the model's safety decision boundary."""

from prefect import flow

from rass_core.config import RassConfig
from rass_core.lake.store import Commit
from rass_core.models.settings import ModelConfig
from tasks.generate import Probed
from tasks.probe import extract_activations, find_directions, measure_boundaries, verify_steering
from tasks.prompts import read_prompts
from tasks.report import report, show_boundaries, show_report, show_run
from tasks.respond import compare_first_token, respond
from tasks.run import Run, recorded


def probe_steps(run: Run, prompts: Commit) -> Probed:
    """Return what the probe measured on the given prompts; the method's first step, a line each."""
    responses = respond(run, run.config.model, prompts)
    activations = extract_activations(run, run.config.model, prompts)
    directions = find_directions(run, run.config.model, prompts, responses, activations)
    boundaries = measure_boundaries(run, prompts, responses, activations, directions)
    generator_directions = directions
    if run.config.generator is not None and run.config.generate.is_steered:
        generator_directions = _generator_directions(run, run.config.generator, prompts)
    verify_steering(run, run.config.model, prompts, directions)
    compare_first_token(run, prompts, responses)
    return Probed(prompts, responses, activations, directions, boundaries, generator_directions)


def compare_steps(run: Run, prompts: Commit) -> list[Probed]:
    """Return what the probe measured of the further models, to be set beside the target."""
    found = []
    for model in run.config.models:
        other = run.aimed_at(model)
        run.say(f"model {other.target_id}:")
        found.append(probe_steps(other, prompts))
        show_boundaries(other, found[-1].boundaries)
    return found


def _generator_directions(run: Run, generator: ModelConfig, prompts: Commit) -> Commit:
    """Return the directions of a generator that is not the target: it is steered by its own."""
    responses = respond(run, generator, prompts)
    activations = extract_activations(run, generator, prompts)
    return find_directions(run, generator, prompts, responses, activations)


@flow(name="probe", flow_run_name="{config.name}", validate_parameters=True)
def probe(config: RassConfig) -> str:
    """Measure where the model of the configuration begins to refuse, per language."""
    with recorded("probe", config) as run:
        prompts = read_prompts(run)
        probed = probe_steps(run, prompts)
        show_boundaries(run, probed.boundaries)
        compare_steps(run, prompts)
        show_run(run)
        path = report(run)
        show_report(run, path)
        return str(path)
