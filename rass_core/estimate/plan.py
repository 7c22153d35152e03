"""What a run will do and how long it takes: prompts are read, a sample is tokenised, the machine's speed is measured.

No model is loaded. The formulas of the times are in `costs`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from rass_core.config import RassConfig
from rass_core.data.prompts import LoadedPrompts, load_prompts
from rass_core.errors import JudgeError
from rass_core.estimate import costs
from rass_core.estimate.checkpoints import Checkpoint, check_template, read_checkpoint, template_rows, token_row
from rass_core.estimate.costs import Counts
from rass_core.estimate.machine import Cost, Machine, Speed
from rass_core.estimate.resources import disk_row, memory_row, n_candidate_layers
from rass_core.estimate.rows import PlanRow
from rass_core.estimate.splits import Splits, count_splits, prompt_rows, short_of
from rass_core.estimate.steps import PlannedRequests, evaluation_size, request_rows, steps_of
from rass_core.judges.panel import check_judged
from rass_core.models.identity import cached_folder
from rass_core.units import duration


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    verdict: str
    """Time, disk, memory and whether the prompts are enough, in one line."""
    rows: list[PlanRow]
    """What the run reads, asks for and needs."""
    stages: list[Cost]
    """The time of each stage; empty where a model is not known."""
    slowdown: float = 1.0
    """Wall-clock time per processor time, as measured: above 1 where others use the machine."""


def plan_run(config: RassConfig) -> Plan:
    """Return what a run will do; takes some seconds, in which the machine's speed is measured.

    Raises:
        PromptError: Prompts that cannot be read.
        ModelError: A model folder that is not there or lacks a chat template or weights.
    """
    models = [config.model, *([config.generator] if config.generator else [])]
    for model in [*config.models, *models]:
        cached_folder(model.reference)  # before the prompts are read: a folder that is not there is reported at once
    loaded = load_prompts(config.prompts.sources, max_characters=config.prompts.max_characters)
    unjudged = _unjudged(config, loaded)
    checkpoints = [read_checkpoint(model, loaded.table) for model in models]
    splits = count_splits(config, loaded.table)
    rows = prompt_rows(loaded, splits)
    for model in config.models:
        check_template(model)
    for model, checkpoint in zip(models, checkpoints, strict=True):
        rows += template_rows(config, model, checkpoint, loaded.table)
        rows.append(token_row(model, checkpoint, loaded.table.num_rows))
    rows.append(_load_row(config))
    rows += _training_rows(config)
    steps = steps_of(config, loaded.table, checkpoints)
    rows += request_rows(config, steps)
    known = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    short = short_of(splits)
    if unjudged is not None:
        rows.append(PlanRow("judges", "NOT ENOUGH", unjudged))
        short += f"; NO JUDGE: {unjudged}"
    if len(known) < len(models):
        why = "needs config.json and weights of a model that is not in the hub's cache yet"
        unknown = [PlanRow(what, "not known", why) for what in ("disk for activations", "memory", "time")]
        return Plan(f"time, disk and memory: not known before the model is fetched; {short}", [*rows, *unknown], [])
    stages, machine = _stages(config, known, loaded.table, splits, steps)
    disk, memory = disk_row(config, known, loaded.table.num_rows), memory_row(config, known, loaded.table.num_rows)
    time = _time_row(config, stages, machine.speed)
    verdict = f"{time.value}, {disk.value} of disk, {memory.value} of memory; {short}"
    verdict += "; some parts are not in the time" if "WITHOUT" in time.how else ""
    verdict += "".join(f"; NOT ENOUGH {row.what}" for row in (disk, memory) if "NOT ENOUGH" in row.how)
    return Plan(verdict, [*rows, disk, memory, time], stages, machine.speed.slowdown)


def _unjudged(config: RassConfig, given: LoadedPrompts) -> str | None:
    """Say which languages of the prompts no judge covers, for which a run would not begin; None where it would."""
    places = dict(given.places)
    for source in config.evaluate.sources if config.mitigate is not None else ():
        places = load_prompts([source], config.prompts.max_characters).places | places
    try:
        check_judged(config.judge, places)
    except JudgeError as error:
        return str(error)
    return None


def _load_row(config: RassConfig) -> PlanRow:
    n, how = 2, "the target once in transformers and once in vLLM"
    if config.generator is not None:
        n, how = 4, "the target and the generator, each once in transformers and once in vLLM"
    if config.models:
        n += 2 * len(config.models)
        how += f"; {len(config.models)} further models likewise"
    if config.mitigate is not None:
        variants = list(config.mitigate.variants())
        n += 3 * len(variants)
        how += f"; for each of {', '.join(variants)} once to train or edit, in vLLM, in transformers"
    return PlanRow("model loads", str(n), how)


def _training_rows(config: RassConfig) -> list[PlanRow]:
    """Return how many steps each variant is trained."""
    return [
        PlanRow(f"training steps, {name}", f"≤ {effort.n_steps:,}", effort.how)
        for name, effort in costs.trainings(config)
    ]


def _time_row(config: RassConfig, stages: Sequence[Cost], speed: Speed) -> PlanRow:
    how = f"sum of the stages below, at the speed measured now on {speed.device}"
    if speed.slowdown > 1.25:
        how += f"; others use the machine, this process gets {100 / speed.slowdown:.0f} % of a core"
    members = [*config.judge.members, *config.moderator.members]
    left_out = sorted({member.checkpoint for member in members if member.checkpoint is not None})
    if config.mitigate is not None:
        n = costs.n_pairs(config)
        left_out += [name for name, method in config.mitigate.variants().items() if method.effort(n) is None]
        left_out += config.evaluate.utility.tasks if config.evaluate.utility is not None else []
    if left_out:
        how += f"; WITHOUT {', '.join(left_out)}, whose time is not known"
    return PlanRow("time", f"about {duration(sum(stage.seconds for stage in stages))}", how)


def _stages(
    config: RassConfig,
    checkpoints: Sequence[Checkpoint],
    prompts: pa.Table,
    splits: Splits,
    steps: Sequence[PlannedRequests],
) -> tuple[list[Cost], Machine]:
    """Return the cost of every stage, and the machine with the target on it."""
    target = checkpoints[0]
    models = [config.model, *([config.generator] if config.generator else [])]
    machines = [
        Machine(each.shape, Speed.measured(each.shape, model.max_num_seqs), config)
        for each, model in zip(checkpoints, models, strict=True)
    ]
    asked = {step.what: step for step in steps}
    layers = config.probe.layers or list(range(n_candidate_layers(target.shape.n_layers)))
    of_rubric = asked.get("prompts moderated")
    counts = Counts(
        n_prompts=prompts.num_rows,
        mean_tokens=target.mean_tokens,
        per_language={language: sum(each.values(), Counter[str]()) for language, each in splits.items()},
        validation={language: each["validation"] for language, each in splits.items()},
        prefixes=config.probe.prefixes,
        opening_tokens=lambda text: len(target.chat.answer_ids(text)),
        n_read_layers=len(layers),
        last_layer=max(layers),
        n_positions=len(config.probe.positions or target.chat.positions()),
        instruction_tokens=asked["prompts written"].prompt_tokens,
        rubric_tokens=of_rubric.prompt_tokens if of_rubric else 0.0,
        n_evaluated=sum(evaluation_size(config, prompts)) if config.mitigate is not None else 0,
    )
    found = costs.all_stages(machines[0], machines[-1], counts, config.generator is not None)
    return list(found), machines[0]
