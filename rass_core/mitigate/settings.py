"""Settings of a training; light to import, so that a configuration may hold them."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rass_core.settings import MAX_TOKENS, STRICT
from rass_core.units import MAX_SEED

Method = Literal["dpo", "sft"]
METHODS: tuple[Method, ...] = get_args(Method)


class TrainingSettings(BaseModel):
    """How an adapter is trained on preference pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: Literal[1, 8, 16, 32, 64, 128, 256] = 16
    """Of the LoRA matrices; those that vLLM serves."""
    alpha: int = Field(default=32, ge=1, le=65_536)
    """The adapter's weight is alpha ÷ rank."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Which layers are adapted: every linear one but the head, or those of these names."""
    learning_rate: float = Field(default=2e-4, gt=0, le=10)
    """At its peak; it then falls along a cosine. A small model takes more: the lab's, 96 wide, 1e-3."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    epochs: float = Field(default=6.0, gt=0, le=1000)
    """Passes over the pairs."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Pairs behind one step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Pairs in memory at a time, a divisor of batch_size; null takes as many as 1,024 tokens hold."""
    max_length: int = Field(default=1024, ge=8, le=16_777_216)
    """Longest prompt and answer in tokens; a longer pair is left out and counted."""
    beta: float = Field(default=2.0, gt=0, le=1_000_000)
    """dpo: how strongly the model is held to where it was. With the usual 0.1 the lab's model breaks its text."""
    sft_weight: float = Field(default=1.0, ge=0, le=1_000_000)
    """dpo: weight of the chosen answers' own likelihood beside the preference, so that it does not fall."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: a fifth slower, far less memory."""
    checkpoint_steps: int = Field(default=50, ge=1, le=1_000_000_000)
    """Steps after which the state is written; a training that was stopped goes on from there."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of the adapter's first weights and the order of pairs."""


class MitigateConfig(BaseModel):
    """Mitigation: training or editing the model with the selected prompts."""

    model_config = STRICT

    methods: list[Literal["dpo", "sft", "surgical", "steer"]] = Field(default=["dpo"], min_length=1)
    """dpo, sft: an adapter is trained. surgical: the false-refusal direction is taken out of the weights. steer: the
    same while the model runs, its weights left alone. Each gives a variant of that name."""
    training: TrainingSettings = TrainingSettings()
    """Of dpo and sft."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """surgical, steer: λ, the share of the direction that is taken out; the harm direction is always kept."""
    direction: Literal["drawn", "fitted"] = "fitted"
    """surgical, steer: drawn, the probe's false-refusal direction, without any training; or fitted to the pairs."""
    alphas: list[Annotated[float, Field(gt=0, le=1000)]] = Field([0.25, 0.5, 0.75, 1.0, 1.5], min_length=1)
    """By how much the model is steered off refusal for its helpful answer; the gentlest that will do is taken."""
    max_new_tokens: int = Field(default=256, ge=1, le=MAX_TOKENS)
    """Longest answer to be learnt, in tokens; one that is cut off is not taken."""
    safety_share: float = Field(default=1.0, ge=0, le=1000)
    """Harmful prompts near the boundary, with a refusal, for each over-refused prompt of a language."""
    general_share: float = Field(default=1.0, ge=0, le=1000)
    """Harmless prompts with the model's own answer for each over-refused prompt of a language."""
    repeated_share: float = Field(default=0.3, gt=0, le=1)
    """Highest share of an answer's character 8-grams that repeat an earlier one."""
    perplexity_factor: float = Field(default=3.0, gt=0, le=1_000_000)
    """Highest perplexity of an answer under the model as given, as a multiple of that of its ordinary answers."""

    @model_validator(mode="after")
    def _distinct(self) -> "MitigateConfig":
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods: one is listed twice; leave it out")
        return self
