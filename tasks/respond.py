"""Stage: the model's own greedy answers to the given prompts, judged → `responses`, `verdicts`."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.errors import BoundaryError
from rass_core.judges import PANEL, Exchange, Verdict
from rass_core.judges.first_token import FirstTokenJudge
from rass_core.lake.store import Commit
from rass_core.models.chat import check_length
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import GenerationRequest
from rass_core.stats.agreement import auc, cohen_kappa
from rass_core.text import digest
from tasks.run import Run, chat_of, table


@task(cache_policy=NO_CACHE)
def respond(run: Run, model: ModelConfig, prompts: Commit) -> Commit:
    """Let the model answer every given prompt, and judge the answers."""
    settings = run.config.probe

    def compute() -> Mapping[str, pa.Table]:
        rows = run.read("prompts", prompts).to_pylist()
        engine = run.engine(model)
        requests = [GenerationRequest(engine.chat.ids(row["text"]), settings.max_new_tokens) for row in rows]
        for row, request in zip(rows, requests, strict=True):
            what = f"{row['source']}: prompt {row['text'][:40]!r}"
            check_length(request.prompt_ids, engine.max_model_len - settings.max_new_tokens, what)
        with run.progress("answering the given prompts", len(requests)) as done:
            answers = engine.generate(requests, done)
        judged = run.judge([
            answer.exchange(row["language"], row["text"], label=row["label"])
            for row, answer in zip(rows, answers, strict=True)
        ])  # fmt: skip
        return answer_tables(run, model_id(model.reference), rows, answers, judged.words())

    inputs = [
        prompts, model_id(model.reference), model, settings.max_new_tokens, settings.store_harmful_responses,
        run.judging,
    ]  # fmt: skip
    return run.once("responses", inputs, compute)


@task(cache_policy=NO_CACHE)
def compare_first_token(run: Run, prompts: Commit, responses: Commit) -> Commit:
    """Judge the given prompts by the first tokens alone, and tell how far that agrees with the panel."""
    settings = run.config.probe

    def compute() -> Mapping[str, pa.Table]:
        rows = sorted(run.read("prompts", prompts).to_pylist(), key=lambda row: row["prompt_id"])
        answered = {row["prompt_id"]: row["response_id"] for row in run.read("responses", responses).to_pylist()}
        panel = {
            row["subject_id"]: row["outcome"]
            for row in run.read("verdicts", responses, where=f"judge = '{PANEL}'").to_pylist()
        }
        judge = FirstTokenJudge(
            run.causal_lm(run.config.model), chat_of(run.config.model), settings.prefixes, settings.token_budget
        )
        with run.status(f"reading the first tokens of {len(rows):,} answers"):
            verdicts = judge([Exchange("", row["language"], row["text"]) for row in rows])
        ids = [answered[row["prompt_id"]] for row in rows]
        languages = [row["language"] for row in rows]
        agreement = _agreement(run.target_id, languages, verdicts, [panel[each] for each in ids])
        said = [verdict_row(*each, with_reason=False) for each in zip(ids, repeat(judge.name), verdicts)]
        return {"verdicts": table("verdicts", said), "evaluations": table("evaluations", agreement)}

    return run.once("first tokens", [prompts, responses, run.config.model, settings], compute)


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
            area = auc([verdict.score for verdict, _ in here], true)
            found += [row | {"metric": "first_token_kappa", "value": kappa}]
            found += [row | {"metric": "first_token_auc", "value": area}]
        except BoundaryError as error:
            found += [row | {"metric": f"first_token_{each}", "reason": str(error)} for each in ("kappa", "auc")]
    return found


def answer_tables(
    run: Run,
    model_name: str,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Any],
    words: Sequence[Mapping[str, Verdict]],
) -> dict[str, pa.Table]:
    """Return `responses` and `verdicts`; of answers to harmful prompts only digest and length are kept."""
    keep_all = run.config.probe.store_harmful_responses
    responses, verdicts = [], []
    for row, answer, said in zip(rows, answers, words, strict=True):
        response_id = digest("response", model_name, row["prompt_id"], "base", 0)
        kept = keep_all or row["label"] != "harmful"
        responses.append({
            "response_id": response_id, "prompt_id": row["prompt_id"], "model_id": model_name, "variant": "base",
            "sample": 0, "text": answer.text if kept else None,
            "text_sha256": hashlib.sha256(answer.text.encode()).hexdigest(),
            "finish_reason": answer.finish_reason, "n_tokens": len(answer.token_ids),
        })  # fmt: skip
        # The reason quotes the answer, so it is kept only where the answer is.
        verdicts += [verdict_row(response_id, judge, verdict, with_reason=kept) for judge, verdict in said.items()]
    return {"responses": table("responses", responses), "verdicts": table("verdicts", verdicts)}


def verdict_row(subject_id: str, judge: str, verdict: Verdict, with_reason: bool = True) -> dict[str, Any]:
    """Return a row of `verdicts`; a reason that may not be kept gives way to why there is no verdict, in a word."""
    short = verdict.declined or ("failed" if verdict.has_failed else None)
    return {
        "subject_id": subject_id, "judge": judge, "outcome": verdict.outcome, "score": verdict.score,
        "disagreement": verdict.disagreement, "reason": verdict.reason if with_reason else short,
        "kind": verdict.kind,
    }  # fmt: skip
