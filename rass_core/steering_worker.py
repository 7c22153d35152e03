"""What runs inside the vLLM worker: forward hooks that steer and capture residual streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rass_core.engine import REQUEST_FIELD
from rass_core.errors import ModelError, SteeringError

Span = tuple[int, int]


@dataclass
class Step:
    """The tokens of one forward pass: which are steered by what, and which are captured."""

    n_tokens: int
    spans: dict[str, list[tuple[int, Span]]] = field(default_factory=dict)
    """By direction: request key, first and past-the-last position in the request."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """By direction: rows of the flattened batch, (n_steered,)."""
    alphas: dict[str, Tensor] = field(default_factory=dict)
    """By direction: alpha of each of those rows, (n_steered, 1), float32."""
    captures: list[tuple[int, int]] = field(default_factory=list)
    """Request key and index of the asked position, a captured row each."""
    capture_rows: Tensor | None = None
    streams: dict[int, Tensor] = field(default_factory=dict)
    """By layer: the captured rows, (n_captured, d_model)."""


class SteeringExtension:
    """Methods that vLLM mixes into its worker; `SteeredEngine` reaches them by collective_rpc.

    A hook before the whole model reads from the model runner which request each row of the
    flattened batch belongs to; a hook after each decoder block adds alpha * v to the rows that
    asked for it and keeps the rows to capture; a hook after the model stores these. An
    exception in a hook ends the forward pass and so reaches the engine.
    """

    model_runner: Any

    def rass_attach(self, n_layers: int) -> str:
        """Register the hooks on the `n_layers` decoder blocks; return where the blocks were found."""
        runner = self.model_runner
        if not hasattr(runner, "input_batch") or not hasattr(runner, "requests"):
            raise ModelError("vLLM: this model runner hides its batch; unset VLLM_USE_V2_MODEL_RUNNER")
        name, blocks = decoder_blocks(runner.model, n_layers)
        self.rass_vectors: dict[str, tuple[Tensor, frozenset[int]]] = {}
        self.rass_capture: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.rass_step: Step | None = None
        self.rass_forget()
        runner.model.register_forward_pre_hook(lambda *_: self._rass_begin_step())
        runner.model.register_forward_hook(lambda *_: self._rass_end_step())
        for layer, block in enumerate(blocks):
            block.register_forward_hook(partial(_after_block, self._rass_after_block, layer))
        return name

    def rass_forget(self) -> None:
        """Drop what earlier requests left behind."""
        self.rass_spans: dict[int, dict[int, Span]] = {}
        self.rass_captured: dict[int, np.ndarray] = {}

    def rass_set_vectors(self, vectors: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> None:
        """Take the directions that later requests may name, each with its decoder blocks."""
        device = self.model_runner.device
        self.rass_vectors = {
            name: (torch.as_tensor(vector, dtype=torch.float32, device=device), frozenset(layers))
            for name, (vector, layers) in vectors.items()
        }

    def rass_set_capture(self, layers: tuple[int, ...], positions: tuple[int, ...]) -> None:
        """Take the decoder blocks and the positions, from the prompt's end, to capture."""
        self.rass_capture = (layers, positions)

    def rass_collect(self) -> tuple[dict[int, dict[int, Span]], dict[int, np.ndarray]]:
        """Return what was done since the last call, and forget it.

        Returns:
            By request key: the steered positions of each layer, first and past the last; and the
            captured residual streams, (n_layers, n_positions, d_model) float32, NaN where missed.
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
        if hidden.shape[0] < step.n_tokens:
            raise SteeringError(
                f"block {layer}: {hidden.shape[0]} rows, {step.n_tokens} tokens; no sequence parallelism"
            )
        steered = None
        for direction_id, rows in step.rows.items():
            vector, layers = self.rass_vectors[direction_id]
            if layer not in layers:
                continue
            shift = (step.alphas[direction_id] * vector).to(hidden.dtype)
            steered = (hidden if steered is None else steered).index_add(0, rows, shift)
            for key, span in step.spans[direction_id]:
                self._rass_note(key, layer, span)
        if step.capture_rows is not None and layer in self.rass_capture[0]:
            stream = (hidden if steered is None else steered)[step.capture_rows].float()
            if residual is not None:
                stream = stream + residual[step.capture_rows].float()
            step.streams[layer] = stream
        return steered

    def _rass_note(self, key: int, layer: int, span: Span) -> None:
        """Extend a request's steered positions; a gap means that a step went unsteered."""
        spans = self.rass_spans.setdefault(key, {})
        first, end = spans.get(layer, (span[0], span[0]))
        if span[0] > end:
            raise SteeringError(f"block {layer}: tokens {end} to {span[0]} went unsteered; report it")
        spans[layer] = (first, max(end, span[1]))

    def _rass_end_step(self) -> None:
        step, self.rass_step = self.rass_step, None
        if step is None or not step.captures:
            return
        layers, positions = self.rass_capture
        missing = [layer for layer in layers if layer not in step.streams]
        if missing:
            raise SteeringError(f"blocks {missing}: not reached by the forward pass; ask for other layers")
        # One copy from the device a step, rather than one a layer.
        streams = torch.stack([step.streams[layer] for layer in layers]).cpu().numpy()
        for row, (key, index) in enumerate(step.captures):
            if key not in self.rass_captured:
                shape = (len(layers), len(positions), streams.shape[-1])
                self.rass_captured[key] = np.full(shape, np.nan, dtype=np.float32)
            self.rass_captured[key][:, index] = streams[:, row]


def read_batch(runner: Any, positions: Sequence[int]) -> Step:
    """Return which rows of the flattened batch are steered by what, and which are captured.

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
        direction_id = asked["direction_id"]
        if direction_id is not None:
            step.spans.setdefault(direction_id, []).append((asked["key"], (first, first + n)))
            rows.setdefault(direction_id, []).extend(range(starts[i], starts[i + 1]))
            alphas.setdefault(direction_id, []).extend([asked["alpha"]] * n)
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


def decoder_blocks(model: nn.Module, n_layers: int) -> tuple[str, Sequence[nn.Module]]:
    """Return the name and members of the module list that holds the decoder blocks.

    It is the outermost list of `n_layers` modules, as every architecture of Hugging Face and vLLM
    has; of several (a vision tower beside the language model), the one with most parameters.

    Raises:
        ModelError: There is none.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not inside:
            found[name] = module
    if not found:
        raise ModelError(f"{type(model).__name__}: no list of {n_layers} decoder blocks; it cannot be hooked")
    name = max(found, key=lambda each: sum(weight.numel() for weight in found[each].parameters()))
    return name, list(found[name])


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
