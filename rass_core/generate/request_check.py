"""Is a text a request that somebody makes of an assistant, or an answer, a refusal, a statement?

A logistic model over hashed character n-grams of a text's beginning and end; its file holds no text that it was fitted
on. `benchmarks/request_check.py` fits it and measures its error with whole sources left out (docs/generation.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer

from rass_core.judges.classifier import Weights
from rass_core.stats.arrays import Array

N_HASHED = 2**15
"""Columns of hashed n-grams, for the beginning and for the end."""
BEGINNING, END = 120, 40
"""Characters that are read of both; most requests show what they are there."""
END_WEIGHT = 0.7


def features(texts: Sequence[str]) -> csr_matrix:
    """Return one row per text, (n, 2 · N_HASHED)."""
    folded = [" ".join(text.split()).lower() for text in texts]
    parts = ([f"^{text[:BEGINNING]}" for text in folded], [f"{text[-END:]}$" for text in folded])
    beginning, end = (
        HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), n_features=N_HASHED, alternate_sign=False, dtype=np.float32
        ).transform(part)
        for part in parts
    )
    return hstack([beginning, END_WEIGHT * end], format="csr")


@dataclass(frozen=True)
class RequestCheck:
    """Gives the probability that a text is a request, whatever its language."""

    threshold: float = 0.5
    """Texts below it count as no request."""

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return one probability per text, (n,), float64."""
        return _shipped().probability(features(texts)) if texts else np.zeros(0)


@cache
def _shipped() -> Weights:
    with resources.files("rass_core.generate").joinpath("request_check.npz").open("rb") as file:
        content = np.load(file, allow_pickle=False)
        return Weights(content["coefficients"].astype(np.float64), float(content["intercept"]))
