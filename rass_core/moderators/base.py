"""What a moderator is given, what it returns, and how one is registered."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rass_core.judges.base import MemberSettings
from rass_core.registry import Registry
from rass_core.vocabulary import BENIGN, Verdict


class Moderator(Protocol):
    """Batch in, batch out: prompts with their languages → verdicts."""

    name: str

    def __call__(self, prompts: Sequence[str], languages: Sequence[str]) -> list[Verdict]:
        """Return one verdict a prompt, in order; outcome is a true label, incoherent or unscored."""
        ...


@runtime_checkable
class NamesRequests(Protocol):
    """A moderator that also knows what a prompt asks for."""

    def requests(self, prompts: Sequence[str], languages: Sequence[str]) -> list[str | None]:
        """Name what each prompt asks for, the same in whatever words and language; None where it does not know."""
        ...


@runtime_checkable
class KnowsPrompts(Protocol):
    """A moderator that was fitted on prompts."""

    def knows(self, prompts: Sequence[str], languages: Sequence[str]) -> list[bool]:
        """Return whether it was fitted on each prompt: its verdict on it is no estimate of its error."""
        ...


class ModeratorSettings(MemberSettings):
    """Settings that every moderator has."""

    kind: str = "llm"
    """oracle: the lab's grammar. classifier: the small shipped model, or your own. llm: a chat model by rubric. hf: a
    guard model with a chat template of its own, here or behind an endpoint. Or a class of your own as
    package.module:Class."""


MODERATORS = Registry("moderator", ["rass_core.moderators", "rass_core.lab"], ModeratorSettings)
"""Kinds of moderators; `build(settings, context)` takes the kind's settings and a `rass_core.judges.base.JudgeContext`
and returns a `Moderator`."""


def vote_of(verdict: Verdict) -> str:
    """Return what a verdict counts as: benign, whatever the prompt sounds like, or its outcome."""
    return "benign" if verdict.outcome in BENIGN else verdict.outcome
