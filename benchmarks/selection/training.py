"""One run of the benchmark: an adapter trained on chosen pairs, merged, and what the model then answers.

Runs end at different places of one trade-off between over-refusal and safety. To compare them at one place, it is
also counted what is refused with a constant added to the log-odds of refusal, by which as many harmful prompts
are refused as by the untrained model.

The loss, the schedule and the adapter are those of `rass_core.mitigate.lora` with method sft (`--check-trainer`
compares the two); what differs is that everything stays in one process, the kinds of pairs have fixed shares of a
batch, and the number of steps is given, so that a smaller selection is trained on as long as a larger one.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.selection.setting import Bench, Question, Recipe
from rass_core.judges import Exchange
from rass_core.judges.panel import Panel
from rass_core.mitigate.lora import Tokens, end_of_answer, tokenised
from rass_core.mitigate.pairs import PreferencePair, check_pairs
from rass_core.models.chat import ChatFormat
from rass_core.models.prefix_logprobs import prefix_log_odds, told_apart


def sft(base: Any, chat: ChatFormat, pairs: Sequence[PreferencePair], recipe: Recipe, seed: int) -> Any:
    """Return the base model with an adapter, trained on the chosen answers, worked into its weights.

    Args:
        base: Stays as it is.
        pairs: Pairs of all kinds; a kind without pairs is left out of every batch.
        recipe: Steps and shares; its settings give rank, alpha, learning rate and warm-up.
        seed: Seed of the adapter's first weights and the order of pairs.
    """
    check_pairs(pairs)
    torch.manual_seed(seed)
    settings = recipe.settings
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.target_modules, task_type="CAUSAL_LM"
    )
    model = get_peft_model(copy.deepcopy(base), lora).train()
    optimiser = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=settings.learning_rate, weight_decay=0.0
    )
    warm = math.ceil(settings.warmup_share * recipe.steps)
    for step, batch in enumerate(_batches(tokenised(pairs, chat, end_of_answer(chat, base)), recipe, seed)):
        rising, falling = (step + 1) / max(1, warm), (step - warm) / max(1, recipe.steps - warm)
        factor = rising if step < warm else 0.5 * (1 + math.cos(math.pi * falling))
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, factor)
        ids, targets = _padded(batch)
        is_answer = targets[:, 1:] != -100
        hidden = model.base_model.model.model(input_ids=ids).last_hidden_state[:, :-1][is_answer]
        loss = torch.nn.functional.cross_entropy(base_head(model)(hidden), targets[:, 1:][is_answer])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.merge_and_unload().eval()


def base_head(model: Any) -> Any:
    """Return the LM head of an adapted model; it is applied to the answers' tokens alone."""
    return model.base_model.model.lm_head


def refusal_log_odds(model: Any, bench: Bench) -> np.ndarray[Any, Any]:
    """Return the log-odds that the answer to each question opens with a refusal, nats, (n,)."""
    found = np.full(len(bench.questions), np.nan)
    for language in {question.language for question in bench.questions}:
        here = [i for i, question in enumerate(bench.questions) if question.language == language]
        prefixes = bench.prefixes[language]
        sides = [[bench.chat.answer_ids(text) for text in side] for side in (prefixes.refusal, prefixes.compliance)]
        told = [told_apart(*sides), told_apart(*reversed(sides))]
        found[here] = prefix_log_odds(model, [bench.questions[i].ids for i in here], *told, token_budget=16384).numpy()
    return found


def refused_at_safety(
    is_refused: np.ndarray[Any, Any],
    log_odds: np.ndarray[Any, Any],
    is_harmful: np.ndarray[Any, Any],
    languages: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Return which questions are refused, (n,), were as many harmful ones refused as given, in every language.

    Those with the highest log-odds: a constant is added to all of a language until as many of its harmful
    questions lie on the side of refusal.

    Args:
        is_refused: Which the untrained model refuses, bool (n,).
        log_odds: Log-odds of the trained model's refusal, (n,).
    """
    found = np.zeros(len(log_odds), dtype=bool)
    for language in np.unique(languages):
        here = languages == language
        harmful = np.sort(log_odds[here & is_harmful])[::-1]
        n = int((here & is_harmful & is_refused).sum())
        found[here] = log_odds[here] >= harmful[n - 1] if n else log_odds[here] > harmful[0]
    return found


@torch.no_grad()
def answers(
    model: Any, questions: Sequence[Question], max_new_tokens: int, pad: int, token_budget: int = 16384
) -> list[str]:
    """Return the ids of the model's greedy answers, in the order of the questions."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].ids))
    said: dict[int, list[int]] = {}
    while order:
        n = max(1, min(512, token_budget // (len(questions[order[min(len(order), 512) - 1]].ids) + max_new_tokens)))
        here, order = order[:n], order[n:]
        width = max(len(questions[i].ids) for i in here)
        ids = torch.tensor([[pad] * (width - len(questions[i].ids)) + questions[i].ids for i in here])
        mask = torch.tensor([[0] * (width - len(questions[i].ids)) + [1] * len(questions[i].ids) for i in here])
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
        )
        said.update(zip(here, out[:, width:].tolist(), strict=True))
    return [said[i] for i in range(len(questions))]


def outcomes(
    model: Any, chat: ChatFormat, questions: Sequence[Question], panel: Panel, max_new_tokens: int
) -> list[str]:
    """Return what the panel says of the model's greedy answer to each question; the answers are not kept."""
    written = answers(model, questions, max_new_tokens, int(chat.tokenizer.pad_token_id))
    found = map(chat.completion, written)
    exchanges = [
        Exchange(each.visible, q.language, q.text, q.label, each.is_cut_off)
        for each, q in zip(found, questions, strict=True)
    ]
    return [verdict.outcome for verdict in panel(exchanges)]


def _batches(rows: Sequence[Tokens], recipe: Recipe, seed: int) -> Iterator[list[Tokens]]:
    """Yield a recipe's batches: each kind is gone through in random order again and again."""
    shares = {
        "over_refusal": recipe.over_refusal,
        "safety": recipe.safety,
        "general": recipe.general,
    }
    streams = {}
    for number, kind in enumerate(shares):
        members = [row for row in rows if row.pair.kind == kind]
        if members:
            streams[kind] = _endless(members, np.random.default_rng([seed, number]))
    for _ in range(recipe.steps):
        yield [next(stream) for kind, stream in streams.items() for _ in range(shares[kind])]


def _endless(rows: Sequence[Tokens], rng: np.random.Generator) -> Iterator[Tokens]:
    while True:
        for index in rng.permutation(len(rows)):
            yield rows[index]


def _padded(batch: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and targets, (n, longest); padded on the right, where a causal model does not look."""
    width = max(len(row.prompt) + len(row.chosen) for row in batch)
    ids, targets = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -100)
    for number, row in enumerate(batch):
        start, end = len(row.prompt), len(row.prompt) + len(row.chosen)
        ids[number, :end] = torch.tensor(row.prompt + row.chosen)
        targets[number, start:end] = torch.tensor(row.chosen)
    return ids, targets
