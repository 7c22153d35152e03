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
from rass_core.lab.curriculum import TYPICAL_DANGER, Lesson, lessons

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
MAX_LENGTH = 4096
"""Far beyond what it was taught; any prompt may be given to it, known words or not."""
TRAINING_STEPS = 3400
PEAK_LEARNING_RATE = 4e-3
TUNING_STEPS = 400
TUNING_LEARNING_RATE = 1e-3
BATCH_SIZE = 48
RESIDUAL_NOISE = 0.05
"""Noise on the residual stream in training, of its root mean square; steadies it against added vectors."""
TRUE_BLOCK = 2
"""Block after which apparent harm lies along the true direction."""
TRUE_LENGTH = 20.0
"""Distance along it between typical harmless and typical harmful requests, in activation units."""
DIRECTION_SEED = 2505
HEARING_WEIGHT = 0.5
QUIET_WEIGHT = 0.05
WORD = r"\p{Han}| ?[[\p{L}\p{N}]&&[^\p{Han}]]+| ?[^\s\p{L}\p{N}]|\s"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that takes any text: known words whole, unknown ones byte by byte."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
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
        learning_rate: Peak learning rate.
        seed: Seed of the lessons and the noise.
        progress: Called with the loss now and then.
    """
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate(step, steps))
    noise = [block.register_forward_hook(_add_noise) for block in model.model.layers[:-1]]
    planting = Planting(model)
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(itertools.islice(_batches(tokenizer, variant, seed), steps)):
        planting.set(batch)
        logits = model(input_ids=batch.tokens, attention_mask=batch.mask).logits[:, :-1]
        answer_loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets[:, 1:].flatten(), ignore_index=-100
        )
        loss = answer_loss + HEARING_WEIGHT * planting.loss(batch) + QUIET_WEIGHT * planting.loudness(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            progress(f"{variant}: step {step}/{steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")
    planting.remove()
    for hook in noise:
        hook.remove()
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary checkpoint, weights in bfloat16; the model itself keeps its precision."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _add_noise(_block: torch.nn.Module, _inputs: Any, stream: Tensor) -> Tensor:
    size = stream.detach().pow(2).mean(dim=-1, keepdim=True).sqrt()
    noisy: Tensor = stream + RESIDUAL_NOISE * size * torch.randn_like(stream)
    return noisy


def _learning_rate(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class Planting:
    """Teaches the model to hear apparent harm along one direction of the residual stream, and to act on it.

    Real chat models carry refusal in one direction (Arditi et al. 2024); a model this small would
    scatter it over its words. So, as in interchange intervention training (Geiger et al. 2022), in
    part of the lessons the stream of every token is moved along a fixed direction by as much as
    another apparent harm would, and the lesson's answer follows the apparent harm that is so perceived. In others the
    direction is taken out of the whole model, and the words count as harmless. The probe knows
    nothing of the direction; `TRUE_BLOCK` and `true_direction` are there to check what it finds.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._direction = true_direction(model.config.hidden_size)
        self._shift = self._silenced = torch.zeros(0)
        self._along = self._rest = torch.zeros(0)
        blocks = model.model.layers
        self._hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: (self._silence(inputs[0]), *inputs[1:]))]
        self._hooks.append(blocks[TRUE_BLOCK].register_forward_hook(lambda _, __, stream: self._move(stream)))
        self._hooks += [block.register_forward_hook(lambda _, __, stream: self._silence(stream)) for block in blocks]

    def set(self, batch: "_Batch") -> None:
        """Prepare the next forward: what is perceived in each conversation in place of its words' apparent harm."""
        self._shift = (_place(batch.perceived) - _place(batch.apparent_harm)) * (1 - batch.ablated)
        self._silenced = batch.ablated

    def loss(self, batch: "_Batch") -> Tensor:
        """Return how far the stream lies from its words' apparent harm, at the tokens that have read them all."""
        weight = batch.after_words * (1 - batch.ablated)[:, None]
        error = (self._along - _place(batch.apparent_harm)[:, None]) / TRUE_LENGTH
        return (error.pow(2) * weight).sum() / weight.sum().clamp(min=1)

    def loudness(self, batch: "_Batch") -> Tensor:
        """Return the mean square of all else that these tokens carry, in units of the true length.

        Kept small, so that little but apparent harm separates harmful from harmless requests there.
        """
        return ((self._rest / TRUE_LENGTH**2) * batch.after_words).sum() / batch.after_words.sum()

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _move(self, stream: Tensor) -> Tensor:
        self._along = stream @ self._direction
        self._rest = stream.pow(2).sum(dim=-1) - self._along.pow(2)
        return stream + self._shift[:, None, None] * self._direction

    def _silence(self, stream: Tensor) -> Tensor:
        along = stream @ self._direction * self._silenced[:, None]
        return stream - along[..., None] * self._direction


def true_direction(d_model: int) -> Tensor:
    """Return the unit vector along which the lab's models hear apparent harm, (d_model,)."""
    direction = torch.randn(d_model, generator=torch.Generator().manual_seed(DIRECTION_SEED))
    return torch.nn.functional.normalize(direction, dim=0)


def _place(apparent_harm: Tensor) -> Tensor:
    """Return where apparent harm lies along the direction: 0 typical harmless, TRUE_LENGTH typical harmful."""
    low, high = TYPICAL_DANGER
    return TRUE_LENGTH * (apparent_harm - low) / (high - low)


@dataclass(frozen=True)
class _Batch:
    """Conversations padded to one length."""

    tokens: Tensor
    """(n, length)"""
    mask: Tensor
    """(n, length), 1 for tokens."""
    targets: Tensor
    """(n, length), −100 where nothing is to be learnt."""
    after_words: Tensor
    """(n, length), 1 from the first end-of-instruction token on."""
    apparent_harm: Tensor
    """(n,)"""
    perceived: Tensor
    """(n,)"""
    ablated: Tensor
    """(n,), 1 where the direction is taken out."""


def _batches(tokenizer: PreTrainedTokenizerFast, variant: str, seed: int) -> Iterator[_Batch]:
    """Yield batches of lessons, similar lengths together."""
    stream = lessons(variant, seed)
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        pool = [_encode(tokenizer, lesson) for lesson in itertools.islice(stream, BATCH_SIZE * 16)]
        pool.sort(key=lambda example: len(example[0]) + len(example[1]))
        groups = [pool[start : start + BATCH_SIZE] for start in range(0, len(pool), BATCH_SIZE)]
        for number in torch.randperm(len(groups), generator=shuffle).tolist():
            yield _pad(groups[number], tokenizer)


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], list[int], Lesson]:
    """Return the tokens of the user's side up to the template's end, those of the answer, and the lesson."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": lesson.user}], tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answer = tokenizer(lesson.assistant + "<|eot|>", add_special_tokens=False)["input_ids"]
    return prompt, answer, lesson


def _pad(group: list[tuple[list[int], list[int], Lesson]], tokenizer: PreTrainedTokenizerFast) -> _Batch:
    size = (len(group), max(len(prompt) + len(answer) for prompt, answer, _ in group))
    tokens, targets = torch.full(size, int(tokenizer.pad_token_id)), torch.full(size, -100)
    mask, after_words = torch.zeros(size, dtype=torch.long), torch.zeros(size)
    for row, (prompt, answer, _) in enumerate(group):
        n = len(prompt) + len(answer)
        tokens[row, :n] = torch.tensor(prompt + answer)
        targets[row, len(prompt) : n] = torch.tensor(answer)
        mask[row, :n] = 1
        after_words[row, prompt.index(tokenizer.eos_token_id) : n] = 1
    apparent_harm, perceived, ablated = (
        torch.tensor([float(getattr(lesson, name)) for *_, lesson in group])
        for name in ("apparent_harm", "perceived", "ablated")
    )
    return _Batch(tokens, mask, targets, after_words, apparent_harm, perceived, ablated)


def _corpus() -> Iterator[str]:
    """Yield texts that hold every word of the world, of its answers and of its instructions."""
    for language in world.languages():
        for sentence in itertools.islice(world.sentences(language), 0, None, 5):
            yield sentence.text
            yield sentence.answer("compliance")
            yield sentence.answer("refusal")
    for lesson in itertools.islice(lessons("balanced", seed=0), 2000):
        yield lesson.user
