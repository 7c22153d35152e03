"""Stage: the selected prompts and their anchors with chosen and rejected answers → `preferences`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rass_core.errors import ConfigError, SelectionError
from rass_core.lake.schema import TABLES, rows_table
from rass_core.lake.store import Commit
from rass_core.lake.tables.mitigation import Preferences
from rass_core.languages import identification
from rass_core.mitigate.pairs import PreferencePair, SteeredAnswer, counts, perplexity_limit
from rass_core.mitigate.recipe import (
    OwnAnswer,
    PairPrompts,
    anchors_asked,
    preference_pairs,
    weakest_steered_answers,
)
from rass_core.mitigate.settings import MitigateConfig
from rass_core.models.perplexity import Answered, answer_perplexities
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector
from rass_core.probe.geometry import prefixes_of
from rass_core.select.anchors import first_per_language, nearest_anchors
from rass_core.text import AcceptanceLimits
from rass_core.vocabulary import Row
from tasks.probed import Probed, direction_with
from tasks.session import SHORT_S, Session
from tasks.stage import MODEL_CODE, StageTables, stage

_SETTINGS_OF_PAIRS = [
    f"mitigate.{name}" for name in MitigateConfig.model_fields
    if name not in ("methods", "training", "strength", "direction")
]  # fmt: skip
"""What pairs depend on: another method or training does not make them anew."""


@stage(
    "preferences",
    reads=["prompts", "responses", "verdicts", "directions", "margins", "selections"],
    writes=["preferences", "evaluations"],
    settings=["model", "probe", "judging", "seed", *_SETTINGS_OF_PAIRS],
    code=[MODEL_CODE],
)
def build_preferences(session: Session, probed: Probed, rounds: Sequence[Commit], selection: Commit) -> StageTables:
    """Pair helpful answers with refusals, and add anchors (refused harmful, answered harmless) for training to keep."""
    settings = mitigating(session)
    prompts = _pair_prompts(session, probed, rounds, selection)
    given = _own_answers(session, [*prompts.selected, *prompts.harmful, *prompts.harmless])
    own = {
        prompt_id: OwnAnswer(answer.text, outcome, answer.finish_reason == "stop")
        for prompt_id, (answer, outcome) in given.items()
    }
    add = direction_with("add", session, probed.directions)
    session.engine(session.config.model).set_vectors(
        {"add": SteeringVector(add.vector.astype(np.float32), (add.layer,))}
    )
    chosen, reasons = weakest_steered_answers(
        prompts.selected,
        settings.alphas,
        lambda left, alpha: _steered_answers(session, left, alpha),
        _limits(session, given, prompts),
    )
    pairs = preference_pairs(
        prompts,
        own,
        chosen,
        lambda language: prefixes_of(language, session.config.probe.prefixes).compliance,
        settings,
    )
    made = counts([pair for pair, _ in pairs])
    summary = ", ".join(f"{sum(by_language.values())} {kind}" for kind, by_language in made.items()) or "none"
    session.say(f"preference pairs: {summary}")
    return {
        "preferences": rows_table("preferences", [_row(session, pair, alpha) for pair, alpha in pairs]),
        "evaluations": rows_table("evaluations", _reason_rows(session, reasons, len(prompts.selected), len(chosen))),
    }


def mitigating(session: Session) -> MitigateConfig:
    """Return the settings of the mitigation."""
    if session.config.mitigate is None:
        raise ConfigError("mitigate: the configuration has no such section; add it")
    return session.config.mitigate


def read_pairs(session: Session, probed: Probed, rounds: Sequence[Commit], preferences: Commit) -> list[PreferencePair]:
    """Return the pairs with their prompts' texts, in a fixed order."""
    where = "prompt_id IN (SELECT prompt_id FROM preferences)"
    text_of = _prompts(session, where, [probed.prompts, *rounds, preferences])
    rows = session.read("preferences", preferences).to_pylist()
    return [
        PreferencePair(
            row["prompt_id"],
            row["kind"],
            text_of[row["prompt_id"]]["text"],
            row["language"],
            row["chosen"],
            row["rejected"],
        )
        for row in sorted(rows, key=lambda row: (row["kind"], row["prompt_id"]))
    ]


def _pair_prompts(session: Session, probed: Probed, rounds: Sequence[Commit], selection: Commit) -> PairPrompts:
    """Return the selected prompts and the anchors for them, none of the test split."""
    where = "prompt_id IN (SELECT prompt_id FROM selections)"
    commits, settings = [*probed.commits, *rounds], mitigating(session)
    selected = sorted(_prompts(session, where, [*commits, selection]).values(), key=lambda row: row["prompt_id"])
    if not selected:
        raise SelectionError("preferences: no prompt was selected; widen generate.width or write more rounds")
    harmful, harmless = (
        nearest_anchors(session.lake, commits, label, outcome, session.config.seed)
        for label, outcome in (("harmful", "refusal"), ("harmless", "compliance"))
    )
    return PairPrompts(
        selected,
        first_per_language(harmful, anchors_asked(selected, settings.safety_share)),
        first_per_language(harmless, anchors_asked(selected, settings.general_share)),
    )


def _prompts(session: Session, where: str, commits: Sequence[Commit]) -> dict[str, Row]:
    """Return prompt_id → row of `prompts`, of those that a condition in SQL names."""
    columns = ", ".join(TABLES["prompts"].names)
    found = session.lake.batches(f"SELECT {columns} FROM prompts WHERE {where}", commits)
    return {row["prompt_id"]: row for batch in found for row in batch.to_pylist()}


def _own_answers(session: Session, rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Generation, str]]:
    """Return prompt_id → the model's own answer, up to its end, and the panel's outcome."""
    engine = session.engine(session.config.model)
    requests = [GenerationRequest(engine.chat.ids(row["text"]), mitigating(session).max_new_tokens) for row in rows]
    with session.progress("the model's own answers", len(requests)) as done:
        answers = engine.generate(requests, done)
    return {
        row["prompt_id"]: (answer, outcome)
        for row, answer, outcome in zip(rows, answers, _outcomes(session, rows, answers), strict=True)
    }


def _outcomes(session: Session, rows: Sequence[Mapping[str, Any]], answers: Sequence[Generation]) -> list[str]:
    """Return the panel's outcome of each answer."""
    exchanges = [
        answer.exchange(row["language"], row["text"], label=row["label"])
        for answer, row in zip(answers, rows, strict=True)
    ]
    return [verdict.outcome for verdict in session.judge(exchanges).final]


def _limits(session: Session, own: Mapping[str, tuple[Generation, str]], prompts: PairPrompts) -> AcceptanceLimits:
    """Return how far a steered answer may lie from what the model ordinarily says."""
    chat, settings = session.engine(session.config.model).chat, mitigating(session)
    ordinary = [
        Answered(chat.ids(row["text"]), own[row["prompt_id"]][0].token_ids) for row in prompts.harmless
        if own[row["prompt_id"]][1] == "compliance"
    ]  # fmt: skip
    if not ordinary:
        return AcceptanceLimits(settings.repeated_share)
    found = _perplexities(session, ordinary, "ordinary")
    return AcceptanceLimits(settings.repeated_share, perplexity_limit(found, settings.perplexity_factor))


def _perplexities(session: Session, answered: Sequence[Answered], what: str) -> list[float]:
    """Return the perplexity of each answer under the model without steering."""
    causal_lm = session.causal_lm(session.config.model)
    with session.status(f"reading the perplexities of {len(answered):,} {what} answers", after_s=SHORT_S):
        return list(answer_perplexities(causal_lm, answered, session.config.probe.token_budget))


def _steered_answers(session: Session, rows: Sequence[Mapping[str, Any]], alpha: float) -> list[SteeredAnswer]:
    """Return the model's answers, steered away from refusal, with all that decides whether they are taken."""
    engine, n_tokens = session.engine(session.config.model), mitigating(session).max_new_tokens
    requests = [
        GenerationRequest(engine.chat.ids(row["text"]), n_tokens, steering=Steering("add", -alpha)) for row in rows
    ]
    with session.progress(f"helpful answers, α = −{alpha:g}", len(requests)) as done:
        answers = engine.generate(requests, done)
    given = [
        Answered(engine.chat.ids(row["text"]), answer.token_ids) for row, answer in zip(rows, answers, strict=True)
    ]
    perplexities = _perplexities(session, given, "steered")
    return [
        SteeredAnswer(answer.text, outcome, _spoken(answer.text, row["language"]), answer.finish_reason, perplexity)
        for row, answer, outcome, perplexity in zip(
            rows, answers, _outcomes(session, rows, answers), perplexities, strict=True
        )
    ]


def _spoken(text: str, language: str) -> str | None:
    """Return the language of an answer, None where that cannot be identified."""
    is_in = identification.is_in(text, language)
    return None if is_in is None else language if is_in else identification.identify([text])[0][0]


def _row(session: Session, pair: PreferencePair, alpha: float | None) -> Preferences:
    return Preferences(
        prompt_id=pair.prompt_id, model_id=session.target_id, kind=pair.kind, language=pair.language,
        chosen=pair.chosen, rejected=pair.rejected, alpha=alpha,
    )  # fmt: skip


def _reason_rows(session: Session, reasons: Mapping[str, int], n_selected: int, n_chosen: int) -> list[Row]:
    """Return how often a steered answer was not taken, and the share of prompts that got one."""
    row = {"model_id": session.target_id, "variant": "base", "dataset": "preferences", "language": "all"}
    found = [
        row | {"metric": f"chosen_rejected:{why}", "value": float(n), "n": n} for why, n in sorted(reasons.items())
    ]
    return [*found, row | {"metric": "chosen_share", "value": n_chosen / n_selected, "n": n_selected}]
