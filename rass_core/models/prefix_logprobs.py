"""How likely a model is to open an answer in given words: log-odds of refusing, next-token distributions."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rass_core.errors import ActivationError, ConfigError, RassError
from rass_core.models.batching import in_batches
from rass_core.models.causal_lm import check_inference, model_name
from rass_core.models.packed import PackedPrompts, Reading

_LOG = logging.getLogger(__name__)
MAX_DIFFERENCE = {torch.float32: 2e-3, torch.float64: 2e-3}
"""Nats, root mean square, by which a packed reading may differ from a plain one."""
MAX_DIFFERENCE_LOW_PRECISION = 0.5
"""Other types round to about 3 digits in every block: on SmolLM2 in bfloat16 both readings are 0.15 from float32."""
_longest_checked: "WeakKeyDictionary[Any, int]" = WeakKeyDictionary()
_unpackable: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()


@torch.no_grad()
def prefix_log_odds(
    model: Any,
    prompts: Sequence[list[int]],
    refusal_openings: Sequence[list[int]],
    compliance_openings: Sequence[list[int]],
    token_budget: int = 4096,
) -> Tensor:
    """Return the log-odds that the answer opens with a refusal rather than with a compliance.

    log Σ_r P(r | prompt) - log Σ_c P(c | prompt), with P(o | prompt) the product over all tokens of
    the opening. The prefixes of a side are distinct events, so the sum is the probability that the
    answer begins with any of them; an opening that another of its side begins is dropped, being
    counted there. A longer opening is less probable: take both sides about equally long. To read the
    same prompts under many changes, keep an `PrefixReader`.

    Args:
        prompts: Token ids in the chat template, up to where the answer begins.
        refusal_openings, compliance_openings: Token ids of first words of answers.
        token_budget: Most tokens of a batch, prompts with their prefixes, padding included.

    Returns:
        (n,), float64, nats; positive leans to refusal.

    Raises:
        ConfigError: A side without prefixes, an empty one, or one that begins one of the other side.
        ModelError: A model in training mode.
        ActivationError: An empty prompt, or a result that is not finite.
    """
    if not prompts:
        _checked_sides(refusal_openings, compliance_openings)
        return torch.empty(0, dtype=torch.float64)
    return PrefixReader(model, prompts, refusal_openings, compliance_openings, token_budget).log_odds()


class PrefixReader:
    """Reads the prefixes of the same prompts again and again, while the model is changed between readings.

    Prompts are packed (see `packed`) where that gives this model's numbers; for others, such as models with
    linear attention, they are read with a cache, and the log says why.

    Args, Raises: As `prefix_log_odds`; at least one prompt.
    """

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], refusal_openings: Sequence[list[int]],
        compliance_openings: Sequence[list[int]], token_budget: int = 4096,
    ) -> None:  # fmt: skip
        refusals, compliances = _checked_sides(refusal_openings, compliance_openings)
        self._model, self._n_refusals = model, len(refusals)
        self._prompts = prompt_reader(model, prompts, [*refusals, *compliances], token_budget)

    def log_odds(self, above: int | None = None) -> Tensor:
        """Return the log-odds of refusal in the model as it is now, nats, (n,), float64.

        Args:
            above: As `PackedPrompts.read` takes it.

        Raises:
            ActivationError: A result that is not a number.
            SteeringError: Streams of a layer that are not remembered.
        """
        scores = self._prompts.read(above=above).prefixes
        refusal, compliance = scores[:, : self._n_refusals], scores[:, self._n_refusals :]
        return _checked_finite(self._model, refusal.logsumexp(dim=1) - compliance.logsumexp(dim=1))

    def remember(self, layers: Sequence[int]) -> list[int]:
        """Keep the streams after these blocks, of the unchanged model; return the layers that are kept."""
        return self._prompts.remember(layers)

    @property
    def remembered(self) -> set[int]:
        """Layers whose streams are kept."""
        return self._prompts.remembered


class PlainPrompts:
    """Prompts read one batch after the other with a cache of keys and values: slower, but for any causal model.

    Args, Raises: As `PackedPrompts`.
    """

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], prefixes: Sequence[list[int]] = (), token_budget: int = 4096
    ) -> None:
        self._model, self._prompts, self._prefixes = model, list(prompts), list(prefixes)
        self._token_budget = token_budget

    @torch.no_grad()
    def read(self, first_token: bool = False, above: int | None = None) -> Reading:
        """Read all prompts in the model as it is now; every block runs, whatever `above` is."""
        scores = torch.zeros(len(self._prompts), len(self._prefixes), dtype=torch.float64)
        if self._prefixes:
            n_more = sum(map(len, self._prefixes))
            for indices, found in _read_in_batches(
                self._prompts,
                n_more,
                self._token_budget,
                lambda batch: _prefix_logprobs(self._model, batch, self._prefixes),
            ):
                scores[indices] = found
        first = last_token_logprobs(self._model, self._prompts, self._token_budget) if first_token else None
        return Reading(scores, first)

    def remember(self, layers: Sequence[int]) -> list[int]:
        """Keep nothing: every reading runs the whole model."""
        return []

    @property
    def remembered(self) -> set[int]:
        """No layers."""
        return set()


def prompt_reader(
    model: Any, prompts: Sequence[list[int]], prefixes: Sequence[list[int]] = (), token_budget: int = 4096
) -> PackedPrompts | PlainPrompts:
    """Return a reader of the prompts: packed where that gives the numbers of this model, else plain.

    The first time that a model is seen, and whenever prompts are longer than all before, the shortest, the middle and
    the longest prompt are read in both ways and compared.
    """
    check_inference(model)
    if not prompts or not all(prompts):
        raise ActivationError("prompts: none, or one without tokens; put each in the chat template")
    longest = max(map(len, prompts))
    if model not in _unpackable and longest > _longest_checked.get(model, 0):
        by_length = sorted(prompts, key=len)
        why = _why_not_packed(model, [by_length[0], by_length[len(by_length) // 2], by_length[-1]], prefixes)
        if why is None:
            _longest_checked[model] = longest
        else:
            _unpackable[model] = why
            _LOG.warning("%s: prompts are read one by one, which is slower: %s", model_name(model), why)
    if model in _unpackable:
        return PlainPrompts(model, prompts, prefixes, token_budget)
    return PackedPrompts(model, prompts, prefixes, token_budget)


def _why_not_packed(model: Any, prompts: Sequence[list[int]], prefixes: Sequence[list[int]]) -> str | None:
    """Return why packed reading does not give the model's numbers, or None where it does."""
    budget = 1 << 30  # all in one row
    plain = PlainPrompts(model, prompts, prefixes).read(first_token=True)
    assert plain.first_token is not None  # asked for
    try:
        packed = PackedPrompts(model, prompts, prefixes, budget, row_tokens=budget).read(first_token=True)
    except torch.OutOfMemoryError:
        raise
    except (RassError, TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return f"packed rows fail with {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
    assert packed.first_token is not None
    # Far down the vocabulary rounding is large in nats and small in probability.
    likely = plain.first_token > -12.0
    differences = torch.cat(
        [
            (plain.prefixes - packed.prefixes).flatten(),
            (plain.first_token - packed.first_token)[likely].double(),
        ]
    )
    if differences.isnan().any():  # reported by whoever reads
        return None
    apart = float(differences.square().mean().sqrt())
    bound = MAX_DIFFERENCE.get(model.dtype, MAX_DIFFERENCE_LOW_PRECISION)
    return None if apart <= bound else f"packed rows differ by {apart:.3g} nats, at most {bound:g} are allowed"


def _checked_sides(
    refusal_openings: Sequence[list[int]], compliance_openings: Sequence[list[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the distinct prefixes of both sides, or raise ConfigError where one opens both."""
    refusals, compliances = _distinct(refusal_openings), _distinct(compliance_openings)
    if len(_distinct([*refusals, *compliances])) < len(refusals) + len(compliances):
        raise ConfigError("prefixes: one opens both refusal and compliance; make them differ")
    return refusals, compliances


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

    def first_logprobs(batch: Sequence[list[int]]) -> Tensor:
        return _read_prompts(model, batch, use_cache=False)[0].log_softmax(dim=-1).cpu()

    for indices, logprobs in _read_in_batches(prompts, 0, token_budget, first_logprobs):
        rows.update(zip(indices, logprobs, strict=True))
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


def _prefix_logprobs(model: Any, prompts: Sequence[list[int]], prefixes: Sequence[list[int]]) -> Tensor:
    """Return log P(opening | prompt) of one batch, (n, n_openings), float64, on the CPU.

    The prompts are read once; every opening then continues a copy of their cache. Models without such a cache, such as
    state-space models, read every prompt anew with each opening.
    """
    first_logits, mask, cache = _read_prompts(model, prompts, use_cache=True)
    if not hasattr(cache, "reorder_cache"):
        each = [_continued(model, prompts, opening) for opening in prefixes]
        return torch.stack(each, dim=1)
    device = mask.device
    rows = [torch.tensor(opening, device=device) for opening in prefixes]
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
            past_key_values=cache,
            use_cache=True,
        ).logits.float()
        targets = tokens[:, 1:].repeat(n, 1)[..., None]
        each = logits.gather(-1, targets).squeeze(-1).double() - logits.logsumexp(dim=-1).double()
        each = each.where(is_real[:, 1:].repeat(n, 1), 0.0)
        logprobs = logprobs + each.sum(dim=-1).view(n, n_openings)
    return logprobs.cpu()


def _continued(model: Any, prompts: Sequence[list[int]], opening: list[int]) -> Tensor:
    """Return log P(opening | prompt) of one batch without a cache, (n,), float64, on the CPU."""
    whole = [prompt + opening[:-1] for prompt in prompts]
    logits, _, _ = _read_prompts(model, whole, use_cache=False, n_kept=len(opening))
    logits = logits.view(len(prompts), len(opening), -1)
    targets = torch.tensor(opening, device=logits.device).expand(len(prompts), -1)[..., None]
    found = logits.double().log_softmax(dim=-1).gather(-1, targets)[..., 0].sum(dim=-1)
    return found.cpu()


def _read_prompts(
    model: Any, prompts: Sequence[list[int]], use_cache: bool, n_kept: int = 1
) -> tuple[Tensor, Tensor, Any]:
    """Return logits of the answer's first token, (n, vocabulary) float32, the mask and the cache.

    Padding is on the left (token 0, masked), so that every prompt's answer begins in one column. With n_kept above 1
    the logits after the last n_kept tokens are returned, (n, n_kept, vocabulary).
    """
    check_inference(model)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=use_cache,
        logits_to_keep=n_kept,
    )
    logits = output.logits[:, -n_kept:].float()
    return logits[:, -1] if n_kept == 1 else logits, mask, getattr(output, "past_key_values", None)


def _read_in_batches(
    prompts: Sequence[list[int]], n_more: int, token_budget: int, read: Callable[[Sequence[list[int]]], Tensor]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices, what was read of these prompts), longest first; each prompt counts n_more tokens more."""
    if not all(prompts):
        raise ActivationError("prompts: one has no tokens; put it in the chat template")
    lengths = [len(prompt) + n_more for prompt in prompts]
    return in_batches(lengths, token_budget, lambda here: read([prompts[i] for i in here]), max_padding=1.0)


def told_apart(prefixes: Sequence[list[int]], others: Sequence[list[int]]) -> list[list[int]]:
    """Return the first tokens by which each opening begins none of the others, and which no other start begins.

    Raises:
        ConfigError: A side without prefixes, an empty one, or one that begins one of the other side.
    """
    prefixes, others = _distinct(prefixes), _distinct(others)
    if any(
        opening[: len(other)] == other or other[: len(opening)] == opening for opening in prefixes for other in others
    ):
        raise ConfigError("prefixes: one opens both refusal and compliance; make them differ")
    return _distinct(
        [
            next(opening[:n] for n in range(1, len(opening) + 1) if all(other[:n] != opening[:n] for other in others))
            for opening in prefixes
        ]
    )


def _distinct(prefixes: Sequence[list[int]]) -> list[list[int]]:
    """Return the prefixes that no other one begins, each once."""
    if not prefixes or not all(prefixes):
        raise ConfigError("prefixes: each side needs at least one, and none may be empty")
    unique = [list(opening) for opening in dict.fromkeys(map(tuple, prefixes))]
    return [
        opening
        for opening in unique
        if not any(opening[: len(other)] == other for other in unique if other is not opening)
    ]


def _checked_finite(model: Any, values: Tensor) -> Tensor:
    if values.isnan().any():
        raise ActivationError(
            f"{model_name(model)}: log-probabilities are not numbers; load it in float32 or bfloat16, "
            "or take a smaller alpha"
        )
    return values
