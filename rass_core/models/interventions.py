"""What a direction does to a model: add it or ablate it, and read how the answer's opening changes.

Everything is teacher-forced: probabilities of given prefixes are read, no answer is generated.
The changes last for a `with` block and leave the weights alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rass_core.errors import ActivationError, ConfigError, SteeringError
from rass_core.models.causal_lm import chosen_blocks, decoder_blocks, model_name, stream_of

Change = Callable[[Tensor], Tensor]


@contextmanager
def adding(model: Any, layers: Sequence[int], vector: Tensor, alpha: float) -> Iterator[None]:
    """Add alpha · vector to the residual stream after these blocks, at every token.

    Where contexts are nested the inner one acts first; hooks that only read see the change.

    Args:
        vector: (d_model,), activation units; scaled by alpha only, never normalised.

    Raises:
        ModelError: A layer that the model lacks.
        ActivationError: A vector of the wrong shape or not finite.
        SteeringError: On leaving, a block that never ran, so that nothing was steered there.
    """
    shift = alpha * _checked(model, vector)
    with _changing(model, chosen_blocks(model, layers), lambda stream: stream + shift.to(stream)):
        yield


@contextmanager
def ablating(model: Any, vector: Tensor, strength: float = 1.0, layers: Sequence[int] | None = None) -> Iterator[None]:
    """Remove the component along the vector from the residual stream, h - λ(h·u)u, at every token.

    By default it is removed before the first block (what the embedding wrote) and after every block,
    so that no block and no head reads it from the stream. Arditi et al. (2024) also remove it between
    a block's attention and its MLP; here that MLP may still read what its own block's attention has
    just written, which the block's end then removes. In exchange only blocks need be found.

    Args:
        vector: (d_model,), not zero; its length does not matter.
        strength: λ, 0 to 1. Below 1 what a block wrote is lessened again by every later one.
        layers: Blocks after which it is removed, and with block 0 also before it; None takes all.
            The same layers in `engine.SteeringVector` do the same in vLLM.

    Raises:
        ModelError: A layer that the model lacks.
        ActivationError: A vector of the wrong shape, not finite, or zero.
        ConfigError: A strength out of its range.
        SteeringError: On leaving, a block that never ran.
    """
    if not 0.0 <= strength <= 1.0:
        raise ConfigError(f"strength {strength}: the share to ablate; give 0 (nothing) to 1 (in full)")
    checked = _checked(model, vector)
    if not checked.any():
        raise ActivationError("vector: a zero vector has no direction to ablate; choose another direction")
    unit = (checked.double() / checked.double().norm()).float()

    def without(stream: Tensor) -> Tensor:
        wide, along = stream.float(), unit.to(stream.device)
        remaining: Tensor = wide - strength * (wide @ along)[..., None] * along
        return remaining.to(stream)

    def before_first(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": without(kwargs["hidden_states"])}

    blocks = decoder_blocks(model)
    chosen = dict(enumerate(blocks)) if layers is None else chosen_blocks(model, layers)
    handles = [blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)] if 0 in chosen else []
    try:
        with _changing(model, chosen, without):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _changing(model: Any, blocks: dict[int, nn.Module], change: Change) -> Iterator[None]:
    """Replace the residual stream that each block puts out; raise SteeringError if one never ran."""
    silent = set(blocks)

    def hook_of(layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            silent.discard(layer)
            changed = change(stream_of(output))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    # In front of the hooks already there, so that whoever reads the stream reads the changed one.
    handles = [block.register_forward_hook(hook_of(layer), prepend=True) for layer, block in blocks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if silent:
        raise SteeringError(
            f"{model_name(model)}: blocks {sorted(silent)} never ran while they were to be changed; run the "
            "model inside the context, and far enough to reach them"
        )


def _checked(model: Any, vector: Tensor) -> Tensor:
    """Return the vector in float32, or raise ActivationError if it does not fit the residual stream."""
    d_model = model.config.get_text_config().hidden_size
    if vector.shape != (d_model,) or not vector.isfinite().all():
        raise ActivationError(
            f"vector: need finite ({d_model},) for {model_name(model)}, got {tuple(vector.shape)}; "
            "use a direction of this model"
        )
    return vector.detach().float()
