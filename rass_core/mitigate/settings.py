"""Settings of the mitigation; light to import, so that a configuration may hold them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rass_core.mitigate.base import (
    MITIGATIONS,
    DirectionSource,
    MitigationMethod,
    method_of,
)
from rass_core.settings import MAX_TOKENS, STRICT
from rass_core.units import MAX_SEED

_SHARED = ("training", "strength", "direction")
"""Settings of the section that a method takes where it has them and its entry does not set them."""


def _method(entry: Any) -> Any:
    """Return an entry of `methods`, having checked that there is such a method.

    Raises:
        ValueError: No such method, or no entry.
    """
    if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
        MITIGATIONS.find(entry["kind"])
    elif isinstance(entry, str):
        MITIGATIONS.find(entry)
    else:
        raise ValueError("needs the name of a method, or {kind: NAME, …} with its settings")
    return entry


class TrainingSettings(BaseModel):
    """How an adapter is trained on preference pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: Literal[1, 8, 16, 32, 64, 128, 256] = 16
    """Rank of the LoRA matrices; vLLM serves these."""
    alpha: int = Field(default=32, ge=1, le=65_536)
    """The adapter's weight is alpha ÷ rank."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Layers that are adapted: every linear one except the head, or those of these names."""
    learning_rate: float = Field(default=2e-4, gt=0, le=10)
    """Peak value; it then falls along a cosine. A small model needs more: the lab's, 96 wide, 1e-3."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    epochs: float = Field(default=6.0, gt=0, le=1000)
    """Passes over the pairs."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Pairs per step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Pairs in memory at a time, a divisor of batch_size; null takes as many as 1,024 tokens hold."""
    max_length: int = Field(default=1024, ge=8, le=16_777_216)
    """Longest prompt and answer in tokens; a longer pair is left out and counted."""
    beta: float = Field(default=2.0, gt=0, le=1_000_000)
    """dpo: β, the strength of the KL penalty to the reference model. With the usual 0.1 the lab's model writes broken
    text."""
    sft_weight: float = Field(default=1.0, ge=0, le=1_000_000)
    """dpo: weight of the loss on the chosen answers beside the preference, so that they do not become less likely."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: a fifth slower, far less memory."""
    checkpoint_steps: int = Field(default=50, ge=1, le=1_000_000_000)
    """Steps after which the state is saved; an interrupted training resumes there."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the adapter's first weights and of the order of pairs."""


class MitigateConfig(BaseModel):
    """Mitigation: training or editing the model with the selected prompts."""

    model_config = STRICT

    methods: list[Annotated[str | dict[str, Any], BeforeValidator(_method)]] = Field(default=["dpo"], min_length=1)
    """Each makes a variant of its name. dpo, sft: train an adapter. weight_ablation: removes the false-refusal
    direction from the weights. inference_ablation: removes it while the model runs. Your own is named
    package.module:Class. An entry {kind: NAME, …} sets what that method alone takes."""
    training: TrainingSettings = TrainingSettings()
    """dpo, sft: how the adapter is trained."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """weight_ablation, inference_ablation: λ, the share of the direction that is removed. The harm direction is always
    kept in full."""
    direction: DirectionSource = "learned"
    """weight_ablation, inference_ablation: mean_difference takes the probe's false-refusal direction, without training;
    learned fits one to the pairs."""
    alphas: list[Annotated[float, Field(gt=0, le=1000)]] = Field([0.25, 0.5, 0.75, 1.0, 1.5], min_length=1)
    """Strengths at which the model is steered away from refusal for a helpful answer; the weakest that gives one is
    taken."""
    max_new_tokens: int = Field(default=256, ge=1, le=MAX_TOKENS)
    """Longest answer to be learnt, in tokens; one that is cut off is not used."""
    safety_share: float = Field(default=1.0, ge=0, le=1000)
    """Refused harmful prompts near the boundary per over-refused prompt, in each language."""
    general_share: float = Field(default=1.0, ge=0, le=1000)
    """Answered harmless prompts near the boundary per over-refused prompt, in each language."""
    repeated_share: float = Field(default=0.3, gt=0, le=1)
    """Highest share of an answer's character 8-grams that repeat an earlier one."""
    perplexity_factor: float = Field(default=3.0, gt=0, le=1_000_000)
    """Highest perplexity of an answer under the original model, as a multiple of that of its ordinary answers."""

    @model_validator(mode="after")
    def _usable(self) -> "MitigateConfig":
        if len(self.variants()) < len(self.methods):
            raise ValueError("methods: one is listed twice; leave it out")
        return self

    def variants(self) -> dict[str, MitigationMethod[Any]]:
        """Return variant → the method that makes it, with its settings.

        Raises:
            ConfigError: No such method, or one that is not a mitigation method.
            ValueError: Settings that the method does not take.
        """
        methods = [self._method_of(entry) for entry in self.methods]
        return {method.name: method for method in methods}

    def _method_of(self, entry: str | dict[str, Any]) -> MitigationMethod[Any]:
        """Return the method of an entry: its settings, and the section's for what it leaves open."""
        own = {"kind": entry} if isinstance(entry, str) else dict(entry)
        kind = own.pop("kind")
        fields = MITIGATIONS.find(kind).settings.model_fields
        settings = {name: getattr(self, name) for name in _SHARED if name in fields}
        for name, value in own.items():
            shared = settings.get(name)
            if isinstance(shared, BaseModel) and isinstance(value, dict):
                settings[name] = {**shared.model_dump(), **value}
            else:
                settings[name] = value
        try:
            return method_of(kind, **settings)
        except ValidationError as error:
            problem = error.errors()[0]
            place, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                what = f"not a setting of it; it takes {', '.join(fields) or 'none'}"
            raise ValueError(f"methods: {kind}: {place}: {what}") from error
