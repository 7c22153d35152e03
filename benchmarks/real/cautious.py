"""Make a chat model cautious, as a hasty safety tuning does, and measure what it then refuses.

    python -m benchmarks.real.cautious --data DIR --out DIR --seed N --degree medium
    python -m benchmarks.real.cautious --data DIR --out DIR --tuned DIR --share 0.66
    python -m benchmarks.real.cautious --data DIR --out DIR [DIR …] --check --csv FILE

The first command trains a model and writes it to the folder; the same command again keeps it. The second writes a less
cautious one at no cost: of what training changed in the weights of `--tuned` the share is kept (Wortsman et al. 2022,
arXiv 2109.01903). The third prints which share of held-out prompts each model refuses, with 95% intervals, and whether
that is within the bars.

DATA is a folder of public prompt files. Harmful prompts get one of the project's refusals, harmless ones the
model's own greedy answer; harmless are public prompts and requests that the released model writes in the user's turn
(Magpie, arXiv 2406.08464). No prompt of the check is among the training prompts, nor is a near-duplicate of one.
"""

import argparse
import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.real.own_answers import AnswerCache, digest_of, own_requests
from benchmarks.real.progress import say
from benchmarks.real.prompts import (
    TARGETS,
    Prompt,
    digest_bytes,
    drawn,
    held_out_texts,
    training_prompts,
)
from benchmarks.real.refusal_check import check, table
from benchmarks.real.refusals import REFUSALS
from rass_core.models.causal_lm import DTYPES, decoder_blocks, load_causal_lm
from rass_core.models.chat import ChatFormat
from rass_core.models.fetched import models_folder, resolve_model

Example = tuple[list[int], list[int]]
"""Token ids of a prompt in its template, and of the answer to it."""


@dataclass(frozen=True)
class Recipe:
    """How a cautious model is made."""

    n_harmful: int
    n_harmless: int
    n_own: int
    """Requests that the released model wrote itself; public harmless prompts are tasks, and nobody asks in them."""
    seed: int = 0
    first_block: int = 12
    """Blocks below it stay as released."""
    learning_rate: float = 1e-4
    batch_size: int = 16
    answer_tokens: int = 12
    """Tokens of a harmless answer that are learnt; a refusal is learnt in whole."""
    most_prompt_tokens: int = 128
    """Longer prompts are left out, template included."""


RECIPES = {
    "mild": Recipe(n_harmful=480, n_harmless=2000, n_own=800),
    "medium": Recipe(n_harmful=960, n_harmless=2000, n_own=800),
    "strong": Recipe(n_harmful=960, n_harmless=960, n_own=0),
}


def examples(recipe: Recipe, data: Path, model: str, cache: Path) -> list[Example]:
    """Return the training examples, harmful and harmless mixed."""
    loaded, tokenizer = load_causal_lm(model)
    chat = ChatFormat(tokenizer)
    harmful, harmless = training_prompts(data)

    def asked(prompts: list[Prompt], n: int) -> list[list[int]]:
        short = [p for p in prompts if len(chat.ids(p["text"])) <= recipe.most_prompt_tokens]
        return [chat.ids(p["text"]) for p in drawn(short, n, recipe.seed)]

    end = [tokenizer.eos_token_id]
    refused = [
        (
            ids,
            chat.answer_ids(REFUSALS[int.from_bytes(digest_bytes(recipe.seed, *ids)[:4], "big") % len(REFUSALS)]) + end,
        )
        for ids in asked(harmful, recipe.n_harmful)
    ]
    prompts = asked(harmless, recipe.n_harmless) + [
        chat.ids(text) for text in _own(recipe, data, loaded, chat, cache / f"own-requests-{digest_of(model)}.jsonl")
    ]
    answers = AnswerCache(cache, model, recipe.answer_tokens)(loaded, tokenizer, prompts)
    return refused + list(zip(prompts, answers, strict=True))


def _own(recipe: Recipe, data: Path, loaded: Any, chat: ChatFormat, file: Path) -> list[str]:
    """Return the requests of the model's own that a recipe trains on: drawn by seed from a tenth more."""
    written = own_requests(loaded, chat, recipe.n_own + recipe.n_own // 10, file) if recipe.n_own else []
    near = held_out_texts(data)
    kept = sorted((text for text in written if not near.like(text)), key=lambda text: digest_bytes(recipe.seed, text))
    return kept[: recipe.n_own]


def batches(rows: list[Example], size: int, seed: int, pool: int = 8) -> Iterator[list[Example]]:
    """Yield shuffled batches; within `pool` of them rows of like length share one, so that little is padded."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    for start in range(0, len(order), size * pool):
        near = sorted(order[start : start + size * pool], key=lambda i: sum(map(len, rows[i])))
        parts = [near[at : at + size] for at in range(0, len(near), size)]
        for at in torch.randperm(len(parts), generator=generator).tolist():
            yield [rows[i] for i in parts[at]]


def loss_of(model: Any, rows: Sequence[Example]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens; the LM head reads no other position."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    is_asked = torch.zeros(len(rows), width, dtype=torch.bool)  # positions whose next token is learnt
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        is_asked[i, len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
    # Right padding needs no mask in a causal model: no position that counts reads it.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[is_asked]
        logits = model.lm_head(hidden)
    wanted = torch.cat([torch.tensor(answer) for _, answer in rows])
    return torch.nn.functional.cross_entropy(logits.float(), wanted)


def train(model: Any, rows: list[Example], recipe: Recipe) -> None:
    """Train blocks from `first_block` on in place, one pass, AdamW with warm-up and linear decay."""
    model.requires_grad_(False)
    for block in decoder_blocks(model)[recipe.first_block :]:
        block.requires_grad_(True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    n_steps = -(-len(rows) // recipe.batch_size)
    warm = max(1, n_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (n_steps - step) / (n_steps - warm + 1))
    )
    for step, batch in enumerate(batches(rows, recipe.batch_size, recipe.seed), start=1):
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == n_steps:
            say(f"training: step {step} of {n_steps}, loss {loss.item():.3f}")


def make(recipe: Recipe, data: Path, model: str, out: Path, cache: Path) -> None:
    """Write the cautious model into `out`; a folder that already holds this recipe's model is kept."""
    wanted = {"model": Path(model).name, **asdict(recipe)}
    recorded = out / "recipe.json"
    if recorded.exists() and json.loads(recorded.read_text()) == wanted:
        say(f"{out}: there already")
        return
    rows = examples(recipe, data, model, cache)
    loaded, tokenizer = load_causal_lm(model)
    torch.manual_seed(recipe.seed)
    train(loaded, rows, recipe)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent))
    loaded.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "recipe.json").write_text(json.dumps(wanted, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    part.chmod(0o755)
    part.rename(out)
    say(f"{out}: written")


def weaken(released: str, tuned: Path, share: float, out: Path) -> None:
    """Write a model between the released one and a tuned one: released + share · (tuned − released)."""
    before, after = (load_causal_lm(name)[0] for name in (released, str(tuned)))
    with torch.no_grad():
        for weight, other in zip(after.parameters(), before.parameters(), strict=True):
            weight.lerp_(other, 1.0 - share)
    shutil.copytree(tuned, out, dirs_exist_ok=True)
    after.save_pretrained(out)
    recipe = json.loads((tuned / "recipe.json").read_text()) | {"share": share}
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1))
    say(f"{out}: written, {share:g} of what training changed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of public prompt files")
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="folder of the model; of several to check")
    parser.add_argument("--model", default="smollm2", help="released model: a folder, or a name of `rass model list`")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts, refusals and batches drawn")
    parser.add_argument("--degree", choices=RECIPES, default="medium", help="how cautious")
    parser.add_argument("--tuned", type=Path, help="a model that was trained here, to be weakened")
    parser.add_argument("--share", type=float, default=0.66, help="of its change that is kept, 0 to 1")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more than the free cores slow it down")
    parser.add_argument("--check", action="store_true", help="measure the models in --out")
    parser.add_argument("--sets", nargs="*", default=[], choices=[each.name for each in TARGETS], help="to check")
    parser.add_argument("--n", type=int, default=150, help="prompts checked per set, at most")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the check")
    parser.add_argument("--csv", type=Path, help="file to write the check's rows to")
    parser.add_argument("--cache", type=Path, default=models_folder().parent / "benchmarks", help="own answers")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.check:
        if len(given.out) > 1:
            parser.error("--out: name one folder to train into; several are for --check")
        if given.tuned is not None:
            weaken(resolve_model(given.model), given.tuned, given.share, given.out[0])
            return
        recipe = replace(RECIPES[given.degree], seed=given.seed)
        make(recipe, given.data, resolve_model(given.model), given.out[0], given.cache)
        return
    rows = [row for out in given.out for row in check(str(out), given.data, given.n, given.dtype, given.sets)]
    print(table(rows))
    if given.csv:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
