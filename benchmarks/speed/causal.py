"""Causal trials and the first-token proxy: packed reading beside the plain reading that it replaces.

Both readings run in one process, one after the other, on the same prompts. CPU seconds are taken, so that other work
on the machine counts less.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from rass_core.models.causal_lm import decoder_blocks, load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.interventions import ablating, adding
from rass_core.models.packed import PackedPrompts
from rass_core.models.prefix_logprobs import PlainPrompts, PrefixReader, kl_divergence, prefix_log_odds
from rass_core.probe.causal import CausalPrompts, CausalTrial
from rass_core.probe.geometry import Direction
from rass_core.probe.settings import DEFAULT_PREFIXES, ProbeConfig

N_PROMPTS = 40
N_TOKENS = 150
"""Longest prompt taken, template included."""
HARMFUL, HARMLESS = "strongreject", "self_instruct"


def measure(model_folder: str, data_folder: str, n_prompts: int = N_PROMPTS) -> list[dict[str, Any]]:
    """Return one row per measured step: what, before_s, after_s (CPU seconds), ratio, max_difference (nats).

    Args:
        n_prompts: Harmful prompts, and as many harmless ones.
    """
    torch.set_num_threads(1)
    model, tokenizer = load_causal_lm(model_folder)
    chat, prefixes = ChatFormat(tokenizer), DEFAULT_PREFIXES["en"]
    prompts = CausalPrompts(
        *(_prompts(chat, Path(data_folder) / f"{name}.parquet")[:n_prompts] for name in (HARMFUL, HARMLESS)),
        *([chat.answer_ids(text) for text in side] for side in (prefixes.refusal, prefixes.compliance)),
    )
    prefix_log_odds(model, prompts.harmless[:2], prompts.refusal_openings, prompts.compliance_openings)  # warm
    return [*first_token(model, prompts), *causal_trial(model, prompts)]


def first_token(model: Any, prompts: CausalPrompts) -> list[dict[str, Any]]:
    """Measure the log-odds of all prompts, as the judge `first_token` asks for them, and what bounds them.

    The bound is a reading of the prompts alone, without any opening: no reading of prefixes can take less.
    """
    ids = [*prompts.harmful, *prompts.harmless]
    sides = prompts.refusal_openings, prompts.compliance_openings
    before, old = _timed(lambda: _plain_log_odds(model, ids, prompts))
    after, new = _timed(lambda: PrefixReader(model, ids, *sides).log_odds())
    bound, alone = _timed(lambda: PackedPrompts(model, ids).read(first_token=True).prefixes)
    what = f"first token, {len(ids)} prompts"
    return [
        _row(what, before, after, old - new),
        _row(f"{what}: the prompts alone, a bound", before, bound, alone.new_zeros(1)),
    ]


def causal_trial(model: Any, prompts: CausalPrompts) -> list[dict[str, Any]]:
    """Measure the trial of one direction in the middle of the model (four α, the full ablation, its KL) and its set-up.

    The set-up is done once for all directions: what the unchanged model says, and here also the remembered streams.
    """
    n_layers = len(decoder_blocks(model))
    layer = n_layers // 2
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(model.config.get_text_config().hidden_size, generator=draw)
    direction = Direction("harm", "difference_in_means", layer, -1, vector.double().numpy())
    config = ProbeConfig()
    trials: list[CausalTrial] = []

    def plain_base() -> Tensor:
        first = PlainPrompts(model, prompts.harmless).read(first_token=True).first_token
        assert first is not None
        return first

    def set_up() -> Tensor:
        trials.append(CausalTrial(model, [prompts], config, [layer]))
        trials[0].induced(direction, 0.0)  # remembers the streams
        return trials[0]._base[0]

    def plain() -> Tensor:
        found = []
        for alpha in config.alphas:
            with adding(model, [layer], vector, alpha):
                found.append(_plain_log_odds(model, prompts.harmless, prompts).mean())
        with ablating(model, vector):
            found.append(_plain_log_odds(model, prompts.harmful, prompts).mean())
            changed = PlainPrompts(model, prompts.harmless).read(first_token=True).first_token
        assert changed is not None
        return torch.stack([*found, kl_divergence(base, changed).mean()])

    def packed() -> Tensor:
        found = [trials[0].induced(direction, alpha)[1] for alpha in config.alphas]
        ablation = trials[0].ablated(direction, range(n_layers), 1.0)
        return torch.tensor([*found, ablation.log_odds, ablation.kl], dtype=torch.float64)

    before_base, base = _timed(plain_base)
    after_base, same = _timed(set_up)
    before, old = _timed(plain)
    after, new = _timed(packed)
    likely = base > -12.0
    what = f"causal trial, {len(config.alphas)} α, block {layer} of {n_layers}"
    return [
        _row(f"{what}: one direction", before, after, old - new),
        _row(f"{what}: set-up, once", before_base, after_base, (base - same)[likely]),
    ]


def _prompts(chat: ChatFormat, path: Path) -> list[list[int]]:
    texts = pq.read_table(path, filters=[("language", "=", "en")])["text"].to_pylist()
    return [ids for ids in map(chat.ids, texts) if len(ids) <= N_TOKENS]


def _plain_log_odds(model: Any, ids: list[list[int]], prompts: CausalPrompts) -> Tensor:
    prefixes = [*prompts.refusal_openings, *prompts.compliance_openings]
    scores = PlainPrompts(model, ids, prefixes).read().prefixes
    n = len(prompts.refusal_openings)
    return scores[:, :n].logsumexp(dim=1) - scores[:, n:].logsumexp(dim=1)


def _timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def _row(what: str, before_s: float, after_s: float, difference: Tensor) -> dict[str, Any]:
    return {
        "what": what,
        "before_s": before_s,
        "after_s": after_s,
        "ratio": before_s / after_s,
        "max_difference": float(difference.abs().max()),
    }


if __name__ == "__main__":
    for row in measure(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4])):
        print(json.dumps(row))
