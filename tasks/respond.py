"""Stage: the model's own greedy answers to the given prompts, judged → `responses`, `verdicts`."""

import pyarrow as pa

from rass_core.lake.store import Commit
from rass_core.models.answering import AnswerWorker, asked
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from rass_core.text import digest
from tasks.answers import answer_and_judge
from tasks.session import Session
from tasks.stage import StageTables, stage


@stage(
    "responses",
    reads=["prompts"],
    writes=["responses", "verdicts"],
    settings=["probe.max_new_tokens", "probe.store_harmful_responses", "judging"],
)
def respond(session: Session, model: ModelConfig, prompts: Commit) -> StageTables:
    """Let the model answer every given prompt, and judge the answers."""
    name = model_id(model.reference)
    worker = AnswerWorker(model, session.config.probe.max_new_tokens, name)
    given = asked_of(session.read("prompts", prompts), name)
    answer_and_judge(session, "answering the given prompts", worker, given)
    return {}


def asked_of(prompts: pa.Table, name: str) -> pa.Table:
    """Return rows of `prompts` as a model is asked them."""
    n, ids = prompts.num_rows, prompts["prompt_id"].to_pylist()
    return asked({
        "response_id": [digest("response", name, prompt, "base", 0) for prompt in ids],
        "prompt_id": prompts["prompt_id"], "variant": ["base"] * n, "language": prompts["language"],
        "label": prompts["label"], "prompt": prompts["text"],
    })  # fmt: skip
