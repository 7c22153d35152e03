"""Settings of the moderators; those of each kind are beside it."""

from typing import Annotated

from pydantic import BaseModel, Field, SerializeAsAny, WrapValidator, model_validator

from rass_core.moderators.base import MODERATORS, ModeratorSettings
from rass_core.settings import MAX_COUNT, STRICT, FailedShare


class ModeratorConfig(BaseModel):
    """Who says whether a written prompt is benign: a panel with a quorum."""

    model_config = STRICT

    members: list[Annotated[SerializeAsAny[ModeratorSettings], WrapValidator(MODERATORS.validate)]] = Field(
        default=[MODERATORS.settings("llm")], min_length=1
    )
    """The moderators; each vote is kept."""
    quorum: int | None = Field(default=None, ge=1)
    """Votes for benign that a prompt needs; null takes more than half of the members."""
    check_prompts: int = Field(default=20, ge=0, le=MAX_COUNT)
    """Given prompts per language and label on which the moderators' errors are measured before anything is written, at
    least 40 per label over all languages; 0 measures nothing."""
    max_failed_share: FailedShare = 0.05
    """Share of the prompts on which a moderator may fail; more stop the run. What it declines is no failure."""

    @model_validator(mode="after")
    def _reachable(self) -> "ModeratorConfig":
        if self.quorum is not None and self.quorum > len(self.members):
            raise ValueError(f"quorum: {self.quorum} of {len(self.members)} members cannot be reached; lower it")
        return self
