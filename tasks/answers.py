"""Answers and verdicts, in shards: benign prompts' answers are kept and judged by themselves, harmful ones at once."""

import pyarrow as pa
import pyarrow.compute as pc

from rass_core.judges.workers import JudgedAnswerWorker, JudgeWorker, to_judge
from rass_core.lake.store import Commit
from rass_core.models.answering import AnswerWorker
from rass_core.models.thinking import CUT_OFF
from tasks.session import READ_PER_ANSWERED, Session


def answer_and_judge(session: Session, what: str, worker: AnswerWorker, asked: pa.Table) -> Commit:
    """Return what a model answers and what the panel says of it.

    Answers to harmful prompts are judged by the process that wrote them: their text is nowhere kept, so a change of the
    judges lets the model answer these again, and only these.

    Args:
        session: Whose panel judges.
        what: For the lines of progress: `answering the given prompts`.
        worker: The model.
        asked: Rows of `models.answering.ASKED`.
    """
    keep = pc.or_(pc.not_equal(asked["label"], "harmful").fill_null(True), session.config.probe.store_harmful_responses)
    kept, others = asked.filter(keep), asked.filter(pc.invert(keep))
    answers = session.map(what, worker, kept, "response_id")
    at_once = JudgedAnswerWorker(
        worker, session.setting("judging"), session.config.judge, session.asked_model, others.num_rows
    )
    judged_at_once = session.map(f"{what}, harmful ones", at_once, others, "response_id")
    whole = session.union([answers, judge(session, kept, answers), judged_at_once])
    say_cut_off(session, whole)
    return whole


def judge(session: Session, asked: pa.Table, answers: Commit) -> Commit:
    """Return the panel's verdicts on answers whose text is kept.

    Args:
        session: Whose panel judges.
        asked: Rows of `models.answering.ASKED`.
        answers: Holds their answers.
    """
    worker = JudgeWorker(session.setting("judging"), session.config.judge, session.asked_model, asked.num_rows)
    return session.map(
        "judging responses", worker, lambda: to_judge(session.lake, asked, answers), "response_id", READ_PER_ANSWERED
    )


def say_cut_off(session: Session, answers: Commit) -> None:
    """Say how many answers ended within the model's thinking."""
    reasons = session.read("responses", answers, columns=["finish_reason"])["finish_reason"]
    n = pc.sum(pc.equal(reasons, "thinking")).as_py() or 0
    if n:
        session.say(f"{n:,} of {len(reasons):,} responses are {CUT_OFF} and stay unscored")
