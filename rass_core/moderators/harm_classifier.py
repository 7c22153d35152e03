"""Harm classifier: is a prompt harmful, or benign? Logistic regression on n-grams, for a CPU.

`rass moderator train` fits one on labelled prompts; docs/moderators.md reports the errors of the shipped one. The
n-grams are hashed and the training prompts are kept as digests, so the file holds no prompt.
"""

import hashlib
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, diags, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from rass_core.errors import JudgeError
from rass_core.languages.tags import primary
from rass_core.paths import input_file, user_path
from rass_core.stats.arrays import Array
from rass_core.text import prompt_id

N_HASHED = 2**15
"""Columns of hashed character n-grams, and as many of words."""
N_COLUMNS = 2 * N_HASHED
CHARACTERS, WORDS = (2, 5), (1, 2)
"""Shortest and longest n-gram: characters within words, and words."""
_VERSION = 1
_HINT = "`rass moderator train` writes one"
_WORD = r"(?u)\b\w+\b|\?"


@dataclass(frozen=True)
class HarmClassifier:
    """A fitted classifier.

    `harm` are the calibrated log-odds of harmful against benign at equal shares of both. `alarm` are those of
    "sounds dangerous" (harmful or pseudo_harmful) against harmless: it splits the benign prompts.
    """

    idf: Array
    """Inverse document frequency of each column, (N_COLUMNS,)."""
    harm: Array
    """(N_COLUMNS,)."""
    harm_intercept: float
    alarm: Array
    """(N_COLUMNS,)."""
    alarm_intercept: float
    languages: frozenset[str]
    """Primary tags of the languages with both harmful and pseudo_harmful training prompts."""
    known: npt.NDArray[np.uint64]
    """Digests of the training prompts, sorted."""
    figures: Sequence[Mapping[str, Any]] = ()
    """Errors on sources left out of the fit, rows as `rass_core.moderators.harm_training.figures` returns them."""

    @property
    def digest(self) -> str:
        """Return 8 hex digits that change with the weights."""
        content = hashlib.sha256(self.harm.tobytes() + self.alarm.tobytes() + self.idf.tobytes())
        content.update(repr((self.harm_intercept, self.alarm_intercept, sorted(self.languages))).encode())
        return content.hexdigest()[:8]

    def knows(self, prompts: Sequence[str], languages: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return whether each prompt was in the training data, (n,); case and white space aside."""
        return np.isin(digests(prompts, languages), self.known)

    def probabilities(self, prompts: Sequence[str]) -> Array:
        """Return the probabilities of harmful and of sounding dangerous, (n, 2), each in [0, 1]."""
        rows = weighted(ngram_counts(prompts), self.idf)
        logits = [rows @ self.harm + self.harm_intercept, rows @ self.alarm + self.alarm_intercept]
        return np.asarray(expit(np.stack(logits, axis=1)), dtype=np.float64)

    def save(self, path: str | Path) -> None:
        """Write the classifier as one .npz file, coefficients as float16.

        Raises:
            JudgeError: The file cannot be written.
        """
        about = {
            "version": _VERSION, "harm_intercept": self.harm_intercept, "alarm_intercept": self.alarm_intercept,
            "languages": sorted(self.languages), "figures": list(self.figures),
        }  # fmt: skip
        columns = {name: getattr(self, name).astype(np.float16) for name in ("idf", "harm", "alarm")}
        target = user_path(path, JudgeError)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez_compressed(file, known=self.known, about=np.array(json.dumps(about)), **columns)
            temporary.replace(target)
        except OSError as error:
            raise JudgeError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | Path) -> "HarmClassifier":
        """Read a classifier that `save` wrote.

        Raises:
            JudgeError: No such file, or a file of another kind or version.
        """
        try:
            with input_file(path, JudgeError, _HINT).open("rb") as file, np.load(file, allow_pickle=False) as content:
                about = json.loads(str(content["about"]))
                columns = {name: content[name].astype(np.float64) for name in ("idf", "harm", "alarm")}
                known = content["known"]
        except JudgeError:
            raise
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise JudgeError(f"{path}: not a harm classifier; `rass moderator train` writes one") from error
        sizes = {name: column.shape for name, column in columns.items()}
        if about.get("version") != _VERSION or set(sizes.values()) != {(N_COLUMNS,)}:
            raise JudgeError(f"{path}: a harm classifier of another version; train it again")
        return cls(
            **columns, harm_intercept=about["harm_intercept"], alarm_intercept=about["alarm_intercept"],
            languages=frozenset(about["languages"]), known=known, figures=about["figures"],
        )  # fmt: skip


def ngram_counts(prompts: Sequence[str]) -> csr_matrix:
    """Return damped counts of hashed n-grams, 1 + log(count), (n, N_COLUMNS), float32: characters, then words."""
    lower = [prompt.lower() for prompt in prompts]
    kinds = ({"analyzer": "char_wb", "ngram_range": CHARACTERS}, {"ngram_range": WORDS, "token_pattern": _WORD})
    settings = {"n_features": N_HASHED, "alternate_sign": False, "norm": None, "dtype": np.float32}
    counts = hstack([HashingVectorizer(**settings, **kind).transform(lower) for kind in kinds]).tocsr()
    counts.data = 1 + np.log(counts.data)
    return counts


def weighted(counts: csr_matrix, idf: Array) -> csr_matrix:
    """Return rows of TF-IDF: the character columns and the word columns of a row have Euclidean length 1 each."""
    rows = counts @ diags(idf.astype(np.float32))
    return hstack([normalize(rows[:, :N_HASHED]), normalize(rows[:, N_HASHED:])]).tocsr()


def digests(prompts: Sequence[str], languages: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return the prompt ids as numbers, (n,)."""
    return np.array(
        [int(prompt_id(primary(lang), text), 16) for text, lang in zip(prompts, languages, strict=True)], np.uint64
    )


@cache
def shipped() -> HarmClassifier:
    """Return the classifier that comes with the project."""
    with resources.as_file(resources.files("rass_core.moderators").joinpath("harm_classifier.npz")) as path:
        return HarmClassifier.read(path)
