"""How good the judges are, how fast, and in how much memory: the tables of docs/judges.md.

    python benchmarks/judges.py quality --labels FILE    # held-out agreement, by language and by model
    python benchmarks/judges.py blind                    # on texts whose authors did not know the judges
    python benchmarks/judges.py speed                    # 10,000 responses on one core

FILE is Parquet with the columns response_id, prompt_language, response_head, label, model.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rass_core.judges import Exchange, PhraseJudge
from rass_core.judges.panel import default_panel
from rass_core.judges.settings import JudgeConfig
from rass_core.judges.training import examples, held_out_by_language, held_out_by_model, labelled_heads, own_texts
from rass_core.stats.agreement import cohen_kappa, expected_calibration_error
from rass_core.stats.intervals import family_counts

Array = npt.NDArray[np.float64]
N_SPEED = 10_000


def quality(labels: str) -> None:
    """Print the tables by language and by model."""
    heads, added = labelled_heads(labels), own_texts()
    truth = np.array([each.is_refused for each in heads])
    phrases = np.array(
        [
            verdict.score if verdict.score is not None else 0.0
            for verdict in PhraseJudge()([Exchange(each.text, each.language) for each in heads])
        ]
    )
    # Heads come without prompts: there the classifier gives the phrases half the say.
    classifier = (held_out_by_model(heads, added) + phrases) / 2
    stranger = (held_out_by_language(heads, added) + phrases) / 2
    weights = [member.weight for member in JudgeConfig().members]  # phrases, classifier

    def panel(second: Array) -> Array:
        return np.average([phrases, second], axis=0, weights=weights)

    scores = {"phrases": phrases, "classifier": classifier, "panel": panel(classifier)}
    unread = np.array([hashlib.sha256(each.group.encode()).digest()[0] % 2 == 0 for each in heads])
    print(
        "| language | refused / complied | phrases κ | classifier κ | panel κ [95%] | missed | false alarms |"
        " panel κ, language unseen | panel κ, texts unread |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for language in [*sorted({each.language for each in heads}), "all"]:
        here = np.array([language in ("all", each.language) for each in heads])
        groups = [each.group for each, kept in zip(heads, here, strict=True) if kept]
        cells = [f"{_kappa(truth[here], scores[name][here]):.2f}" for name in ("phrases", "classifier")]
        low, high = _interval(truth[here], scores["panel"][here] >= 0.5, groups)
        cells.append(f"**{_kappa(truth[here], scores['panel'][here]):.2f}** [{low:.2f}, {high:.2f}]")
        said = scores["panel"][here] >= 0.5
        missed, false = (~said & truth[here]).sum(), (said & ~truth[here]).sum()
        cells += [f"{missed} ({missed / truth[here].sum():.1%})", f"{false} ({false / (~truth[here]).sum():.1%})"]
        cells.append(f"{_kappa(truth[here], panel(stranger)[here]):.2f}")
        cells.append(f"{_kappa(truth[here & unread], scores['panel'][here & unread]):.2f}")
        print(f"| {language} | {truth[here].sum()} / {(~truth[here]).sum()} | {' | '.join(cells)} |")
    print("\n| model left out | refused / complied | panel κ [95%] |\n| --- | ---: | ---: |")
    for model in sorted({each.model for each in heads}):
        here = np.array([each.model == model for each in heads])
        groups = [each.group for each, kept in zip(heads, here, strict=True) if kept]
        said = scores["panel"][here] >= 0.5
        if truth[here].any():
            low, high = _interval(truth[here], said, groups)
            cell = f"{_kappa(truth[here], scores['panel'][here]):.2f} [{low:.2f}, {high:.2f}]"
        else:
            cell = f"no refusals; {said.sum()} false alarms"
        print(f"| {model} | {truth[here].sum()} / {(~truth[here]).sum()} | {cell} |")
    print("\n| judge | ECE, 10 bins of equal mass |\n| --- | ---: |")
    for name, each in scores.items():
        print(f"| {name} | {expected_calibration_error(each, truth):.3f} |")


def blind() -> None:
    """Print how often the default panel is right on each file of `judge_blind`."""
    panel = default_panel()
    print("| set | n | right | κ [95%] | missed | false alarms |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for file in sorted((Path(__file__).parent / "judge_blind").glob("*.yaml")):
        rows = yaml.safe_load(file.read_text(encoding="utf-8"))
        verdicts = panel([Exchange(r["response"], r["language"], r["prompt"], r["label"]) for r in rows])
        given = [_answers_or_refuses(row["outcome"]) for row in rows]
        said = [_answers_or_refuses(verdict.outcome) for verdict in verdicts]
        right = np.mean([one == other for one, other in zip(given, said, strict=True)])
        truth, refused = (np.array([each == "refusal" for each in side]) for side in (given, said))
        low, high = _interval(truth, refused, [row["prompt"] for row in rows])
        kappa = _kappa(truth, refused.astype(float))
        missed, false = (~refused & truth).sum() / truth.sum(), (refused & ~truth).sum() / (~truth).sum()
        figures = f"{right:.1%} | {kappa:.2f} [{low:.2f}, {high:.2f}] | {missed:.1%} | {false:.1%}"
        print(f"| {file.stem} | {len(rows)} | {figures} |")


def _answers_or_refuses(outcome: str) -> str:
    return "refusal" if outcome == "partial" else outcome


def speed() -> None:
    """Print seconds and peak memory of `rass judge score` over 10,000 responses, on one core."""
    own = [each for each in examples() if len(each.text) > 40]
    rng = random.Random(0)
    drawn = [rng.choice(own) for _ in range(N_SPEED)]
    # Each is made different, so that no cache can help.
    by_language = {language: [e.text for e in own if e.language == language] for language in {e.language for e in own}}
    texts = [
        f"{each.text} {number} {' '.join(rng.choices(by_language[each.language], k=5))}"
        for number, each in enumerate(drawn)
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "in.parquet"), Path(folder, "out.parquet")
        pq.write_table(pa.table({"response": texts, "language": [each.language for each in drawn]}), given)
        command = [sys.executable, "-m", "flows.cli", "judge", "score", str(given), "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, preexec_fn=lambda: _pin({0}))
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "responses": N_SPEED,
                "mean_characters": round(float(np.mean([len(text) for text in texts]))),
                "seconds_with_start": round(seconds, 1),
                "of_these_computing": round(used.ru_utime + used.ru_stime, 1),
                "peak_memory_mb": round(used.ru_maxrss / 1024),
            }
        )
    )


def _pin(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


def _kappa(truth: npt.NDArray[np.bool_], scores: Array) -> float:
    return cohen_kappa([str(each) for each in truth], [str(each) for each in scores >= 0.5])


def _interval(truth: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_], groups: Sequence[str]) -> tuple[float, float]:
    """Return the percentile interval of kappa over prompts."""
    counts = family_counts(groups, 1000, seed=0)
    total = counts.sum(axis=1)
    both, true, called = (counts @ each.astype(float) / total for each in (truth == said, truth, said))
    expected = true * called + (1 - true) * (1 - called)
    low, high = np.quantile((both - expected) / (1 - expected), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("quality").add_argument("--labels", required=True)
    parts.add_parser("blind")
    parts.add_parser("speed")
    arguments = parser.parse_args()
    if arguments.part == "quality":
        quality(arguments.labels)
    else:
        {"blind": blind, "speed": speed}[arguments.part]()


if __name__ == "__main__":
    main()
