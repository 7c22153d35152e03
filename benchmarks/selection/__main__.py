"""Does RASS need half the training prompts? `python -m benchmarks.selection --data DIR` runs it all.

Two settings: the lab, and a small model trained here on public English prompts. Every run selects, trains an
adapter and evaluates it; its row goes into a table, so that an interrupted command can continue. With `--plan`
it only prints what is to be done and how long that takes.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch

from benchmarks.selection import lab, methods, public, results, training
from benchmarks.selection.setting import Bench
from rass_core.errors import PromptError, RassError
from rass_core.judges.panel import Panel, default_panel
from rass_core.mitigate.base import method_of
from rass_core.mitigate.lora import merge, train
from rass_core.models.causal_lm import load_causal_lm

NS = (25, 50, 100, 200)
SEEDS = dict.fromkeys(lab.RECIPES, range(6, 11)) | dict.fromkeys(public.RECIPES, range(32, 37))
"""Seeds of each setting, as in docs/evidence.md; neither rule nor measure was tuned on them."""
N_ABLATION_SEEDS = 3
GUESSED_S = {"lab run": 5.0, "public run": 27.0, "base": 150.0, "probe": 40.0, "lake": 35.0}
"""Seconds, a run's until one is measured: one core of two shared ones."""


def ablations(setting: str) -> tuple[str, ...]:
    """Return what is left out in a setting; in public ones nothing is written, so no steering and no rounds."""
    written = ("no_steering", "no_rounds")
    return tuple(m for m in methods.ABLATIONS if setting not in public.RECIPES or m not in written)


def wanted(setting: str, seeds: Sequence[int]) -> list[tuple[str, int, str, int]]:
    """Return the runs of a setting, a seed's together."""
    found = []
    for number, seed in enumerate(seeds):
        found.append((setting, seed, "base", 0))
        found += [(setting, seed, method, n) for n in NS for method in methods.MAIN]
        if number < N_ABLATION_SEEDS:
            found += [(setting, seed, method, n) for n in NS for method in ablations(setting)]
    return found


def run(
    bench: Bench, given: Sequence[str], setting: str, seed: int, method: str, n: int, panel: Panel
) -> list[results.Row]:
    """Select, train and evaluate once.

    Args:
        given: What the untrained model's answers to the bench's questions come to.
    """
    started = time.monotonic()
    is_refused = np.array(given) == "refusal"
    n_selected, said, matched = 0, given, is_refused
    if method != "base":
        arm = {"no_steering": "unsteered", "no_rounds": "one_round"}.get(method)
        pool = bench.extra[arm] if arm else bench.pool
        by = "rass" if arm or method == "no_safety" else method
        chosen = methods.choose(by, pool, n, seed)
        taken = {pool.candidates[i].prompt_id for i in chosen}
        anchors = [a for a in bench.anchors if a.prompt_id not in taken]
        if method == "no_safety":
            anchors = [a for a in anchors if a.kind != "safety"]
        pairs = [bench.pair_of(pool.candidates[i]) for i in chosen]
        n_selected = len(pairs)
        model = training.sft(bench.model, bench.chat, [*pairs, *anchors], bench.recipe, seed)
        said = training.outcomes(model, bench.chat, bench.questions, panel, bench.max_new_tokens)
        harmful = results.RATES[setting][results.SAFETY[setting]]
        is_harmful = np.array([q.dataset in harmful for q in bench.questions])
        languages = np.array([q.language for q in bench.questions])
        matched = training.refused_at_safety(is_refused, training.refusal_log_odds(model, bench), is_harmful, languages)
    seconds = round(time.monotonic() - started, 1)
    rows = []
    for dataset in sorted({q.dataset for q in bench.questions}):
        here = [i for i, question in enumerate(bench.questions) if question.dataset == dataset]
        count = Counter(said[i] for i in here)
        rows.append(
            results.Row(
                setting=setting,
                seed=seed,
                method=method,
                n=n,
                n_selected=n_selected,
                dataset=dataset,
                n_prompts=sum(count.values()),
                n_refused=count["refusal"],
                n_refused_matched=int(matched[here].sum()),
                n_unscored=count["unscored"],
                seconds=seconds,
            )
        )
    return rows


def estimate(left: list[tuple[str, int, str, int]], known: list[results.Row]) -> float:
    """Return the seconds that runs take, by those measured, else by a guess."""
    total = 0.0
    for setting in sorted({run[0] for run in left}):
        measured = [row.seconds for row in known if row.setting == setting and row.n]
        guessed = GUESSED_S["lab run" if setting in lab.RECIPES else "public run"]
        each = sum(measured) / len(measured) if measured else guessed
        mine = [run for run in left if run[0] == setting]
        total += each * len(mine)
        seeds = {run[1] for run in mine}
        total += len(seeds) * (GUESSED_S["lake"] if setting in lab.RECIPES else GUESSED_S["base"] + GUESSED_S["probe"])
        if setting == "lab":  # whose lakes are those of lab_short too
            total += 2 * GUESSED_S["lake"] * len({run[1] for run in mine if run[2] in methods.ABLATIONS})
    return total


def check_trainer(data: public.Data, out: Path, seed: int, panel: Panel) -> None:
    """Train the same pairs by the benchmark's loop and by the project's trainer, and print what both come to."""
    bench, n = public.bench("public", data, out, seed, panel), 96
    chosen = methods.choose("random_refused", bench.pool, n, seed)
    pairs = [bench.pair_of(bench.pool.candidates[i]) for i in chosen]
    for kind in ("safety", "general"):
        pairs += [pair for pair in bench.anchors if pair.kind == kind][:n]
    steps, size = bench.recipe.steps, 24
    recipe = replace(bench.recipe, over_refusal=size // 3, safety=size // 3, general=size // 3)
    settings = recipe.settings.model_copy(
        update={"batch_size": size, "epochs": steps * size / len(pairs), "seed": seed, "checkpoint_steps": 10**6}
    )
    base = out / f"public-{seed}"
    with tempfile.TemporaryDirectory() as folder:
        adapter = train(method_of("sft", training=settings), str(base), pairs, Path(folder) / "training").adapter
        by_trl, _ = load_causal_lm(str(merge(str(base), adapter, Path(folder) / "merged")))
    models = {"untrained": bench.model, "the project's trainer (TRL)": by_trl}
    models["the benchmark's loop"] = training.sft(bench.model, bench.chat, pairs, recipe, seed)
    for name, model in models.items():
        said = training.outcomes(model, bench.chat, bench.questions, panel, bench.max_new_tokens)
        shares = {
            dataset: sum(o == "refusal" for q, o in zip(bench.questions, said, strict=True) if q.dataset == dataset)
            / sum(q.dataset == dataset for q in bench.questions)
            for dataset in sorted({q.dataset for q in bench.questions})
        }
        print(f"{name}: " + ", ".join(f"{dataset} {share:.3f}" for dataset, share in shares.items()))


def main() -> None:
    """Run what is asked for, or say how long it would take."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    settings = [*lab.RECIPES, *public.RECIPES]
    parser.add_argument("--setting", choices=settings, nargs="+", default=settings)
    parser.add_argument("--data", type=Path, help="folder with the public prompts, one Parquet file per source")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of docs/evidence.md")
    parser.add_argument("--methods", nargs="+", help="only these; default: all")
    parser.add_argument("--n", type=int, nargs="+", help="only these sizes")
    parser.add_argument(
        "--out", type=Path, default=Path("out/selection"), help="lakes and trained models, kept between calls"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/selection.csv"))
    parser.add_argument("--plan", action="store_true", help="say what is left and how long it takes, and stop")
    parser.add_argument("--tables", type=Path, help="write the tables of what is there into this page, and stop")
    parser.add_argument("--check-trainer", action="store_true", help="compare this loop with the project's trainer")
    parser.add_argument("--plot", type=Path, help="write the plot of what is there, and stop; needs matplotlib")
    options = parser.parse_args()
    try:
        _main(options)
    except RassError as error:
        parser.exit(2, f"error: {error}\n")


def _main(options: argparse.Namespace) -> None:
    known = results.read(options.results)
    if options.tables:
        order = tuple(dict.fromkeys(("rass", "random_refused", *methods.MAIN, *methods.ABLATIONS)))
        results.write_into(options.tables, results.report(known, NS, order))
        return
    if options.plot:
        from benchmarks.selection.plot import draw

        draw(known, NS, options.plot)
        return
    if options.check_trainer:
        if options.data is None:
            raise PromptError("--data: name the folder with the public prompts")
        torch.set_num_threads(1)
        check_trainer(public.load(options.data), options.out, (options.seeds or SEEDS["public"])[0], default_panel())
        return
    settings = options.setting
    is_public = bool(public.RECIPES.keys() & set(settings))
    if is_public and options.data is None and not options.plan:
        raise PromptError("--data: name the folder with the public prompts, or --setting lab")
    asked = [r for setting in settings for r in wanted(setting, options.seeds or SEEDS[setting])]
    if options.methods:
        asked = [r for r in asked if r[2] in options.methods]
    if options.n:
        asked = [r for r in asked if r[3] in options.n]
    done = results.finished(known)
    left = [r for r in asked if r not in done]
    print(
        f"{len(asked)} runs, {len(asked) - len(left)} done; about {estimate(left, known) / 60:.0f} minutes on one core"
    )
    if options.plan or not left:
        return
    torch.set_num_threads(1)
    panel = default_panel()
    data = public.load(options.data) if is_public else None
    for setting, seed in dict.fromkeys((r[0], r[1]) for r in left):
        mine = [r for r in left if r[:2] == (setting, seed)]
        if setting in public.RECIPES:
            bench = public.bench(setting, data, options.out, seed, panel)
        else:
            bench = lab.bench(setting, options.out, seed, any(r[2] in ("no_steering", "no_rounds") for r in mine))
        given = training.outcomes(bench.model, bench.chat, bench.questions, panel, bench.max_new_tokens)
        for number, each in enumerate(mine):
            rows = run(bench, given, *each, panel)
            results.append(options.results, rows)
            known += rows
            if number in (0, len(mine) - 1):
                left = [r for r in left if r not in results.finished(known)]
                print(f"{setting}, seed {seed}: about {estimate(left, known) / 60:.0f} minutes left", flush=True)


if __name__ == "__main__":
    main()
