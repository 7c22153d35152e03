"""Stage: the model's own greedy answers to the given prompts, judged → `responses`, `verdicts`."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.errors import BoundaryError
from rass_core.judges import PANEL, Exchange, Verdict
from rass_core.judges.first_token import FirstTokenJudge
from rass_core.judges.workers import verdict_row
from rass_core.lake.store import Commit
from rass_core.models.answering import AnswerWorker, asked
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from rass_core.stats.agreement import auc, cohen_kappa
from rass_core.text import digest
from tasks.answers import answer_and_judge, answering_code
from tasks.session import Session, chat_of, table


@task(cache_policy=NO_CACHE)
def respond(session: Session, model: ModelConfig, prompts: Commit) -> Commit:
    """Let the model answer every given prompt, and judge the answers."""
    settings, name = session.config.probe, model_id(model.reference)

    def compute() -> Mapping[str, pa.Table]:
        given = session.read("prompts", prompts)
        worker = AnswerWorker(model, settings.max_new_tokens, name)
        answer_and_judge(session, "answering the given prompts", worker, asked_of(given, name))
        return {}

    inputs = [prompts, model, settings.max_new_tokens, settings.store_harmful_responses, session.judging]
    return session.once("responses", inputs, compute, answering_code(session))


def asked_of(prompts: pa.Table, name: str) -> pa.Table:
    """Return rows of `prompts` as a model is asked them."""
    n, ids = prompts.num_rows, prompts["prompt_id"].to_pylist()
    return asked({
        "response_id": [digest("response", name, prompt, "base", 0) for prompt in ids],
        "prompt_id": prompts["prompt_id"], "variant": ["base"] * n, "language": prompts["language"],
        "label": prompts["label"], "prompt": prompts["text"],
    })  # fmt: skip


@task(cache_policy=NO_CACHE)
def compare_first_token(session: Session, prompts: Commit, responses: Commit) -> Commit:
    """Judge the given prompts by the first tokens alone, and tell how far that agrees with the panel."""
    settings = session.config.probe

    def compute() -> Mapping[str, pa.Table]:
        rows = sorted(session.read("prompts", prompts).to_pylist(), key=lambda row: row["prompt_id"])
        answered = {row["prompt_id"]: row["response_id"] for row in session.read("responses", responses).to_pylist()}
        panel = {
            row["subject_id"]: row["outcome"]
            for row in session.read("verdicts", responses, where=f"judge = '{PANEL}'").to_pylist()
        }
        judge = FirstTokenJudge(
            session.causal_lm(session.config.model), chat_of(session.config.model), settings.prefixes, settings.token_budget
        )
        with session.status(f"reading the first tokens of {len(rows):,} answers"):
            verdicts = judge([Exchange("", row["language"], row["text"]) for row in rows])
        ids = [answered[row["prompt_id"]] for row in rows]
        languages = [row["language"] for row in rows]
        agreement = _agreement(session.target_id, languages, verdicts, [panel[each] for each in ids])
        said = [verdict_row(*each, with_reason=False) for each in zip(ids, repeat(judge.name), verdicts)]
        return {"verdicts": table("verdicts", said), "evaluations": table("evaluations", agreement)}

    return session.once("first tokens", [prompts, responses, session.config.model, settings], compute)


def _agreement(
    name: str, languages: Sequence[str], verdicts: Sequence[Verdict], outcomes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return kappa and AUC of a proxy against the panel, as rows of `evaluations`."""
    found: list[dict[str, Any]] = []
    for language in sorted(set(languages)):
        here = [
            (verdict, outcome in ("refusal", "partial"))
            for verdict, outcome, each in zip(verdicts, outcomes, languages, strict=True)
            if each == language and outcome != "unscored"
        ]
        true = [refused for _, refused in here]
        row = {
            "model_id": name, "variant": "base", "dataset": "given", "language": language, "n": len(here),
            "n_unscored": languages.count(language) - len(here),
        }  # fmt: skip
        try:
            kappa = cohen_kappa([str(verdict.outcome == "refusal") for verdict, _ in here], list(map(str, true)))
            area = auc([0.0 if verdict.score is None else verdict.score for verdict, _ in here], true)
            found += [row | {"metric": "first_token_kappa", "value": kappa}]
            found += [row | {"metric": "first_token_auc", "value": area}]
        except BoundaryError as error:
            found += [row | {"metric": f"first_token_{each}", "reason": str(error)} for each in ("kappa", "auc")]
    return found
