"""Compare roles and steerings of the writer on a model whose probe a lake holds.

    python -m benchmarks.real.writing CONFIG.yaml --lake LAKE --n 24 --out FILE.csv

Each (role, steering, block, α) writes the same slots: operators, parents and sampling seeds are equal, so that cells
differ in the writer alone. Each row counts what survived cleaning, what the moderators call benign and what the target
refuses, with the tokens it took. The unsteered writer of a role is its row with α = 0.
"""

import argparse
import csv
from pathlib import Path

from prefect import flow

from flows.probe import probe_steps
from flows.server import prefect_server
from rass_core.config import RassConfig, load_config
from rass_core.generate.scheduler import schedule_trial
from rass_core.generate.writers import Writer
from tasks.candidates import TRAINED_SPLITS, Workbench, known_prompts, seeds_of, writing_directions
from tasks.prompts import read_prompts
from tasks.recording import recorded
from tasks.trial import content_directions_of, writer_rows

FIELDS = (
    "role", "steering", "layer", "alpha", "n_candidates", "n_new", "n_benign", "n_refused", "n_accepted", "n_tokens",
    "accepted_per_1000", "dropped",
)  # fmt: skip


Cell = tuple[str, str, int | None, float]
"""Role, steering, block, α."""


@flow(name="writing")
def compare(config: RassConfig, cells: list[Cell], n: int, out: Path, texts: Path) -> None:
    with recorded("writing", config) as run:
        probed = probe_steps(run, read_prompts(run))
        layers = sorted({layer for _, kind, layer, _ in cells if kind == "content" and layer is not None})
        directions = writing_directions(run, probed, content_directions_of(run, probed, layers))
        bench = Workbench(run, probed, directions)
        writers = [(Writer(role, kind, layer), alpha) for role, kind, layer, alpha in cells]
        seeds = seeds_of(run, probed, TRAINED_SPLITS)
        slots = schedule_trial(writers, n * len(writers), seeds, config.generate, config.seed)
        found = bench.candidates("writing", slots, known_prompts(run, [probed.prompts]), apart=True)
        rows = writer_rows(run, found, [])
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        table.writeheader()
        for row in rows:
            rate = 1000 * row["n_accepted"] / max(1, row["n_tokens"])
            dropped = "; ".join(f"{each['reason']} {each['n']}" for each in row["dropped"])
            table.writerow({**row, "accepted_per_1000": round(rate, 1), "dropped": dropped})
    with texts.open("w") as file:
        for c in found:
            outcome = c.dropped or ("refused" if c.is_refused else "answered")
            margin = c.place.get("margin")
            place = "" if margin is None else f" m {margin:.2f}"
            slot = f"{c.slot.writer.name} | {c.slot.alpha:g} | {c.slot.operator}"
            print(f"{slot} | {outcome}{place} | {c.text}", file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--lake")
    parser.add_argument("--n", type=int, default=24, help="prompts per cell")
    parser.add_argument("--roles", nargs="+", default=["assistant", "prefilled", "user"])
    parser.add_argument("--steerings", nargs="+", default=["harm", "harm_without_refusal", "content", "refusal"])
    parser.add_argument("--steered-role", default="user")
    parser.add_argument("--blocks", nargs="+", type=int, required=True)
    parser.add_argument("--alphas", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    cells: list[Cell] = [(role, "none", None, 0.0) for role in given.roles]
    cells += [
        (given.steered_role, kind, block, alpha)
        for kind in given.steerings
        for block in given.blocks
        for alpha in given.alphas
    ]
    config = load_config(given.config, lake=given.lake)
    with prefect_server() as wait:
        wait()
        compare(config, cells, given.n, given.out, given.out.with_suffix(".txt"))


if __name__ == "__main__":
    main()
