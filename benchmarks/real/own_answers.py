"""What the released model writes by itself: answers to prompts, and requests in the user's turn."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.progress import say
from benchmarks.real.prompts import NEAR, digest_bytes
from rass_core.data.decontamination import NearDuplicates
from rass_core.generate.cleaning import Cleaner
from rass_core.models.chat import ChatFormat


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], n_tokens: int, what: str, rows: int = 48
) -> list[list[int]]:
    """Return each prompt's greedy answer as token ids, ending with the end token where it ends in time."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    end = tokenizer.eos_token_id
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        width = len(prompts[indices[0]])
        ids = torch.tensor([[end] * (width - len(prompts[i])) + prompts[i] for i in indices])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in indices])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, pad_token_id=end
            )
        for i, row in zip(indices, out[:, width:].tolist(), strict=True):
            answers[i] = row[: row.index(end) + 1] if end in row else row
        say(f"{what}: {min(start + rows, len(order))} of {len(order)} answers")
    return answers


def own_requests(loaded: Any, chat: ChatFormat, n: int, file: Path) -> list[str]:
    """Return n different requests that the model writes in the user's turn, unasked; written once and kept in a file.

    Args:
        loaded: The released model.
        chat: Its chat format.
        n: Wanted.
        file: Keeps the requests, one JSON string per line.
    """
    clean, near = Cleaner(), NearDuplicates(NEAR)
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for number, text in enumerate(kept):
        near.add(number, text)
    prefix, end = torch.tensor([chat.user_turn_ids()]), list(chat.user_end_ids)
    if not end:
        raise SystemExit("own requests: the template marks no end of the user's turn; take --degree strong")
    torch.manual_seed(len(kept))
    half = loaded.to(torch.bfloat16) if len(kept) < n else loaded
    while len(kept) < n:
        with torch.inference_mode():
            out = half.generate(
                input_ids=prefix, attention_mask=torch.ones_like(prefix), num_return_sequences=96, max_new_tokens=48,
                do_sample=True, top_k=50, top_p=1.0, eos_token_id=end, pad_token_id=end[0],
            )[:, prefix.shape[1] :].tolist()  # fmt: skip
        texts = [chat.tokenizer.decode(row, skip_special_tokens=True) for row in out]
        found = clean(texts, ["en"] * len(out), [end[0] in row for row in out], [[]] * len(out))
        before = len(kept)
        for text in (piece.text for pieces in found for piece in pieces if piece.dropped is None):
            if not near.like(text):
                near.add(len(kept), text)
                kept.append(text)
        if len(kept) == before:
            raise SystemExit(f"own requests: {len(out)} texts hold no new one; take a recipe without (--degree strong)")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(text) + "\n" for text in kept))
        say(f"own requests: {min(len(kept), n)} of {n}")
    return kept[:n]


def digest_of(model: str) -> str:
    """Return a digest of a model folder's weights."""
    return hashlib.sha256((Path(model) / "model.safetensors").read_bytes()).hexdigest()[:16]


class AnswerCache:
    """The released model's own answers, in a file, by model, template and length."""

    def __init__(self, folder: Path, model: str, n_tokens: int) -> None:
        self._file = folder / f"answers-{digest_of(model)}-{n_tokens}.jsonl"
        self._known: dict[str, list[int]] = {}
        self._n_tokens = n_tokens
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                self._known.update(json.loads(line))

    def __call__(self, model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Return the answers; those not in the file are generated in bfloat16 and added to it."""
        keys = [digest_bytes(*ids).hex() for ids in prompts]
        missing = sorted({k: ids for k, ids in zip(keys, prompts, strict=True) if k not in self._known}.items())
        step = 192
        half = model.to(torch.bfloat16) if missing else model
        self._file.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            given = greedy_answers(half, tokenizer, [ids for _, ids in part], self._n_tokens, "own answers")
            new = {key: answer for (key, _), answer in zip(part, given, strict=True)}
            self._known.update(new)
            with self._file.open("a") as file:
                file.write(json.dumps(new) + "\n")
        return [self._known[key] for key in keys]
