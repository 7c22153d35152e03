"""Projected gradients of the selection: each prompt once with all prefixes, against once per opening."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.speed.common import by_budget, compared, public_prompts, timed
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.probe.settings import DEFAULT_PREFIXES
from rass_core.select import influence

N_PROMPTS, TOKEN_BUDGET = 12, 1024


def measure(model_folder: Path, data_folder: Path) -> list[dict[str, Any]]:
    """Return one row: seconds of both ways, and how far vectors (relative) and log-odds differ."""
    model, tokenizer = load_causal_lm(str(model_folder))
    chat = ChatFormat(tokenizer)
    texts = public_prompts(data_folder, N_PROMPTS)
    before_s, before = timed(lambda: per_opening(model, chat, texts))
    after_s, after = timed(
        lambda: influence.refusal_gradients(model, chat, texts, ["en"] * len(texts), DEFAULT_PREFIXES, TOKEN_BUDGET)
    )
    vectors = np.linalg.norm(after.vectors - before.vectors, axis=1) / np.linalg.norm(before.vectors, axis=1)
    log_odds = np.abs(after.log_odds - before.log_odds)
    n_tokens = sum(len(chat.ids(text)) for text in texts)
    difference = float(max(vectors.max(), log_odds.max()))
    return [compared("gradients of the selection", before_s, after_s, difference, tokens=n_tokens)]


def per_opening(model: Any, chat: ChatFormat, texts: Sequence[str]) -> influence.RefusalGradients:
    """Return the gradients as they were computed before: a row per prompt and prefix, logits of every token."""
    projection = influence._Projection(model, seed=0)
    tree = influence._Tree.of(chat, DEFAULT_PREFIXES["en"])
    prompts = [chat.ids(text) for text in texts]
    vectors = np.zeros((len(prompts), projection.width), np.float32)
    found = np.zeros(len(prompts))
    lengths = [sum(len(prompt) + len(prefix) for prefix in tree.prefixes) for prompt in prompts]
    for batch in by_budget(lengths, TOKEN_BUDGET):
        rows = [torch.tensor([*prompts[i], *prefix]) for i in batch for prefix in tree.prefixes]
        ids, mask = (
            nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (rows, [torch.ones_like(r) for r in rows])
        )
        with projection._reading(len(batch)) as projected, torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            first = torch.tensor([len(prompts[i]) - 1 for i in batch])
            number = torch.arange(len(batch)) * len(tree.prefixes)
            sides = []
            for side in (tree.refusal, tree.compliance):
                scores = []
                for opening in side:
                    row = number + tree.prefixes.index(opening[:-1])
                    each = [logits[row, first + k].log_softmax(-1)[:, token] for k, token in enumerate(opening)]
                    scores.append(torch.stack(each).sum(dim=0))
                sides.append(torch.stack(scores).logsumexp(dim=0))
            log_odds = sides[0] - sides[1]
            log_odds.sum().backward()
        vectors[batch], found[batch] = projected.numpy(), log_odds.detach().numpy()
    return influence.RefusalGradients(vectors, found)
