"""Settings of a model and of an endpoint."""

import datetime
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from rass_core.models.fetched import resolve_model
from rass_core.models.identity import split_reference
from rass_core.models.urls import Address
from rass_core.settings import MAX_TOKENS, STRICT


class ModelConfig(BaseModel):
    """A chat model: how it is loaded, and how it is prompted."""

    model_config = STRICT

    name: Annotated[str, AfterValidator(resolve_model)]
    """Folder with a Hugging Face checkpoint, its name on the hub, or a name that `rass model list` shows."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of weights and computation; float32 on a CPU without bfloat16."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of a name on the hub; null takes its main branch. The commit found is kept with the run."""
    system_prompt: str | None = None
    """Put before every prompt; null for none."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, such as {enable_thinking: false}."""
    response_prefix: str = ""
    """Text that opens every answer, such as an empty thinking block."""
    thinking_marks: list[tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]]] = Field(
        default_factory=list
    )
    """Marks between which the model thinks, such as [["<plan>", "</plan>"]], beside those that RASS knows."""
    allow_thinking: bool = False
    """Measure a model whose prompts end inside thinking: streams and first tokens are then those of its thinking."""
    date: datetime.date | None = None
    """What the chat template takes for today, such as 2026-11-28; null takes the day on which the lake's first run of
    this model began."""
    max_model_len: int | None = Field(default=None, ge=16, le=MAX_TOKENS)
    """Longest prompt and answer in tokens; null takes the model's own, or what fits in the room for keys and values."""
    max_num_seqs: int = Field(default=64, ge=1, le=65_536)
    """Requests that the engine runs at a time."""
    max_num_batched_tokens: int = Field(default=2048, ge=64, le=MAX_TOKENS)
    """Tokens that the engine computes in one step."""
    kv_cache_gib: float | None = Field(default=None, gt=0, le=100_000)
    """Room for keys and values; null takes 0.25 on a CPU, more where the longest given prompt needs it, and on a GPU
    what gpu_memory_utilization leaves."""
    gpu_memory_utilization: float = Field(default=0.45, gt=0, le=1)
    """Share of the GPU's memory that the engine takes; the probe's transformers model needs room beside it."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=1024)
    """GPUs that hold one copy of the model."""
    self_check: bool = True
    """Compare vLLM with transformers on a few prompts, plain and steered, whenever the engine is loaded; a difference
    stops the run."""

    @model_validator(mode="after")
    def _one_revision(self) -> "ModelConfig":
        known = split_reference(self.name)[1]
        if self.revision is not None and (known is not None or Path(self.name).expanduser().is_dir()):
            what = f"{self.name} names one already" if known else f"{self.name} is a folder, which has no revisions"
            raise ValueError(f"revision: {what}; leave revision out")
        return self

    @property
    def reference(self) -> str:
        """Return what loads the model: a folder, a name on the hub, or `name@revision`."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def at(self, reference: str) -> "ModelConfig":
        """Return the same settings for another model."""
        return self.model_copy(update={"name": reference, "revision": None})

    def engine_options(self) -> dict[str, Any]:
        """Return what `SteeredEngine` takes beside the reference."""
        return self.model_dump(exclude={"name", "revision", "self_check", "allow_thinking"})

    @field_validator("template_kwargs")
    @classmethod
    def _plain(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            if isinstance(value, str) and value.casefold() in ("yes", "no", "on", "off"):
                raise ValueError(f"{name}: {value} is a text, which a template reads as true; write true or false")
        return given


def _address(value: Any, read: ValidatorFunctionWrapHandler) -> Address:
    return value if isinstance(value, Address) else Address.read(read(value))


def _variable(name: str) -> str:
    """Refuse a key in place of the name of the variable that holds it, without repeating it."""
    if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name) is None:
        raise ValueError(
            "is not the name of an environment variable in capitals (not shown, as it may be the key itself); set the "
            "key in the environment and name its variable here"
        )
    return name


class EndpointConfig(BaseModel):
    """An OpenAI-compatible endpoint."""

    model_config = STRICT

    base_url: Annotated[str, WrapValidator(_address)]
    """Address, such as http://127.0.0.1:8000/v1. A password (http://user:password@host/v1) and the values of a query
    (?api-version=…) are sent, and shown nowhere."""
    model: str
    """Name of the model there."""
    api_key_variable: Annotated[str, AfterValidator(_variable)] = "OPENAI_API_KEY"
    """Environment variable with the key; unset sends none."""
    timeout_s: float = Field(default=60.0, gt=0, le=86_400)
    """Seconds that one call may take."""
    max_concurrency: int = Field(default=8, ge=1, le=10_000)
    """Calls under way at once."""
    max_tokens: int = Field(default=400, ge=1)
    """Longest answer, in tokens. Where the model's thinking leaves no room for the answer, four times as many are tried
    once."""
    outage_s: float = Field(default=300.0, ge=0)
    """Seconds to wait for an endpoint that is down, busy or limits the rate."""

    @property
    def address(self) -> Address:
        """Return the base URL with what of it is not shown."""
        return self.base_url if isinstance(self.base_url, Address) else Address.read(self.base_url)


ENDPOINT_PATIENCE = {"endpoint": {"api_key_variable", "timeout_s", "max_concurrency", "outage_s"}}
"""Settings of an endpoint that do not change its answers: results hold whatever they are."""
