"""What a judge is given, what it returns, and how one is registered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, Field

from rass_core.errors import JudgeError
from rass_core.models.chat_client import Complete, Endpoint
from rass_core.models.retrying import Say, ignored
from rass_core.models.settings import EndpointConfig
from rass_core.registry import Registry
from rass_core.settings import STRICT
from rass_core.vocabulary import Exchange, Verdict


class Judge(Protocol):
    """Batch in, batch out: responses → verdicts."""

    name: str
    languages: frozenset[str] | None
    """Primary tags of the languages it covers; None covers all."""
    tells_partial: bool
    """Whether it knows a partial refusal from a whole one."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return one verdict a response, in order."""
        ...


class MemberSettings(BaseModel):
    """Settings that every judge and moderator has.

    Three names of settings mean the same for every kind: `endpoint` (`EndpointConfig | None`) is where it asks a model,
    and `rass plan` counts the calls; `model` and `weights` may be paths relative to the configuration file.
    """

    model_config = STRICT

    kind: str
    """Name of a built-in kind, or a class of your own as package.module:Class."""

    @property
    def endpoint_asked(self) -> EndpointConfig | None:
        """Return the endpoint that it asks, None where there is none."""
        endpoint: EndpointConfig | None = getattr(self, "endpoint", None)
        return endpoint

    @property
    def asks_generator(self) -> bool:
        """Return whether it asks the generator in its own engine: its verdicts then depend on that model."""
        return False

    @property
    def n_calls(self) -> int:
        """Return how often a model is asked about one text, at most."""
        return 1

    @property
    def checkpoint(self) -> str | None:
        """Return the Hugging Face checkpoint that it loads, None where it loads none."""
        return None


MemberT = TypeVar("MemberT", bound=MemberSettings)


class JudgeSettings(MemberSettings):
    """Settings that every judge has."""

    kind: str
    """phrases: wordings by language. classifier: the small shipped model. hf: any Hugging Face classifier or
    judge by generation. llm: a chat model by rubric. Or a class of your own as package.module:Class."""
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Weight of its vote, relative to the others."""

    def covers(self) -> frozenset[str] | None:
        """Return the primary tags of the languages that the judge covers, known before it is built; None for all.

        A user's own class has them in its attribute `languages`.
        """
        languages = getattr(JUDGES.find(self.kind).build, "languages", None)
        return languages if isinstance(languages, frozenset) else None


@dataclass(frozen=True)
class JudgeContext:
    """What a run lends to its judges and moderators."""

    generator: Complete | None = None
    """Asks the generator in its own engine; None outside a run. A member that uses it must return True from
    `asks_generator` of its settings."""
    say: Say = ignored
    """Takes a line for the user, such as that an endpoint is waited for."""

    def asked(self, endpoint: EndpointConfig | None, who: str) -> tuple[Complete, str]:
        """Return what asks a chat model, and the model's name: the one at an endpoint, else the generator.

        Args:
            endpoint: None for the generator.
            who: Asks, such as "llm judge", for the message.

        Raises:
            JudgeError: There is neither.
        """
        if endpoint is not None:
            return Endpoint(endpoint, self.say), endpoint.model
        if self.generator is None:
            raise JudgeError(f"{who}: no endpoint is set; outside a run there is no generator to ask, set endpoint")
        return self.generator, "generator"


JUDGES = Registry("judge", ["rass_core.judges"], JudgeSettings)
"""Kinds of judges; `build(settings, context)` takes the kind's settings and a `JudgeContext` and returns a `Judge`."""


def built(
    registry: Registry[MemberT], members: Sequence[MemberT], context: JudgeContext, attributes: Sequence[str]
) -> list[Any]:
    """Return the judges or moderators of these settings.

    Args:
        registry: Their kinds.
        members: Settings.
        context: What the run lends them.
        attributes: Names of the attributes that each must have.

    Raises:
        JudgeError: A user's own lacks an attribute or cannot be called; building a member may raise others.
    """
    found = []
    for member in members:
        made = registry.find(member.kind).build(member, context)
        lacking = [name for name in attributes if not hasattr(made, name)]
        if lacking or not callable(made):
            what = f"has no {', '.join(lacking)}" if lacking else "cannot be called"
            raise JudgeError(f"{registry.what} {member.kind!r}: {what}; docs/extending.md shows a whole one")
        found.append(made)
    return found
