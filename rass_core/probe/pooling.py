"""Pooling the boundaries of several languages."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from rass_core.errors import BoundaryError
from rass_core.probe.boundary import INTERVAL, Boundary, BoundaryEstimate, attempt


@dataclass(frozen=True)
class PooledBoundary:
    """A language's b, drawn towards that of all languages."""

    b: float
    b_low: float
    b_high: float
    own_weight: float
    """Share of b that the language's own prompts decide, in [0, 1]."""
    variance: float
    reason: str


def pool_boundaries(estimates: Mapping[str, tuple[float, float, int]], few: int = 50) -> dict[str, PooledBoundary]:
    """Return b of the languages with few prompts, drawn towards the mean of all languages.

    Normal-normal empirical Bayes: the spread τ² between languages by moments over all of them
    (DerSimonian and Laird 1986, Controlled Clinical Trials 7(3)), then
    `b ← (1 − B)b + Bμ`, `B = v/(v + τ²)`, as James and Stein shrink. The variance holds the
    uncertainty of μ, and that of τ² by Student's t in place of the normal, one degree of freedom
    less than languages; it never exceeds the language's own.

    Args:
        estimates: Language → (b, variance of b, number of prompts), identified ones only.
        few: Languages with fewer prompts than this are pooled; the others only lend strength.

    Returns:
        The pooled languages only, each with its reason.

    Raises:
        BoundaryError: Fewer than three languages, or a variance that is not positive.
    """
    if len(estimates) < 3:
        raise BoundaryError(f"not pooled: {len(estimates)} languages have a boundary, need 3; add prompts")
    b, variance, n = (np.array(column, np.float64) for column in zip(*estimates.values(), strict=True))
    if not (np.isfinite(b).all() and (variance > 0.0).all() and np.isfinite(variance).all()):
        raise BoundaryError("not pooled: need finite b and variances > 0; pool only languages with a boundary")
    precision = 1.0 / variance
    centre = (precision @ b) / precision.sum()
    excess = precision @ (b - centre) ** 2 - (len(b) - 1)
    between = max(0.0, float(excess / (precision.sum() - (precision**2).sum() / precision.sum())))
    total = 1.0 / (variance + between)
    mean = (total @ b) / total.sum()
    own = between / (variance + between)
    pooled_b = own * b + (1.0 - own) * mean
    pooled_variance = own * variance + (1.0 - own) ** 2 / total.sum()
    pooled_variance *= (student.ppf(INTERVAL[1], len(b) - 1) / norm.ppf(INTERVAL[1])) ** 2
    pooled_variance = np.minimum(pooled_variance, variance)
    half = norm.ppf(INTERVAL[1]) * np.sqrt(pooled_variance)
    return {
        language: PooledBoundary(
            float(pooled_b[i]),
            float(pooled_b[i] - half[i]),
            float(pooled_b[i] + half[i]),
            float(own[i]),
            float(pooled_variance[i]),
            f"pooled over {len(b)} languages: {int(n[i])} prompts, own weight {own[i]:.2f}",
        )
        for i, language in enumerate(estimates)
        if n[i] < few
    }


def pool_reports(reports: Mapping[str, BoundaryEstimate], few: int = 50) -> dict[str, BoundaryEstimate]:
    """Return the reports with b and b* of languages with few prompts pooled, and flagged in `reason`.

    b and b* are pooled apart, and misalignment is again their difference; its interval is normal,
    with the joint bootstrap's covariance shrunk as both are. k stays the language's own. What was
    not identified stays None. Where pooling itself is impossible, `reason` says so.

    Args:
        reports: Language → its report.
        few: As `pool_boundaries`.
    """
    refusal, refusal_note = _pool_kind({name: report.refusal for name, report in reports.items()}, few)
    oracle, oracle_note = _pool_kind({name: report.oracle for name, report in reports.items()}, few)
    pooled = {}
    for language, report in reports.items():
        notes = [report.reason]
        if report.n < few and report.refusal is not None:
            notes += [refusal_note, oracle_note]
        changed = _with_pooled(report, refusal.get(language), oracle.get(language))
        for name, part in (("b", refusal.get(language)), ("b_oracle", oracle.get(language))):
            notes.append(f"{name} {part.reason}" if part else None)
        pooled[language] = replace(changed, reason="; ".join(dict.fromkeys(filter(None, notes))) or None)
    return pooled


def _pool_kind(fits: Mapping[str, Boundary | None], few: int) -> tuple[dict[str, PooledBoundary], str | None]:
    notes: list[str] = []
    known = {language: (fit.b, fit.variance, fit.n) for language, fit in fits.items() if fit}
    return attempt(lambda: pool_boundaries(known, few), notes) or {}, notes[0] if notes else None


def _with_pooled(
    report: BoundaryEstimate, refusal: PooledBoundary | None, oracle: PooledBoundary | None
) -> BoundaryEstimate:
    changed = report
    if refusal:
        changed = replace(changed, b=refusal.b, b_low=refusal.b_low, b_high=refusal.b_high)
    if oracle:
        changed = replace(changed, b_oracle=oracle.b, b_oracle_low=oracle.b_low, b_oracle_high=oracle.b_high)
    if not (report.refusal and report.oracle and (refusal or oracle)):
        return changed
    own, own_oracle = refusal or report.refusal, oracle or report.oracle
    covariance = float(np.cov(report.refusal.draws.b, report.oracle.draws.b)[0, 1])
    for part in (refusal, oracle):
        covariance *= part.own_weight if part else 1.0
    half = float(norm.ppf(INTERVAL[1])) * max(own.variance + own_oracle.variance - 2.0 * covariance, 0.0) ** 0.5
    middle = own_oracle.b - own.b
    return replace(changed, misalignment=middle, misalignment_low=middle - half, misalignment_high=middle + half)
