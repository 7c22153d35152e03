"""How far a judge may be trusted: its errors against labelled responses, and rates corrected for them.

One row is judge × language × model, each also summed up as `all`, and each family of models likewise.
In rates and agreement a partial refusal counts as refused.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.errors import BoundaryError, JudgeError
from rass_core.judges.panel import PANEL
from rass_core.languages.tags import primary
from rass_core.stats.agreement import equal_mass_bins, rogan_gladen
from rass_core.stats.arrays import Array
from rass_core.stats.intervals import family_counts, wilson
from rass_core.vocabulary import ALL, SCORED, Verdict

N_BINS = 10
N_BOOTSTRAP = 1000
STATISTICS = ("accuracy", "kappa", "ece", "missed", "false_alarms")
"""missed: share of the refused that the judge took for answered. false_alarms: of the answered, for refused."""

_PAIRS = [f"true_{true}_judged_{judged}" for true in SCORED for judged in SCORED]
_REFUSED, _COMPLIED = [0, 1, 2, 3, 4, 5], [6, 7, 8]
_SIDES = {
    "true_refused_judged_refused": [0, 1, 3, 4],
    "true_refused_judged_complied": [2, 5],
    "true_complied_judged_refused": [6, 7],
    "true_complied_judged_complied": [8],
}
_RATES = {
    "accuracy": ([0, 1, 3, 4, 8], _REFUSED + _COMPLIED),
    "missed": (_SIDES["true_refused_judged_complied"], _REFUSED),
    "false_alarms": (_SIDES["true_complied_judged_refused"], _COMPLIED),
}
"""Which pairs each rate counts, and of which."""
_N_SUMS = len(_PAIRS) + 2 * N_BINS
_DRAWS_AT_ONCE = 4_000_000

SCHEMA = pa.schema([
    ("judge", pa.string()), ("language", pa.string()), ("model", pa.string()), ("family", pa.string()),
    ("n", pa.int64()), ("n_unscored", pa.int64()),
    *((name, pa.float64()) for name in [*_SIDES, *_PAIRS]),
    *((f"{name}{end}", pa.float64()) for name in STATISTICS for end in ("", "_low", "_high")),
    ("reason", pa.string()),
])  # fmt: skip
"""Counts are whole unless labels weigh differently; then they are as many labels of equal weight would be worth."""


@dataclass(frozen=True)
class Labelled:
    """Labelled responses; every sequence has one entry per response."""

    labels: Sequence[str]
    """refusal, partial or compliance."""
    languages: Sequence[str]
    models: Sequence[str] | None = None
    """Who answered."""
    groups: Sequence[str] | None = None
    """Prompts by which intervals are clustered; None treats each response as an independent draw."""
    weights: Sequence[float] | None = None
    """How many responses each one represents, if some were likelier to be labelled."""


def model_family(model: str) -> str:
    """Return a model's name up to its version or size: llama of meta/llama-3.1-8b-instruct.

    The owner before /, the digest after @ and a variant in brackets are dropped, and all from the first digit
    on; a name without digits is its own family.
    """
    name = re.split(r"@| \(", model)[0].rstrip("/").split("/")[-1].lower()
    return re.split(r"[-_. ]?v?\d", name, maxsplit=1)[0].strip("-_. ") or name


def calibrate(labelled: Labelled, verdicts: Mapping[str, Sequence[Verdict]], seed: int = 0) -> pa.Table:
    """Return each judge's errors with intervals, in `SCHEMA`.

    Intervals are those of a bootstrap over groups where groups are given, else Wilson's for rates and of
    a bootstrap over responses for the rest. The one of the calibration error, which is never below 0,
    leans high. What cannot be computed is null, and `reason` says why.

    Args:
        labelled: The truth.
        verdicts: Judge → its verdicts, in the order of the labels.
        seed: Seed of the bootstrap.

    Raises:
        JudgeError: No labels, one that is none of `SCORED`, or sequences of unequal lengths.
    """
    _check(labelled, verdicts)
    truth = np.array([SCORED.index(label) for label in labelled.labels])
    groups = np.arange(truth.size) if labelled.groups is None else np.unique(labelled.groups, return_inverse=True)[1]
    weights = np.ones(truth.size) if labelled.weights is None else np.asarray(labelled.weights, dtype=np.float64)
    rows = []
    for place, here in _cells(labelled):
        sums = {judge: _sums(truth[here], [given[i] for i in here], weights[here]) for judge, given in verdicts.items()}
        drawn = _replicates(np.hstack(list(sums.values())), groups[here], seed)
        for number, judge in enumerate(verdicts):
            n = int((sums[judge] != 0).any(axis=1).sum())
            counted = {**place, "judge": judge, "n": n, "n_unscored": here.size - n}
            mine = None if drawn is None else drawn[:, number * _N_SUMS : (number + 1) * _N_SUMS]
            rows.append(counted | _row(sums[judge], mine, None if labelled.groups is None else groups[here]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _check(labelled: Labelled, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
    n = len(labelled.labels)
    if n == 0:
        raise JudgeError("calibration: no labelled responses; label some")
    unknown = sorted(set(labelled.labels) - set(SCORED))
    if unknown:
        raise JudgeError(f"calibration: label {unknown[0]!r} is not one of {', '.join(SCORED)}")
    others = [labelled.languages, labelled.models, labelled.groups, labelled.weights, *verdicts.values()]
    if any(each is not None and len(each) != n for each in others):
        raise JudgeError(f"calibration: {n} labels, but other lengths beside them; align them")


def _cells(labelled: Labelled) -> Iterator[tuple[dict[str, str], npt.NDArray[np.int64]]]:
    """Yield each language × model that occurs, the sums over either first, with its rows."""
    languages = np.array([primary(language) for language in labelled.languages])
    models = np.array(labelled.models if labelled.models is not None else [ALL] * languages.size)
    families = np.array([model_family(model) for model in models])
    for language in [ALL, *sorted(set(languages))]:
        spoken = np.full(languages.size, True) if language == ALL else languages == language
        cells = [(ALL, ALL, spoken)]
        if labelled.models is not None:
            cells += [(ALL, str(family), spoken & (families == family)) for family in sorted(set(families))]
            cells += [(str(m), model_family(str(m)), spoken & (models == m)) for m in sorted(set(models))]
        for model, family, here in cells:
            if here.any():
                yield {"language": str(language), "model": model, "family": family}, np.flatnonzero(here)


def _sums(truth: npt.NDArray[np.int64], verdicts: Sequence[Verdict], weights: Array) -> Array:
    """Return the terms of every statistic, one row per response, (n, _N_SUMS): zeros where unscored.

    The columns are the pairs of label and outcome, then in each bin of scores the score and whether refused.
    """
    judged = np.array([SCORED.index(v.outcome) if v.outcome in SCORED else -1 for v in verdicts])
    scored = np.flatnonzero((judged >= 0) & np.array([v.score is not None for v in verdicts]))
    columns = np.zeros((truth.size, _N_SUMS))
    if not scored.size:
        return columns
    # so many labels of equal weight would leave the same variance (Kish 1965)
    worth = weights[scored] * weights[scored].sum() / (weights[scored] ** 2).sum()
    scores = np.array([float(verdicts[i].score or 0.0) for i in scored])
    bins = len(_PAIRS) + equal_mass_bins(scores, N_BINS)
    columns[scored, truth[scored] * len(SCORED) + judged[scored]] = worth
    columns[scored, bins] = worth * scores
    columns[scored, bins + N_BINS] = worth * (truth[scored] < 2)
    return columns


def _replicates(columns: Array, groups: npt.NDArray[np.int64], seed: int) -> Array | None:
    """Return the columns' sums in each replicate of a bootstrap over groups, None for a single group."""
    names, group = np.unique(groups, return_inverse=True)
    if names.size < 2:
        return None
    by_group = np.zeros((names.size, columns.shape[1]))
    np.add.at(by_group, group, columns)
    size = max(1, _DRAWS_AT_ONCE // names.size)
    parts = [min(size, N_BOOTSTRAP - start) for start in range(0, N_BOOTSTRAP, size)]
    return np.vstack([family_counts(names, part, seed + i) @ by_group for i, part in enumerate(parts)])


def _statistics(sums: Array) -> dict[str, Array]:
    """Return the statistics of sums over responses, (…, _N_SUMS) → (…,) each, NaN where there is none."""
    n, refused = sums[..., : len(_PAIRS)].sum(-1), sums[..., _REFUSED].sum(-1)
    judged = sums[..., _SIDES["true_refused_judged_refused"] + _SIDES["true_complied_judged_refused"]].sum(-1)
    promised, kept = sums[..., len(_PAIRS) : -N_BINS], sums[..., -N_BINS:]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {name: sums[..., hits].sum(-1) / sums[..., of].sum(-1) for name, (hits, of) in _RATES.items()}
        chance = (refused * judged + (n - refused) * (n - judged)) / n**2
        kappa = np.where((refused > 0) & (refused < n), (found["accuracy"] - chance) / (1 - chance), np.nan)
        return {**found, "kappa": kappa, "ece": np.abs(promised - kept).sum(-1) / n}


def _row(sums: Array, drawn: Array | None, groups: npt.NDArray[np.int64] | None) -> dict[str, Any]:
    """Return counts, statistics with intervals, and the reasons of what is null, for one judge in one cell."""
    total = sums.sum(axis=0)
    row: dict[str, Any] = {name: float(total[i]) for i, name in enumerate(_PAIRS)}
    row |= {name: float(total[pairs].sum()) for name, pairs in _SIDES.items()}
    spread = {} if drawn is None else _statistics(drawn)
    for name, value in _statistics(total).items():
        if np.isnan(value):
            continue
        low, high = _wilson_interval(name, sums, groups) or _percentiles(spread.get(name))
        row[name] = float(value)
        if low is not None and high is not None and not (name == "kappa" and value == 1):
            row |= {f"{name}_low": min(low, row[name]), f"{name}_high": max(high, row[name])}
    row["reason"] = "; ".join(_reasons(row, drawn)) or None
    return row


def _wilson_interval(name: str, sums: Array, groups: npt.NDArray[np.int64] | None) -> tuple[float, float] | None:
    """Return the interval of a rate where it is Wilson's, else None.

    A bootstrap over groups shows no spread where all or none of a rate's responses count; there each group is
    taken for one draw.
    """
    if name not in _RATES:
        return None
    hits, size = (float(sums[:, pairs].sum()) for pairs in _RATES[name])
    if groups is not None and 0 < hits < size:
        return None
    if groups is not None:
        n_groups = np.unique(groups[sums[:, _RATES[name][1]].any(axis=1)]).size
        hits, size = hits / size * n_groups, n_groups
    return wilson(hits, size)[1:]


def _percentiles(values: Array | None) -> tuple[float, float] | tuple[None, None]:
    if values is None or np.isnan(values).all():
        return None, None
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _reasons(row: Mapping[str, Any], drawn: Array | None) -> Iterator[str]:
    """Say why something of a row is null."""
    n_refused, n_complied = (sum(row[_PAIRS[i]] for i in pairs) for pairs in (_REFUSED, _COMPLIED))
    if n_refused + n_complied == 0:
        yield "nothing scored"
    elif n_refused == 0:
        yield "no true refusals: missed and kappa are unknown"
    elif n_complied == 0:
        yield "no true compliances: false alarms and kappa are unknown"
    if n_refused + n_complied > 0 and drawn is None:
        yield "one prompt only: no bootstrap"
    elif row.get("kappa") == 1:
        yield "no error seen: kappa's interval is unknown"


@dataclass(frozen=True)
class Corrected:
    """A rate corrected for its judge's errors; without a value there is a reason."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    warning: str | None = None
    """What makes it less certain than its interval says."""


@dataclass(frozen=True)
class Calibration:
    """Judges' known errors, from a file that `rass judge calibrate` wrote."""

    rows: Mapping[tuple[str, str, str], Mapping[str, Any]]
    """(judge, language, model in lower case) → row of `SCHEMA`."""

    @classmethod
    def read(cls, path: str | Path) -> "Calibration":
        """Read a calibration.

        Raises:
            JudgeError: No such file, or one of another kind.
        """
        try:
            table = pq.read_table(path, schema=SCHEMA) if _has_schema(path) else None
        except (OSError, pa.ArrowException) as error:
            raise JudgeError(f"{path}: cannot be read ({' '.join(str(error).split())}); name a calibration") from error
        if table is None:
            raise JudgeError(f"{path}: not a calibration; `rass judge calibrate` writes one")
        summed = [row for row in table.to_pylist() if row["model"] != ALL or row["family"] == ALL]
        return cls({(row["judge"], row["language"], row["model"].casefold()): row for row in summed})

    @classmethod
    def of_panel(cls, path: str | None, members: Collection[str]) -> "Calibration | None":
        """Return the known errors of a panel of these judges, None where no file is named.

        Raises:
            JudgeError: No such file, or it was measured on a panel of other judges.
        """
        if path is None:
            return None
        known = cls.read(path)
        if known.members != set(members):
            theirs, ours = ", ".join(sorted(known.members)), ", ".join(sorted(members))
            raise JudgeError(f"{path}: measured a panel of {theirs}, this one is {ours}; calibrate again")
        return known

    @property
    def members(self) -> frozenset[str]:
        """Return the names of the judges that the panel had."""
        return frozenset(judge for judge, _, _ in self.rows if judge != PANEL)

    def correct(
        self, language: str, model: str, successes: float, n: float, seed: int, *, partial_counts: bool = True,
        judge: str = PANEL,
    ) -> Corrected:  # fmt: skip
        """Return a rate of refusals with the judge's error taken out of it.

        The judge's errors are those on responses of this model if there are enough labels of it, else
        those on all models, with a warning.

        Args:
            language: BCP-47 tag, of which the primary part counts; `all` for all that were labelled.
            model: Variant whose responses were judged.
            successes: Responses that the judge said were refused.
            n: Responses that it scored.
            seed: Seed of the interval.
            partial_counts: Whether partial refusals are among the successes.
            judge: Who judged.

        Returns:
            The corrected rate and its interval, or why there is none.
        """
        spoken = primary(language)
        reason = f"the calibration of {judge} has no labels in {spoken}; label some"
        for name in (model, ALL):
            row = self.rows.get((judge, spoken, name.casefold()))
            if row is None:
                continue
            warning = f"the judge's errors were measured on all models, not on {model} alone" if name == ALL else None
            try:
                return Corrected(*rogan_gladen(successes, n, *_known(row, partial_counts), seed), warning=warning)
            except BoundaryError as error:
                reason = str(error)
        return Corrected(None, None, None, reason)


def _known(row: Mapping[str, Any], partial_counts: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return sensitivity and specificity as (hits, of)."""
    positive = SCORED[:2] if partial_counts else SCORED[:1]
    negative = [label for label in SCORED if label not in positive]
    hits = [sum(row[f"true_{t}_judged_{j}"] for t in side for j in side) for side in (positive, negative)]
    sizes = [sum(row[f"true_{t}_judged_{j}"] for t in side for j in SCORED) for side in (positive, negative)]
    return (hits[0], sizes[0]), (hits[1], sizes[1])


def _has_schema(path: str | Path) -> bool:
    return bool(set(SCHEMA.names) <= set(pq.read_schema(path).names))
