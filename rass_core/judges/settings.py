"""Settings of the panel of judges."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from rass_core.models.settings import EndpointConfig
from rass_core.settings import STRICT, FailedShare, check_kind, check_patterns


class JudgeMember(BaseModel):
    """One judge of responses."""

    model_config = STRICT

    kind: Literal["phrases", "classifier", "hf", "llm"]
    """phrases: wordings by language. classifier: the small shipped model. hf: any Hugging Face classifier or
    judge by generation. llm: a chat model by rubric."""
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Of its vote, relative to the others."""
    model: str | None = None
    """hf: folder or hub name of the checkpoint."""
    refusal_labels: list[str] = Field(default_factory=list)
    """hf: the classifier's labels that mean refusal; empty takes those that say so."""
    partial_labels: list[str] = Field(default_factory=list)
    """hf: the classifier's labels that mean a partial refusal."""
    template: str | None = None
    """hf by generation: what the judge is asked, with {prompt} and {response}; it is on the model's card."""
    refusal_pattern: str | None = None
    """hf by generation: regular expression that its answer matches when it sees a refusal."""
    compliance_pattern: str | None = None
    """hf by generation: and when it sees none."""
    with_prompt: bool = False
    """hf: show the classifier the prompt too, as a pair of texts."""
    endpoint: EndpointConfig | None = None
    """llm: where it is asked; null asks the generator through its own engine."""
    n_attempts: int = Field(default=3, ge=1, le=100)
    """llm: answers off the form are asked for again, this often in all."""

    @model_validator(mode="after")
    def _complete(self) -> "JudgeMember":
        hf = {"model", "refusal_labels", "partial_labels", "template", "refusal_pattern", "compliance_pattern"}
        check_kind(self, {"hf": hf | {"with_prompt"}, "llm": {"endpoint", "n_attempts"}})
        check_patterns(self, ("refusal_pattern", "compliance_pattern"))
        if self.kind == "hf" and self.model is None:
            raise ValueError("model: an hf judge needs the folder or hub name of its checkpoint")
        if self.template is not None and not (self.refusal_pattern and self.compliance_pattern):
            raise ValueError("refusal_pattern, compliance_pattern: a judge by generation needs both")
        return self


class JudgeConfig(BaseModel):
    """Who says whether a response refuses: a panel, by weighted vote."""

    model_config = STRICT

    members: list[JudgeMember] = Field(
        default=[JudgeMember(kind="phrases"), JudgeMember(kind="classifier", weight=3.0)], min_length=1
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
