"""Make the lab's chat model: tokenizer, template and a small Llama, trained on the CPU, seeded."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rass_core.lab import world
from rass_core.lab.curriculum import Lesson, lessons

VARIANTS = ("cautious", "balanced", "permissive")
SPECIAL_TOKENS = ("<|pad|>", "<|user|>", "<|eot|>", "<|assistant|>", "<|reply|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}<|eot|>\n"
    "{% else %}<|assistant|><|reply|>{{ message.content }}<|eot|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><|reply|>{% endif %}"
)
"""Its end holds four tokens: end of turn, line break, assistant, reply."""
MAX_LENGTH = 512
TRAINING_STEPS = 4500
PEAK_LEARNING_RATE = 4e-3
TUNING_STEPS = 600
TUNING_LEARNING_RATE = 1e-3
BATCH_SIZE = 48
RESIDUAL_NOISE = 0.05
"""Noise on the residual stream in training, of its root mean square: a model this small would else
break at any vector that is added, and would hide what it knows in directions of no size."""
WORD = r"\p{Han}| ?[[\p{L}\p{N}]&&[^\p{Han}]]+| ?[^\s\p{L}\p{N}]|\s"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that takes any text: known words whole, unknown ones byte by byte."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    words = sorted({piece for text in _corpus() for piece, _ in splitter.pre_tokenize_str(text)})
    single_bytes = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *single_bytes, *words])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eot|>", bos_token=None, unk_token=None,
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|reply|>"], model_max_length=MAX_LENGTH,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model: six blocks, 96 wide, about 0.6 M parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=6,
        num_attention_heads=3, num_key_value_heads=1, head_dim=32, max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, rope_theta=1000.0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train_all(folder: Path, seed: int = 0, progress: Callable[[str], None] = print) -> None:
    """Train the three variants by one recipe and save them below a folder as ordinary checkpoints.

    The balanced model is trained from nothing. The others go on from it with lessons that draw the
    line elsewhere: what separates the variants is where they refuse, not what they know.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    balanced = train(build_model(tokenizer), tokenizer, "balanced", TRAINING_STEPS, PEAK_LEARNING_RATE, seed, progress)
    save(balanced, tokenizer, folder / "balanced")
    for variant in ("cautious", "permissive"):
        start = copy.deepcopy(balanced)
        tuned = train(start, tokenizer, variant, TUNING_STEPS, TUNING_LEARNING_RATE, seed + 1, progress)
        save(tuned, tokenizer, folder / variant)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, variant: str, steps: int, learning_rate: float,
    seed: int, progress: Callable[[str], None] = print,
) -> LlamaForCausalLM:  # fmt: skip
    """Train a model in place on the lessons of a variant, and return it.

    Args:
        model: New or trained before.
        tokenizer: The lab's.
        variant: One of VARIANTS.
        steps: Optimiser steps.
        learning_rate: At its peak.
        seed: Of the lessons and the noise.
        progress: Told the loss now and then.
    """
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate(step, steps))
    hooks = [block.register_forward_hook(_add_noise) for block in model.model.layers[:-1]]
    started = time.monotonic()
    model.train()
    for step, (tokens, mask, targets) in enumerate(itertools.islice(_batches(tokenizer, variant, seed), steps)):
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            progress(f"{variant}: step {step}/{steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")
    for hook in hooks:
        hook.remove()
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary checkpoint, weights in bfloat16; the model itself keeps its precision."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _add_noise(_block: torch.nn.Module, _inputs: Any, stream: Tensor) -> Tensor:
    size = stream.detach().pow(2).mean(dim=-1, keepdim=True).sqrt()
    return stream + RESIDUAL_NOISE * size * torch.randn_like(stream)


def _learning_rate(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclass(frozen=True)
class _Example:
    """A conversation in tokens, and which of them may not look back at the words of the request.

    A model this small would decide on refusal wherever it likes, at the first word that differs
    say. Real models decide at the end of the template. So in part of the examples what follows the
    first end-of-instruction token cannot see the request: there it has to have been understood.
    """

    tokens: list[int]
    n_prompt: int
    n_words: int
    """Tokens up to the end of the request's words."""
    hidden_until: int
    """Tokens from the second end-of-instruction token up to here do not see the words; 0 for all do."""


def _batches(tokenizer: PreTrainedTokenizerFast, variant: str, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (token ids (n, length), attention mask (n, 1, length, length), targets (n, length))."""
    stream = lessons(variant, seed)
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        pool = [_encode(tokenizer, lesson) for lesson in itertools.islice(stream, BATCH_SIZE * 16)]
        pool.sort(key=lambda example: len(example.tokens))
        groups = [pool[start : start + BATCH_SIZE] for start in range(0, len(pool), BATCH_SIZE)]
        for number in torch.randperm(len(groups), generator=shuffle).tolist():
            yield _pad(groups[number], int(tokenizer.pad_token_id))


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> _Example:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": lesson.user}], tokenize=False, add_generation_prompt=True
    )
    prompt, answer = ids(asked), ids(lesson.assistant + "<|eot|>")
    hidden_until = len(prompt) + len(ids(lesson.blind_until)) if lesson.blind_until is not None else 0
    return _Example(prompt + answer, len(prompt), prompt.index(ids("<|eot|>")[0]), hidden_until)


def _pad(group: list[_Example], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    longest = max(len(example.tokens) for example in group)
    tokens = torch.full((len(group), longest), pad_id)
    targets = torch.full((len(group), longest), -100)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(len(group), 1, 1, 1)
    for row, example in enumerate(group):
        n = len(example.tokens)
        tokens[row, :n] = torch.tensor(example.tokens)
        targets[row, example.n_prompt : n] = torch.tensor(example.tokens[example.n_prompt :])
        mask[row, 0, example.n_words + 1 : example.hidden_until, : example.n_words] = False
    return tokens, mask, targets


def _corpus() -> Iterator[str]:
    """Yield texts that hold every word of the world, of its answers and of its instructions."""
    for language in world.languages():
        for sentence in itertools.islice(world.sentences(language), 0, None, 5):
            yield sentence.text
            yield sentence.answer("compliance")
            yield sentence.answer("refusal")
    for lesson in itertools.islice(lessons("balanced", seed=0), 2000):
        yield lesson.user
