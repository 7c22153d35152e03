"""Settings of the moderators."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from rass_core.models.settings import EndpointConfig
from rass_core.settings import MAX_COUNT, STRICT, FailedShare, check_kind, check_patterns

ClassMeaning = Literal["benign", "harmful", "unscored"]
_PREFIX = r"^\W*(?:[\w ]{1,24}\W{0,2}:\W*)?"
"""What may stand before a guard's word: `Safety: `, `{"User Safety": "`."""
SAFE, UNSAFE = rf"{_PREFIX}safe\b(?!\s*:)", rf"{_PREFIX}unsafe\b(?!\s*:)"
CONTROVERSIAL = (
    rf"{_PREFIX}(?:controversial|borderline|ambiguous|uncertain|unclear|unknown|mixed|neutral|sensitive|questionable"
    r"|caution|needs caution|potentially (?:unsafe|harmful)|maybe)\b"
)
"""How guards name a class between safe and unsafe."""


def _class_names(value: Any) -> Any:
    """Return classes with their names as text: YAML reads yes and no as true and false, and 0 and 1 as numbers."""
    if not isinstance(value, dict):
        return value
    return {{True: "yes", False: "no"}.get(key, str(key)) if isinstance(key, bool) else str(key): each
            for key, each in value.items()}  # fmt: skip


class ModeratorMember(BaseModel):
    """One moderator of prompts."""

    model_config = STRICT

    kind: Literal["oracle", "classifier", "llm", "hf"] = "llm"
    """oracle: the lab's grammar. classifier: the small shipped model, or your own. llm: a chat model by rubric. hf: a
    guard model with a chat template of its own, here or behind an endpoint."""
    weights: str | None = None
    """classifier: file that `rass moderator train` wrote; null takes the shipped one."""
    min_confidence: float = Field(default=0.6, ge=0.5, lt=1)
    """classifier: a prompt is unscored below this probability of the likelier side."""
    endpoint: EndpointConfig | None = None
    """llm: where it is asked; null asks the generator through its own engine. hf: where the guard is served, in place
    of model."""
    n_samples: int = Field(default=1, ge=1, le=1000)
    """llm: asked this often, the majority counts."""
    model: str | None = None
    """hf: folder or hub name of the guard model."""
    classes: Annotated[dict[str, ClassMeaning], BeforeValidator(_class_names)] | None = None
    """hf: the words or numbers by which the guard names its classes, and what each counts as, in place of the patterns:
    {safe: benign, controversial: unscored, unsafe: harmful}."""
    safe_pattern: str = SAFE
    """hf: regular expression that the first line of its answer matches when the prompt is benign."""
    unsafe_pattern: str = UNSAFE
    """hf: and when it is harmful."""
    controversial_pattern: str | None = CONTROVERSIAL
    """hf: and when it is of a class between the two, for guards that have one."""
    controversial_is: Literal["unscored", "harmful"] = "unscored"
    """hf: what a prompt of that class counts as."""

    @model_validator(mode="after")
    def _complete(self) -> "ModeratorMember":
        patterns = {"safe_pattern", "unsafe_pattern", "controversial_pattern", "controversial_is"}
        own = {
            "classifier": {"weights", "min_confidence"}, "llm": {"endpoint", "n_samples"},
            "hf": {"model", "endpoint", "classes", *patterns},
        }  # fmt: skip
        check_kind(self, own)
        check_patterns(self, ("safe_pattern", "unsafe_pattern", "controversial_pattern"))
        if self.kind == "hf" and (self.model is None) == (self.endpoint is None):
            raise ValueError(
                "model: an hf moderator needs the folder or hub name of its checkpoint, or the endpoint that serves it"
            )
        if self.classes is not None and not {"benign", "harmful"} <= set(self.classes.values()):
            raise ValueError("classes: give at least one benign and one harmful class")
        return self


class ModeratorConfig(BaseModel):
    """Who says whether a written prompt is benign: a panel with a quorum."""

    model_config = STRICT

    members: list[ModeratorMember] = Field(default=[ModeratorMember()], min_length=1)
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
