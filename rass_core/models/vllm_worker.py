"""What runs inside the vLLM worker: forward hooks that steer and capture residual streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rass_core.errors import ModelError, SteeringError
from rass_core.models.causal_lm import find_decoder_blocks
from rass_core.models.vllm_requests import BEFORE_FIRST, REQUEST_FIELD, SteeringVector, place_name

Span = tuple[int, int]


@dataclass
class Step:
    """The tokens of one forward pass: the steering of each, and which are captured."""

    n_tokens: int
    spans: dict[str, list[tuple[int, Span]]] = field(default_factory=dict)
    """By direction: request key, first and past-the-last position in the request."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """By direction: rows of the flattened batch, (n_steered,)."""
    alphas: dict[str, Tensor] = field(default_factory=dict)
    """By direction: alpha of each of those rows, λ of an ablation, (n_steered, 1), float32."""
    captures: list[tuple[int, int]] = field(default_factory=list)
    """Request key and index of the asked position, a captured row each."""
    capture_rows: Tensor | None = None
    streams: dict[int, Tensor] = field(default_factory=dict)
    """By layer: the captured rows, (n_captured, d_model)."""


@dataclass(frozen=True)
class HeldVector:
    """A direction on the worker's device."""

    vector: Tensor
    """(d_model,), float32; of length one where it is ablated."""
    places: frozenset[int]
    is_ablated: bool

    def shift(self, alphas: Tensor, rows: Tensor, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """Return what to add to some rows of the residual stream, (n_rows, d_model), float32.

        Args:
            alphas: Strengths of each of those rows, (n_rows, 1).
            rows: Which they are, (n_rows,).
            hidden, residual: As `SteeringExtension._rass_change` takes them.
        """
        if not self.is_ablated:
            return alphas * self.vector
        along = stream_rows(rows, hidden, residual) @ self.vector
        return -alphas * along[:, None] * self.vector


class SteeringExtension:
    """Methods that vLLM mixes into its worker; `SteeredEngine` reaches them by collective_rpc.

    A hook before the whole model reads from the model runner which request each row of the
    flattened batch belongs to; a hook after each decoder block adds alpha * v to the rows that
    asked for it, or takes what lies along v out of them, and keeps the rows to capture; a hook
    before block 0 takes it out of what the embedding wrote; a hook after the model stores the
    captures. An exception in a hook ends the forward pass and so reaches the engine.
    """

    model_runner: Any

    def rass_attach(self, n_layers: int) -> str:
        """Register the hooks on the `n_layers` decoder blocks; return where the blocks were found."""
        runner = self.model_runner
        if not hasattr(runner, "input_batch") or not hasattr(runner, "requests"):
            raise ModelError("vLLM: this model runner hides its batch; unset VLLM_USE_V2_MODEL_RUNNER")
        name, blocks = find_decoder_blocks(runner.model, n_layers)
        self.rass_vectors: dict[str, HeldVector] = {}
        self.rass_capture: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.rass_step: Step | None = None
        self.rass_forget()
        runner.model.register_forward_pre_hook(lambda *_: self._rass_begin_step())
        runner.model.register_forward_hook(lambda *_: self._rass_end_step())
        blocks[0].register_forward_pre_hook(partial(_before_first, self._rass_change), with_kwargs=True)
        for layer, block in enumerate(blocks):
            block.register_forward_hook(partial(_after_block, self._rass_after_block, layer))
        return name

    def rass_forget(self) -> None:
        """Drop what earlier requests left behind."""
        self.rass_spans: dict[tuple[int, str], dict[int, Span]] = {}
        self.rass_captured: dict[int, np.ndarray] = {}

    def rass_set_vectors(self, vectors: dict[str, SteeringVector]) -> None:
        """Take the directions that later requests may name, those to ablate being of length one."""
        device = self.model_runner.device
        self.rass_vectors = {
            name: HeldVector(
                torch.as_tensor(each.vector, dtype=torch.float32, device=device),
                frozenset(each.places),
                each.kind == "ablate",
            )
            for name, each in vectors.items()
        }

    def rass_set_capture(self, layers: tuple[int, ...], positions: tuple[int, ...]) -> None:
        """Take the decoder blocks and the positions, from the prompt's end, to capture."""
        self.rass_capture = (layers, positions)

    def rass_collect(self) -> tuple[dict[tuple[int, str], dict[int, Span]], dict[int, np.ndarray]]:
        """Return what was done since the last call, and forget it.

        Returns:
            By request key and direction: the steered positions of each layer, first and past the last; and by
            request key the captured residual streams, (n_layers, n_positions, d_model) float32, NaN where missed.
        """
        collected = (self.rass_spans, self.rass_captured)
        self.rass_forget()
        return collected

    def _rass_begin_step(self) -> None:
        from vllm.forward_context import get_forward_context

        self.rass_step = None
        if get_forward_context().attn_metadata is None:  # a profiling run: no request behind it
            return
        _make_rewindable(self.model_runner)
        step = read_batch(self.model_runner, self.rass_capture[1])
        unknown = step.rows.keys() - self.rass_vectors.keys()
        if unknown:
            raise SteeringError(f"direction {min(unknown)}: not known to the worker; call set_vectors first")
        self.rass_step = step

    def _rass_after_block(self, layer: int, hidden: Tensor, residual: Tensor | None) -> Tensor | None:
        """Return the block's steered output, or None where this layer leaves it alone.

        Args:
            layer: Decoder block that has just run.
            hidden: Its output, (n_tokens or more, d_model); padding rows come last.
            residual: Kept apart by most of vLLM's models; the residual stream is the sum.
        """
        step = self.rass_step
        if step is None:
            return None
        steered = self._rass_change(layer, hidden, residual)
        if step.capture_rows is not None and layer in self.rass_capture[0]:
            step.streams[layer] = stream_rows(step.capture_rows, hidden if steered is None else steered, residual)
        return steered

    def _rass_change(self, layer: int, hidden: Tensor, residual: Tensor | None) -> Tensor | None:
        """Return hidden with every direction of this place added or ablated, or None where there is none.

        Args:
            layer: Decoder block whose output it is, or BEFORE_FIRST.
            hidden, residual: As `_rass_after_block` takes them; what is added to a row comes before what is
                ablated from it.
        """
        step = self.rass_step
        if step is None:
            return None
        if hidden.shape[0] < step.n_tokens:
            raise SteeringError(
                f"{place_name(layer)}: {hidden.shape[0]} rows, {step.n_tokens} tokens; no sequence parallelism"
            )
        changed = None
        for direction_id in sorted(step.rows, key=lambda name: self.rass_vectors[name].is_ablated):
            held, rows = self.rass_vectors[direction_id], step.rows[direction_id]
            if layer not in held.places:
                continue
            before = hidden if changed is None else changed
            shift = held.shift(step.alphas[direction_id], rows, before, residual)
            changed = before.index_add(0, rows, shift.to(hidden.dtype))
            for key, span in step.spans[direction_id]:
                self._rass_note((key, direction_id), layer, span)
        return changed

    def _rass_note(self, steered: tuple[int, str], layer: int, span: Span) -> None:
        """Extend a request's steered positions; a gap means that a step went unsteered."""
        spans = self.rass_spans.setdefault(steered, {})
        first, end = spans.get(layer, (span[0], span[0]))
        if span[0] > end:
            raise SteeringError(f"{place_name(layer)}: tokens {end} to {span[0]} went unsteered; report it")
        spans[layer] = (first, max(end, span[1]))

    def _rass_end_step(self) -> None:
        step, self.rass_step = self.rass_step, None
        if step is None or not step.captures:
            return
        layers, positions = self.rass_capture
        missing = [layer for layer in layers if layer not in step.streams]
        if missing:
            raise SteeringError(f"blocks {missing}: not reached by the forward pass; ask for other layers")
        # One copy from the device per step, rather than one per layer.
        streams = torch.stack([step.streams[layer] for layer in layers]).cpu().numpy()
        for row, (key, index) in enumerate(step.captures):
            if key not in self.rass_captured:
                shape = (len(layers), len(positions), streams.shape[-1])
                self.rass_captured[key] = np.full(shape, np.nan, dtype=np.float32)
            self.rass_captured[key][:, index] = streams[:, row]


def stream_rows(rows: Tensor, hidden: Tensor, residual: Tensor | None) -> Tensor:
    """Return rows of the residual stream, (n_rows, d_model), float32; a residual kept apart is added."""
    stream = hidden[rows].float()
    return stream if residual is None else stream + residual[rows].float()


def read_batch(runner: Any, positions: Sequence[int]) -> Step:
    """Return the steering of the rows of the flattened batch, and which rows are captured.

    Args:
        runner: vLLM's model runner, its inputs prepared for this step.
        positions: To capture, from each prompt's end.
    """
    starts = runner.query_start_loc.np[: runner.input_batch.num_reqs + 1].tolist()
    computed = runner.input_batch.num_computed_tokens_cpu.tolist()
    step = Step(n_tokens=starts[-1])
    rows: dict[str, list[int]] = {}
    alphas: dict[str, list[float]] = {}
    capture_rows: list[int] = []
    for i, request_id in enumerate(runner.input_batch.req_ids):
        state = runner.requests[request_id]
        asked = (state.sampling_params.extra_args or {}).get(REQUEST_FIELD)
        if asked is None:
            continue
        n, first = starts[i + 1] - starts[i], computed[i]
        for direction_id, alpha in asked["steering"]:
            step.spans.setdefault(direction_id, []).append((asked["key"], (first, first + n)))
            rows.setdefault(direction_id, []).extend(range(starts[i], starts[i + 1]))
            alphas.setdefault(direction_id, []).extend([alpha] * n)
        for index, position in enumerate(positions if asked["capture"] else ()):
            offset = state.num_prompt_tokens + position - first
            if 0 <= offset < n:
                capture_rows.append(starts[i] + offset)
                step.captures.append((asked["key"], index))
    device = runner.device
    for name, steered_rows in rows.items():
        step.rows[name] = torch.tensor(steered_rows, device=device)
        step.alphas[name] = torch.tensor(alphas[name], dtype=torch.float32, device=device)[:, None]
    if capture_rows:
        step.capture_rows = torch.tensor(capture_rows, device=device)
    return step


class _RewindableGenerator(torch.Generator):
    """A CPU generator whose last step can be taken back.

    vLLM draws a token even for a prompt that is not yet read to its end, and then takes the draw
    back by the generator's offset, which those of a CPU lack: a seeded request would end the run.
    """

    before_step: Tensor

    def get_offset(self) -> int:
        return 0

    def set_offset(self, _offset: int) -> torch.Generator:
        return self.set_state(self.before_step)


def _make_rewindable(runner: Any) -> None:
    if runner.device.type != "cpu":
        return
    generators = runner.input_batch.generators
    for i, generator in generators.items():
        if not isinstance(generator, _RewindableGenerator):
            generators[i] = _RewindableGenerator()
            generators[i].set_state(generator.get_state())
            runner.requests[runner.input_batch.req_ids[i]].generator = generators[i]
        generators[i].before_step = generators[i].get_state()


def _before_first(
    change: Callable[[int, Tensor, Tensor | None], Tensor | None],
    _block: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Change the hidden states that block 0 is given, wherever they stand among its arguments.

    They are named so, or are the first floating-point tensor: vLLM's own models put the positions,
    integers, before them. No model keeps a residual apart before its first block.
    """
    named = kwargs.get("hidden_states")
    index = next((i for i, each in enumerate(args) if isinstance(each, Tensor) and each.is_floating_point()), None)
    if isinstance(named, Tensor):
        hidden = named
    elif index is not None:
        hidden = args[index]
    else:
        raise ModelError("block 0: no hidden states among its arguments; this architecture cannot be ablated")
    changed = change(BEFORE_FIRST, hidden.reshape(-1, hidden.shape[-1]), None)
    if changed is None:
        return None
    changed = changed.reshape(hidden.shape)
    if index is None or isinstance(named, Tensor):
        return args, {**kwargs, "hidden_states": changed}
    return (*args[:index], changed, *args[index + 1 :]), kwargs


def _after_block(
    after: Callable[[int, Tensor, Tensor | None], Tensor | None],
    layer: int,
    _block: nn.Module,
    _inputs: Any,
    output: Any,
) -> Any:
    """Unpack a block's output in any of the forms that models give it, and pack it again.

    The forms: a tensor, (tokens, d_model) or with a batch dimension of one before it; a tuple that
    begins with (hidden, residual), whose sum is the residual stream; a tuple that begins with it whole.
    """
    first = output if isinstance(output, Tensor) else output[0]
    second = None if isinstance(output, Tensor) or len(output) < 2 else output[1]
    width = first.shape[-1]
    residual = None
    if isinstance(second, Tensor) and second.shape == first.shape:
        residual = second.reshape(-1, width)
    steered = after(layer, first.reshape(-1, width), residual)
    if steered is None:
        return None
    steered = steered.reshape(first.shape)
    return steered if isinstance(output, Tensor) else (steered, *output[1:])
