"""What a run will do and how long it takes: prompts are read, a sample is tokenised, the machine's speed is measured.

No model is loaded. The formulas of the times are in `costs`.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rass_core.config import RassConfig
from rass_core.data.cells import LABELS
from rass_core.data.prompts import LoadedPrompts, load_prompts
from rass_core.errors import JudgeError, ModelError
from rass_core.estimate import costs
from rass_core.estimate.costs import Counts
from rass_core.estimate.machine import Cost, Machine, Shape, Speed
from rass_core.generate.operators import instruction
from rass_core.judges.llm import RUBRIC as JUDGES_RUBRIC
from rass_core.judges.panel import check_judged
from rass_core.mitigate.base import Effort
from rass_core.models.chat import ChatFormat
from rass_core.models.chat_client import ANSWER_TOKENS
from rass_core.models.identity import cached_folder
from rass_core.models.loading import checked_folder, load_tokenizer, n_parameters
from rass_core.models.settings import ModelConfig
from rass_core.moderators.llm import RUBRIC
from rass_core.units import duration, size

SAMPLE_SIZE = 500
"""Prompts that are tokenised; the others are taken to be as long."""
BYTES_PER_VALUE = 1.37
"""Of an activation in Parquet, rounded to bfloat16 first: byte stream split and zstd, measured."""
MIN_PER_SPLIT = 20
"""Prompts of a language and label in a split below which the plan warns."""
PROCESS_BYTES = 1.5e9
"""Of Python with torch, transformers, vLLM and Prefect, measured."""
KV_CACHE_BYTES = 0.25 * 2**30
"""Of vLLM on a CPU where the configuration names none."""
BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}

JUDGED = (
    "answers to the given prompts", "answers of the generator", "answers of the further models", "steered answers",
    "prompts measured", "answers to be learnt", "answers of the evaluation",
)  # fmt: skip
"""Steps whose answers are judged."""

Row = dict[str, Any]


@dataclass(frozen=True)
class _Checkpoint:
    """What a model's folder tells without its weights being loaded."""

    chat: ChatFormat
    shape: Shape
    mean_tokens: float
    """Of a prompt in the chat template, over the sample."""
    longest: int
    max_length: int | None
    """Prompt and answer together, in tokens; None where the model tells none."""


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    verdict: str
    """Time, disk, memory and whether the prompts are enough, in one line."""
    rows: list[Row]
    """`what`, `value`, `how it comes about`."""
    stages: list[Cost]
    """The time of each stage; empty where a model is not known."""
    slowdown: float = 1.0
    """Wall-clock time per processor time, as measured: above 1 where others use the machine."""


@dataclass(frozen=True)
class _Step:
    """Requests of one kind to one model, at most so many."""

    what: str
    how: str
    is_generators: bool
    n: int
    prompt_tokens: float
    new_tokens: int


def plan_run(config: RassConfig) -> Plan:
    """Return what a run will do; takes some seconds, in which the machine's speed is measured.

    Raises:
        PromptError: Prompts that cannot be read.
        ModelError: A model folder that is not there or lacks a chat template or weights.
    """
    models = [config.model, *([config.generator] if config.generator else [])]
    for model in [*config.models, *models]:
        cached_folder(model.reference)  # before the prompts are read: a folder that is not there is soon told
    loaded = load_prompts(config.prompts.sources, max_characters=config.prompts.max_characters)
    unjudged = _unjudged(config, loaded)
    checkpoints = [_checkpoint(model, loaded.table) for model in models]
    splits = _splits(config, loaded.table)
    rows = _prompt_rows(loaded, splits)
    for model in config.models:
        _check_template(model)
    for model, checkpoint in zip(models, checkpoints, strict=True):
        rows += _template_rows(config, model, checkpoint, loaded.table)
        rows.append(_token_row(model, checkpoint, loaded.table.num_rows))
    rows.append(_load_row(config))
    rows += _training_rows(config)
    steps = _steps(config, loaded.table, checkpoints)
    rows += _request_rows(config, steps)
    known = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    short = _short_of(splits)
    if unjudged is not None:
        rows.append(_row("judges", "NOT ENOUGH", unjudged))
        short += f"; NO JUDGE: {unjudged}"
    if len(known) < len(models):
        why = "needs config.json and weights of a model that is not in the hub's cache yet"
        unknown = [_row(what, "not known", why) for what in ("disk for activations", "memory", "time")]
        return Plan(f"time, disk and memory: not known before the model is fetched; {short}", [*rows, *unknown], [])
    stages, machine = _stages(config, known, loaded.table, splits, steps)
    disk, memory = _disk_row(config, known, loaded.table.num_rows), _memory_row(config, known, loaded.table.num_rows)
    time = _time_row(config, stages, machine.speed)
    verdict = f"{time['value']}, {disk['value']} of disk, {memory['value']} of memory; {short}"
    verdict += "; some parts are not in the time" if "WITHOUT" in time["how it comes about"] else ""
    verdict += "".join(
        f"; NOT ENOUGH {row['what']}" for row in (disk, memory) if "NOT ENOUGH" in row["how it comes about"]
    )
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


Splits = dict[str, dict[str, Counter[str]]]
"""language → split → label → number of prompts."""


def _splits(config: RassConfig, prompts: pa.Table) -> Splits:
    """Return how many prompts of each label each split of each language holds."""
    from rass_core.probe.geometry import SPLITS, split_of  # brings torch

    found: Splits = {}
    for language, label, family in zip(
        *(prompts[name].to_pylist() for name in ("language", "label", "family")), strict=True
    ):
        here = found.setdefault(language, {name: Counter() for name in SPLITS})
        here[split_of(family, config.seed)][label] += 1
    return dict(sorted(found.items()))


def _short_of(splits: Splits) -> str:
    """Say which languages have too few prompts of a label in a split."""
    short = [
        f"{language} ({', '.join(f'{n} {label} in {split}' for split, label, n in cells)})"
        for language, by_split in splits.items()
        if (cells := [(split, label, counts[label]) for split, counts in by_split.items() for label in LABELS
                      if counts[label] < MIN_PER_SPLIT])
    ]  # fmt: skip
    return f"TOO FEW prompts, below {MIN_PER_SPLIT}: {'; '.join(short)}" if short else "enough prompts of each label"


def _row(what: str, value: object, how: str) -> Row:
    return {"what": what, "value": value, "how it comes about": how}


def _prompt_rows(loaded: LoadedPrompts, splits: Splits) -> list[Row]:
    dropped = ", ".join(f"{n:,} {why}" for why, n in loaded.dropped.items() if n) or "none"
    how = f"read from the sources; dropped: {dropped}"
    if loaded.n_shortened:
        how += f"; {loaded.n_shortened:,} conversations without the turns before the user's last"
    rows = [_row("prompts", f"{loaded.table.num_rows:,}", how)]
    for language, by_split in splits.items():
        here = sum(by_split.values(), Counter[str]())
        missing = [label for label in LABELS if here[label] == 0]
        how = "; ".join(
            f"{split} {'/'.join(str(counts[label]) for label in LABELS)}" for split, counts in by_split.items()
        )
        if missing:
            how = f"no {' and no '.join(missing)} ones: add them for a boundary in {language}"
        rows.append(_row(f"prompts, {language}", ", ".join(f"{here[label]:,} {label}" for label in LABELS), how))
    return rows


def _checkpoint(model: ModelConfig, prompts: pa.Table) -> _Checkpoint | None:
    """Return what the model's folder tells; None for a hub model that is not on this machine.

    Raises:
        ModelError: A folder that cannot be read as a chat model.
    """
    from transformers import AutoConfig  # takes seconds, and the other commands need no plan

    folder = cached_folder(model.reference)
    if folder is None:
        return None
    checked_folder(str(folder))
    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        d_model = int(shape.hidden_size)
        measures = Shape(
            int(shape.num_hidden_layers), d_model, int(getattr(shape, "intermediate_size", None) or 4 * d_model),
            int(shape.num_attention_heads), int(shape.vocab_size), n_parameters(folder),
            BYTES_PER_PARAMETER[model.dtype], model.dtype,
        )  # fmt: skip
        tokenizer = load_tokenizer(str(folder))
    except ModelError:
        raise
    except Exception as error:  # a broken checkpoint may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{model.name}: cannot be read ({reason}); save model and tokenizer there again") from error
    chat = ChatFormat.configured(tokenizer, model)
    texts = prompts["text"].to_pylist()
    tokenizer.model_max_length = int(1e30)  # lengths are told here, not by the tokenizer's own warning
    sample = texts[:: math.ceil(len(texts) / SAMPLE_SIZE)]
    lengths = [len(chat.ids(text)) for text in sample]
    return _Checkpoint(
        chat,
        measures,
        sum(lengths) / len(lengths),
        max(lengths),
        model.max_model_len or getattr(shape, "max_position_embeddings", None),
    )


def _check_template(model: ModelConfig) -> None:
    """Raise ModelError where a further model's template cannot be used, if its tokenizer is on this machine."""
    folder = cached_folder(model.reference)
    if folder is not None:
        ChatFormat.configured(load_tokenizer(str(folder)), model)


def _template_rows(
    config: RassConfig, model: ModelConfig, checkpoint: _Checkpoint | None, prompts: pa.Table
) -> list[Row]:
    """Return what is to be known of a template: thinking, typed control tokens, its date."""
    if checkpoint is None:
        return []
    notes = checkpoint.chat.notes(config.probe.max_new_tokens, prompts["text"].to_pylist())
    return [_row(f"{what}, {model.name}", *note.split("; ", 1)) for what, note in notes.items()]


def _token_row(model: ModelConfig, checkpoint: _Checkpoint | None, n_prompts: int) -> Row:
    what = f"tokens of the prompts, {model.name}"
    if checkpoint is None:
        return _row(what, "not known", "on the hub and not in the cache; the run fetches it first")
    how = (
        f"{checkpoint.mean_tokens:.0f} a prompt in the chat template, longest {checkpoint.longest}, "
        f"of a sample of at most {SAMPLE_SIZE}"
    )
    if checkpoint.max_length is not None and checkpoint.longest >= checkpoint.max_length:
        how += f"; TOO LONG for the model's {checkpoint.max_length}, the run will stop there"
    return _row(what, f"{checkpoint.mean_tokens * n_prompts:,.0f}", how)


def _load_row(config: RassConfig) -> Row:
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
    return _row("model loads", str(n), how)


def _steps(config: RassConfig, prompts: pa.Table, checkpoints: Sequence[_Checkpoint | None]) -> list[_Step]:
    """Return all generation of a run; lengths of prompts are 0 where the model is not known."""
    probe, generate, n = config.probe, config.generate, prompts.num_rows
    target, writer = checkpoints[0], checkpoints[-1]
    has_generator = config.generator is not None
    length, writers_length = (c.mean_tokens if c else 0.0 for c in (target, writer))
    harmless = Counter(
        language
        for language, label in zip(prompts["language"].to_pylist(), prompts["label"].to_pylist(), strict=True)
        if label == "harmless"
    )
    n_checked = sum(min(count, probe.n_causal_prompts) for count in harmless.values())
    written = generate.n_written
    rounds = f"{generate.rounds} rounds × {generate.candidates_per_round} candidates"
    if generate.needs_trial:
        rounds = f"({generate.trial_candidates} of the trial + {rounds})"
    judged = f"probe.max_new_tokens {probe.max_new_tokens}"
    steps = [_Step("answers to the given prompts", f"prompts × {judged}", False, n, length, probe.max_new_tokens)]
    if has_generator:
        how = f"prompts × {judged}, for the generator's own directions"
        steps.append(_Step("answers of the generator", how, True, n, writers_length, probe.max_new_tokens))
    how = f"harmless prompts of the steering check × {judged}"
    steps.append(_Step("steered answers", how, False, n_checked, length, probe.max_new_tokens))
    how = f"{rounds} × generate.max_new_tokens {generate.max_new_tokens}"
    asked = _overhead(writer, instruction("recombine", "en", ["", ""], generate.instructions)) + 2 * writers_length
    steps.append(_Step("prompts written", how, has_generator, written, asked, generate.max_new_tokens))
    own = sum(m.n_calls for m in config.moderator.members if m.asks_generator)
    if own:
        how = f"{rounds} × {ANSWER_TOKENS}; the model that writes is asked by rubric"
        rubric = _overhead(writer, RUBRIC) + writers_length
        if writer is not None and writer.max_length is not None and rubric + 8 > writer.max_length:
            how += f"; the rubric's {rubric:.0f} tokens are TOO LONG for it, name an endpoint for the moderator"
        steps.append(_Step("prompts moderated", how, has_generator, own * written, rubric, ANSWER_TOKENS))
    steps.append(_Step("prompts measured", f"{rounds} × {judged}", False, written, length, probe.max_new_tokens))
    steps += _further_steps(config, prompts, length)
    if any(member.asks_generator for member in config.judge.members):
        n_judged = sum(step.n for step in steps if step.what in JUDGED)
        how = f"responses × {ANSWER_TOKENS}; the model that writes is asked by rubric"
        read = _overhead(writer, JUDGES_RUBRIC) + length + probe.max_new_tokens
        steps.append(_Step("responses judged", how, has_generator, n_judged, read, ANSWER_TOKENS))
    return steps


def _training_rows(config: RassConfig) -> list[Row]:
    """Return how many steps each variant is trained."""
    return [_row(f"training steps, {name}", f"≤ {effort.n_steps:,}", effort.how) for name, effort in _trainings(config)]


def _trainings(config: RassConfig) -> list[tuple[str, Effort]]:
    """Return the variants that are trained by steps, with what that computes."""
    if config.mitigate is None:
        return []
    efforts = {name: method.effort(costs.n_pairs(config)) for name, method in config.mitigate.variants().items()}
    return [(name, effort) for name, effort in efforts.items() if effort is not None and effort.n_steps]


def _further_steps(config: RassConfig, prompts: pa.Table, length: float) -> list[_Step]:
    """Return the generation of the further models, of the mitigation and of its evaluation."""
    probe, steps = config.probe, []
    if config.models:
        how = f"{len(config.models)} models × prompts × probe.max_new_tokens {probe.max_new_tokens}"
        n = len(config.models) * prompts.num_rows
        steps.append(_Step("answers of the further models", how, False, n, length, probe.max_new_tokens))
    if config.mitigate is None:
        return steps
    settings, size = config.mitigate, config.select.size
    anchors = math.ceil(1.5 * (settings.safety_share + settings.general_share) * size)
    how = (
        f"select.size {size} × {len(settings.alphas)} strengths, and the model's own to {size + anchors} prompts "
        f"and anchors, × mitigate.max_new_tokens {settings.max_new_tokens}"
    )
    n = size * len(settings.alphas) + size + anchors
    steps.append(_Step("answers to be learnt", how, False, n, length, settings.max_new_tokens))
    n_plain, n_attacked = _evaluation_size(config, prompts)
    n_variants = 1 + len(settings.methods)
    how = (
        f"{n_variants} variants × ({n_plain:,} prompts and {n_attacked:,} in attacks) × probe.max_new_tokens "
        f"{probe.max_new_tokens}"
    )
    n = n_variants * (n_plain + n_attacked)
    return [*steps, _Step("answers of the evaluation", how, False, n, length, probe.max_new_tokens)]


def _evaluation_size(config: RassConfig, prompts: pa.Table) -> tuple[int, int]:
    """Return how many prompts every variant is asked, and how many in attacks, at most."""
    from rass_core.evaluate.samples import attack_names  # brings torch
    from rass_core.probe.geometry import split_of

    splits = [split_of(family, config.seed) for family in prompts["family"].to_pylist()]
    spoken = Counter(
        each for each, split in zip(prompts["language"].to_pylist(), splits, strict=True) if split == "test"
    )
    for source in config.evaluate.sources:
        spoken.update(load_prompts([source], config.prompts.max_characters).table["language"].to_pylist())
    attacked = config.evaluate.jailbreaks
    each_language = attacked.n_prompts + max(1, attacked.n_prompts // 2)
    n_attacked = sum(min(n, each_language) for n in spoken.values()) * len(attack_names(attacked))
    return spoken.total(), n_attacked


def _overhead(checkpoint: _Checkpoint | None, text: str) -> float:
    return len(checkpoint.chat.answer_ids(text)) if checkpoint else 0.0


def _request_rows(config: RassConfig, steps: Sequence[_Step]) -> list[Row]:
    rows = [
        _row(step.what, f"≤ {step.n:,} requests, ≤ {step.n * step.new_tokens:,} new tokens", step.how) for step in steps
    ]
    n, tokens = sum(step.n for step in steps), sum(step.n * step.new_tokens for step in steps)
    rows.append(_row("requests and new tokens in all", f"≤ {n:,} and ≤ {tokens:,}", "the sum; most answers end sooner"))
    written = config.generate.n_written
    for member in config.moderator.members:
        if member.endpoint_asked is not None:
            how = f"{member.n_calls} for each written prompt, to {member.endpoint_asked.base_url}"
            rows.append(_row("calls of the moderator", f"≤ {member.n_calls * written:,}", how))
    n_judged = sum(step.n for step in steps if step.what in JUDGED)
    for judge in config.judge.members:
        if judge.endpoint_asked is not None:
            how = f"one for each response, to {judge.endpoint_asked.base_url}; off the form it is asked again"
            rows.append(_row("calls of the judge", f"≤ {judge.n_calls * n_judged:,}", how))
    return rows


def _disk_row(config: RassConfig, checkpoints: Sequence[_Checkpoint], n_prompts: int) -> Row:
    total, parts = 0, []
    for checkpoint in checkpoints:
        n_layers = len(config.probe.layers or range(_n_candidate_layers(checkpoint.shape.n_layers)))
        n_positions = len(config.probe.positions or checkpoint.chat.positions())
        parts.append(
            f"{n_prompts:,} prompts × {n_layers} layers × {n_positions} positions × {checkpoint.shape.d_model}"
        )
        total += n_prompts * n_layers * n_positions * checkpoint.shape.d_model
    survivors = config.generate.n_written
    total += survivors * checkpoints[0].shape.d_model
    free = shutil.disk_usage(_existing(Path(config.lake).expanduser().absolute())).free
    parts.append(f"{survivors:,} candidates × {checkpoints[0].shape.d_model}")
    how = f"{' + '.join(parts)}, {BYTES_PER_VALUE} bytes per value"
    fits = "free" if total * BYTES_PER_VALUE < free else "free: NOT ENOUGH"
    return _row("disk for activations", size(total * BYTES_PER_VALUE), f"{how}; {size(free)} {fits}")


def _memory_row(config: RassConfig, checkpoints: Sequence[_Checkpoint], n_prompts: int) -> Row:
    """Return the peak of memory: the process, each model twice, and the largest of what the stages hold."""
    import torch

    target = checkpoints[0]
    shape, budget = target.shape, config.probe.token_budget
    models = sum(2 * each.shape.n_parameters * each.shape.bytes_per_parameter for each in checkpoints)
    cache = len(checkpoints) * (config.model.kv_cache_gib * 2**30 if config.model.kv_cache_gib else KV_CACHE_BYTES)
    layers = len(config.probe.layers or range(_n_candidate_layers(shape.n_layers)))
    streams = 2 * n_prompts * layers * len(config.probe.positions or target.chat.positions()) * shape.d_model * 4
    logits = 3 * budget * shape.vocabulary * 4
    held: dict[str, float] = {"residual streams": streams, "logits of a batch": logits}
    if config.mitigate is not None and _trainings(config):
        settings = config.mitigate.training
        each = target.mean_tokens + costs.answer_length(config.mitigate.max_new_tokens)
        tokens = 2 * (settings.micro_batch_size or settings.batch_size) * each
        kept = 1 if settings.gradient_checkpointing else shape.n_layers
        weights = shape.n_parameters * shape.bytes_per_parameter
        held["training"] = weights + tokens * (kept * 16 * shape.d_model + 3 * shape.vocabulary) * 4
    largest = max(held, key=lambda name: held[name])
    total = PROCESS_BYTES + models + cache + held[largest]
    if torch.cuda.is_available():
        there = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        there = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    fits = "" if total < there else ": NOT ENOUGH"
    how = (
        f"process {size(PROCESS_BYTES)}, models {size(models)}, vLLM's cache {size(cache)}, {largest} "
        f"{size(held[largest])}; {size(there)} in this machine{fits}"
    )
    return _row("memory", size(total), how)


def _time_row(config: RassConfig, stages: Sequence[Cost], speed: Speed) -> Row:
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
    return _row("time", f"about {duration(sum(stage.seconds for stage in stages))}", how)


def _stages(
    config: RassConfig, checkpoints: Sequence[_Checkpoint], prompts: pa.Table, splits: Splits, steps: Sequence[_Step]
) -> tuple[list[Cost], Machine]:
    """Return the cost of every stage, and the machine with the target on it."""
    target = checkpoints[0]
    models = [config.model, *([config.generator] if config.generator else [])]
    machines = [
        Machine(each.shape, Speed.measured(each.shape, model.max_num_seqs), config)
        for each, model in zip(checkpoints, models, strict=True)
    ]
    asked = {step.what: step for step in steps}
    layers = config.probe.layers or list(range(_n_candidate_layers(target.shape.n_layers)))
    of_rubric = asked.get("prompts moderated")
    counts = Counts(
        n_prompts=prompts.num_rows, mean_tokens=target.mean_tokens,
        per_language={language: sum(each.values(), Counter[str]()) for language, each in splits.items()},
        validation={language: each["validation"] for language, each in splits.items()},
        prefixes=config.probe.prefixes, opening_tokens=lambda text: len(target.chat.answer_ids(text)),
        n_read_layers=len(layers), last_layer=max(layers),
        n_positions=len(config.probe.positions or target.chat.positions()),
        instruction_tokens=asked["prompts written"].prompt_tokens,
        rubric_tokens=of_rubric.prompt_tokens if of_rubric else 0.0,
        n_evaluated=sum(_evaluation_size(config, prompts)) if config.mitigate is not None else 0,
    )  # fmt: skip
    found = costs.all_stages(machines[0], machines[-1], counts, config.generator is not None)
    return list(found), machines[0]


def _n_candidate_layers(n_layers: int) -> int:
    """Return how many blocks are read: all but the last fifth."""
    return max(1, n_layers - n_layers // 5)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
