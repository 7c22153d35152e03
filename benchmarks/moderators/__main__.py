"""How good is the harm classifier? `python -m benchmarks.moderators --data DIR` measures it, minutes on one core.

Figures on sources left out: AUC of harmful against pseudo_harmful for pairs of data sets of which neither was in the
fit, and errors of the shipped classifier by source and by language on prompts that it never saw. `--weights FILE`
fits the classifier again and writes it.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.moderators import public
from rass_core.errors import BoundaryError
from rass_core.moderators.classifier import MAX_CHARACTERS
from rass_core.moderators.harm_classifier import HarmClassifier, ngram_counts, shipped
from rass_core.moderators.harm_training import LabelledPrompt, errors, held_out_scores, train, usable
from rass_core.stats.intervals import auc_interval

RESULTS = Path(__file__).parents[1] / "results" / "moderators.csv"
Pair = tuple[str, str, tuple[str, ...]]
PAIRS: tuple[Pair, ...] = (
    ("xstest", "xstest", ()),
    ("or_bench_toxic", "or_bench_hard", ()),
    ("strongreject", "or_bench_80k_multi", ()),
    ("harmbench", "or_bench_hard", ()),
    ("or_bench_toxic", "or_bench_hard", ("or_bench_80k_multi",)),
    ("harmbench", "or_bench_hard", ("or_bench_80k_multi", "or_bench_toxic")),
    ("strongreject", "or_bench_80k_multi", ("or_bench_hard", "or_bench_toxic")),
)
"""Harmful source, pseudo_harmful source, and what else is left out: all prompts of the same publisher."""
COLUMNS = (
    "table", "covered", "harmful", "pseudo_harmful", "left_out_too", "source", "language", "n", "n_unscored",
    "auc", "auc_low", "auc_high", "false_benign", "false_benign_low", "false_benign_high", "false_harmful",
    "false_harmful_low", "false_harmful_high", "ece",
)  # fmt: skip


def pairs(labelled: Sequence[LabelledPrompt], chosen_pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return the AUC of each pair in each language, both sources left out with all translations."""
    counts = ngram_counts([each.text for each in labelled])
    sources, labels, languages = (
        np.array([getattr(each, name) for each in labelled]) for name in ("source", "label", "language")
    )
    harmful, rows = labels == "harmful", []
    for bad, good, others in chosen_pairs:
        fold = np.isin(sources, [bad, good, *others])
        scores = held_out_scores(labelled, counts, [fold])
        side = ((sources == bad) & harmful) | ((sources == good) & (labels == "pseudo_harmful"))
        contextual = np.array([bad == "harmbench" and len(each.text) > 400 for each in labelled])
        for language in np.unique(languages[side]):
            here = side & (languages == language)
            for part, chosen in (("", here), ("up to 400 characters", here & ~contextual)):
                if part and not (here & contextual).any():
                    continue
                row: dict[str, Any] = {"table": "pair", "harmful": bad, "pseudo_harmful": good, "source": part,
                                       "left_out_too": " ".join(others), "language": str(language),
                                       "n": int(chosen.sum())}  # fmt: skip
                try:
                    interval = auc_interval(scores[chosen], harmful[chosen])
                except BoundaryError:
                    continue
                rows.append(row | dict(zip(("auc", "auc_low", "auc_high"), interval, strict=True)))
    return rows


def errors_of(classifier: HarmClassifier, labelled: Sequence[LabelledPrompt]) -> list[dict[str, Any]]:
    """Return the classifier's errors by source and language on these prompts, none of which it may know."""
    scores = classifier.probabilities([each.text for each in labelled])[:, 0]
    sources, languages = (np.array([getattr(each, name) for each in labelled]) for name in ("source", "language"))
    everywhere = np.full(len(labelled), True)
    cells = [("all", "all", everywhere)]
    cells += [("all", str(name), languages == name) for name in np.unique(languages)]
    for source in np.unique(sources):
        here = sources == source
        cells += [(str(source), str(name), here & (languages == name)) for name in np.unique(languages[here])]
    return [
        {"source": source, "language": language, **errors([labelled[i] for i in np.flatnonzero(here)], scores[here])}
        for source, language, here in cells
    ]


def main() -> None:
    """Measure, and fit again on request."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moderators", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public prompts")
    parser.add_argument("--weights", type=Path, help="fit the classifier and write it here")
    parser.add_argument("--out", type=Path, default=RESULTS, help="table to write")
    arguments = parser.parse_args()
    labelled = public.read(arguments.data)
    if arguments.weights is not None:
        seen = [each for each in labelled if not public.is_held_out(each)]
        fitted = train(seen, lambda done, n: print(f"source {done} of {n} left out", flush=True))
        fitted.save(arguments.weights)
        print(f"{arguments.weights}: fitted on {fitted.known.size:,} prompts, {sorted(fitted.languages)}")
    classifier = shipped() if arguments.weights is None else HarmClassifier.read(arguments.weights)
    covered = [e for e in labelled if e.language in classifier.languages and len(e.text) <= MAX_CHARACTERS]
    rows = [{"table": "left-out source", **row} for row in classifier.figures]
    rows += [
        {"table": "held out", **row} for row in errors_of(classifier, [e for e in covered if public.is_held_out(e)])
    ]
    rows += pairs(covered, PAIRS)
    # languages that the classifier does not cover: what it would do there, fitted on all of them
    others = pairs(usable(labelled), PAIRS[:4])
    rows += [{**row, "covered": False} for row in others if row["language"] not in classifier.languages]
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    print(f"{arguments.out}: {len(rows)} rows")


def _cell(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
