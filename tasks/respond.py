"""Stage: the model's own greedy answers to the given prompts, judged → `responses`, `verdicts`."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.chat import check_length
from rass_core.config import ModelConfig
from rass_core.engine import GenerationRequest
from rass_core.judges import PhraseJudge, Verdict
from rass_core.models import model_id
from rass_core.store import Commit
from rass_core.tables import digest
from tasks.run import Run, table


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
        verdicts = PhraseJudge()([answer.text for answer in answers], [row["language"] for row in rows])
        return answer_tables(run, model_id(model.name), rows, answers, verdicts)

    inputs = [prompts, model_id(model.name), model, settings.max_new_tokens, settings.store_harmful_responses]
    return run.once("responses", inputs, compute)


def answer_tables(
    run: Run, model_name: str, rows: Sequence[Mapping[str, Any]], answers: Sequence[Any], verdicts: Sequence[Verdict]
) -> dict[str, pa.Table]:
    """Return `responses` and `verdicts`; of answers to harmful prompts only digest and length are kept."""
    keep_all = run.config.probe.store_harmful_responses
    responses, judged = [], []
    for row, answer, verdict in zip(rows, answers, verdicts, strict=True):
        response_id = digest("response", model_name, row["prompt_id"], "base", 0)
        kept = keep_all or row["label"] != "harmful"
        responses.append({
            "response_id": response_id, "prompt_id": row["prompt_id"], "model_id": model_name, "variant": "base",
            "sample": 0, "text": answer.text if kept else None,
            "text_sha256": hashlib.sha256(answer.text.encode()).hexdigest(),
            "finish_reason": answer.finish_reason, "n_tokens": len(answer.token_ids),
        })  # fmt: skip
        # The reason quotes the answer, so it is kept only where the answer is.
        judged.append(verdict_row(response_id, PhraseJudge.name, verdict, with_reason=kept))
    return {"responses": table("responses", responses), "verdicts": table("verdicts", judged)}


def verdict_row(subject_id: str, judge: str, verdict: Verdict, with_reason: bool = True) -> dict[str, Any]:
    """Return a row of `verdicts`."""
    reason = verdict.reason if with_reason else None
    return {
        "subject_id": subject_id, "judge": judge, "outcome": verdict.outcome, "score": verdict.score, "reason": reason,
    }  # fmt: skip
