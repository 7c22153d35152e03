"""Stages of the probe: `activations`, `directions`, `margins` and `boundaries`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.errors import ActivationError, BoundaryError
from rass_core.judges import PANEL
from rass_core.lake.store import Commit
from rass_core.models.causal_lm import decoder_blocks
from rass_core.models.extracting import ExtractWorker
from rass_core.models.identity import model_id
from rass_core.models.settings import ModelConfig
from rass_core.models.vllm_requests import Generation, GenerationRequest, Steering, SteeringVector
from rass_core.probe import causal
from rass_core.probe import geometry as core
from rass_core.probe.boundary import BoundaryEstimate, boundary_report
from rass_core.probe.causal import CausalPrompts, CausalTrial
from rass_core.probe.geometry import Direction, ProbeData
from rass_core.probe.harm_axis import measure_harm, n_steps
from rass_core.probe.harm_types import HARM_METRICS, HarmAxis, HarmFigures, HarmReport, LayerFigures
from rass_core.probe.margin_scale import Gauge, MarginScale, placed
from rass_core.probe.misalignment import (
    Estimate,
    OverRefusedSplit,
    kind_of_misalignment,
    share_estimates,
    split_over_refused,
)
from rass_core.probe.pooling import pool_reports
from rass_core.probe.roles import choose_roles
from rass_core.stats.intervals import wilson
from rass_core.vocabulary import ALL
from tasks.answers import READ_PER_ANSWERED
from tasks.rates import counted_outcome, rate_rows
from tasks.session import Session, chat_of, table


@task(cache_policy=NO_CACHE)
def extract_activations(session: Session, model: ModelConfig, prompts: Commit) -> Commit:
    """Read the residual streams of the given prompts at every candidate layer and position."""
    settings = session.config.probe

    def compute() -> Mapping[str, pa.Table]:
        # Arditi et al. (2024) exclude the last fifth of the layers, where the next word is prepared.
        n_layers = len(decoder_blocks(session.causal_lm(model)))
        layers = settings.layers or list(range(max(1, n_layers - n_layers // 5)))
        positions = settings.positions or chat_of(model).positions()
        worker = ExtractWorker(model, tuple(layers), tuple(positions), settings.token_budget)
        session.map("reading residual streams", worker, session.read("prompts", prompts), "prompt_id", READ_PER_ANSWERED)
        return {}

    inputs = [prompts, model, settings.layers, settings.positions, settings.token_budget]
    return session.once("activations", inputs, compute, code=["rass_core.models.extracting"])


@task(cache_policy=NO_CACHE)
def find_directions(session: Session, model: ModelConfig, prompts: Commit, responses: Commit, activations: Commit) -> Commit:
    """Draw directions, screen them, try the best causally and by generation, and give out the roles."""
    settings = session.config.probe

    def compute() -> Mapping[str, pa.Table]:
        data = read_probe_data(session, prompts, responses, activations)
        found = core.with_auc(data, core.candidate_directions(data, settings.methods))
        tried = _tried(session, model, found, _causal_prompts(session, model, prompts, data))
        tried = [replace(d, off_scale=core.why_off_scale(data, d)) for d in tried]
        tried_ids = {id(d.vector) for d in tried}
        options = causal.generation_options(tried, settings)
        tried = causal.with_generated(tried, options, _generated(session, model, prompts, options))
        chosen = choose_roles(tried, settings)
        own = core.language_directions(data, next(d for d in chosen if "margin" in d.roles)).values()
        untried = [direction for direction in found if id(direction.vector) not in tried_ids]
        return {
            "directions": table("directions", [_row(d, model_id(model.reference)) for d in [*chosen, *untried, *own]])
        }

    inputs = [prompts, responses, activations, model, settings, session.judging, session.config.seed]
    return session.once("directions", inputs, compute)


def _tried(
    session: Session, model: ModelConfig, found: Sequence[Direction], prompts: Sequence[CausalPrompts]
) -> list[Direction]:
    """Return the directions that were tried on all causal prompts, by layer."""
    settings, causal_lm = session.config.probe, session.causal_lm(model)
    candidates = causal.screening_candidates(found, len(decoder_blocks(causal_lm)), settings.n_screened)
    layers = [direction.layer for direction in candidates]
    few = CausalTrial(causal_lm, causal.fewer(prompts, settings.n_screening_prompts), settings, layers)
    with session.progress("screening directions", len(candidates)) as done:
        screened = causal.screen(few, candidates, settings.max_kl, done)
    tried = causal.causal_candidates(screened, settings.n_causal_candidates, settings.min_induce)
    ablated = causal.ablation_candidates(screened, settings.n_ablation_candidates)
    full = CausalTrial(causal_lm, prompts, settings, [direction.layer for direction in [*tried, *ablated]])
    scored = {}
    with session.progress("trying directions", len(tried) + len(ablated)) as done:
        for direction in tried:
            scored[id(direction)] = full(direction)
            done(len(scored))
        for n, direction in enumerate(ablated, len(tried) + 1):
            before = scored.get(id(direction), direction)
            scored[id(direction)] = causal.search_ablation(few, full, before, settings)
            done(n)
    return sorted(scored.values(), key=lambda d: (d.layer, d.kind, d.position))


def _generated(
    session: Session, model: ModelConfig, prompts: Commit, options: Sequence[tuple[Direction, float]]
) -> list[tuple[int, int]]:
    """Return for each direction and strength how many of how many harmless validation prompts are now refused."""
    settings = session.config.probe
    n_languages = len(set(session.read("prompts", prompts)["language"].to_pylist()))
    rows = _harmless(session, prompts, "validation", max(3, settings.n_generated_prompts // n_languages))
    if not options or not rows:
        return [(0, 0)] * len(options)
    engine = session.engine(model)
    engine.set_vectors({
        str(i): SteeringVector(d.vector.astype(np.float32), (d.layer,)) for i, (d, _) in enumerate(options)
    })  # fmt: skip
    requests = [
        GenerationRequest(engine.chat.ids(row["text"]), settings.max_new_tokens, steering=Steering(str(i), alpha))
        for i, (_, alpha) in enumerate(options)
        for row in rows
    ]
    with session.progress("steered answers", len(requests)) as done:
        answers = engine.generate(requests, done)
    outcomes = _steered_outcomes(session, rows * len(options), answers)
    found = []
    for i in range(len(options)):
        here = outcomes[i * len(rows) : (i + 1) * len(rows)]
        found.append((here.count("refusal"), len(here) - here.count("unscored")))
    return found


def _steered_outcomes(session: Session, rows: Sequence[Mapping[str, Any]], answers: Sequence[Generation]) -> list[str]:
    """Return refusal, compliance or unscored for each answer; a refusal in broken text counts as compliance."""
    verdicts = session.panel([
        a.exchange(r["language"], r["text"], label=r["label"]) for a, r in zip(answers, rows, strict=True)
    ])  # fmt: skip
    return [
        "unscored" if v.outcome == "unscored" else
        "refusal" if causal.is_coherent_refusal(v.outcome, a.text) else "compliance"
        for v, a in zip(verdicts, answers, strict=True)
    ]  # fmt: skip


def _harmless(session: Session, prompts: Commit, split: str, n: int) -> list[dict[str, Any]]:
    """Return at most n harmless prompts per language of a split."""
    rows = [r for r in session.read("prompts", prompts).to_pylist() if r["label"] == "harmless"]
    return _per_language([r for r in rows if core.split_of(r["family"], session.config.seed) == split], n)


@task(cache_policy=NO_CACHE)
def verify_steering(session: Session, model: ModelConfig, prompts: Commit, directions: Commit) -> Commit:
    """Add the chosen direction in the engine to harmless test prompts, unseen by its choice: how many are refused?"""

    def compute() -> Mapping[str, pa.Table]:
        add = direction_with("add", session, directions)
        name, engine = model_id(model.reference), session.engine(model)
        rows = _harmless(session, prompts, "test", session.config.probe.n_causal_prompts)
        engine.set_vectors({"add": SteeringVector(add.vector.astype(np.float32), (add.layer,))})
        steering = Steering("add", add.alpha or 1.0)
        requests = [
            GenerationRequest(engine.chat.ids(r["text"]), session.config.probe.max_new_tokens, steering=steering)
            for r in rows
        ]
        with session.progress("steered answers", len(requests)) as done:
            answers = engine.generate(requests, done)
        metrics = rate_rows(
            session, name, "steered", "harmless", "induced_refusal_rate", [r["language"] for r in rows],
            _steered_outcomes(session, rows, answers),
        )  # fmt: skip
        return {"evaluations": table("evaluations", metrics)}

    return session.once(
        "steering check",
        [prompts, directions, model, session.config.probe, session.judging, session.correcting, session.config.seed],
        compute,
    )


@task(cache_policy=NO_CACHE)
def measure_boundaries(session: Session, prompts: Commit, responses: Commit, activations: Commit, directions: Commit) -> Commit:
    """Place every prompt on the margin and fit the boundary of each language on the test split."""
    settings = session.config.probe

    def compute() -> Mapping[str, pa.Table]:
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
            "boundaries": table("boundaries", boundaries),
            "margins": table("margins", margins),
            "harm_axes": table("harm_axes", _axis_rows(session.target_id, harm)),
            "evaluations": table(
                "evaluations",
                [
                    *_base_rates(session, data, panel_words(session, responses)),
                    *_band_shares(session, data, measured, reports),
                    *_misalignment_rows(session, splits, harm),
                ],
            ),
        }

    return session.once(
        "boundaries",
        [
            prompts,
            responses,
            activations,
            directions,
            settings,
            session.judging,
            session.correcting,
            session.config.seed,
        ],
        compute,
    )


def margin_scale(session: Session, data: ProbeData, directions: Commit) -> MarginScale:
    """Return the scale of the direction with the role `margin`."""
    shared = direction_with("margin", session, directions)
    return MarginScale.chosen(data, shared, session.target_id, session.config.probe.per_language)


def gauge_of(session: Session, scale: MarginScale, boundaries: Commit) -> Gauge:
    """Return the gauge of a scale and the harm axis that the probe stored."""
    return Gauge(scale, HarmAxis.of(session.read("harm_axes", boundaries, where="chosen").to_pylist()))


def directions_of(session: Session, directions: Commit) -> list[Direction]:
    """Return the directions of a probe."""
    return [
        Direction(
            row["kind"], row["method"], row["layer"], row["position"], np.array(row["vector"], np.float64),
            **{name: row[name] for name in (
                "language", "auc", "alpha", "induce_score", "induce_generated", "n_generated", "bypass_score", "kl",
                "ablate_strength", "agreement", "reason",
            )},
            ablate_layers=None if row["ablate_layers"] is None else tuple(row["ablate_layers"]),
            roles=tuple(row["roles"] or ()),
        )
        for row in session.read("directions", directions).to_pylist()
    ]  # fmt: skip


def direction_with(role: str, session: Session, directions: Commit) -> Direction:
    """Return the chosen direction of a role."""
    for direction in directions_of(session, directions):
        if role in direction.roles:
            return direction
    raise BoundaryError(f"no direction has the role {role!r}; give harmful and harmless prompts and probe again")


def outcomes_of(session: Session, responses: Commit) -> dict[str, str]:
    """Return prompt_id → what the panel says of the answer."""
    return {prompt_id: word["outcome"] for prompt_id, word in panel_words(session, responses).items()}


def panel_words(session: Session, responses: Commit) -> dict[str, Mapping[str, Any]]:
    """Return prompt_id → the panel's row of `verdicts`."""
    words = session.read("verdicts", responses, where=f"judge = '{PANEL}'").to_pylist()
    of_response = {word["subject_id"]: word for word in words}
    return {row["prompt_id"]: of_response[row["response_id"]] for row in session.read("responses", responses).to_pylist()}


def read_probe_data(session: Session, prompts: Commit, responses: Commit, activations: Commit) -> ProbeData:
    """Return the given prompts with outcomes and residual streams, in the order of their ids."""
    rows = sorted(session.read("prompts", prompts).to_pylist(), key=lambda row: row["prompt_id"])
    answered = outcomes_of(session, responses)
    number = {"refusal": 1.0, "partial": 0.0, "compliance": 0.0, "unscored": np.nan}
    streams, layers, positions = _streams(session.read("activations", activations), [row["prompt_id"] for row in rows])
    return ProbeData(
        [row["prompt_id"] for row in rows],
        np.array([row["label"] for row in rows]), np.array([row["language"] for row in rows]),
        np.array([row["family"] for row in rows]), np.array([number[answered[row["prompt_id"]]] for row in rows]),
        streams, layers, positions, session.config.seed,
    )  # fmt: skip


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
    session: Session, prompts: Commit, data: ProbeData, measured: np.ndarray[Any, Any], scale: MarginScale, directions: Commit
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


def _causal_prompts(session: Session, model: ModelConfig, prompts: Commit, data: ProbeData) -> list[CausalPrompts]:
    """Return validation prompts of each language with its prefixes, as tokens."""
    settings, chat = session.config.probe, chat_of(model)
    rows = [
        row for row in sorted(session.read("prompts", prompts).to_pylist(), key=lambda row: row["prompt_id"])
        if core.split_of(row["family"], session.config.seed) == "validation"
    ]  # fmt: skip
    found = []
    for language in sorted({row["language"] for row in rows}):
        tokens = {
            label: [
                chat.ids(row["text"]) for row in rows if row["language"] == language and row["label"] == label
            ][: settings.n_causal_prompts]
            for label in ("harmful", "harmless")
        }  # fmt: skip
        prefixes = core.prefixes_of(language, settings.prefixes)
        if all(tokens.values()):
            found.append(CausalPrompts(
                tokens["harmful"], tokens["harmless"],
                [chat.answer_ids(text) for text in prefixes.refusal],
                [chat.answer_ids(text) for text in prefixes.compliance],
            ))  # fmt: skip
    if not found:
        raise BoundaryError("probe: no language has both harmful and harmless prompts; add the missing label")
    return found


def _streams(rows: pa.Table, prompt_ids: Sequence[str]) -> tuple[np.ndarray[Any, Any], list[int], list[int]]:
    """Return activations as (n, n_layers, n_positions, d_model) in the order of the ids, layers, positions."""
    layer, position = rows["layer"].to_numpy(), rows["position"].to_numpy()
    layers, positions = sorted(set(layer.tolist())), sorted(set(position.tolist()))
    number = {prompt_id: index for index, prompt_id in enumerate(prompt_ids)}
    vectors = rows["vector"].combine_chunks().values.to_numpy().reshape(len(rows), -1)
    streams = np.full((len(prompt_ids), len(layers), len(positions), vectors.shape[1]), np.nan, np.float32)
    index = np.array([number[prompt_id] for prompt_id in rows["prompt_id"].to_pylist()])
    streams[index, np.searchsorted(layers, layer), np.searchsorted(positions, position)] = vectors
    return streams, layers, positions


def _per_language(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return at most n rows a language, those with the smallest ids."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["prompt_id"]):
        here = kept.setdefault(row["language"], [])
        if len(here) < n:
            here.append(row)
    return [row for here in kept.values() for row in here]


def _row(direction: Direction, name: str) -> dict[str, Any]:
    return {
        "direction_id": direction.direction_id(name), "model_id": name, "kind": direction.kind,
        "method": direction.method, "language": direction.language, "layer": direction.layer,
        "position": direction.position, "vector": direction.vector.astype(np.float32).tolist(),
        "auc": direction.auc, "alpha": direction.alpha, "induce_score": direction.induce_score,
        "induce_generated": direction.induce_generated, "n_generated": direction.n_generated,
        "bypass_score": direction.bypass_score, "kl": direction.kl,
        "ablate_layers": None if direction.ablate_layers is None else list(direction.ablate_layers),
        "ablate_strength": direction.ablate_strength, "agreement": direction.agreement,
        "roles": list(direction.roles) or None, "reason": direction.reason,
    }  # fmt: skip
