"""Stage: the model's own greedy answers to the given prompts, judged → `responses`, `verdicts`."""

import pyarrow as pa

from rass_core.lake.store import Commit
from rass_core.models.answering import ASKED, AnswerWorker, asked_alone
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from tasks.answers import answer_and_judge
from tasks.session import Session
from tasks.stage import StageTables, stage


@stage(
    "responses",
    reads=["prompts"],
    writes=["responses", "verdicts"],
    settings=["probe.max_new_tokens", "probe.store_harmful_responses", "judging"],
    in_shards=True,
)
def respond(session: Session, model: ModelConfig, prompts: Commit) -> StageTables:
    """Let the model answer every given prompt, and judge the answers."""
    name = model_id(model.reference)
    worker = AnswerWorker(model, session.config.probe.max_new_tokens, name)
    given = asked_alone(session.read("prompts", prompts).to_batches(), name)
    answer_and_judge(session, "answering the given prompts", worker, pa.Table.from_batches(given, ASKED))
    return {}
