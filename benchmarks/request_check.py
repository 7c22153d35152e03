"""Fit the check whether a text is a request, and measure its error on sources that it has not seen.

    python benchmarks/request_check.py --data DIR --answers FILE        # the table
    python benchmarks/request_check.py --data DIR --answers FILE --fit  # also writes the shipped weights

DIR holds Parquet files of prompts (columns text, language, source) and `judge/refusal_responses.parquet` (columns
response_head, prompt_language, model). FILE is JSON, a list of {"text": …, "source": …}: answers of the model that
writes. Prompts are requests, answers and refusals are none. The lab's prompts and the project's own examples in
request_examples.yaml join them.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from sklearn.linear_model import LogisticRegression

import rass_core
from rass_core.generate.request_check import RequestCheck, features
from rass_core.stats.agreement import auc
from rass_core.stats.intervals import wilson

PER_CELL = 150
"""Texts per source and language at most."""
EXAMPLE_WEIGHT = 25
"""How often each of the project's own examples counts."""
N_FOLDS = 6
STRENGTH = 4.0
Row = tuple[str, str, str, bool]
"""Text, language, source, whether it is a request."""


def rows_of(data: Path, answers: Path) -> list[Row]:
    lab = Path(rass_core.__file__).parent / "lab" / "prompts.parquet"
    rows: list[Row] = []
    own: list[Row] = []
    for file in [lab, *sorted(data.glob("*.parquet"))]:
        for row in pq.read_table(file).to_pylist():
            rows.append((row["text"][:600], row["language"], row.get("source") or "lab", True))
    for row in pq.read_table(data / "judge" / "refusal_responses.parquet").to_pylist():
        rows.append((row["response_head"], row["prompt_language"], f"answers of {row['model']}", False))
    for row in json.loads(answers.read_text()):
        # A statement from the middle of an answer is no request either.
        sentences = re.split(r"(?<=[.!?])\s+", row["text"].strip())
        for text in {row["text"].strip(), " ".join(sentences[1:3])} - {""}:
            rows.append((text, "en", f"own answers to {row['source']}", False))
    examples = yaml.safe_load(Path(__file__).with_name("request_examples.yaml").read_text(encoding="utf-8"))
    for language, kinds in examples.items():
        for kind, texts in kinds.items():
            examples_of = [(text, language, "examples", kind == "request") for text in texts]
            own += EXAMPLE_WEIGHT * examples_of
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row[1], row[2]].append(row)
    draw = np.random.default_rng(0)
    return own + [cell[i] for _, cell in sorted(cells.items()) for i in draw.permutation(len(cell))[:PER_CELL]]


def fit(rows: list[Row], matrix: object) -> LogisticRegression:
    counts = Counter((language, is_request) for _, language, _, is_request in rows)
    weights = np.array([counts[row[1], row[3]] ** -0.5 for row in rows])
    model = LogisticRegression(C=STRENGTH, tol=1e-3, max_iter=500)
    return model.fit(matrix, [row[3] for row in rows], weights / weights.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    rows = rows_of(options.data, options.answers)
    matrix = features([row[0] for row in rows])
    source = np.array([row[2] for row in rows])
    names = sorted(set(source))
    fold = {name: i % N_FOLDS for i, name in enumerate(np.random.default_rng(1).permutation(names))}
    folds = np.array([fold[name] for name in source])
    score = np.zeros(len(rows))
    for number in range(N_FOLDS):
        seen = np.flatnonzero(folds != number)
        model = fit([rows[i] for i in seen], matrix[seen])
        score[folds == number] = model.predict_proba(matrix[folds == number])[:, 1]
    is_request = np.array([row[3] for row in rows])
    threshold = RequestCheck().threshold
    print(f"AUC, sources left out: {auc(score, is_request):.3f}")
    print("| source | is | n | called a request |\n| --- | --- | ---: | --- |")
    for name, true in sorted(set(zip(source.tolist(), is_request.tolist(), strict=True))):
        here = (source == name) & (is_request == true)
        share, low, high = wilson(int((score[here] >= threshold).sum()), int(here.sum()))
        kind = "request" if true else "no request"
        print(f"| {name} | {kind} | {here.sum()} | {share:.1%} [{low:.1%}, {high:.1%}] |")
    if options.fit:
        model = fit(rows, matrix)
        file = Path(rass_core.__file__).parent / "generate" / "request_check.npz"
        np.savez_compressed(
            file, coefficients=model.coef_[0].astype(np.float16), intercept=np.float64(model.intercept_[0])
        )
        print(f"{file.name}: fitted on {len(rows)} texts of {len(names)} sources")


if __name__ == "__main__":
    main()
