"""Writers of new prompts: a chat model in a role, steered along a direction.

As an assistant, a chat model declines to write prompts near its own refusal boundary. In the user's turn it writes
requests and hardly ever refuses (Magpie, arXiv 2406.08464). The harm direction read at the template's end is, in a
model that refuses, largely the decision to refuse, so steering along it stops the writer. Without its component along
the refusal direction, or read at the words of the request, it changes what is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rass_core.errors import ConfigError, GenerationError
from rass_core.generate.operators import instruction, operator_of
from rass_core.models.chat import ChatFormat
from rass_core.models.residuals import ResidualExtractor
from rass_core.models.vllm_requests import GenerationRequest, Steering, SteeringVector
from rass_core.probe.directions import difference_in_means, orthogonalise
from rass_core.probe.geometry import Direction

CONTENT_TOKENS = 3
"""Last tokens of a request's own words, before the template's end, at which its content is read."""


class Writer(NamedTuple):
    """A role and a steering; α is chosen apart from it."""

    role: str
    kind: str
    layer: int | None
    """Decoder block after which the direction is added; None for kind none."""

    @property
    def name(self) -> str:
        """Name it in tables and the terminal."""
        return f"{self.role}, {self.kind}" + ("" if self.layer is None else f" at block {self.layer}")


@dataclass(frozen=True)
class WritingDirections:
    """The directions that writers are steered along, all of the generator."""

    probe: Direction
    """The one that the probe chose to add."""
    harm: Mapping[int, Direction]
    """By block; so too the others."""
    refusal: Mapping[int, Direction]
    content: Mapping[int, Direction]

    def blocks(self, kind: str) -> list[int]:
        """Return the blocks at which there is all that a kind of steering needs."""
        needed = {
            "none": [], "probe": [], "harm": [self.harm], "refusal": [self.refusal], "content": [self.content],
        }.get(kind, [self.harm, self.refusal])  # fmt: skip
        return sorted(set.intersection(*map(set, needed))) if needed else []

    def vectors(self, writer: Writer, n_layers: int) -> dict[str, SteeringVector]:
        """Return what the engine needs for a writer: name → vector, of which the one to `add` is scaled by α.

        Raises:
            GenerationError: The probe has no such direction at this block.
        """
        layer, kind = writer.layer, writer.kind
        if kind == "none" or layer is None:
            return {}
        if kind != "probe" and layer not in self.blocks(kind):
            raise GenerationError(
                f"writer {writer.name}: the probe has no such direction at this block, it has them at "
                f"{self.blocks(kind) or 'none'}; change generate.writers or probe.layers"
            )
        base = self.base(writer)
        added = base.vector
        if kind == "harm_without_refusal":
            added = orthogonalise(added, self.refusal[layer].vector)
        found = {vector_name(writer, "add"): SteeringVector(np.asarray(added, np.float32), (layer,))}
        if kind == "harm_ablating_refusal":
            refusal = np.asarray(self.refusal[layer].vector, np.float32)
            found[vector_name(writer, "ablate")] = SteeringVector(refusal, tuple(range(n_layers)), "ablate")
        return found

    def base(self, writer: Writer) -> Direction:
        """Return the direction that a writer adds, or of which it adds a part."""
        if writer.kind in ("probe", "none") or writer.layer is None:
            return self.probe
        return {"refusal": self.refusal, "content": self.content}.get(writer.kind, self.harm)[writer.layer]


def content_directions(
    model: Any, chat: ChatFormat, harmful: Sequence[str], harmless: Sequence[str], layers: Sequence[int],
    token_budget: int,
) -> dict[int, Direction]:  # fmt: skip
    """Return block → harmful − harmless, the mean over the last `CONTENT_TOKENS` tokens of the requests' own words.

    Args:
        model: A causal LM in evaluation mode.
        chat: Its chat format.
        harmful, harmless: Prompts.
        layers: Decoder blocks.
        token_budget: Most tokens of a batch.

    Raises:
        ActivationError: A class without prompts.
    """
    ends = [-(chat.n_end_positions + 1 + back) for back in range(CONTENT_TOKENS)]
    extractor = ResidualExtractor(model, layers, ends, token_budget)
    means = [
        extractor([chat.ids(prompt) for prompt in prompts]).double().mean(dim=2).numpy()
        for prompts in (harmful, harmless)
    ]
    vectors = {layer: difference_in_means(*(each[:, index] for each in means)) for index, layer in enumerate(layers)}
    return {
        layer: Direction("content", "difference_in_means", layer, max(ends), vector)
        for layer, vector in vectors.items()
    }


def request_of(
    writer: Writer, chat: ChatFormat, operator: str, language: str, parents: Sequence[str], *, alpha: float, seed: int,
    max_new_tokens: int, temperature: float, top_p: float,
    instructions: Mapping[str, Mapping[str, str]] | None = None,
) -> GenerationRequest:  # fmt: skip
    """Return what the engine is asked for one prompt.

    Args:
        writer: In a role that the operator can take.
        chat: The generator's chat format.
        language: BCP-47 tag of the prompt to be written.
        parents: Texts, as many as the operator takes.
        alpha: Strength of the steering; 0 steers nothing.
        seed: Seed of the sampling, and of what the operator draws.
        instructions: operator → language → instruction, in place of its own.

    Raises:
        ConfigError: A role that the operator cannot take.
    """
    found = operator_of(operator)
    if writer.role not in found.roles:
        known = ", ".join(found.roles)
        raise ConfigError(f"operator {operator}: cannot write as {writer.role}; give it one of {known}")
    stop: tuple[int, ...] = ()
    if writer.role == "user":
        stop = chat.user_end_ids
        ids = chat.user_turn_ids(*found.user_turn(parents, seed))
    else:
        asked = [{"role": "user", "content": instruction(operator, language, parents, instructions)}]
        ids = chat.conversation_ids(asked, found.answer_prefix(writer.role, language))
    return GenerationRequest(
        ids,
        max_new_tokens,
        temperature,
        top_p,
        seed,
        steering_of(writer, alpha),
        stop_token_ids=stop,
        is_answer=writer.role != "user",
    )


def steering_of(writer: Writer, alpha: float) -> tuple[Steering, ...] | None:
    """Return the changes of the residual stream for one request, by the names of `WritingDirections.vectors`."""
    if alpha == 0 or writer.kind == "none":
        return None
    steerings = [Steering(vector_name(writer, "add"), alpha)]
    if writer.kind == "harm_ablating_refusal":
        steerings.append(Steering(vector_name(writer, "ablate"), 1.0))
    return tuple(steerings)


def vector_name(writer: Writer, part: str) -> str:
    """Return the name under which the engine knows a vector of a writer."""
    return f"{writer.kind}/{writer.layer}/{part}"


def whole_text(writer: Writer, operator: str, parents: Sequence[str], seed: int, continued: str) -> str:
    """Return what was written, with the given first words before it."""
    return operator_of(operator).user_turn(parents, seed)[1] + continued if writer.role == "user" else continued
