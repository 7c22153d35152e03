"""What a steered engine is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rass_core.vocabulary import Exchange

REQUEST_FIELD = "rass"
"""Where `SamplingParams.extra_args` carries a request's key, its steering (direction_id, alpha) and capture."""
SteeringKind = Literal["add", "ablate"]
BEFORE_FIRST = -1
"""Number of the input of block 0, the output of the embedding, where the outputs of blocks are counted."""


@dataclass(frozen=True)
class Steering:
    """Which direction a request adds to its residual stream or ablates from it, and how strongly."""

    direction_id: str
    alpha: float
    """Factor of an added direction, of any sign; strength λ of an ablated one, 0 to 1."""


@dataclass(frozen=True)
class SteeringVector:
    """A direction, and what is done with it after which decoder blocks, at every token.

    Added, the residual stream h becomes h + α·v: its length counts. Ablated, it becomes h - λ(h·u)u
    with u of length one, before block 0 too where that is among the layers. In all layers this is
    `interventions.ablating`: at λ = 1 nothing is left along u. Below, what a block wrote is lessened
    again by every later one, (1 - λ)^n of it left after n of them, whereas method `weight_ablation` removes λ once.
    """

    vector: np.ndarray
    """(d_model,), activation units."""
    layers: tuple[int, ...]
    kind: SteeringKind = "add"

    @property
    def places(self) -> tuple[int, ...]:
        """Where the stream is changed: blocks, after each of them, and BEFORE_FIRST."""
        return (BEFORE_FIRST, *self.layers) if self.kind == "ablate" and 0 in self.layers else self.layers


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, as token ids, and what to do with it."""

    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """Makes a sampled answer the same whatever else is in the batch."""
    steering: Steering | Sequence[Steering] | None = None
    """One change of the residual stream or several; after a block all additions come before the ablations."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer beside the model's own; the text does not hold them."""
    capture: bool = False
    """Return the residual streams that `set_capture` asked for; with steering, as steered."""
    logprobs: int | None = None
    """Any number: return the log probability of each chosen token, at temperature 1."""
    json_schema: dict[str, Any] | None = None
    """Only tokens that continue a JSON document of this schema are chosen; its properties come in its order."""
    is_answer: bool = True
    """It follows the template's end; False if the model continues a user's text."""

    @property
    def steerings(self) -> tuple[Steering, ...]:
        """Return every change of the residual stream that is asked for."""
        if self.steering is None:
            return ()
        return (self.steering,) if isinstance(self.steering, Steering) else tuple(self.steering)


@dataclass(frozen=True)
class Generation:
    """The result of a request."""

    text: str
    """What a user would see: without thinking and special tokens."""
    token_ids: list[int]
    """The answer's tokens, with the one that ended it."""
    finish_reason: str
    """`stop` or `length`."""
    n_prompt_tokens: int
    captured: np.ndarray | None
    """Residual streams, (n_layers, n_positions, d_model) float32, in the order of `set_capture`."""
    logprobs: list[float] | None
    thinking: str = ""
    """What came before the answer, without its marks."""
    is_cut_off: bool = False
    """It ended within its thinking: there is no answer."""

    def exchange(self, language: str, prompt: str, opening: str = "", label: str | None = None) -> Exchange:
        """Return the answer as judges are given it, after the words with which it was opened for the model.

        Args:
            language: Language of the prompt.
            prompt: That was answered.
            opening: Words put into the model's mouth.
            label: Label of the prompt, where known.
        """
        text = "" if self.is_cut_off else opening + self.text
        return Exchange(text, language, prompt, label=label, is_cut_off=self.is_cut_off)


def place_name(layer: int) -> str:
    """Return in words where the stream is changed."""
    return "before block 0" if layer == BEFORE_FIRST else f"in block {layer}"
