"""What an evaluation asks a model: prompts as they are and attacked as jailbreaks, answered and judged."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rass_core.errors import PromptError
from rass_core.evaluate.attacks import ATTACKS, AttackedPrompt, BarePrompt, apply_attack
from rass_core.evaluate.metrics import Outcome
from rass_core.evaluate.settings import JailbreakConfig
from rass_core.judges import PANEL, Verdict
from rass_core.judges.panel import Panel
from rass_core.models.chat import check_length
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering
from rass_core.text import digest
from rass_core.vocabulary import BENIGN

N_SHOTS = 8
"""Harmless turns before a prompt under many_shot, at most."""


@dataclass(frozen=True)
class EvalSample:
    """A prompt of known label as a model is asked it."""

    prompt_id: str
    text: str
    language: str
    label: str
    family: str
    datasets: tuple[str, ...]
    attacked: AttackedPrompt | None = None
    """None asks it as it is."""

    @property
    def attack(self) -> str | None:
        """Return the name of its attack."""
        return None if self.attacked is None else self.attacked.name


@dataclass(frozen=True)
class Completion:
    """A model's answer to a sample."""

    sample: EvalSample
    generation: Generation
    words: Mapping[str, Verdict]
    """Who said what of it: each judge and the panel."""

    def outcomes(self, variant: str) -> Iterator[Outcome]:
        """Yield it once for each dataset that the prompt is of."""
        q = self.sample
        for dataset in q.datasets:
            yield Outcome(
                variant, dataset, q.language, q.label, q.prompt_id, q.family, self.words[PANEL].outcome,
                len(self.generation.token_ids), q.attack, self.words[PANEL].kind,
            )  # fmt: skip


def apply_attacks(
    samples: Sequence[EvalSample], config: JailbreakConfig, shots: Mapping[str, Sequence[tuple[str, str]]]
) -> tuple[list[EvalSample], Counter[str]]:
    """Return samples in every attack of the configuration, and how often one did not fit, by its name.

    Args:
        samples: As they are; of each language `n_prompts` harmful ones are attacked and half as many benign.
        config: Attacks.
        shots: language → harmless (sample, answer) pairs, for many_shot.

    Raises:
        ConfigError: No such attack.
    """
    names = attack_names(config)
    found, unfit = [], Counter[str]()
    for sample in _sample(samples, config.n_prompts):
        bare = BarePrompt(sample.text, sample.language, tuple(shots.get(sample.language, ())[:N_SHOTS]))
        for name in names:
            try:
                found.append(replace(sample, attacked=apply_attack(name, bare, config.kind)))
            except PromptError:
                unfit[name] += 1
    return found, unfit


def attack_names(config: JailbreakConfig) -> list[str]:
    """Return the attacks that a configuration means."""
    return ATTACKS[config.kind].defaults() if config.names is None else config.names


def _sample(samples: Sequence[EvalSample], n_prompts: int) -> list[EvalSample]:
    """Return the same prompts every time: n harmful ones a language, and half as many benign."""
    cells: dict[tuple[str, bool], list[EvalSample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda each: digest("dressed", each.prompt_id)):
        cells[sample.language, sample.label in BENIGN].append(sample)
    return [
        sample
        for (_, is_benign), members in sorted(cells.items())
        for sample in members[: max(1, n_prompts // 2) if is_benign else n_prompts]
    ]


def complete(
    engine: SteeredEngine, panel: Panel, samples: Sequence[EvalSample], max_new_tokens: int,
    steering: Steering | None = None, progress: Callable[[int], None] | None = None,
) -> list[Completion]:  # fmt: skip
    """Return the greedy answers to the samples, judged, in order.

    Args:
        engine: The model.
        panel: Who judges; an answer that was opened for the model is judged with its opening.
        samples: As they are or attacked.
        max_new_tokens: Length of an answer that is only to be judged.
        steering: Steering of every request; None for none.
        progress: Called with the number of answers done.

    Raises:
        ModelError: A prompt that does not fit the model.
        JudgeError: A judge that failed too often.
    """
    requests = []
    for sample in samples:
        ids = prompt_ids(engine, sample)
        check_length(ids, engine.max_model_len - max_new_tokens, f"prompt {sample.text[:40]!r}")
        requests.append(GenerationRequest(ids, max_new_tokens, steering=steering))
    answers = engine.generate(requests, progress)
    exchanges = [
        answer.exchange(q.language, q.text, q.attacked.response_prefix if q.attacked else "", q.label)
        for q, answer in zip(samples, answers, strict=True)
    ]
    return [Completion(*each) for each in zip(samples, answers, panel.judge(exchanges).words(), strict=True)]


def prompt_ids(engine: SteeredEngine, sample: EvalSample) -> list[int]:
    """Return the tokens that the model is given."""
    if sample.attacked is None:
        return engine.chat.ids(sample.text)
    return engine.chat.conversation_ids(sample.attacked.messages(), sample.attacked.response_prefix)


def sample_of(row: Mapping[str, Any], datasets: Sequence[str]) -> EvalSample:
    """Return a row of `prompts` as a sample."""
    return EvalSample(
        row["prompt_id"], row["text"], row["language"], row["label"], row["family"] or row["prompt_id"],
        tuple(datasets),
    )  # fmt: skip
