"""Prompts and the prefixes of their answers, read together in packed rows.

A row is `shared prefix | prompt, tree of prefixes | prompt, tree of prefixes | …`. The attention mask lets a prompt
see the prefix and itself, and an opening see the prefix, its own prompt and its own earlier tokens. Positions restart
after the prefix for every prompt and after the prompt for every opening, so each token gets the numbers it would get
alone. Nothing is cached, almost nothing is padded, and the LM head runs only where a token of an opening is predicted.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rass_core.errors import ActivationError, ModelError, SteeringError
from rass_core.models.batching import in_batches
from rass_core.models.causal_lm import check_inference, chosen_blocks, decoder_blocks, model_name, stream_of

ROW_TOKENS = 256
"""Tokens of a packed row. Longer rows share the prefix among more prompts, but attention grows with their square."""
LOGIT_BYTES = 2**28
"""Most bytes of float32 logits in one batch."""
STREAM_BYTES = 2**30
"""Most bytes of remembered residual streams of one set of prompts."""
_ROOT = -1
"""Number of the node of the prompt's last token."""


@dataclass(frozen=True)
class Reading:
    """What a model says at the beginning of its answers."""

    prefixes: Tensor
    """log P(opening | prompt), nats, (n, n_openings), float64."""
    first_token: Tensor | None
    """Log-probabilities of the answer's first token, nats, (n, vocabulary), float32; None where not asked for."""


class OpeningTree:
    """Prefixes as a tree of tokens: beginnings that prefixes share are read once, last tokens are only predicted."""

    def __init__(self, prefixes: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.steps: list[list[tuple[int, int]]] = []
        """For each opening: (node that predicts, token that is predicted), one per token."""
        known: dict[tuple[int, ...], int] = {(): _ROOT}
        for opening in prefixes:
            steps = []
            for depth, token in enumerate(opening):
                before = tuple(opening[:depth])
                if before not in known:
                    known[before] = self._add(known[before[:-1]], before[-1], depth - 1)
                steps.append((known[before], token))
            self.steps.append(steps)

    def _add(self, parent: int, token: int, depth: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(depth)
        return len(self.tokens) - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def sees(self) -> Tensor:
        """Return which node sees which: itself and what lies between it and the prompt, (n_nodes, n_nodes) bool."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != _ROOT:
                seen[node] |= seen[parent]
        return seen


@dataclass(frozen=True)
class _Row:
    """One packed row."""

    prompts: list[int]
    ids: list[int]
    positions: list[int]
    starts: list[int]
    """Column where each prompt begins after the prefix."""
    n_own: list[int]
    """Tokens of each prompt after the prefix."""


class PackedPrompts:
    """Prompts with the same prefixes, packed once and read as often as the model is changed.

    Args:
        model: A causal LM in evaluation mode.
        prompts: Token ids in the chat template, up to where the answer begins.
        prefixes: Token ids of first words of answers; none reads only the first token.
        token_budget: Most tokens of a batch, padding included.
        row_tokens: Tokens of a row; a longer prompt has a row of its own.
        stream_bytes: Most bytes of streams that `remember` keeps.

    Raises:
        ModelError: A model in training mode, or one with layers that a mask cannot describe.
        ActivationError: No prompt, or an empty one.
    """

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], prefixes: Sequence[list[int]] = (), token_budget: int = 4096,
        row_tokens: int = ROW_TOKENS, stream_bytes: int = STREAM_BYTES,
    ) -> None:  # fmt: skip
        check_inference(model)
        if not prompts or not all(prompts):
            raise ActivationError("prompts: none, or one without tokens; put each in the chat template")
        self._model, self._n = model, len(prompts)
        self._tree = OpeningTree(prefixes)
        self._tree_sees = self._tree.sees()
        self._windows = attention_windows(model)
        self._n_prefix = _n_shared(prompts)
        self._rows = self._pack(prompts, row_tokens)
        vocabulary = model.config.get_text_config().vocab_size
        n_wanted = self._n * (1 + len(self._tree))
        share = n_wanted / sum(len(row.ids) for row in self._rows)
        self._budget = min(token_budget, max(1, int(LOGIT_BYTES / (4 * vocabulary * share))))
        self._streams: dict[int, list[Tensor]] = {}
        self._output_sizes: dict[int, int] = {}
        self._stream_bytes = stream_bytes

    @torch.no_grad()
    def read(self, first_token: bool = False, above: int | None = None) -> Reading:
        """Read all prompts in the model as it is now, inside `adding` or `ablating` as changed.

        Args:
            first_token: Also return the log-probabilities of the answer's first token.
            above: Run only the blocks above this one, on the streams that the model put out there when `remember`
                was called. Changes to this block's output act on those streams; changes below it are refused.

        Raises:
            ModelError: The LM head is not where transformers says it is.
            SteeringError: Streams that are not remembered, or a block below that was changed.
        """
        prefixes = torch.zeros(self._n, len(self._tree.steps), dtype=torch.float64)
        first: dict[int, Tensor] = {}
        lengths = [len(row.ids) for row in self._rows]
        for batch, (prompts, scores, firsts) in in_batches(
            lengths, self._budget, partial(self._read_batch, first_token, above)
        ):
            del batch
            prefixes[prompts] = scores
            if firsts is not None:
                first.update(zip(prompts, firsts, strict=True))
        return Reading(prefixes, torch.stack([first[i] for i in range(self._n)]) if first_token else None)

    @torch.no_grad()
    def remember(self, layers: Sequence[int]) -> list[int]:
        """Keep the streams that these blocks put out now, in the unchanged model; return those that are kept.

        What does not fit in `stream_bytes` is not kept; the layers given before are forgotten.
        """
        wanted = sorted(chosen_blocks(self._model, layers))
        text = self._model.config.get_text_config()
        n_bytes = sum(len(row.ids) for row in self._rows) * text.hidden_size * self._model.dtype.itemsize
        wanted = wanted[: max(1, self._stream_bytes // n_bytes)]
        self._streams = {layer: [torch.empty(0)] * len(self._rows) for layer in wanted}
        lengths = [len(row.ids) for row in self._rows]
        for _ in in_batches(lengths, self._budget, partial(self._remember_batch, wanted)):
            pass
        return wanted

    @property
    def remembered(self) -> set[int]:
        """Layers whose streams are kept."""
        return set(self._streams)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows, padding left out."""
        return sum(len(row.ids) for row in self._rows)

    def _pack(self, prompts: Sequence[list[int]], row_tokens: int) -> list[_Row]:
        """Return rows of about equal length: the longest prompt left goes to the emptiest row."""
        own = [prompt[self._n_prefix :] for prompt in prompts]
        sizes = [len(tokens) + len(self._tree) for tokens in own]
        room = max(max(sizes), row_tokens - self._n_prefix)
        n_rows = -(-sum(sizes) // room)
        members: list[list[int]] = [[] for _ in range(n_rows)]
        filled = [0] * n_rows
        for index in sorted(range(len(own)), key=lambda i: -sizes[i]):
            row = filled.index(min(filled))
            members[row].append(index)
            filled[row] += sizes[index]
        prefix = prompts[0][: self._n_prefix]
        rows = []
        for here in filter(None, members):
            ids, positions, starts = list(prefix), list(range(len(prefix))), []
            for index in here:
                end = len(prefix) + len(own[index])
                starts.append(len(ids))
                ids += [*own[index], *self._tree.tokens]
                positions += [*range(len(prefix), end), *(end + depth for depth in self._tree.depths)]
            rows.append(_Row(here, ids, positions, starts, [len(own[index]) for index in here]))
        return rows

    def _mask(self, rows: Sequence[_Row], positions: Tensor) -> Any:
        """Return additive attention masks, (n, 1, width, width): one, or one for each kind of layer."""
        n, width = positions.shape
        sees = torch.eye(width, dtype=torch.bool).repeat(n, 1, 1)  # padding sees itself, so that no row is empty
        before, n_nodes = self._n_prefix, len(self._tree)
        for seen, row in zip(sees, rows, strict=True):
            seen[: len(row.ids), :before] = True
            seen[:before, :before] = torch.ones(before, before, dtype=torch.bool).tril()
            for start, n_own in zip(row.starts, row.n_own, strict=True):
                end = start + n_own
                seen[start:end, start:end] = torch.ones(n_own, n_own, dtype=torch.bool).tril()
                seen[end : end + n_nodes, start:end] = True
                seen[end : end + n_nodes, end : end + n_nodes] = self._tree_sees
        back = positions[:, :, None] - positions[:, None, :]
        dtype = self._model.dtype
        masks = {}
        for kind, window in self._windows.items():
            kept = sees if window is None else sees & (back < window)
            additive = torch.zeros(kept.shape, dtype=dtype).masked_fill(~kept, torch.finfo(dtype).min)
            masks[kind] = additive[:, None].to(self._model.device)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _inputs(self, rows: Sequence[_Row]) -> dict[str, Any]:
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
        positions = torch.tensor([row.positions + [0] * (width - len(row.ids)) for row in rows])
        device = self._model.device
        return {
            "input_ids": ids.to(device),
            "position_ids": positions.to(device),
            "attention_mask": self._mask(rows, positions),
            "use_cache": False,
        }

    def _read_batch(
        self, first_token: bool, above: int | None, batch: Sequence[int]
    ) -> tuple[list[int], Tensor, Tensor | None]:
        """Return prompts, log-probabilities of their prefixes, and those of the first token."""
        rows = [self._rows[index] for index in batch]
        where = [  # the prompt's last token, then the nodes of its tree
            (number, start + n_own - 1 + node)
            for number, row in enumerate(rows)
            for start, n_own in zip(row.starts, row.n_own, strict=True)
            for node in range(len(self._tree) + 1)
        ]
        with ExitStack() as stack:
            stack.enter_context(_head_only_at(self._model, where))
            inputs = self._inputs(rows)
            if above is not None:
                stack.enter_context(self._resumed(above, batch, inputs["input_ids"].shape[1]))
            logits = self._model(**inputs).logits
        if logits.shape[:2] != (1, len(where)):
            raise ModelError(
                f"{model_name(self._model)}: logits of shape {tuple(logits.shape)} for {len(where)} tokens; its LM "
                "head is not what get_output_embeddings returns"
            )
        wide = logits[0].float().view(-1, len(self._tree) + 1, logits.shape[-1])
        scale = wide.logsumexp(dim=-1)
        steps = [(_node + 1, token) for each in self._tree.steps for _node, token in each]
        prompts = [index for row in rows for index in row.prompts]
        scores = torch.zeros(len(prompts), len(self._tree.steps), dtype=torch.float64)
        if steps:
            nodes, tokens = (torch.tensor(column, device=wide.device) for column in zip(*steps, strict=True))
            each = (wide[:, nodes, tokens].double() - scale[:, nodes].double()).cpu()
            of = torch.tensor([i for i, steps_of in enumerate(self._tree.steps) for _ in steps_of])
            scores.index_add_(1, of, each)
        first = (wide[:, 0] - scale[:, :1]).cpu() if first_token else None
        return prompts, scores, first

    def _remember_batch(self, layers: Sequence[int], batch: Sequence[int]) -> None:
        rows = [self._rows[index] for index in batch]
        blocks = chosen_blocks(self._model, layers)

        def keep(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
            stream = stream_of(output).detach()
            self._output_sizes[layer] = len(output) if isinstance(output, tuple) else 0
            for number, index in enumerate(batch):
                self._streams[layer][index] = stream[number, : len(self._rows[index].ids)].clone()
            if layer == max(layers):
                raise _Enough

        handles = [block.register_forward_hook(partial(keep, layer)) for layer, block in blocks.items()]
        try:
            self._model(**self._inputs(rows))
        except _Enough:
            return
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _resumed(self, layer: int, batch: Sequence[int], width: int) -> Iterator[None]:
        """Replace the blocks up to this one by its remembered output."""
        if layer not in self._streams:
            raise SteeringError(f"layer {layer}: its streams are not remembered; call remember([{layer}]) first")
        rows = [self._streams[layer][index] for index in batch]
        padded = [nn.functional.pad(row, (0, 0, 0, width - len(row))) for row in rows]
        stream, size = torch.stack(padded), self._output_sizes[layer]
        entered: list[Tensor] = []

        def block_output(given: Tensor) -> Any:
            return (given, *[None] * (size - 1)) if size else given

        def passed_on(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            entered.append(hidden)
            return block_output(hidden)

        def put_out(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if any(each is not hidden for each in entered):
                raise SteeringError(
                    f"layer {layer}: a block below it was changed, but its remembered stream does not know of that; "
                    "read from a lower layer"
                )
            return block_output(stream)

        blocks = list(decoder_blocks(self._model))[: layer + 1]
        given = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.forward = put_out if block is blocks[-1] else passed_on
        try:
            yield
        finally:
            for block, forward in zip(blocks, given, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


class _Enough(Exception):
    """Leaves a forward once the last block that is needed has run."""


def attention_windows(model: Any) -> dict[str, int | None]:
    """Return kind of layer → how many tokens back it sees, itself included; None sees all.

    Raises:
        ModelError: A kind of layer that an attention mask cannot describe, such as linear attention.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(f"{model_name(model)}: has layers of kind {', '.join(sorted(unknown))}; no mask packs those")
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


@contextmanager
def _head_only_at(model: Any, where: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Let the LM head see only these (row, column) of the hidden states, as (1, n, d_model)."""
    rows, columns = (torch.tensor(column, device=model.device) for column in zip(*where, strict=True))
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _module, args: (args[0][rows, columns][None], *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def _n_shared(prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens all prompts share; each keeps at least one of its own."""
    shortest, others = min(prompts, key=len), set(map(tuple, prompts))
    n = 0
    while n < len(shortest) - 1 and all(other[n] == shortest[n] for other in others):
        n += 1
    return n
