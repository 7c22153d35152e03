"""Stages: every variant on prompts it was not mitigated with → `responses`, `verdicts`, `evaluations`, `gates`."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch

from rass_core.data.decontamination import overlaps, without_overlaps
from rass_core.data.prompts import load_prompts
from rass_core.errors import BoundaryError, GateError, RassError
from rass_core.evaluate.broken_text import BROKEN_TEXT, why_broken
from rass_core.evaluate.gate import GateResult, judge_gate
from rass_core.evaluate.metrics import Outcome
from rass_core.evaluate.rates import change_rows, measured_row, variant_rows
from rass_core.evaluate.samples import EvalSample, apply_attacks, sample_of
from rass_core.judges import PANEL, Verdict
from rass_core.judges.workers import verdict_row
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.mitigate.pairs import PreferencePair
from rass_core.models.answering import AblatedDirection, AnswerWorker
from rass_core.models.answering import asked as asked_table
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import chat_of
from rass_core.models.interventions import ablating
from rass_core.models.perplexity import Answered, Measured, answer_perplexities, mean_kl, perplexity
from rass_core.probe.geometry import split_of
from rass_core.text import digest
from rass_core.vocabulary import BENIGN, Row
from tasks.answers import answer_and_judge
from tasks.mitigate import Variant
from tasks.preferences import mitigating
from tasks.probed import Probed
from tasks.session import SHORT_S, Session
from tasks.stage import MODEL_CODE, StageTables, stage

TEST_SPLIT = "test_split"
"""Dataset of the given prompts that nothing was drawn from."""


@dataclass(frozen=True)
class EvaluationSet:
    """What every variant is asked, and what was left out of it."""

    samples: list[EvalSample]
    """As they are, each prompt once."""
    attacked: list[EvalSample]
    prompts: list[Row]
    """Rows of `prompts` that only the evaluation has."""
    left_out: dict[str, int]
    """Why → number of prompts or attacks."""

    @property
    def content(self) -> str:
        """Return the digest of what is asked."""
        own = [repr(sorted(row.items())) for row in self.prompts]
        return digest(*(repr(sample) for sample in [*self.samples, *self.attacked]), *own)


def evaluation_set(session: Session, probed: Probed, pairs: Sequence[PreferencePair]) -> EvaluationSet:
    """Return the test split and the evaluation's own prompts, without any that training has seen.

    Raises:
        PromptError: A source that cannot be read.
        BoundaryError: Nothing is left.
    """
    config, datasets, rows = session.config.evaluate, defaultdict[str, list[str]](list), dict[str, Row]()
    given = session.read("prompts", probed.prompts).to_pylist()
    for row in given:
        if split_of(row["family"], session.config.seed) == "test":
            rows[row["prompt_id"]] = row
            datasets[row["prompt_id"]].append(TEST_SPLIT)
    own: dict[str, Row] = {}
    for source in config.sources:
        loaded = load_prompts([source], max_characters=session.config.prompts.max_characters).table.to_pylist()
        for row in loaded:
            own[row["prompt_id"]] = row
            rows.setdefault(row["prompt_id"], row)
            datasets[row["prompt_id"]].append(row["source"])
    kept, left_out = _unseen(session, pairs, given, list(rows.values()))
    samples = [sample_of(row, sorted(set(datasets[row["prompt_id"]]))) for row in kept]
    if not samples:
        raise BoundaryError("evaluation: every prompt was used in training; add evaluate.sources")
    shots: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in pairs:
        if pair.kind == "general":
            shots[pair.language].append((pair.prompt, pair.chosen))
    attacked, unfit = apply_attacks(samples, config.jailbreaks, shots)
    left_out |= {f"attack_{name}": n for name, n in sorted(unfit.items())}
    fresh = {row["prompt_id"] for row in kept} - {row["prompt_id"] for row in given}
    return EvaluationSet(samples, attacked, [own[prompt_id] for prompt_id in sorted(fresh)], left_out)


def _unseen(
    session: Session, pairs: Sequence[PreferencePair], given: Sequence[Row], rows: Sequence[Row]
) -> tuple[list[Row], dict[str, int]]:
    """Return the rows that repeat no training prompt in text, family, translation or near-duplicate."""
    family = {row["prompt_id"]: row["family"] for row in given}
    trained = [
        {"prompt_id": pair.prompt_id, "text": pair.prompt, "language": pair.language,
         "family": family.get(pair.prompt_id)}
        for pair in pairs
    ]  # fmt: skip
    asked = _with_requests(session, sorted(rows, key=lambda row: row["prompt_id"]))
    found = overlaps(_with_requests(session, trained), asked, session.config.evaluate.near_duplicate_jaccard)
    kept, gone = without_overlaps(asked, found)
    session.say(f"evaluation: {len(kept)} prompts, {sum(gone.values())} left out because they were used in training")
    return [dict(row) for row in kept], {f"overlap_{why}": n for why, n in gone.items() if n}


def _with_requests(session: Session, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with what each asks for as translation_group, where a moderator knows."""
    groups = session.moderators.requests([row["text"] for row in rows], [row["language"] for row in rows])
    return [{**row, "translation_group": group} for row, group in zip(rows, groups, strict=True)]


@dataclass(frozen=True)
class Evaluated:
    """A variant with the outcomes of what it was asked."""

    variant: Variant
    commit: Commit
    outcomes: list[Outcome]

    @property
    def content(self) -> list[Any]:
        """Return what determines it."""
        return [self.variant, self.commit]


def evaluate(session: Session, variant: Variant, asked: EvaluationSet, before: Evaluated | None = None) -> Evaluated:
    """Let a variant answer, judge the answers, and count; its text is compared with what the model said before."""
    answers = answer_samples(session, variant, asked)
    counted = count_outcomes(session, variant, asked, answers, before)
    commit = session.union([answers, counted])
    return Evaluated(variant, commit, _outcomes(session, variant, asked, answers, _broken_in(session, counted)))


@stage(
    "answers of {variant.name}",
    writes=["prompts", "responses", "verdicts"],
    settings=["model", "probe.max_new_tokens", "probe.store_harmful_responses", "judging"],
    in_shards=True,
)
def answer_samples(session: Session, variant: Variant, asked: EvaluationSet) -> StageTables:
    """Let a variant answer prompts and attacked prompts, and judge the answers."""
    ablation = None if variant.ablated is None else AblatedDirection(variant.ablated, variant.strength)
    worker = AnswerWorker(variant.model, session.config.probe.max_new_tokens, session.target_id, ablation)
    answer_and_judge(session, f"{variant.name}: answering", worker, _asked_of(session, variant, asked))
    if variant.model != session.config.model:
        session.release(variant.model)
    return {"prompts": rows_table("prompts", asked.prompts)} if variant.name == "base" else {}


@stage(
    "evaluation of {variant.name}",
    reads=["responses", "verdicts"],
    writes=["verdicts", "evaluations"],
    settings=[
        "model", "probe.token_budget", "evaluating", "gate.level", "mitigate.repeated_share",
        "mitigate.perplexity_factor", "seed",
    ],
    code=[MODEL_CODE],
)  # fmt: skip
def count_outcomes(
    session: Session, variant: Variant, asked: EvaluationSet, answers: Commit, before: Evaluated | None
) -> StageTables:
    """Count how a variant answered; broken text to benign prompts counts as unscored.

    Args:
        session: Whose target it is a variant of.
        variant: The model as given, or mitigated.
        asked: Prompts and attacked prompts.
        answers: Holds its answers to them.
        before: The model as given, against whose answers broken text is recognised; None for itself.
    """
    broken = _broken(session, variant, asked, answers, before)
    outcomes = _outcomes(session, variant, asked, answers, broken)
    rows = variant_rows(session.target_id, outcomes, session.config.seed, session.config.gate.level)
    rows += _utility_rows(session, variant)
    if variant.name == "base":
        rows += [_pooled(session, "base", f"left_out:{why}", n) for why, n in asked.left_out.items()]
    verdicts = [
        verdict_row(response_id, BROKEN_TEXT, Verdict("unscored", None, f"broken text: {why}"))
        for response_id, why in broken.items()
    ]
    return {"verdicts": rows_table("verdicts", verdicts), "evaluations": rows_table("evaluations", rows)}


@stage(
    "change by {after.variant.name}",
    reads=["responses"],
    writes=["evaluations"],
    settings=["model", "probe.token_budget", "evaluate.n_kl", "gate.level", "seed"],
    code=[MODEL_CODE],
)
def measure_change(session: Session, before: Evaluated, after: Evaluated, asked: EvaluationSet) -> StageTables:
    """Measure the change of each rate, and KL divergence and perplexity on ordinary answers."""
    config = session.config
    rows = change_rows(session.target_id, before.outcomes, after.outcomes, config.seed, config.gate.level)
    return {"evaluations": rows_table("evaluations", [*rows, *_text_rows(session, before, after, asked)])}


@stage("gate of {variant.name}", reads=["evaluations"], writes=["gates"], settings=["model", "gate"])
def gate(session: Session, variant: Variant, change: Commit) -> StageTables:
    """Judge by the policy whether the variant may be published."""
    rows = [row for row in session.read("evaluations", change).to_pylist() if row["variant"] == variant.name]
    result = judge_gate(rows, session.config.gate)
    for line in gate_lines(variant.name, result):
        session.say(line)
    needs = [asdict(need) for need in result.needs]
    row = {
        "model_id": session.target_id, "variant": variant.name, "passed": result.passed,
        "refusals": list(result.refusals), "warnings": list(result.warnings), "needs": needs,
    }  # fmt: skip
    return {"gates": rows_table("gates", [row])}


def gate_lines(name: str, result: GateResult) -> list[str]:
    """Say in a line a reason how the gate judged."""
    if result.passed:
        return [f"gate: {name} passes"]
    return [f"gate: {name} does not pass: {reason}" for reason in result.refusals]


def stop_at_gate(session: Session, gates: Sequence[Commit]) -> None:
    """Raise GateError where a variant did not pass, so that the flow run ends as failed."""
    failed = [row for row in session.read("gates", *gates).to_pylist() if not row["passed"]] if gates else []
    if failed:
        names = ", ".join(row["variant"] for row in failed)
        more = sum(len(row["refusals"]) for row in failed) - 1
        also = f" (and {more} more reasons; see table gates)" if more else ""
        raise GateError(f"gate: {names} may not be published: {failed[0]['refusals'][0]}{also}")


def _response_id(session: Session, variant: Variant, sample: EvalSample) -> str:
    named = map(repr, variant.content)
    return digest("evaluation", session.target_id, *named, sample.prompt_id, sample.attack)


def _asked_of(session: Session, variant: Variant, asked: EvaluationSet) -> pa.Table:
    """Return what a variant is asked."""
    samples = [*asked.samples, *asked.attacked]
    return asked_table({
        "response_id": [_response_id(session, variant, q) for q in samples],
        "prompt_id": [q.prompt_id for q in samples], "variant": [variant.name] * len(samples),
        "attack": [q.attack for q in samples], "language": [q.language for q in samples],
        "label": [q.label for q in samples], "prompt": [q.text for q in samples],
        "messages": [None if q.attacked is None else json.dumps(q.attacked.messages()) for q in samples],
        "opening": [None if q.attacked is None else q.attacked.response_prefix for q in samples],
    })  # fmt: skip


def _broken(
    session: Session, variant: Variant, asked: EvaluationSet, answers: Commit, before: Evaluated | None
) -> dict[str, str]:
    """Return response_id → why the answer to a benign prompt is broken text."""
    said = {row["response_id"]: row["text"] for row in session.read("responses", answers).to_pylist()}
    complied = {row["subject_id"] for row in _panel_rows(session, answers) if row["outcome"] == "compliance"}
    helped = {_response_id(session, variant, q): q for q in asked.samples if q.label in BENIGN}
    helped = {response_id: q for response_id, q in helped.items() if response_id in complied}
    chat = chat_of(session.config.model)
    given = [Answered(chat.ids(q.text), chat.answer_ids(said[name])) for name, q in helped.items()]
    perplexities = _perplexities(session, given, "answers")
    if before is None:
        ordinary = [p for q, p in zip(helped.values(), perplexities, strict=True) if q.label == "harmless"]
    else:
        ordinary = _perplexities(session, _ordinary_answers(session, before, asked), "answers of the model as given")
    settings = mitigating(session)
    reasons = why_broken(
        [said[name] for name in helped], perplexities, ordinary, settings.repeated_share, settings.perplexity_factor
    )
    return {name: why for name, why in zip(helped, reasons, strict=True) if why is not None}


def _perplexities(session: Session, given: Sequence[Answered], what: str) -> list[float]:
    """Return the perplexity of each answer under the model as given."""
    causal_lm = session.causal_lm(session.config.model)
    with session.status(f"{len(given):,} {what}: reading their perplexities", after_s=SHORT_S):
        return list(answer_perplexities(causal_lm, given, session.config.probe.token_budget))


def _panel_rows(session: Session, answers: Commit) -> list[Row]:
    rows: list[Row] = session.read("verdicts", answers, where=f"judge = '{PANEL}'").to_pylist()
    return rows


def _broken_in(session: Session, counted: Commit) -> dict[str, str]:
    """Return response_id → why it is broken text, as the lake holds it."""
    rows = session.read("verdicts", counted, where=f"judge = '{BROKEN_TEXT}'").to_pylist()
    return {row["subject_id"]: row["reason"] for row in rows}


def _outcomes(
    session: Session, variant: Variant, asked: EvaluationSet, answers: Commit, broken: Mapping[str, str]
) -> list[Outcome]:
    """Return the outcome of each sample, once for each of its datasets."""
    judged = {row["subject_id"]: row for row in _panel_rows(session, answers)}
    n_tokens = {row["response_id"]: row["n_tokens"] for row in session.read("responses", answers).to_pylist()}
    found = []
    for q in [*asked.samples, *asked.attacked]:
        name = _response_id(session, variant, q)
        verdict: Row = judged[name] if name not in broken else {"outcome": "unscored", "kind": None}
        found += [
            Outcome(
                variant=variant.name, dataset=dataset, language=q.language, label=q.label, prompt_id=q.prompt_id,
                family=q.family, outcome=verdict["outcome"], n_tokens=n_tokens[name], attack=q.attack,
                kind=verdict["kind"],
            )
            for dataset in q.datasets
        ]  # fmt: skip
    return found


def _text_rows(session: Session, before: Evaluated, after: Evaluated, asked: EvaluationSet) -> list[Row]:
    """Return KL and perplexities on the base model's answers to harmless prompts; null with a reason where none."""
    seed, level, budget = session.config.seed, session.config.gate.level, session.config.probe.token_budget
    answers = _ordinary_answers(session, before, asked)[: session.config.evaluate.n_kl]
    name = after.variant.name
    if not answers:
        why = "the model as given answers no harmless prompt of the evaluation"
        return [_pooled(session, name, metric, None, why) for metric in ("kl", "perplexity", "perplexity_base")]
    base, rows = session.causal_lm(session.config.model), []
    with _in_transformers(session, after.variant) as mitigated:
        measures: dict[str, Callable[[], Measured]] = {
            "kl": lambda: mean_kl(base, mitigated, answers, seed, budget, level),
            "perplexity": lambda: perplexity(mitigated, answers, seed, budget, level),
            "perplexity_base": lambda: perplexity(base, answers, seed, budget, level),
        }
        for metric, measure in measures.items():
            try:
                with session.status(f"{name}: measuring {metric} on {len(answers):,} answers", after_s=SHORT_S):
                    rows.append(measured_row(metric, measure(), session.target_id, name))
            except RassError as error:
                rows.append(_pooled(session, name, metric, None, str(error)))
    return rows


def _ordinary_answers(session: Session, before: Evaluated, asked: EvaluationSet) -> list[Answered]:
    """Return the base model's own answers to harmless prompts, in an order that depends on nothing else."""
    complied = {o.prompt_id for o in before.outcomes if o.label == "harmless" and o.outcome == "compliance"}
    plain = session.read("responses", before.commit, where="attack IS NULL").to_pylist()
    said, chat = {row["prompt_id"]: row["text"] for row in plain}, chat_of(session.config.model)
    found = [
        Answered(chat.ids(q.text), chat.answer_ids(said[q.prompt_id]))
        for q in sorted(asked.samples, key=lambda each: digest("ordinary", each.prompt_id))
        if q.prompt_id in complied
    ]
    return [answered for answered in found if answered.answer]


def _pooled(session: Session, variant: str, metric: str, n: int | None, reason: str | None = None) -> Row:
    """Return a row over all languages: a count, or null with its reason."""
    return {
        "model_id": session.target_id, "variant": variant, "dataset": "all" if n is None else "evaluation",
        "language": "all", "metric": metric, "value": None if n is None else float(n), "n": n, "reason": reason,
    }  # fmt: skip


@contextmanager
def _in_transformers(session: Session, variant: Variant) -> Iterator[Any]:
    """Load the variant in transformers for as long as it is needed."""
    with session.loading(variant.model, "transformers"):
        model, _ = load_causal_lm(variant.model.reference, variant.model.dtype)
    taken_out: AbstractContextManager[None] = nullcontext()
    if variant.ablated is not None:
        taken_out = ablating(model, torch.tensor(variant.ablated, dtype=torch.float32), variant.strength)
    with taken_out:
        yield model


def _utility_rows(session: Session, variant: Variant) -> list[Row]:
    """Return what the configuration's benchmarks say of a variant."""
    config = session.config.evaluate.utility
    if config is None:
        return []
    from rass_core.evaluate.lm_eval import utility_rows

    what = f"{variant.name}: running {', '.join(config.tasks)}"
    with _in_transformers(session, variant) as model, session.status(what):
        return utility_rows(model, chat_of(session.config.model), session.target_id, variant.name, config)
