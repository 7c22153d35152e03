"""Settings of generation."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, model_validator

from rass_core.data.sources import Language
from rass_core.generate.operators import Role, Steered, operator_of
from rass_core.generate.operators.base import missing_slot
from rass_core.models.settings import EndpointConfig
from rass_core.settings import MAX_COUNT, MAX_TOKENS, STRICT, FailedShare


def _known(name: str) -> str:
    operator_of(name)
    return name


OperatorName = Annotated[str, AfterValidator(_known)]
"""A built-in operator, or a user's own as package.module:Class."""


class WriterConfig(BaseModel):
    """The role in which the generator writes, and the direction along which it is steered."""

    model_config = STRICT

    role: Role
    """assistant: an instruction asks it for a prompt. prefilled: the same, and its answer is begun for it. user: it
    writes in the user's turn of its own template."""
    steering: Steered = "probe"
    """none; probe: the direction that the probe chose to add; harm, harm_without_refusal, harm_ablating_refusal,
    content (read at the last words of a request) or refusal."""
    layer: int | None = Field(default=None, ge=0, le=10_000)
    """Decoder block after which it is added; null takes the probe's, and for other steerings tries a few."""


class GenerateConfig(BaseModel):
    """Steered rounds."""

    model_config = STRICT

    operators: list[OperatorName] = Field(
        ["rewrite", "trigger", "context", "recombine", "translate", "imitate", "begin"], min_length=1
    )
    """Ways to make a new prompt. imitate and begin write in the user's turn, the others ask by an instruction. Your own
    is named package.module:Class."""
    writers: list[WriterConfig] | None = Field(default=None, min_length=1)
    """Roles and steerings of the generator; null takes all. A short trial compares several of one role."""
    endpoint: EndpointConfig | None = None
    """Model behind an endpoint that writes in place of one in vLLM: by instructions, unsteered, without a trial."""
    max_failed_share: FailedShare = 0.05
    """Share of a round's calls to the endpoint that may fail; more stop the run. A declined request is no failure."""
    trial_candidates: int = Field(default=160, ge=16, le=MAX_COUNT)
    """Prompts written in the trial that chooses the writers; they are candidates like others."""
    instructions: dict[OperatorName, dict[Language, str]] = Field(default_factory=dict)
    """operator → language → instruction with {a} and {b}, in place of its own."""
    rounds: int = Field(default=3, ge=1, le=1000)
    """Rounds; survivors of one are parents in the next."""
    candidates_per_round: int = Field(default=400, ge=8, le=MAX_COUNT)
    """Prompts written in a round over all arms, control included."""
    alphas: list[Annotated[FiniteFloat, Field(ge=-1000, le=1000)]] = Field([0.5, 1.0, 1.5, 2.0], min_length=1)
    """Strengths of the first round, 1 being the whole difference in means; the controller narrows them later. The trial
    of the writers uses a middle one and the largest."""
    control_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the candidates that are written unsteered, for comparison."""
    max_new_tokens: int = Field(default=96, ge=1, le=MAX_TOKENS)
    """Longest prompt written, in tokens."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Sampling temperature of the generator."""
    top_p: float = Field(default=0.98, gt=0, le=1)
    """Nucleus sampling: probability mass of the tokens that the generator draws from."""
    width: float | None = Field(default=0.35, gt=0)
    """w: |m − b| up to which a prompt is near the boundary and may be accepted; null accepts at any distance, for a
    model that over-refuses far beyond its boundary too."""

    @model_validator(mode="after")
    def _writable(self) -> "GenerateConfig":
        if self.endpoint is not None and self.writers is not None:
            raise ValueError("writers: an endpoint is asked as an assistant and not steered; leave writers out")
        roles = {writer.role for writer in self.writers or []}
        for name in self.operators:
            known = operator_of(name).roles
            if self.endpoint is None and roles and roles.isdisjoint(known):
                raise ValueError(f"writers: none can do operator {name!r}, which needs role {' or '.join(known)}")
        return self

    @property
    def needs_trial(self) -> bool:
        """Return whether a trial compares writers: several of one role, or a direction without a block."""
        if self.endpoint is not None:
            return False
        if self.writers is None or len({writer.role for writer in self.writers}) < len(self.writers):
            return True
        return any(writer.layer is None and writer.steering not in ("none", "probe") for writer in self.writers)

    @property
    def n_written(self) -> int:
        """Return how many prompts are written at most, including the trial."""
        return self.rounds * self.candidates_per_round + (self.trial_candidates if self.needs_trial else 0)

    @property
    def is_steered(self) -> bool:
        """Return whether a writer may be steered, which needs the generator's own directions."""
        return self.endpoint is None and (self.writers is None or any(w.steering != "none" for w in self.writers))

    @model_validator(mode="after")
    def _consistent(self) -> "GenerateConfig":
        if len(set(self.operators)) < len(self.operators):
            raise ValueError("operators: one is listed twice; leave it out")
        for name, by_language in self.instructions.items():
            operator = operator_of(name)
            if not operator.is_instructed:
                raise ValueError(f"instructions: {name} uses no instruction; leave it out")
            for language, text in by_language.items():
                slot = missing_slot(operator, text)
                if slot is not None:
                    raise ValueError(f"instructions: {name}, {language}: has no {slot}, where the prompt is put in")
        if 0.0 in self.alphas:
            raise ValueError("alphas: 0 is the control, which always runs; leave it out")
        return self
