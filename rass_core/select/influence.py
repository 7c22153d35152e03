"""What training on one prompt does to the refusal of others, before any training is done.

A small step of training that answers prompt i changes the log-odds of refusing prompt j by about −η ∇ᵢ·∇ⱼ, with ∇ the
gradient of those log-odds with respect to the weights. Gradients are as large as the model, so that of each
weight matrix is kept as a small two-sided random projection, in which products stay the same on average (Choe et
al. 2024, arXiv 2405.13954; for choosing training data first Xia et al. 2024, arXiv 2402.04333).
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rass_core.errors import ActivationError, ModelError
from rass_core.models.batching import in_batches, is_out_of_memory, right_padded
from rass_core.models.causal_lm import check_inference, decoder_blocks, logits_at, model_name
from rass_core.models.chat import ChatFormat
from rass_core.models.prefix_logprobs import told_apart
from rass_core.probe.geometry import prefixes_of
from rass_core.probe.settings import Prefixes

Found = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
Prefix = tuple[int, ...]
SIDE = 8
"""Rows and columns to which the gradient of a weight matrix is projected."""
PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative difference between the packed and the plain reading that passes for rounding, by dtype."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefusalGradients:
    """How the refusal of n prompts depends on the weights."""

    vectors: "np.ndarray[Any, Any]"
    """(n, n_matrices · SIDE²), float32: ∇ of the log-odds of refusal, projected; nats per unit of weight."""
    log_odds: "np.ndarray[Any, Any]"
    """(n,): that the answer opens with a refusal rather than with a compliance, nats."""


def refusal_gradients(
    model: Any, chat: ChatFormat, prompts: Sequence[str], languages: Sequence[str], prefixes: Mapping[str, Prefixes],
    token_budget: int = 1024, seed: int = 0, done: Callable[[int], None] = lambda n: None,
) -> RefusalGradients:  # fmt: skip
    """Return the projected gradient of each prompt's log-odds of refusal.

    Each opening counts up to the first token at which it differs from every opening of the other side, mostly one to
    three tokens. Each prompt is read once, with the tokens of all prefixes packed behind it. A model that cannot be
    read so is read once per opening, and a warning is logged. All weight matrices of the decoder blocks take part that
    see every token of every prompt; experts to which only some tokens are routed do not.

    Args:
        model: A causal LM in evaluation mode; its weights stay as they are.
        chat: Its chat format.
        languages: Language of each prompt.
        prefixes: language → prefixes; others use the English ones.
        token_budget: Most tokens of a batch, padding included; the backward pass keeps what every block computed.
        seed: Seed of the projections; vectors of different seeds cannot be compared.
        done: Called with the number of prompts finished so far.

    Raises:
        ConfigError: A side without prefixes, an empty one, or one that begins one of the other side.
        ModelError: A model in training mode, or without such matrices.
        ActivationError: A gradient that is not finite, or a single prompt that does not fit in memory.
    """
    check_inference(model)
    projection = _Projection(model, seed)
    vectors, log_odds = np.zeros((len(prompts), projection.width), np.float32), np.zeros(len(prompts))
    ids = [chat.ids(prompt) for prompt in prompts]
    tree_of = {language: _Tree.of(chat, prefixes_of(language, prefixes)) for language in sorted(set(languages))}
    trees = [tree_of[language] for language in languages]
    packed = _packable(projection, ids, trees)
    n_through = 0
    for tree, is_packed in dict.fromkeys(zip(trees, packed, strict=True)):
        here = [i for i, each in enumerate(zip(trees, packed, strict=True)) if each == (tree, is_packed)]
        lengths = [tree.n_tokens(len(ids[i]), is_packed) for i in here]
        compute = partial(projection.of, [ids[i] for i in here], tree, is_packed)
        for batch, found in in_batches(lengths, token_budget, compute):
            rows = [here[i] for i in batch]
            vectors[rows], log_odds[rows] = found
            n_through += len(rows)
            done(n_through)
    if not np.isfinite(vectors).all():
        raise ActivationError(f"{model_name(model)}: a gradient is not finite; load it in float32 or bfloat16")
    return RefusalGradients(vectors, log_odds)


@dataclass(frozen=True)
class _Tree:
    """The prefixes of both sides, as a tree of their tokens: what they share is read once."""

    refusal: tuple[Prefix, ...]
    compliance: tuple[Prefix, ...]

    @classmethod
    def of(cls, chat: ChatFormat, prefixes: Prefixes) -> "_Tree":
        tokens = [[chat.answer_ids(text) for text in side] for side in (prefixes.refusal, prefixes.compliance)]
        refusal, compliance = told_apart(*tokens), told_apart(*reversed(tokens))
        return cls(tuple(map(tuple, refusal)), tuple(map(tuple, compliance)))

    @cached_property
    def prefixes(self) -> list[Prefix]:
        """Return every beginning after which a token is predicted: the empty one, then parents before children."""
        return sorted({opening[:n] for opening in self.refusal + self.compliance for n in range(len(opening))})

    @cached_property
    def stems(self) -> list[Prefix]:
        """Return the prefixes that no other one extends; read after a prompt, they pass through all prefixes."""
        return [each for each in self.prefixes if not any(_extends(other, each) for other in self.prefixes)]

    def n_tokens(self, n_prompt: int, is_packed: bool) -> int:
        """Return how many tokens are read for a prompt of this length."""
        if is_packed:
            return n_prompt + len(self.prefixes) - 1
        return sum(n_prompt + len(stem) for stem in self.stems)

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return the log-odds of refusal, (n,), from the logits after each prefix, (n, n_prefixes, vocabulary)."""
        normaliser = logits.logsumexp(dim=-1)

        def logprob(opening: Prefix) -> Tensor:
            places = [(self.prefixes.index(opening[:n]), token) for n, token in enumerate(opening)]
            return torch.stack([logits[:, at, token] - normaliser[:, at] for at, token in places]).sum(dim=0)

        refusal, compliance = (
            torch.stack([logprob(each) for each in side]).logsumexp(dim=0) for side in (self.refusal, self.compliance)
        )
        return refusal - compliance


def _extends(longer: Prefix, shorter: Prefix) -> bool:
    return len(longer) > len(shorter) and longer[: len(shorter)] == shorter


class _Batch(NamedTuple):
    """What the model reads of some prompts, and where its logits are needed."""

    inputs: dict[str, Tensor]
    rows: Tensor
    """(n, n_prefixes): the row that holds each prefix of each prompt."""
    columns: Tensor
    """(n, n_prefixes): the column of its last token, which predicts the next one."""


def _packed(model: Any, prompts: Sequence[list[int]], tree: _Tree) -> _Batch:
    """Return one row per prompt: the prompt, then the tokens of the tree, each seeing the prompt and its ancestors."""
    nodes = tree.prefixes[1:]
    sees_node = torch.tensor([[one == other or _extends(one, other) for other in nodes] for one in nodes])
    depths, tokens = torch.tensor([len(node) for node in nodes]), torch.tensor([node[-1] for node in nodes])
    width = max(map(len, prompts)) + len(nodes)
    ids, positions = torch.zeros(2, len(prompts), width, dtype=torch.long)
    sees = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(prompts), 1, 1)
    for row, prompt in enumerate(prompts):
        start, end = len(prompt), len(prompt) + len(nodes)
        ids[row, :start], positions[row, :start] = torch.tensor(prompt), torch.arange(start)
        if nodes:
            ids[row, start:end], positions[row, start:end] = tokens, start - 1 + depths
            sees[row, start:end, start:end] = sees_node
    # A mask that is added, with the lowest number for what is hidden: fused and eager attention both take it.
    mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    columns = starts[:, None] - 1 + torch.arange(len(nodes) + 1)
    return _on(model.device, inputs, torch.arange(len(prompts))[:, None].expand_as(columns), columns)


def _plain(model: Any, prompts: Sequence[list[int]], tree: _Tree) -> _Batch:
    """Return one row per prompt and stem, those of a prompt one after the other."""
    ids, mask = right_padded([[*prompt, *stem] for prompt in prompts for stem in tree.stems], model.device)
    number = torch.arange(len(prompts))[:, None] * len(tree.stems)
    holder = [
        next(k for k, stem in enumerate(tree.stems) if stem == prefix or _extends(stem, prefix))
        for prefix in tree.prefixes
    ]
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None]
    inputs = {"input_ids": ids, "attention_mask": mask}
    return _on(
        model.device, inputs, number + torch.tensor(holder), last + torch.tensor([len(p) for p in tree.prefixes])
    )


def _on(device: torch.device, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor) -> _Batch:
    return _Batch({name: each.to(device) for name, each in inputs.items()}, rows.to(device), columns.to(device))


def _packable(projection: "_Projection", prompts: Sequence[list[int]], trees: Sequence[_Tree]) -> list[bool]:
    """Return for each prompt whether it can be read packed.

    A mask of ours hides no token that is out of a sliding window, so a row longer than the window is read plainly.
    Attention that takes no mask, such as linear attention, is found by trying: one short prompt is read both ways.
    """
    model = projection.model
    window = _window(model.config.get_text_config())
    fits = [tree.n_tokens(len(each), True) <= window for each, tree in zip(prompts, trees, strict=True)]
    fitting = [(prompt, tree) for prompt, tree, fit in zip(prompts, trees, fits, strict=True) if fit]
    if not fitting:
        return fits
    reason = _difference(projection, *min(fitting, key=lambda each: (-len(each[1].prefixes), len(each[0]))))
    if reason:
        _LOG.warning("%s: prefixes are read one by one, which takes longer: %s", model_name(model), reason)
        return [False] * len(prompts)
    return fits


def _difference(projection: "_Projection", prompt: list[int], tree: _Tree) -> str | None:
    """Return why the packed reading cannot be used, or None where it agrees with the plain one."""
    plain = projection.of([prompt], tree, False, [0])
    try:
        packed = projection.of([prompt], tree, True, [0])
    except Exception as error:  # an architecture that takes no such mask or positions may raise anything
        if is_out_of_memory(error):
            raise
        return f"the model takes no mask of its own per token ({type(error).__name__})"
    tolerance = PACKING_TOLERANCE.get(projection.model.dtype, 1e-3)
    for one, other in zip(packed, plain, strict=True):
        difference = float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-6))
        if not difference <= tolerance:
            return f"packed behind the prompt they give other numbers (relative difference {difference:.2g})"
    return None


def _window(config: Any) -> float:
    """Return how many tokens back the shortest-sighted block of a model looks."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((window for window in windows if isinstance(window, int) and window > 0), default=math.inf)


class _Projection:
    """Projects the gradients of a model's weight matrices, prompt by prompt, while they are computed."""

    def __init__(self, model: Any, seed: int) -> None:
        blocks = decoder_blocks(model)
        self.model = model
        self._matrices = [m for block in blocks for m in block.modules() if isinstance(m, (nn.Linear, Conv1D))]
        if not self._matrices:
            raise ModelError(f"{model_name(model)}: no linear layers in its decoder blocks; influence needs some")
        draw = torch.Generator().manual_seed(seed)
        self._sides: list[tuple[Tensor, Tensor]] = []
        for matrix in self._matrices:
            n_in, n_out = matrix.weight.shape if isinstance(matrix, Conv1D) else reversed(matrix.weight.shape)
            into, out_of = (
                (torch.randn(n, SIDE, generator=draw) / SIDE**0.5).to(matrix.weight.device) for n in (n_in, n_out)
            )
            self._sides.append((into, out_of))
        self.width = len(self._matrices) * SIDE**2
        self._n_tokens = 0

    def of(self, prompts: Sequence[list[int]], tree: _Tree, is_packed: bool, batch: Sequence[int]) -> Found:
        """Return the projected gradients of the prompts with these numbers, (n, width), and their log-odds, (n,)."""
        read = (_packed if is_packed else _plain)(self.model, [prompts[i] for i in batch], tree)
        with self._reading(len(batch)) as found, torch.enable_grad():
            logits = logits_at(self.model, read.rows.flatten(), read.columns.flatten(), **read.inputs)
            log_odds = tree.log_odds(logits.float().view(*read.rows.shape, -1))
            log_odds.sum().backward()  # type: ignore[no-untyped-call]
        return found.cpu().numpy(), log_odds.detach().cpu().numpy()

    @contextmanager
    def _reading(self, n: int) -> Iterator[Tensor]:
        """Yield a tensor, (n, width), that holds the projected gradients once a loss was taken back.

        The batch has as many rows for each prompt, one after the other; their gradients are summed.
        """
        found = torch.zeros(n, self.width, device=self.model.device)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        # With no weight to learn, what the embedding puts out is where the graph begins.
        handles = [self.model.get_input_embeddings().register_forward_hook(self._begin)]
        for number, matrix in enumerate(self._matrices):
            place = found[:, number * SIDE**2 : (number + 1) * SIDE**2]
            handles.append(matrix.register_forward_hook(self._hook(place, self._sides[number])))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
            for weight in weights:
                weight.requires_grad_(True)

    def _begin(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        output.requires_grad_()
        self._n_tokens = output.shape[0] * output.shape[1]

    def _hook(self, place: Tensor, sides: tuple[Tensor, Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
        into, out_of = sides

        def hook(_module: nn.Module, args: Any, output: Tensor) -> None:
            if output[..., 0].numel() != self._n_tokens:
                return  # An expert: it sees some tokens of all prompts, mixed.
            read = (args[0].detach().float() @ into).view(len(place), -1, SIDE)

            def add(gradient: Tensor) -> None:
                written = (gradient.float() @ out_of).view(len(place), -1, SIDE)
                place.add_((written.transpose(1, 2) @ read).flatten(1))

            output.register_hook(add)  # type: ignore[no-untyped-call]

        return hook
