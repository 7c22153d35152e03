"""Settings of the panel of judges; those of each kind of judge are beside it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, SerializeAsAny, WrapValidator

from rass_core.judges.base import JUDGES, JudgeSettings
from rass_core.settings import STRICT, FailedShare


class JudgeConfig(BaseModel):
    """Who says whether a response refuses: a panel, by weighted vote."""

    model_config = STRICT

    members: list[Annotated[SerializeAsAny[JudgeSettings], WrapValidator(JUDGES.validate)]] = Field(
        default=[JUDGES.settings("phrases"), JUDGES.settings("classifier", weight=3.0)], min_length=1
    )
    """The judges; each vote is kept."""
    uncovered: Literal["stop", "unscored"] = "stop"
    """What happens to given prompts in a language that no judge covers: stop, the run does not begin; unscored, their
    responses are unscored and the language's rates null."""
    calibration: str | None = None
    """File that `rass judge calibrate` wrote for this panel; rates are then shown corrected beside the raw ones."""
    max_failed_share: FailedShare = 0.05
    """Share of the responses on which a judge may fail (its endpoint's errors, answers off the form) and is left out of
    the vote; more stop the run. What a judge declines to judge is no failure."""
