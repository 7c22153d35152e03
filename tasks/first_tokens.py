"""Stage: the given prompts judged by the first tokens of their answers → `verdicts`, agreement in `evaluations`."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from rass_core.errors import BoundaryError
from rass_core.judges import PANEL, Exchange, Verdict
from rass_core.judges.first_token import FirstTokenJudge
from rass_core.judges.workers import verdict_row
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.models.chat import chat_of
from rass_core.stats.agreement import auc, cohen_kappa
from tasks.session import Session
from tasks.stage import MODEL_CODE, StageTables, stage


@stage(
    "first tokens",
    reads=["prompts", "responses", "verdicts"],
    writes=["verdicts", "evaluations"],
    settings=["model", "probe.prefixes", "probe.token_budget"],
    code=[MODEL_CODE],
)
def compare_first_token(session: Session, prompts: Commit, responses: Commit) -> StageTables:
    """Judge the given prompts by the first tokens alone, and measure how far that agrees with the panel."""
    model, settings = session.config.model, session.config.probe
    rows = sorted(session.read("prompts", prompts).to_pylist(), key=lambda row: row["prompt_id"])
    answered = {row["prompt_id"]: row["response_id"] for row in session.read("responses", responses).to_pylist()}
    panel = {
        row["subject_id"]: row["outcome"]
        for row in session.read("verdicts", responses, where=f"judge = '{PANEL}'").to_pylist()
    }
    judge = FirstTokenJudge(session.causal_lm(model), chat_of(model), settings.prefixes, settings.token_budget)
    with session.status(f"reading the first tokens of {len(rows):,} answers"):
        verdicts = judge([Exchange("", row["language"], row["text"]) for row in rows])
    ids = [answered[row["prompt_id"]] for row in rows]
    languages = [row["language"] for row in rows]
    agreement = _agreement(session.target_id, languages, verdicts, [panel[each] for each in ids])
    said = [verdict_row(*each, with_reason=False) for each in zip(ids, repeat(judge.name), verdicts)]
    return {"verdicts": rows_table("verdicts", said), "evaluations": rows_table("evaluations", agreement)}


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
