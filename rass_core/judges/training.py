"""Fit and validate the classifier: `python -m rass_core.judges.training --labels FILE`.

It is fitted on the project's own texts and on a file of labelled responses, if one is given, of which
only hashed weights are kept:

    examples/LANGUAGE.yaml    responses and single sentences, one list per verdict
    exchanges/LANGUAGE.yaml   responses with their prompts, the prompts' labels and the verdicts

Every held-out figure keeps each model's responses, and each prompt's, on one side.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import yaml
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from rass_core.errors import JudgeError
from rass_core.judges.classifier import Weights, features
from rass_core.judges.phrase_signals import LONGEST_READ, covered, signals
from rass_core.judges.phrases import by_phrases, read
from rass_core.stats.arrays import Array
from rass_core.vocabulary import Exchange

HEAD_CHARACTERS = 80
"""Example heads are cut here: as stored, their length gives the label away."""
STRENGTH = 4.0
"""Inverse of the L2 penalty."""
N_FOLDS = 5
EXCHANGE_WEIGHT = 2.0
"""Weight of an exchange relative to other responses: only exchanges show what a prompt changes."""


@dataclass(frozen=True)
class Example:
    """A response with what it is."""

    text: str
    language: str
    is_refused: bool
    """In whole or in part."""
    model: str
    group: str
    """Responses to one prompt, over models and languages."""
    prompt: str | None = None
    label: str | None = None
    """Label of the prompt."""

    @property
    def exchange(self) -> Exchange:
        """What a judge is given."""
        return Exchange(self.text, self.language, self.prompt, self.label)


def examples() -> list[Example]:
    """Return the project's own responses, whole and cut to the length of the labelled heads."""
    found = []
    for language in sorted(covered()):
        for label, texts in _own("examples", language).items():
            kind = label.removeprefix("unusual_")
            refused = kind in ("refusal", "partial", "declining_sentence")
            for text in texts:
                # A partial refusal may begin as an answer; its head alone says nothing.
                cuts = {text} if kind == "partial" else {text, text[:HEAD_CHARACTERS]}
                found += [Example(cut, language, refused, "examples", _group(text)) for cut in sorted(cuts)]
    return found


def exchanges() -> list[Example]:
    """Return the project's own responses with their prompts, each also without its prompt's label."""
    found = []
    for language in sorted(covered()):
        for row in _own("exchanges", language):
            given = Example(
                row["response"], language, row["outcome"] != "compliance", "exchanges", _group(row["prompt"]),
                row["prompt"], row["label"],
            )  # fmt: skip
            if read(given.exchange)[0] is None:  # else no judge asks for it
                found += [given] if given.label is None else [given, replace(given, label=None)]
    return found


def own_texts() -> list[Example]:
    """Return all that the project has to fit on."""
    responses = examples()
    return responses + whatever_was_asked(responses) + exchanges()


def whatever_was_asked(labelled: Sequence[Example]) -> list[Example]:
    """Return those responses that plainly help or plainly decline, as answers to harmful and to benign prompts.

    Most exchanges with harmful prompts are refusals. Without these the label alone would make one.
    """
    plain = [each for each in labelled if each.prompt is None and each.label is None and _is_plain(each)]
    return [replace(each, label=label) for each in plain for label in ("harmful", "harmless")]


def _is_plain(example: Example) -> bool:
    said, shown = by_phrases(example.exchange), read(example.exchange)[1]
    if example.is_refused:
        return said.outcome == "refusal" and said.kind == "policy"
    seen = signals(shown.text[:LONGEST_READ], example.language)
    return seen.is_helping and said.outcome == "compliance" and said.kind is None and seen.pushback_at is None


def _own(kind: str, language: str) -> Any:
    file = resources.files("rass_core.judges").joinpath(f"{kind}/{language}.yaml")
    if not file.is_file():
        return []
    return yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _group(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def labelled_heads(path: str | Path) -> list[Example]:
    """Return the labelled responses of a Parquet file, cut to 80 characters.

    Args:
        path: With columns response_id (source-prompt-model-language), prompt_language, response_head,
            label (refusal, partial, compliance) and model.

    Raises:
        JudgeError: The file cannot be read, or lacks a column.
    """
    columns = ["response_id", "prompt_language", "response_head", "label", "model"]
    try:
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise JudgeError(f"{path}: cannot be read ({error}); needs columns {', '.join(columns)}") from error
    return [
        Example(
            row["response_head"][:HEAD_CHARACTERS].strip(), row["prompt_language"], row["label"] != "compliance",
            row["model"], "-".join(row["response_id"].split("-")[:2]),
        )
        for row in rows if row["prompt_language"] in covered()
    ]  # fmt: skip


def fit(labelled: Sequence[Example], rows: csr_matrix | None = None) -> Weights:
    """Return the classifier of labelled responses, calibrated on folds by group."""
    rows = rows if rows is not None else rows_of(labelled)
    refused = np.array([each.is_refused for each in labelled])
    weights = _balance(labelled)
    held_out, fold = np.zeros(len(labelled)), folds([each.group for each in labelled])
    for number in sorted(set(fold)):
        inner = _logistic(STRENGTH).fit(rows[fold != number], refused[fold != number], weights[fold != number])
        held_out[fold == number] = inner.decision_function(rows[fold == number])
    platt = _logistic(1e3).fit(held_out[:, None], refused, weights)
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    model = _logistic(STRENGTH).fit(rows, refused, weights)
    return Weights(slope * model.coef_[0], slope * float(model.intercept_[0]) + offset)


def held_out_by_model(heads: Sequence[Example], added: Sequence[Example]) -> Array:
    """Return each head's probability of refusal by a classifier that saw neither its model nor its prompt, (n,).

    Where one model made all of a language's responses of a kind the same holds: prompts are folded too.
    """
    return _held_out(heads, added, np.array([each.model for each in heads]))


def held_out_by_language(heads: Sequence[Example], added: Sequence[Example]) -> Array:
    """Return the same by a classifier that saw nothing, examples neither, in a head's language, (n,).

    Prompts that come in several languages may stand on both sides.
    """
    return _held_out(heads, added, np.array([each.language for each in heads]), by_language=True)


def _held_out(
    heads: Sequence[Example], added: Sequence[Example], sides: npt.NDArray[np.str_], by_language: bool = False
) -> Array:
    everything = [*heads, *added]
    rows = rows_of(everything)
    is_head = np.arange(len(everything)) < len(heads)
    side = np.concatenate([sides, [each.language if by_language else "" for each in added]])
    fold = np.zeros(len(everything), np.int64) if by_language else folds([each.group for each in everything])
    found = np.full(len(heads), np.nan)
    for name in sorted(set(sides)):
        for number in sorted(set(fold)):
            asked = np.flatnonzero(is_head & (side == name) & (fold == number))
            if asked.size:
                seen = np.flatnonzero((side != name) & (by_language | (fold != number) | ~is_head))
                found[asked] = fit([everything[i] for i in seen], rows[seen]).probability(rows[asked])
    return found


def rows_of(labelled: Sequence[Example]) -> csr_matrix:
    """Return the features of labelled responses."""
    return features([each.exchange for each in labelled])


def folds(groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return each row's fold, the same for equal groups, whatever else there is."""
    return np.array([hashlib.sha256(group.encode()).digest()[0] % N_FOLDS for group in groups])


def _balance(labelled: Sequence[Example]) -> Array:
    """Weigh languages and classes towards equal shares: by the root of how many rows each has."""
    counts = Counter((each.language, each.is_refused) for each in labelled)
    weights = np.array([
        counts[each.language, each.is_refused] ** -0.5 * (1.0 if each.prompt is None else EXCHANGE_WEIGHT)
        for each in labelled
    ])  # fmt: skip
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def _logistic(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=1e-3, max_iter=2000)


def main() -> None:
    """Fit on everything and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m rass_core.judges.training", description=__doc__)
    parser.add_argument("--labels", help="Parquet file of labelled response heads")
    parser.add_argument("--out", default=str(Path(__file__).with_name("classifier.npz")), help="file of the weights")
    arguments = parser.parse_args()
    labelled = own_texts() + (labelled_heads(arguments.labels) if arguments.labels else [])
    weights = fit(labelled)
    np.savez_compressed(
        arguments.out, coefficients=weights.coefficients.astype(np.float16), intercept=np.float64(weights.intercept)
    )
    print(f"{arguments.out}: fitted on {len(labelled)} responses in {len({e.language for e in labelled})} languages")


if __name__ == "__main__":
    main()
