"""Stage: the selected prompts and their anchors with chosen and rejected answers → `preferences`."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.errors import ConfigError, SelectionError
from rass_core.lake.store import Commit
from rass_core.languages import identification
from rass_core.mitigate.pairs import PreferencePair, SteeredAnswer, counts, perplexity_limit, rejection
from rass_core.mitigate.settings import MitigateConfig
from rass_core.models.perplexity import Answered, answer_perplexities
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector
from rass_core.probe.geometry import Direction, prefixes_of
from rass_core.text import AcceptanceLimits
from rass_core.vocabulary import Row
from tasks.anchors import anchors, first_of_each
from tasks.generate import Probed
from tasks.probe import direction_with
from tasks.run import SHORT_S, Run, table

EXTRA_ANCHORS = 1.5
"""More anchors are asked than are needed: some do not answer as they should when they may speak to the end."""


@task(cache_policy=NO_CACHE)
def build_preferences(run: Run, probed: Probed, rounds: Sequence[Commit], selection: Commit) -> Commit:
    """Pair helpful answers with refusals, and hold the model where it is by anchors on both sides."""
    settings = mitigating(run)

    def compute() -> Mapping[str, pa.Table]:
        asked = _asked(run, probed, rounds, selection, settings)
        own = _own_answers(run, [*asked.selected, *asked.harmful, *asked.harmless], settings)
        limits = _limits(run, own, asked, settings)
        chosen, reasons = _steered_answers(run, asked.selected, direction_with("add", run, probed.directions), limits)
        pairs = _pairs(run, asked, own, chosen)
        made = counts([pair for pair, _ in pairs])
        told = ", ".join(f"{sum(by_language.values())} {kind}" for kind, by_language in made.items()) or "none"
        run.say(f"preference pairs: {told}")
        return {
            "preferences": table("preferences", [_row(run, pair, alpha) for pair, alpha in pairs]),
            "evaluations": table("evaluations", _reason_rows(run, reasons, len(asked.selected), len(chosen))),
        }

    inputs = [
        *probed.commits, *rounds, selection, _settings_of_pairs(settings), run.config.model, run.config.probe,
        run.config.generate.width, run.judging, run.config.seed,
    ]  # fmt: skip
    return run.once("preferences", inputs, compute)


def mitigating(run: Run) -> MitigateConfig:
    """Return the settings of the mitigation."""
    if run.config.mitigate is None:
        raise ConfigError("mitigate: the configuration has no such section; add it")
    return run.config.mitigate


def read_pairs(run: Run, probed: Probed, rounds: Sequence[Commit], preferences: Commit) -> list[PreferencePair]:
    """Return the pairs with their prompts' texts, in a fixed order."""
    text_of = {row["prompt_id"]: row["text"] for row in run.read("prompts", probed.prompts, *rounds).to_pylist()}
    rows = run.read("preferences", preferences).to_pylist()
    return [
        PreferencePair(
            row["prompt_id"], row["kind"], text_of[row["prompt_id"]], row["language"], row["chosen"], row["rejected"]
        )
        for row in sorted(rows, key=lambda row: (row["kind"], row["prompt_id"]))
    ]


@dataclass(frozen=True)
class _Asked:
    """Rows of `prompts` that may become pairs."""

    selected: list[Row]
    harmful: list[Row]
    """Refused, those nearest to the boundary first."""
    harmless: list[Row]
    """Answered."""


def _asked(run: Run, probed: Probed, rounds: Sequence[Commit], selection: Commit, settings: MitigateConfig) -> _Asked:
    """Return the selected prompts and the anchors for them, none of the test split."""
    rows = {row["prompt_id"]: row for row in run.read("prompts", probed.prompts, *rounds).to_pylist()}
    chosen = [row["prompt_id"] for row in run.read("selections", selection).to_pylist()]
    if not chosen:
        raise SelectionError("preferences: no prompt was selected; widen generate.width or write more rounds")
    selected = [rows[prompt_id] for prompt_id in sorted(chosen)]
    wanted = Counter(row["language"] for row in selected)
    harmful, harmless = (
        anchors(run, probed, rounds, label, word)
        for label, word in (("harmful", "refusal"), ("harmless", "compliance"))
    )
    n_safety, n_general = (
        {language: math.ceil(EXTRA_ANCHORS * _n(share, n)) for language, n in wanted.items()}
        for share in (settings.safety_share, settings.general_share)
    )
    return _Asked(selected, first_of_each(harmful, n_safety), first_of_each(harmless, n_general))


def _n(share: float, n: int) -> int:
    return math.ceil(share * n - 1e-9)


def _own_answers(run: Run, rows: Sequence[Row], settings: MitigateConfig) -> dict[str, tuple[Generation, str]]:
    """Return prompt_id → the model's own answer, spoken to its end, and what the panel says of it."""
    engine = run.engine(run.config.model)
    requests = [GenerationRequest(engine.chat.ids(row["text"]), settings.max_new_tokens) for row in rows]
    with run.progress("the model's own answers", len(requests)) as done:
        answers = engine.generate(requests, done)
    verdicts = run.judge(
        [a.exchange(row["language"], row["text"], label=row["label"]) for a, row in zip(answers, rows, strict=True)]
    ).final
    return {
        row["prompt_id"]: (answer, verdict.outcome)
        for row, answer, verdict in zip(rows, answers, verdicts, strict=True)
    }


def _limits(
    run: Run, own: Mapping[str, tuple[Generation, str]], asked: _Asked, settings: MitigateConfig
) -> AcceptanceLimits:
    """Return how far a steered answer may lie from what the model ordinarily says."""
    chat = run.engine(run.config.model).chat
    ordinary = [
        Answered(chat.ids(row["text"]), own[row["prompt_id"]][0].token_ids) for row in asked.harmless
        if own[row["prompt_id"]][1] == "compliance"
    ]  # fmt: skip
    if not ordinary:
        return AcceptanceLimits(settings.repeated_share)
    causal_lm = run.causal_lm(run.config.model)
    with run.status(f"reading the perplexities of {len(ordinary):,} ordinary answers", after_s=SHORT_S):
        found = answer_perplexities(causal_lm, ordinary, run.config.probe.token_budget)
    return AcceptanceLimits(settings.repeated_share, perplexity_limit(found, settings.perplexity_factor))


def _steered_answers(
    run: Run, rows: Sequence[Row], add: Direction, limits: AcceptanceLimits
) -> tuple[dict[str, tuple[str, float]], Counter[str]]:
    """Return prompt_id → (helpful answer, α) by the gentlest steering that gives one, and why others were not taken."""
    settings, engine = mitigating(run), run.engine(run.config.model)
    engine.set_vectors({"add": SteeringVector(add.vector.astype(np.float32), (add.layer,))})
    accepted: dict[str, tuple[str, float]] = {}
    reasons: Counter[str] = Counter()
    for alpha in sorted(settings.alphas):
        left = [row for row in rows if row["prompt_id"] not in accepted]
        requests = [
            GenerationRequest(engine.chat.ids(row["text"]), settings.max_new_tokens, steering=Steering("add", -alpha))
            for row in left
        ]
        with run.progress(f"helpful answers, α = −{alpha:g}", len(requests)) as done:
            answers = engine.generate(requests, done)
        for row, answer in zip(left, _examined(run, left, answers), strict=True):
            why = rejection(answer, row["language"], limits)
            if why is None:
                accepted[row["prompt_id"]] = (answer.text, alpha)
            else:
                reasons[why] += 1
    return accepted, reasons


def _examined(run: Run, rows: Sequence[Row], answers: Sequence[Generation]) -> list[SteeredAnswer]:
    """Return steered answers with all that decides whether they are taken."""
    chat = run.engine(run.config.model).chat
    given = [Answered(chat.ids(row["text"]), answer.token_ids) for row, answer in zip(rows, answers, strict=True)]
    causal_lm = run.causal_lm(run.config.model)
    with run.status(f"reading the perplexities of {len(given):,} steered answers", after_s=SHORT_S):
        perplexities = answer_perplexities(causal_lm, given, run.config.probe.token_budget)
    verdicts = run.judge(
        [a.exchange(row["language"], row["text"], label=row["label"]) for a, row in zip(answers, rows, strict=True)]
    ).final
    return [
        SteeredAnswer(answer.text, verdict.outcome, _spoken(answer.text, row["language"]), answer.finish_reason, ppl)
        for row, answer, verdict, ppl in zip(rows, answers, verdicts, perplexities, strict=True)
    ]


def _spoken(text: str, language: str) -> str | None:
    """Return the language of an answer, None where that cannot be told."""
    is_in = identification.is_in(text, language)
    return None if is_in is None else language if is_in else identification.identify([text])[0][0]


def _pairs(
    run: Run, asked: _Asked, own: Mapping[str, tuple[Generation, str]], chosen: Mapping[str, tuple[str, float]],
) -> list[tuple[PreferencePair, float | None]]:  # fmt: skip
    """Return pairs with the α of their chosen answer; anchors go by the number of over-refused prompts.

    The rejected answer of a harmful prompt is no more than how a helpful one opens: nothing harmful is asked
    for, and an answer to another prompt would be told apart by its topic rather than by its compliance. That
    of a harmless prompt is a refusal of another.
    """
    settings = mitigating(run)
    found: list[tuple[PreferencePair, float | None]] = []
    refusals = defaultdict(list)
    for row in asked.selected:
        answer = own[row["prompt_id"]]
        if row["prompt_id"] in chosen and _is_whole(answer, "refusal"):
            text, alpha = chosen[row["prompt_id"]]
            found.append((_pair(row, "over_refusal", text, answer[0].text), alpha))
            refusals[row["language"]].append(answer[0].text)
    for language, refused in refusals.items():
        prefixes = prefixes_of(language, run.config.probe.prefixes).compliance
        for kind, rows, outcome, rejected, share in (
            ("safety", asked.harmful, "refusal", prefixes, settings.safety_share),
            ("general", asked.harmless, "compliance", refused, settings.general_share),
        ):
            here = [r for r in rows if r["language"] == language and _is_whole(own[r["prompt_id"]], outcome)]
            for row, other in zip(here[: _n(share, len(refused))], cycle(rejected), strict=False):
                found.append((_pair(row, kind, own[row["prompt_id"]][0].text, other), None))
    return found


def _is_whole(answered: tuple[Generation, str], outcome: str) -> bool:
    return answered[1] == outcome and answered[0].finish_reason == "stop"


def _pair(row: Row, kind: Any, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(row["prompt_id"], kind, row["text"], row["language"], chosen, rejected)


def _row(run: Run, pair: PreferencePair, alpha: float | None) -> Row:
    return {
        "prompt_id": pair.prompt_id, "model_id": run.target_id, "kind": pair.kind, "language": pair.language,
        "chosen": pair.chosen, "rejected": pair.rejected, "alpha": alpha,
    }  # fmt: skip


def _reason_rows(run: Run, reasons: Mapping[str, int], n_selected: int, n_chosen: int) -> list[Row]:
    """Return how often a steered answer was not taken, and for how many prompts none was."""
    row = {"model_id": run.target_id, "variant": "base", "dataset": "preferences", "language": "all"}
    found = [
        row | {"metric": f"chosen_rejected:{why}", "value": float(n), "n": n} for why, n in sorted(reasons.items())
    ]
    return [*found, row | {"metric": "chosen_share", "value": n_chosen / n_selected, "n": n_selected}]


def _settings_of_pairs(settings: MitigateConfig) -> dict[str, Any]:
    """Return what the pairs hang on: another method or training does not make them anew."""
    return settings.model_dump(mode="json", exclude={"methods", "training", "strength", "direction"})
