"""Stages of the probe: `activations`, `directions`, `margins` and `boundaries`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rass_core.errors import ActivationError, BoundaryError
from rass_core.lake.schema import rows_table
from rass_core.lake.store import Commit
from rass_core.probe.boundary import BoundaryEstimate, boundary_report
from rass_core.probe.geometry import ProbeData
from rass_core.probe.harm_axis import measure_harm, n_steps
from rass_core.probe.harm_types import HARM_METRICS, Estimate, HarmFigures, HarmReport, LayerFigures
from rass_core.probe.margin_scale import MarginScale, placed
from rass_core.probe.misalignment import (
    OverRefusedSplit,
    kind_of_misalignment,
    share_estimates,
    split_over_refused,
)
from rass_core.probe.pooling import pool_reports
from rass_core.stats.intervals import wilson
from rass_core.vocabulary import ALL
from tasks.probed import directions_of, margin_scale, panel_verdicts, read_probe_data
from tasks.rates import counted_outcome, rate_rows
from tasks.session import Session
from tasks.stage import StageTables, stage


@stage(
    "boundaries",
    reads=["prompts", "responses", "verdicts", "activations", "directions"],
    writes=["boundaries", "margins", "harm_axes", "evaluations"],
    settings=["model", "probe", "correcting", "seed"],
)
def measure_boundaries(
    session: Session, prompts: Commit, responses: Commit, activations: Commit, directions: Commit
) -> StageTables:
    """Place every prompt on the margin and fit the boundary of each language on the test split."""
    data = read_probe_data(session, prompts, responses, activations)
    scale = margin_scale(session, data, directions)
    measured = scale.margins(data.rows(scale.layer, scale.position), list(data.languages))
    orthogonal = scale.axis.scores(data.rows(scale.layer, scale.position))
    reports = _reports(session, data, measured)
    harm = _harm(session, prompts, data, measured, scale, directions)
    splits = _over_refused(session, data, measured, reports)
    names = {"model_id": session.target_id, "variant": "base", "direction_id": scale.direction_id}
    boundaries = [
        names | {"language": language} | report.columns() | _kind(report, splits, harm, language)
        for language, report in reports.items()
    ]
    b = {language: report.b for language, report in reports.items()}
    margins = [
        {"prompt_id": prompt_id, "model_id": session.target_id, "direction_id": scale.direction_id, "split": split}
        | placed(margin, float(across), b.get(language), float(score))
        for prompt_id, split, language, margin, across, score in zip(
            data.prompt_ids, data.splits, data.languages, measured, orthogonal, harm.scores, strict=True
        )
    ]
    return {
        "boundaries": rows_table("boundaries", boundaries),
        "margins": rows_table("margins", margins),
        "harm_axes": rows_table("harm_axes", _axis_rows(session.target_id, harm)),
        "evaluations": rows_table(
            "evaluations",
            [
                *_base_rates(session, data, panel_verdicts(session, responses)),
                *_band_shares(session, data, measured, reports),
                *_misalignment_rows(session, splits, harm),
            ],
        ),
    }


def _reports(session: Session, data: ProbeData, measured: np.ndarray[Any, Any]) -> dict[str, BoundaryEstimate]:
    """Return each language's boundary on the test split, small languages pooled; None with a reason."""
    settings, reports = session.config.probe, {}
    usable = _fitted(data, measured)
    for language in sorted(set(data.languages)):
        here = usable & (data.languages == language)
        if not here.any():
            scored = (data.splits == "test") & (data.languages == language) & ~np.isnan(data.refused)
            n, n_refused = int(scored.sum()), int((data.refused[scored] == 1.0).sum())
            why = f"{n_refused} of {n} refused; {_why_not_placed(data, measured, language)}"
            reports[language] = BoundaryEstimate.unknown(n, n_refused, why)
            continue
        reports[language] = boundary_report(
            measured[here], data.refused[here] == 1.0, data.labels[here], data.families[here],
            settings.n_bootstrap, session.config.seed,
        )  # fmt: skip
    return pool_reports(reports, settings.min_prompts)


def _fitted(data: ProbeData, measured: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return which prompts boundaries are fitted on."""
    return np.asarray((data.splits == "test") & ~np.isnan(data.refused) & ~np.isnan(measured))


def _why_not_placed(data: ProbeData, measured: np.ndarray[Any, Any], language: str) -> str:
    """Say why a language has no prompt to fit a boundary on."""
    here = data.languages == language
    if not np.isnan(measured[here]).all():
        return "no scored prompts in the test split"
    if {"harmful", "harmless"} <= set(data.labels[here & (data.splits == "train")]):
        return "the direction does not put its harmful mean above its harmless mean"
    return "no data: needs harmful and harmless prompts"


def _base_rates(session: Session, data: ProbeData, words: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return over-refusal and safety rates of the model as given, on the test split."""
    rows = []
    for metric, label in (
        ("over_refusal_rate", "pseudo_harmful"), ("over_refusal_rate_wide", "pseudo_harmful"),
        ("unhelpful_rate", "pseudo_harmful"), ("over_refusal_rate", "harmless"), ("over_refusal_rate_wide", "harmless"),
        ("unhelpful_rate", "harmless"), ("safety_rate", "harmful"),
    ):  # fmt: skip
        here = np.flatnonzero((data.splits == "test") & (data.labels == label))
        said = [words[data.prompt_ids[i]] for i in here]
        outcomes = [counted_outcome(metric, word["outcome"], word["kind"]) for word in said]
        rows += rate_rows(session, session.target_id, "base", label, metric, data.languages[here].tolist(), outcomes)
    return rows


def _band_shares(
    session: Session, data: ProbeData, measured: np.ndarray[Any, Any], reports: Mapping[str, BoundaryEstimate]
) -> list[dict[str, Any]]:
    """Return the share of benign test prompts within the over-refusal band b < m ≤ b*, by language."""
    rows = []
    benign = (data.splits == "test") & (data.labels != "harmful") & ~np.isnan(measured)
    for language, report in reports.items():
        here = measured[benign & (data.languages == language)]
        row: dict[str, Any] = {
            "model_id": session.target_id, "variant": "base", "dataset": "given", "language": language,
            "metric": "band_share", "n": len(here),
        }  # fmt: skip
        if report.b is None or report.b_oracle is None:
            row["reason"] = report.reason or "b* is not identified"
        elif not len(here):
            row["reason"] = "no benign prompt in the test split"
        else:
            inside = int(((here > report.b) & (here <= report.b_oracle)).sum())
            row["value"], row["low"], row["high"] = wilson(inside, len(here))
        rows.append(row)
    return rows


def _harm(
    session: Session,
    prompts: Commit,
    data: ProbeData,
    measured: np.ndarray[Any, Any],
    scale: MarginScale,
    directions: Commit,
) -> HarmReport:
    """Return what the streams know of harm, beside the margin at every layer."""
    source = {row["prompt_id"]: row["source"] or "none" for row in session.read("prompts", prompts).to_pylist()}
    alike = {
        direction.layer: direction
        for direction in directions_of(session, directions)
        if (direction.kind, direction.method, direction.position, direction.language)
        == (scale.direction.kind, scale.direction.method, scale.position, None)
    }

    def margin_at(layer: int) -> np.ndarray[Any, Any] | None:
        if layer == scale.layer:
            return measured
        if layer not in alike:
            return None
        try:
            there = MarginScale.of(data, alike[layer], "")
        except ActivationError:  # the streams of this layer do not differ
            return None
        return there.margins(data.rows(layer, scale.position), list(data.languages))

    with session.progress("fitting the harm axis", n_steps(data)) as done:
        report = measure_harm(
            data, [source[prompt_id] for prompt_id in data.prompt_ids], measured, margin_at,
            (scale.layer, scale.position), session.config.probe.n_bootstrap, done,
        )  # fmt: skip
    if report.reason:
        session.say(f"harm axis: {report.reason}")
    return report


def _over_refused(
    session: Session, data: ProbeData, measured: np.ndarray[Any, Any], reports: Mapping[str, BoundaryEstimate]
) -> dict[str, dict[str, OverRefusedSplit | str]]:
    """Return label → language → where its over-refused test prompts lie, or why that is not known."""
    found: dict[str, dict[str, OverRefusedSplit | str]] = {"pseudo_harmful": {}, "harmless": {}}
    for label, by_language in found.items():
        for language, report in reports.items():
            here = _fitted(data, measured) & (data.languages == language)
            try:
                by_language[language] = split_over_refused(
                    measured[here], (data.labels[here] == label) & (data.refused[here] == 1.0),
                    data.families[here], report, session.config.probe.n_bootstrap, session.config.seed,
                )  # fmt: skip
            except BoundaryError as error:
                by_language[language] = str(error)
    return found


def _shares(by_language: Mapping[str, OverRefusedSplit | str], language: str) -> tuple[Estimate, Estimate, Estimate]:
    """Return the shares below b, in the band and beyond b* in a language, or over all that have them."""
    mine = by_language.values() if language == ALL else [by_language[language]]
    splits = [each for each in mine if isinstance(each, OverRefusedSplit)]
    if splits:
        return share_estimates(splits)
    nothing = Estimate(None, None, None, 0, reason="; ".join(dict.fromkeys(str(each) for each in mine)))
    return nothing, nothing, nothing


def _kind(
    report: BoundaryEstimate,
    splits: Mapping[str, Mapping[str, OverRefusedSplit | str]],
    harm: HarmReport,
    language: str,
) -> dict[str, Any]:
    """Return the columns of `boundaries` that say which kind of misalignment is shown."""
    _, band, beyond = _shares(splits["pseudo_harmful"], language)
    figures = harm.figures[language]
    misalignment = Estimate(report.misalignment, report.misalignment_low, report.misalignment_high, report.n)
    kind, reason = kind_of_misalignment(misalignment, band, beyond, figures.gap, figures.same_source_gap)
    return {"kind": kind, "kind_reason": reason}


def _misalignment_rows(
    session: Session, splits: Mapping[str, Mapping[str, OverRefusedSplit | str]], harm: HarmReport
) -> list[dict[str, Any]]:
    """Return where over-refused prompts lie, and how well margin and harm axis separate true harm."""
    found = []
    for language, figures in harm.figures.items():
        measured = [
            (f"over_refused_{place}", label, estimate)
            for label, by_language in splits.items()
            for place, estimate in zip(("below", "in_band", "beyond"), _shares(by_language, language), strict=True)
        ]
        measured += [(name, "given", estimate) for name, estimate in zip(HARM_METRICS, figures, strict=True)]
        found += [
            {
                "model_id": session.target_id, "variant": "base", "dataset": dataset, "language": language,
                "metric": metric,
            } | estimate.columns()
            for metric, dataset, estimate in measured
        ]  # fmt: skip
    return found


def _axis_rows(name: str, harm: HarmReport) -> list[dict[str, Any]]:
    """Return the rows of `harm_axes`: the axis in each language, and the figures of every layer."""
    if harm.axis is None:
        return [{"model_id": name, "language": ALL, "chosen": False, "reason": harm.reason}]
    fitted = {"inverse_penalty": harm.inverse_penalty, "cv_auc": harm.cv_auc}
    rows = [row | _auc_columns(harm.figures[row["language"]]) | fitted for row in harm.axis.columns(name)]
    return rows + [_layer_row(name, harm.inverse_penalty, each) for each in harm.layers]


def _layer_row(name: str, inverse_penalty: float | None, each: LayerFigures) -> dict[str, Any]:
    return {
        "model_id": name, "language": ALL, "layer": each.layer, "position": each.position, "chosen": False,
        "cv_auc": each.cv_auc, "inverse_penalty": inverse_penalty,
    } | _auc_columns(each.figures)  # fmt: skip


def _auc_columns(figures: HarmFigures) -> dict[str, Any]:
    found: dict[str, Any] = {"n": figures.axis.n}
    for name, each in (
        ("auc", figures.axis), ("new_source", figures.new_source), ("same_source", figures.same_source),
        ("margin", figures.margin),
    ):  # fmt: skip
        found |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    return found
