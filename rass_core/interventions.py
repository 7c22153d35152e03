"""What a direction does to a model: add it or ablate it, and read how the answer's opening changes.

Everything is teacher-forced: probabilities of given openings are read, no answer is generated.
The changes last for a `with` block and leave the weights alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rass_core.activations import check_inference, chosen_blocks, decoder_blocks, model_name, stream_of
from rass_core.errors import ActivationError, ConfigError, SteeringError

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
def ablating(model: Any, vector: Tensor, strength: float = 1.0) -> Iterator[None]:
    """Remove the component along the vector from the residual stream, h - λ(h·u)u, at every token.

    It is removed before the first block (what the embedding wrote) and after every block, so that
    no block and no head reads it from the stream. Arditi et al. (2024) also remove it between a
    block's attention and its MLP; here that MLP may still read what its own block's attention has
    just written, which the block's end then removes. In exchange only blocks need be found.

    Args:
        vector: (d_model,), not zero; its length does not matter.
        strength: λ, 0 to 1. Below 1 what a block wrote is lessened again by every later one.

    Raises:
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
    handle = blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)
    try:
        with _changing(model, dict(enumerate(blocks)), without):
            yield
    finally:
        handle.remove()


@torch.no_grad()
def opening_log_odds(
    model: Any,
    prompts: Sequence[list[int]],
    refusal_openings: Sequence[list[int]],
    compliance_openings: Sequence[list[int]],
    token_budget: int = 4096,
) -> Tensor:
    """Return the log-odds that the answer opens with a refusal rather than with a compliance.

    log Σ_r P(r | prompt) - log Σ_c P(c | prompt), with P(o | prompt) the product over all tokens of
    the opening. The openings of a side are distinct events, so the sum is the probability that the
    answer begins with any of them; an opening that another of its side begins is dropped, being
    counted there. A longer opening is less probable: take both sides about equally long.

    Args:
        prompts: Token ids in the chat template, up to where the answer begins.
        refusal_openings, compliance_openings: Token ids of first words of answers.
        token_budget: Most tokens of a batch, prompts with their openings, padding included.

    Returns:
        (n,), float64, nats; positive leans to refusal.

    Raises:
        ConfigError: A side without openings, an empty one, or one that begins one of the other side.
        ModelError: A model in training mode.
        ActivationError: An empty prompt, or a result that is not finite.
    """
    refusals, compliances = _distinct(refusal_openings), _distinct(compliance_openings)
    openings = [*refusals, *compliances]
    if len(_distinct(openings)) < len(openings):
        raise ConfigError("openings: one opens both refusal and compliance; make them differ")
    scores = torch.empty(len(prompts), len(openings), dtype=torch.float64)
    for indices in _packed(prompts, token_budget, sum(map(len, openings))):
        scores[indices] = _opening_logprobs(model, [prompts[index] for index in indices], openings)
    log_odds = scores[:, : len(refusals)].logsumexp(dim=1) - scores[:, len(refusals) :].logsumexp(dim=1)
    return _checked_finite(model, log_odds)


@torch.no_grad()
def last_token_logprobs(model: Any, prompts: Sequence[list[int]], token_budget: int = 4096) -> Tensor:
    """Return the log-probabilities of the answer's first token, (n, vocabulary), float32, nats.

    Raises:
        ModelError: A model in training mode.
        ActivationError: No prompt, an empty one, or a value that is not a number.
    """
    if not prompts:
        raise ActivationError("log-probabilities: no prompts; give at least one")
    rows: dict[int, Tensor] = {}
    for indices in _packed(prompts, token_budget, 0):
        logits, _, _ = _read_prompts(model, [prompts[index] for index in indices], use_cache=False)
        rows.update(zip(indices, logits.log_softmax(dim=-1).cpu(), strict=True))
    return _checked_finite(model, torch.stack([rows[index] for index in range(len(prompts))]))


def kl_divergence(base_logprobs: Tensor, changed_logprobs: Tensor) -> Tensor:
    """Return KL(base ‖ changed) of each row, Σ p (log p - log q), 0 where p is 0.

    Args:
        base_logprobs: (n, vocabulary), such as `last_token_logprobs` of the unchanged model.
        changed_logprobs: The same, of the changed one.

    Returns:
        (n,), float64, nats.

    Raises:
        ActivationError: Unequal shapes.
    """
    if base_logprobs.shape != changed_logprobs.shape:
        raise ActivationError(
            f"KL: base is {tuple(base_logprobs.shape)}, changed {tuple(changed_logprobs.shape)}; "
            "compare the same prompts under the same vocabulary"
        )
    base, changed = base_logprobs.double(), changed_logprobs.double()
    terms = base.exp() * (base - changed)
    return terms.where(base.exp() > 0, 0.0).sum(dim=-1)


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


def _opening_logprobs(model: Any, prompts: Sequence[list[int]], openings: Sequence[list[int]]) -> Tensor:
    """Return log P(opening | prompt) of one batch, (n, n_openings), float64, on the CPU.

    The prompts are read once; every opening then continues a copy of their cache.
    """
    first_logits, mask, cache = _read_prompts(model, prompts, use_cache=True)
    device = mask.device
    rows = [torch.tensor(opening, device=device) for opening in openings]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    is_real = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    logprobs = first_logits.log_softmax(dim=-1)[:, tokens[:, 0]].double()
    n_more = tokens.shape[1] - 1
    if n_more:
        n, n_openings = logprobs.shape
        which = torch.arange(n, device=device).repeat_interleave(n_openings)
        cache.reorder_cache(which)
        # The last token of an opening is only predicted, never read.
        logits = model(
            input_ids=tokens[:, :-1].repeat(n, 1),
            attention_mask=torch.cat([mask[which], mask.new_ones(len(which), n_more)], dim=1),
            position_ids=mask.sum(dim=1)[which, None] + torch.arange(n_more, device=device),
            past_key_values=cache, use_cache=True,
        ).logits.float()  # fmt: skip
        targets = tokens[:, 1:].repeat(n, 1)[..., None]
        each = logits.gather(-1, targets).squeeze(-1).double() - logits.logsumexp(dim=-1).double()
        each = each.where(is_real[:, 1:].repeat(n, 1), 0.0)
        logprobs = logprobs + each.sum(dim=-1).view(n, n_openings)
    return logprobs.cpu()


def _read_prompts(model: Any, prompts: Sequence[list[int]], use_cache: bool) -> tuple[Tensor, Tensor, Any]:
    """Return logits of the answer's first token, (n, vocabulary) float32, the mask and the cache.

    Padding is on the left (token 0, masked), so that every prompt's answer begins in one column.
    """
    check_inference(model)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=use_cache, logits_to_keep=1,
    )  # fmt: skip
    return output.logits[:, -1].float(), mask, output.past_key_values


def _packed(prompts: Sequence[list[int]], token_budget: int, n_more: int) -> Iterator[list[int]]:
    """Yield indices of prompts, longest first, that with n_more tokens each keep to the budget."""
    if not all(prompts):
        raise ActivationError("prompts: one has no tokens; put it in the chat template")
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while waiting:
        n = max(1, token_budget // (len(prompts[waiting[0]]) + n_more))
        yield waiting[:n]
        waiting = waiting[n:]


def told_apart(openings: Sequence[list[int]], others: Sequence[list[int]]) -> list[list[int]]:
    """Return the first tokens by which each opening begins none of the others, and which no other start begins.

    Raises:
        ConfigError: A side without openings, an empty one, or one that begins one of the other side.
    """
    openings, others = _distinct(openings), _distinct(others)
    if any(
        opening[: len(other)] == other or other[: len(opening)] == opening for opening in openings for other in others
    ):
        raise ConfigError("openings: one opens both refusal and compliance; make them differ")
    return _distinct([
        next(opening[:n] for n in range(1, len(opening) + 1) if all(other[:n] != opening[:n] for other in others))
        for opening in openings
    ])  # fmt: skip


def _distinct(openings: Sequence[list[int]]) -> list[list[int]]:
    """Return the openings that no other one begins, each once."""
    if not openings or not all(openings):
        raise ConfigError("openings: each side needs at least one, and none may be empty")
    unique = [list(opening) for opening in dict.fromkeys(map(tuple, openings))]
    return [
        opening
        for opening in unique
        if not any(opening[: len(other)] == other for other in unique if other is not opening)
    ]


def _checked(model: Any, vector: Tensor) -> Tensor:
    """Return the vector in float32, or raise ActivationError if it does not fit the residual stream."""
    d_model = model.config.get_text_config().hidden_size
    if vector.shape != (d_model,) or not vector.isfinite().all():
        raise ActivationError(
            f"vector: need finite ({d_model},) for {model_name(model)}, got {tuple(vector.shape)}; "
            "use a direction of this model"
        )
    return vector.detach().float()


def _checked_finite(model: Any, values: Tensor) -> Tensor:
    if values.isnan().any():
        raise ActivationError(
            f"{model_name(model)}: log-probabilities are not numbers; load it in float32 or bfloat16, "
            "or take a smaller alpha"
        )
    return values
