"""What an evaluation asks a model: prompts as they are and dressed as jailbreaks, answered and judged."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rass_core.errors import ConfigError, PromptError
from rass_core.evaluate import attacks
from rass_core.evaluate.attacks import DRESSINGS, Dressed
from rass_core.evaluate.rates import BENIGN, Outcome
from rass_core.evaluate.settings import JailbreakConfig
from rass_core.judges import PANEL, Verdict
from rass_core.judges.panel import Panel
from rass_core.lab import attacks as lab
from rass_core.lab import world
from rass_core.models.chat import check_length
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering
from rass_core.text import digest

NOT_BY_DEFAULT = ("many_shot", "prefilled_answer")
"""Dressings that are asked for by name: the one is long, the other speaks for the model."""
N_SHOTS = 8


@dataclass(frozen=True)
class Question:
    """A prompt of known label as a model is asked it."""

    prompt_id: str
    text: str
    language: str
    label: str
    family: str
    datasets: tuple[str, ...]
    dressed: Dressed | None = None
    """None asks it as it is."""

    @property
    def dressing(self) -> str | None:
        """Return the name of its dressing."""
        return None if self.dressed is None else self.dressed.name


@dataclass(frozen=True)
class Reply:
    """What came of a question."""

    question: Question
    generation: Generation
    words: Mapping[str, Verdict]
    """Who said what of it: each judge and the panel."""

    def outcomes(self, variant: str) -> Iterator[Outcome]:
        """Yield it once for each dataset that the prompt is of."""
        q = self.question
        for dataset in q.datasets:
            yield Outcome(
                variant, dataset, q.language, q.label, q.prompt_id, q.family, self.words[PANEL].outcome,
                len(self.generation.token_ids), q.dressing, self.words[PANEL].kind,
            )  # fmt: skip


def dress_all(
    questions: Sequence[Question], config: JailbreakConfig, shots: Mapping[str, Sequence[tuple[str, str]]]
) -> tuple[list[Question], Counter[str]]:
    """Return questions in every dressing of the configuration, and how often one did not fit, by its name.

    Args:
        questions: As they are; of each language `n_prompts` harmful ones are dressed and half as many benign.
        config: Dressings.
        shots: language → harmless (question, answer) pairs, for many_shot.

    Raises:
        ConfigError: No such dressing.
    """
    names = dressing_names(config)
    found, unfit = [], Counter[str]()
    for question in _sample(questions, config.n_prompts):
        for name in names:
            try:
                found.append(replace(question, dressed=_dress(config.kind, name, question, shots)))
            except PromptError:
                unfit[name] += 1
    return found, unfit


def dressing_names(config: JailbreakConfig) -> list[str]:
    """Return the dressings that a configuration means.

    Raises:
        ConfigError: No such dressing of the lab.
    """
    if config.names is None:
        return lab.kept() if config.kind == "lab" else [name for name in DRESSINGS if name not in NOT_BY_DEFAULT]
    unknown = [name for name in config.names if config.kind == "lab" and name not in lab.REGISTER]
    if unknown:
        raise ConfigError(f"lab dressing {unknown[0]!r}: not one of {', '.join(lab.REGISTER)}")
    return config.names


def _dress(kind: str, name: str, question: Question, shots: Mapping[str, Sequence[tuple[str, str]]]) -> Dressed:
    if kind == "general":
        return attacks.dress(name, question.text, question.language, shots.get(question.language, ())[:N_SHOTS])
    sentence = world.parse(question.text, question.language)
    if sentence is None:
        raise PromptError(f"{question.prompt_id}: no sentence of the lab's world; dress it with kind general")
    return lab.dress(name, sentence)


def _sample(questions: Sequence[Question], n_prompts: int) -> list[Question]:
    """Return the same prompts every time: n harmful ones a language, and half as many benign."""
    cells: dict[tuple[str, bool], list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda each: digest("dressed", each.prompt_id)):
        cells[question.language, question.label in BENIGN].append(question)
    return [
        question
        for (_, is_benign), members in sorted(cells.items())
        for question in members[: max(1, n_prompts // 2) if is_benign else n_prompts]
    ]


def ask(
    engine: SteeredEngine, panel: Panel, questions: Sequence[Question], max_new_tokens: int,
    steering: Steering | None = None, progress: Callable[[int], None] | None = None,
) -> list[Reply]:  # fmt: skip
    """Return the greedy answers to the questions, judged, in order.

    Args:
        engine: The model.
        panel: Who judges; an answer that was opened for the model is judged with its opening.
        questions: As they are or dressed.
        max_new_tokens: Length of an answer that is only to be judged.
        steering: Of every request; None for none.
        progress: Told the number of answers done.

    Raises:
        ModelError: A prompt that does not fit the model.
        JudgeError: A judge that failed too often.
    """
    requests = []
    for question in questions:
        ids = prompt_ids(engine, question)
        check_length(ids, engine.max_model_len - max_new_tokens, f"prompt {question.text[:40]!r}")
        requests.append(GenerationRequest(ids, max_new_tokens, steering=steering))
    answers = engine.generate(requests, progress)
    exchanges = [
        answer.exchange(q.language, q.text, q.dressed.response_prefix if q.dressed else "", q.label)
        for q, answer in zip(questions, answers, strict=True)
    ]
    return [Reply(*each) for each in zip(questions, answers, panel.judge(exchanges).words(), strict=True)]


def prompt_ids(engine: SteeredEngine, question: Question) -> list[int]:
    """Return the tokens that the model is given."""
    if question.dressed is None:
        return engine.chat.ids(question.text)
    return engine.chat.conversation_ids(question.dressed.messages(), question.dressed.response_prefix)


def question_of(row: Mapping[str, Any], datasets: Sequence[str]) -> Question:
    """Return a row of `prompts` as a question."""
    return Question(
        row["prompt_id"], row["text"], row["language"], row["label"], row["family"] or row["prompt_id"],
        tuple(datasets),
    )  # fmt: skip
