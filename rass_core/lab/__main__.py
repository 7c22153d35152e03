"""`python -m rass_core.lab`: train the three models again, write the prompts, check the targets."""

import argparse
from pathlib import Path

from rass_core.lab.checks import measure, shortfalls
from rass_core.lab.prompts import write_prompts
from rass_core.lab.training import VARIANTS, train_all

HERE = Path(__file__).parent


def main() -> None:
    """Rebuild what the package carries; exits with 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for weights/ and prompts.parquet")
    parser.add_argument("--check", action="store_true", help="only measure the models that are there")
    options = parser.parse_args()
    if not options.check:
        write_prompts(options.out)
        train_all(options.out / "weights")
    missed = []
    for variant in VARIANTS:
        figures = measure(options.out / "weights" / variant)
        for language, row in figures.items():
            print(f"{variant:11s} {language}  " + "  ".join(f"{name} {value:.2f}" for name, value in row.items()))
        missed += [f"{variant} {line}" for line in shortfalls(figures)]
    print("\n".join(missed) or "all targets are met")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
