"""Stage: given prompts → `prompts`, what was dropped → `evaluations`."""

from collections.abc import Mapping

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.lake.store import Commit
from rass_core.text import digest
from tasks.session import Session, table


@task(cache_policy=NO_CACHE)
def read_prompts(session: Session) -> Commit:
    """Write the prompts of the configuration; empty, null and duplicate ones were dropped and are counted."""
    given = session.given

    def compute() -> Mapping[str, pa.Table]:
        if any(given.dropped.values()):
            session.say("prompts dropped: " + ", ".join(f"{n} {why}" for why, n in given.dropped.items() if n))
        if given.n_shortened:
            session.say(f"conversations: of {given.n_shortened} only the user's last turn is taken, without those before")
        dropped = [
            {"dataset": "prompts", "variant": "input", "metric": f"dropped_{why}", "value": float(n), "n": n}
            for why, n in given.dropped.items()
        ]
        return {"prompts": given.table, "evaluations": table("evaluations", dropped)}

    content = digest(*(tuple(row.values()) for row in given.table.to_pylist()))
    return session.once("prompts", [content, given.dropped], compute)
