"""Stage: given prompts → `prompts`, what was dropped → `evaluations`."""

from collections.abc import Mapping

import pyarrow as pa

from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from tasks.session import Session
from tasks.stage import StageTables, stage


def read_prompts(session: Session) -> Commit:
    """Return the prompts of the configuration; empty, null and duplicate ones were dropped and are counted."""
    given = session.given
    if given.n_shortened:
        session.say(f"conversations: of {given.n_shortened} only the user's last turn is taken, without those before")
    return store_prompts(session, given.table, given.dropped)


@stage("prompts", writes=["prompts", "evaluations"])
def store_prompts(session: Session, given: pa.Table, n_dropped: Mapping[str, int]) -> StageTables:
    """Write the given prompts, and count the dropped ones by reason."""
    if any(n_dropped.values()):
        session.say("prompts dropped: " + ", ".join(f"{n} {why}" for why, n in n_dropped.items() if n))
    dropped = [
        {"dataset": "prompts", "variant": "input", "metric": f"dropped_{why}", "value": float(n), "n": n}
        for why, n in n_dropped.items()
    ]
    return {"prompts": given, "evaluations": rows_table("evaluations", dropped)}
