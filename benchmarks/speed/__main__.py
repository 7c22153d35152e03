"""`python -m benchmarks.speed --model FOLDER --data FOLDER [--out FILE] [--only NAME …]`: steps before and after."""

import argparse
import csv
import importlib
import os
import platform
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

MEASUREMENTS = tuple(
    name for name in ("extraction", "gradients", "causal", "memory") if find_spec(f"benchmarks.speed.{name}")
)
COLUMNS = (
    "what", "before_s", "after_s", "ratio", "max_difference", "tokens", "pairs", "peak_after_gb", "model", "cores",
    "threads", "torch", "transformers", "machine",
)  # fmt: skip


def main() -> None:
    """Run the measurements and write one row each, as soon as it is known."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Folder of a chat model in the Hugging Face format.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the public prompts.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.csv"), help="CSV to write.")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS, help="Measurements to run.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        "model": asked.model.name,
        "cores": os.cpu_count(),
        "threads": 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for name in asked.only:
            print(f"measuring {name}", flush=True)
            for row in importlib.import_module(f"benchmarks.speed.{name}").measure(asked.model, asked.data):
                print({key: value for key, value in row.items() if value is not None}, flush=True)
                writer.writerow(row | machine)
                file.flush()


if __name__ == "__main__":
    main()
