"""Stage: given labelled prompts → the moderators' errors, in `evaluations`."""

from collections.abc import Sequence

from rass_core.errors import JudgeError
from rass_core.judges import PANEL
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.moderators import check as core
from rass_core.vocabulary import ALL, Row
from tasks.session import Session
from tasks.stage import StageTables, stage

BATCH = 50
"""Prompts moderated between two steps of the progress bar."""
WHAT_TO_DO = "name another moderator under moderator.members: kind classifier, hf or llm with an endpoint"


def check_moderators(session: Session, prompts: Commit) -> Commit | None:
    """Measure the moderators on a sample of the given prompts; None where the configuration asks for no check.

    Prompts that a classifier was fitted on are left out.

    Raises:
        JudgeError: The panel is no better than chance; nothing has been written yet.
    """
    settings = session.config.moderator
    if settings.check_prompts == 0:
        session.say("moderators: not checked, moderator.check_prompts is 0")
        return None
    rows = session.read("prompts", prompts).to_pylist()
    known = session.moderators.knows([row["text"] for row in rows], [row["language"] for row in rows])
    unseen = [row for row, is_known in zip(rows, known, strict=True) if not is_known]
    sample = core.sample(unseen, settings.check_prompts, session.config.seed)
    if not sample:
        session.say(f"moderators: not checked, all {len(rows)} given prompts are in the classifier's training data")
        return None
    commit = check_sample(session, sample)
    _show(session, commit, len(rows) - len(unseen))
    return commit


@stage("moderators", writes=["evaluations"], settings=["moderating"])
def check_sample(session: Session, sample: Sequence[Row]) -> StageTables:
    """Let the moderators label a sample of the given prompts, and compare with its labels."""
    votes = []
    failures = session.moderators.failures(len(sample))
    with session.progress("checking the moderators", len(sample)) as done:
        for start in range(0, len(sample), BATCH):
            part = sample[start : start + BATCH]
            texts, languages = [row["text"] for row in part], [row["language"] for row in part]
            votes += session.moderators.words(texts, languages, failures)
            done(len(votes))
    for line in failures.lines("prompts"):
        session.say(line)
    return {"evaluations": rows_table("evaluations", core.check_rows(sample, votes))}


def _show(session: Session, commit: Commit, n_known: int) -> None:
    """Show each moderator's figures, and stop the run where the quorum is of no use."""
    rows = session.read("evaluations", commit).to_pylist()
    if n_known:
        session.say(f"moderators: {n_known} given prompts left out of the check, a classifier was fitted on them")
    members = sorted(session.moderators.members)
    is_panel = len(members) > 1
    for name in [*members, PANEL] if is_panel else members:
        session.say(core.line(rows, name))
    who = "the panel of moderators" if is_panel else f"moderator {members[0]}"
    why, unknown = core.useless(rows, PANEL)
    if why is not None:
        raise JudgeError(f"{who} {why}; {WHAT_TO_DO}")
    if unknown is not None:
        session.say(f"warning: {who} {unknown}")
    for name in members if is_panel else []:
        why = core.useless(rows, name)[0]
        if why is not None:
            session.say(f"warning: moderator {name} {why}")
    for language in sorted({row["language"] for row in rows} - {ALL}):
        why = core.useless(rows, PANEL, language)[0]
        if why is not None:
            session.say(f"warning: in {language}, {who} {why}")
