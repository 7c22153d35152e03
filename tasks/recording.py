"""A run's row of table `runs`: its start, and how it ended."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

from prefect.exceptions import TerminationSignal

import rass_core
from rass_core.config import RassConfig
from rass_core.errors import GateError
from rass_core.lake.running import Process
from rass_core.lake.schema import rows_table
from rass_core.models.identity import model_id
from rass_core.text import digest
from tasks.keys import tree_digest
from tasks.session import Session


@contextmanager
def recorded(flow: str, config: RassConfig) -> Iterator[Session]:
    """Open a run, record its start and how it ended, and free its models."""
    session = Session(flow, config)
    with session.lake.running.alive(session.run_id), _ended(session):
        yield session


@contextmanager
def _ended(session: Session) -> Iterator[None]:
    """Record the start of a run and how it ended."""
    record(session, "Running")
    warnings = _WarningLines(session)
    logging.getLogger("rass_core").addHandler(warnings)
    for note in session.notes:
        session.say(note)
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal) as error:
        by = "the user" if type(error) is KeyboardInterrupt else "SIGTERM"
        session.note = f"stopped by {by}; the next run resumes from here"
        record(session, "Cancelled")
        raise
    except GateError as error:
        session.note = " ".join(str(error).split())[:500]
        record(session, "Rejected")
        raise
    except BaseException as error:
        session.note = " ".join(traceback.format_exception_only(error)[-1].split())[:500]
        record(session, "Failed")
        raise
    else:
        since = session.unchanged_since()
        if since is not None:
            session.note = f"nothing changed since run {since}"
            session.say(session.note)
        record(session, "Completed")
    finally:
        logging.getLogger("rass_core").removeHandler(warnings)
        session.close()


def record(session: Session, state: str) -> None:
    """Write the run's row of table `runs`; the newest row of a run_id counts."""
    ended = state != "Running"
    row = {
        "flow": session.flow, "config": session.config.model_dump_json(), "config_sha256": session.given_sha256,
        "code_version": f"{rass_core.__version__}+{tree_digest()[:8]}", "seed": session.config.seed,
        "commits": list(session.keys), "started_at": session.started_at,
        "finished_at": datetime.now(UTC) if ended else None, "state": state, "note": session.note,
        "stages": [asdict(stage) for stage in session.stages], "inputs": _inputs(session),
        **Process.this()._asdict(),
    }  # fmt: skip
    session.lake.commit(session.run_id, digest(session.run_id, state), {"runs": rows_table("runs", [row])})


def _inputs(session: Session) -> list[str]:
    """Return the ids of the models and data sets that the run reads, with the commits of those on the hub."""
    models = [session.config.model, session.config.generator, *session.config.models]
    ids = [f"model {model_id(model.reference)}" for model in models if model is not None]
    sources = [source for source in session.config.prompts.sources if source.dataset is not None]
    return list(dict.fromkeys([*ids, *(f"dataset {each.dataset}@{each.commit()}" for each in sources)]))


class _WarningLines(logging.Handler):
    """Writes the core's warnings as lines of the run; Prefect's set-up of logging swallows them otherwise."""

    def __init__(self, session: Session) -> None:
        super().__init__(logging.WARNING)
        self._session = session

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._session.say(f"note: {record.getMessage()}")
