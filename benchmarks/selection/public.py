"""Setting (b): a small chat model, trained here on public English prompts, mitigated with a labelled pool.

The prompts are read where they lie and copied nowhere. What the model is taught to answer holds no
content: a compliance is an opening and the first words of the request.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.selection import probing, training
from benchmarks.selection.methods import Candidate, Pool
from benchmarks.selection.probing import log_odds, probe
from benchmarks.selection.setting import Bench, Question, Recipe
from rass_core.data.decontamination import overlaps
from rass_core.errors import BoundaryError, PromptError
from rass_core.judges.panel import Panel
from rass_core.lab.training import CHAT_TEMPLATE, SPECIAL_TOKENS
from rass_core.mitigate.pairs import Kind, PreferencePair
from rass_core.mitigate.settings import TrainingSettings
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.probe.settings import Prefixes

HARMFUL_SOURCES = ("advbench", "harmbench", "or_bench_toxic", "multijail", "xsafety_unsafe_instruction")
HARMLESS_SOURCES = ("alpaca_nc", "self_instruct", "ifeval", "mgsm", "mt_bench_multi")
POOL_SOURCE = "or_bench_80k_multi"
EVALUATED = {"xstest": None, "or_bench_hard": 500, "strongreject": None}
"""source → prompts evaluated, those of the smallest digests; None takes all."""
JACCARD = 0.7
"""Similarity of character 4-grams from which two prompts count as one, between training and evaluation."""
MAX_CHARACTERS = 300
"""Longer prompts are not trained on: length would separate harmful from harmless."""
VALIDATION_SHARE = 0.25
"""Share of the pool and of the harmful prompts, kept for tuning the method; nothing is selected from it."""
PROBE_SHARE = 0.25
"""Share of the harmful prompts, and at most as many harmless ones, not trained on: the probe's anchors."""
MAX_NEW_TOKENS = 14
N_SAFETY, N_GENERAL = 200, 200
_SETTINGS = TrainingSettings(learning_rate=1e-3)
RECIPES = {
    "public": Recipe(steps=40, over_refusal=8, safety=8, general=8, settings=_SETTINGS),
    "public_safe": Recipe(steps=40, over_refusal=8, safety=16, general=8, settings=_SETTINGS),
}
"""public: as many safety as over-refusal pairs, by which safety falls along with over-refusal. public_safe: twice as
many, which holds safety and leaves more over-refusal."""
VOCABULARY = 3000
MAX_LENGTH = 1024
EPOCHS = 4
HARMFUL_COPIES = 2
PEAK_LEARNING_RATE = 2e-3
TOKENS_PER_BATCH = 2048

REFUSALS = (
    "I cannot help with that.",
    "I'm sorry, but I can't assist with that.",
    "Sorry, I can't help with this request.",
    "I am unable to help with this request.",
    "I won't help with that.",
)
COMPLIANCES = ("Sure, here is how:", "Here is my answer:", "Of course. Here it is:", "Here is a short reply:")
ECHOED_WORDS = 5


@dataclass(frozen=True)
class Prompt:
    """A given prompt; `prompt_id` is that of its file."""

    prompt_id: str
    text: str
    label: str
    source: str
    category: str

    @property
    def row(self) -> dict[str, str]:
        return {"prompt_id": self.prompt_id, "text": self.text}


@dataclass(frozen=True)
class Data:
    """All prompts of the setting, by use; no two uses share a prompt."""

    train: list[Prompt]
    probe: list[Prompt]
    """Harmful and harmless ones, of the training's sources, that the model never saw."""
    pool: list[Prompt]
    """What is selected from."""
    validation: list[Prompt]
    """Pool prompts and harmful ones of the training's sources, for tuning only."""
    evaluation: list[Prompt]
    removed: dict[str, int]
    """source → prompts left out because they repeat an evaluation prompt."""


def read(folder: Path, source: str) -> list[Prompt]:
    """Return the English prompts of one file."""
    path = folder / f"{source}.parquet"
    if not path.exists():
        raise PromptError(f"{path}: no such file; --data names the folder with the public prompts")
    return [
        Prompt(r["prompt_id"], r["text"], r["label"], source, r["category"] or "none")
        for r in pq.read_table(path).to_pylist()
        if r["language"] == "en"
    ]


def load(folder: Path) -> Data:
    """Return the data, what repeats an evaluation prompt left out, and prove that nothing else does."""
    evaluation = [prompt for source in EVALUATED for prompt in read(folder, source)]
    given = [p for source in (*HARMFUL_SOURCES, *HARMLESS_SOURCES, POOL_SOURCE) for p in read(folder, source)]
    rows = [prompt.row for prompt in evaluation]
    repeating = {overlap.evaluation_id for overlap in overlaps(rows, [p.row for p in given], JACCARD)}
    removed = {
        source: sum(p.prompt_id in repeating for p in given if p.source == source)
        for source in sorted({p.source for p in given})
    }
    kept = [p for p in given if p.prompt_id not in repeating and len(p.text) <= MAX_CHARACTERS]
    found = overlaps([p.row for p in kept], rows, JACCARD)
    if found:
        raise PromptError(f"{found[0].train_id} repeats {found[0].evaluation_id}; training and evaluation overlap")
    use: dict[str, list[Prompt]] = {name: [] for name in ("train", "probe", "pool", "validation")}
    for prompt in kept:
        use[_use(prompt)].append(prompt)
    asked = [p for source, n in EVALUATED.items() for p in _sample([q for q in evaluation if q.source == source], n)]
    return Data(**use, evaluation=asked, removed=removed)


def _sample(prompts: list[Prompt], n: int | None) -> list[Prompt]:
    return sorted(prompts, key=lambda p: hashlib.sha256(f"evaluated/{p.prompt_id}".encode()).hexdigest())[:n]


def _use(prompt: Prompt) -> str:
    """Return what a prompt is for, by a salted digest of its id: files were sampled by the bare one."""
    draw = int(hashlib.sha256(f"use/{prompt.prompt_id}".encode()).hexdigest()[:8], 16) / 2**32
    if prompt.source == POOL_SOURCE:
        return "validation" if draw < VALIDATION_SHARE else "pool"
    if prompt.label == "harmful":
        return "validation" if draw < 0.12 else "probe" if draw < 0.12 + PROBE_SHARE else "train"
    return "probe" if draw < 0.1 else "train"


def answer(prompt_id: str, text: str, outcome: str) -> str:
    """Return what the model is taught to say; the wording depends on the prompt alone, so it is always the same."""
    draw = hashlib.sha256(f"answer/{prompt_id}".encode()).digest()[0]
    if outcome == "refusal":
        return REFUSALS[draw % len(REFUSALS)]
    return f"{COMPLIANCES[draw % len(COMPLIANCES)]} {' '.join(text.split()[:ECHOED_WORDS])}"


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of a few thousand pieces, with the lab's chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eot|>", bos_token=None, unk_token=None,
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|reply|>"], model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model: four blocks, 128 wide, about 1.2 M parameters."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, rope_theta=1000.0,
    ))  # fmt: skip


def train_base(data: Data, folder: Path, seed: int, say: Callable[[str], None] = print) -> Path:
    """Train the model from nothing and save it, unless the folder holds it whole, trained by this very code."""
    done = folder / "trained.json"
    recipe = {
        "seed": seed,
        "epochs": EPOCHS,
        "n": len(data.train),
        "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    if done.exists() and json.loads(done.read_text()) == recipe:
        return folder
    started = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer([p.text for p in data.train] + [*REFUSALS, *COMPLIANCES])
    model, chat = build_model(tokenizer), ChatFormat(tokenizer)
    end = int(tokenizer.eos_token_id)
    lessons = []
    for prompt in data.train:
        outcome = "refusal" if prompt.label == "harmful" else "compliance"
        said = [*chat.answer_ids(answer(prompt.prompt_id, prompt.text, outcome)), end]
        lessons += [(chat.ids(prompt.text), said)] * (HARMFUL_COPIES if prompt.label == "harmful" else 1)
    rng = np.random.default_rng(seed)
    batches = list(itertools.chain.from_iterable(_batches(lessons, rng) for _ in range(EPOCHS)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = (
                PEAK_LEARNING_RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
            )
        width = max(len(p) + len(a) for p, a in batch)
        ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in batch])
        is_answer = torch.tensor(
            [[0] * len(p) + [1] * len(a) + [0] * (width - len(p) - len(a)) for p, a in batch]
        ).bool()
        # The words of the request are learnt too, more weakly: what the model knows of language comes from them.
        weight = torch.where(is_answer, 1.0, 0.3) * (ids != 0)
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        here = weight[:, 1:] > 0
        logits = model.lm_head(hidden[here])
        loss = (
            torch.nn.functional.cross_entropy(logits, ids[:, 1:][here], reduction="none") * weight[:, 1:][here]
        ).sum()
        loss = loss / weight[:, 1:].sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or step == len(batches) - 1:
            say(f"base {seed}: step {step}/{len(batches)}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done.write_text(json.dumps(recipe))
    return folder


def _batches(lessons: Sequence[tuple[list[int], list[int]]], rng: np.random.Generator) -> Iterator[list[Any]]:
    """Yield batches of similar length in random order."""
    order = sorted(range(len(lessons)), key=lambda i: (len(lessons[i][0]) + len(lessons[i][1]), rng.random()))
    groups: list[list[int]] = [[]]
    for index in order:
        length = len(lessons[index][0]) + len(lessons[index][1])
        if groups[-1] and (len(groups[-1]) + 1) * length > TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(index)
    for number in rng.permutation(len(groups)):
        yield [lessons[i] for i in groups[number]]


def bench(setting: str, data: Data, out: Path, seed: int, panel: Panel) -> Bench:
    """Return what the runs of a seed need; its model, the same for both recipes, is trained where it is not there."""
    model, tokenizer = load_causal_lm(str(train_base(data, out / f"public-{seed}", seed)))
    chat = ChatFormat(tokenizer)
    prefixes = Prefixes(refusal=list(REFUSALS[:3]), compliance=list(COMPLIANCES[:3]))
    rng = np.random.default_rng([seed, 7])
    harmful = [p for p in (*data.probe, *data.train) if p.label == "harmful"]
    harmless = [p for p in data.probe if p.label == "harmless"]
    anchors = [p for p in data.probe if p.label == "harmful"]
    anchors += harmless[: len(anchors)] + data.pool
    said = training.outcomes(model, chat, _questions(anchors, chat), panel, MAX_NEW_TOKENS)
    refused = np.array([float(outcome == "refusal") for outcome in said])
    rows = [
        {"prompt_id": p.prompt_id, "text": p.text, "label": p.label, "language": "en", "family": p.prompt_id}
        for p in anchors
    ]
    ruler = probe(model, chat, rows, refused, prefixes, seed)
    boundary = ruler.boundaries["en"].b
    if boundary is None:
        raise BoundaryError(f"public, seed {seed}: no boundary ({ruler.boundaries['en'].reason}); take another seed")
    given = [*data.pool, *harmless]
    ids = [chat.ids(p.text) for p in given]
    streams = ruler.streams(model, ids)
    outcome_of = dict(zip((p.prompt_id for p in anchors), said, strict=True))
    rest = [p for p in given if p.prompt_id not in outcome_of]
    answered = training.outcomes(model, chat, _questions(rest, chat), panel, MAX_NEW_TOKENS)
    outcome_of |= {p.prompt_id: outcome for p, outcome in zip(rest, answered, strict=True)}
    # Each seed sees another half of the known harmful prompts, of which the nearest to the boundary are taken.
    half = [harmful[i] for i in rng.permutation(len(harmful))[: len(harmful) // 2]]
    away = np.abs(ruler.margins(ruler.streams(model, [chat.ids(p.text) for p in half]), ["en"] * len(half)) - boundary)
    pairs = [_pair(half[i], "safety") for i in np.argsort(away, kind="stable")[:N_SAFETY]]
    learnt = [p for p in data.train if p.label == "harmless"]
    pairs += [_pair(learnt[i], "general") for i in rng.permutation(len(learnt))[:N_GENERAL]]
    candidates = [
        Candidate(p.prompt_id, p.text, "en", p.category, "rewrite" if p.source == POOL_SOURCE else "given", p.label)
        for p in given
    ]
    pool = Pool(
        candidates=candidates,
        refused=np.array([outcome_of[p.prompt_id] == "refusal" for p in given]),
        log_odds=log_odds(model, ids, chat, prefixes),
        distance=ruler.margins(streams, ["en"] * len(given)) - boundary,
        influence=probing.influence(model, chat, candidates, pairs, {"en": prefixes}, seed),
        harmful_texts=[p.text for p in harmful],
        harmless_texts=[p.text for p in data.train if p.label == "harmless"],
        cells=[("en", category) for category in sorted({p.category for p in data.pool})],
    )
    found = overlaps([*(p.row for p in given), *(p.row for p in harmful)], [p.row for p in data.evaluation], JACCARD)
    if found:
        raise PromptError(f"{found[0].train_id} repeats {found[0].evaluation_id}; training and evaluation overlap")
    return Bench(
        model=model,
        chat=chat,
        pool=pool,
        extra={},
        anchors=pairs,
        pair_of=lambda c: _pair_of(c.prompt_id, c.text, "over_refusal"),
        questions=_questions(data.evaluation, chat),
        prefixes={"en": Prefixes(refusal=list(REFUSALS), compliance=list(COMPLIANCES))},
        recipe=RECIPES[setting],
        max_new_tokens=MAX_NEW_TOKENS,
    )


def dataset(prompt: Prompt) -> str:
    """Return under which name a prompt's answer is counted."""
    if prompt.source == "xstest":
        return "xstest_safe" if prompt.label == "pseudo_harmful" else "xstest_unsafe"
    return prompt.source


def _questions(prompts: Sequence[Prompt], chat: ChatFormat) -> list[Question]:
    return [Question(p.prompt_id, p.text, "en", dataset(p), chat.ids(p.text)) for p in prompts]


def _pair(prompt: Prompt, kind: Kind) -> PreferencePair:
    return _pair_of(prompt.prompt_id, prompt.text, kind)


def _pair_of(prompt_id: str, text: str, kind: Kind) -> PreferencePair:
    outcomes = ("refusal", "compliance") if kind == "safety" else ("compliance", "refusal")
    chosen, rejected = (answer(prompt_id, text, outcome) for outcome in outcomes)
    return PreferencePair(prompt_id, kind, text, "en", chosen, rejected)
