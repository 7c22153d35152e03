"""Named groups of settings that a stage can declare, such as `judging`; `DERIVED` lists them."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rass_core.generate.operators import operator_of
from rass_core.judges.base import JUDGES
from rass_core.models.identity import folder_id, model_id
from rass_core.models.settings import ENDPOINT_PATIENCE
from rass_core.moderators.base import MODERATORS
from tasks.keys import code_digest, own_code, versions
from tasks.stage import FREE_SETTINGS

if TYPE_CHECKING:
    from tasks.session import Session


class DerivedSetting(NamedTuple):
    """A setting that a stage can declare by a name."""

    reads: tuple[str, ...]
    """Sections of the configuration that a stage with it may read."""
    value: Callable[["Session"], Any]
    """Returns what the stage's key counts."""
    meaning: str


def _judging(session: "Session") -> list[Any]:
    """Return what verdicts depend on; the names of judges carry the digests of their checkpoints."""
    members = session.whole_config.judge.members
    return [
        [member.model_dump(exclude=ENDPOINT_PATIENCE) for member in members], sorted(session.panel.members),
        _asked(session, members), JUDGES.own_code(member.kind for member in members),
        code_digest(("rass_core.judges.workers", *JUDGES.modules(members))),
    ]  # fmt: skip


def _moderating(session: "Session") -> list[Any]:
    """Return what the labels of written prompts depend on."""
    moderator = session.whole_config.moderator
    return [
        [member.model_dump(exclude=ENDPOINT_PATIENCE) for member in moderator.members], moderator.quorum,
        sorted(session.moderators.members), _asked(session, moderator.members),
        MODERATORS.own_code(member.kind for member in moderator.members),
        code_digest(("rass_core.moderators.worker", *MODERATORS.modules(moderator.members))),
    ]  # fmt: skip


def _writing(session: "Session") -> list[Any]:
    """Return what written prompts depend on of the section `generate`, with the code of a user's operators."""
    settings = session.whole_config.generate
    counted = settings.model_dump(mode="json", exclude=ENDPOINT_PATIENCE | {"max_failed_share": True})
    return [counted, own_code(*map(operator_of, settings.operators))]


def _correcting(session: "Session") -> str | None:
    """Return the digest of the calibration file that corrects rates, None without one."""
    path = session.whole_config.judge.calibration
    if path is None:
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() + code_digest(("rass_core.judges.calibration",))


def _evaluating(session: "Session") -> list[Any]:
    """Return the section evaluate, the versions of the harness that runs its benchmarks, and the user's own tasks."""
    settings = session.whole_config.evaluate
    if settings.utility is None:
        return [settings]
    own = settings.utility.include_path
    return [settings, versions("lm_eval", "datasets"), None if own is None else folder_id(own)]


def _asked(session: "Session", members: Sequence[Any]) -> str | None:
    """Return the id of the model that members without an endpoint ask; None if no member asks one."""
    if not any(member.asks_generator for member in members):
        return None
    return model_id((session.whole_config.generator or session.whole_config.model).reference)


DERIVED = {
    "judging": DerivedSetting(("judge",), _judging, "the judges, their settings and their code"),
    "correcting": DerivedSetting(("judge",), _correcting, "the calibration of the judges"),
    "evaluating": DerivedSetting(("evaluate",), _evaluating, "the section evaluate, and your own benchmark tasks"),
    "moderating": DerivedSetting(("moderator",), _moderating, "the moderators, their settings and their code"),
    "writing": DerivedSetting(("generate",), _writing, "the section generate, and the code of your own operators"),
}


def read_by(settings: Collection[str]) -> set[str]:
    """Return the dotted keys of the configuration that a stage with these settings may read."""
    found = {*FREE_SETTINGS}
    for name in settings:
        found |= set(DERIVED[name].reads) if name in DERIVED else {name}
    return found
