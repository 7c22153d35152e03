"""The page: reads the tables, draws the sections, fills the template."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rass_core.errors import LakeError
from rass_core.lake.files import write_whole
from rass_core.lake.schema import TABLES
from rass_core.report.answers import answer_table
from rass_core.report.boundary_map import (
    MAP_BYTES,
    harm_map,
    margin_histogram,
    points_to_draw,
    prompt_map,
    refusal_curve_plot,
)
from rass_core.report.comparison import boundary_table, forest, models_section
from rass_core.report.directions import auc_plots, direction_table
from rass_core.report.evaluations import evaluation_table
from rass_core.report.figures import Plot
from rass_core.report.generation import arm_table, drop_table, offspring_plot, selected_rows, writer_table
from rass_core.report.harm import HarmRows, harm_by_layer, harm_figures, misalignment_table
from rass_core.report.mitigation import mitigation_section
from rass_core.report.moderators import moderators_section
from rass_core.report.points import (
    Offspring,
    Point,
    base_boundaries,
    margin_span,
    of_model,
    offspring_by_language,
    over_refusal_band,
    read_points,
    refusal_rate,
)
from rass_core.report.template import fill_template
from rass_core.report.words import (
    headline,
    kinds_of_misalignment,
    language_name,
    overview,
    show_percent,
    timing,
    why_unidentified,
)
from rass_core.vocabulary import Row

TABLE_ROWS_PER_LANGUAGE = 200
TABLE_ROWS = 1000


READ = (
    "prompts",
    "derivations",
    "directions",
    "margins",
    "harm_axes",
    "verdicts",
    "responses",
    "boundaries",
    "selections",
    "quotas",
    "rounds",
    "writers",
    "evaluations",
    "preferences",
    "variants",
    "gates",
)
UNSHOWN = {
    "directions": ("vector",),
    "harm_axes": ("vector",),
    "responses": ("text", "text_sha256"),
    "rounds": ("distances",),
    "preferences": ("chosen", "rejected"),
}


def write_report(tables: Mapping[str, pa.Table], out: Path, *, title: str, run: Mapping[str, Any], target: str) -> Path:
    """Write the report of one run as one HTML file, atomically, and return its path.

    Args:
        tables: Table name → rows of this run, in the schemas of `rass_core.lake.schema`; one that is
            absent counts as empty. Every text in them is untrusted and escaped.
        out: The file to write; its folder is made.
        title: Heading of the page.
        run: Facts to show in this order, such as run_id, model, config_sha256, versions, seed.
        target: model_id of the model that the page is about; others are only set beside it.

    Raises:
        LakeError: A table lacks a column, or the file cannot be written.
    """
    rows = {name: _rows(name, tables.get(name)) for name in READ}
    page = _page(rows, title, run, target)
    try:
        write_whole(out, page)
    except OSError as error:
        raise LakeError(f"report {out}: {error.strerror or error}; choose a file that can be written") from error
    return out


def columns_shown(name: str) -> list[str]:
    """Return the columns of a table that the page may show: no vectors, no model's answers."""
    return [column for column in TABLES[name].names if column not in UNSHOWN.get(name, ())]


def _rows(name: str, table: pa.Table | None) -> list[Row]:
    """Return a table's rows without its vectors and answers, which no page shows."""
    if table is None or table.num_rows == 0:
        return []
    columns = columns_shown(name)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise LakeError(f"report: table {name} has no column {', '.join(missing)}; see rass_core/lake/schema.py")
    return table.select(columns).to_pylist()  # type: ignore[no-any-return]


def _language_plots(
    points: Sequence[Point], offspring: Sequence[Offspring], boundary: Row | None, map_bytes: int
) -> dict[str, Plot]:
    """Return one language's five plots; each that cannot be drawn says why."""
    nothing = "No prompt of this language was measured in this run."
    is_identified = boundary is not None and boundary["b"] is not None
    unidentified = "" if is_identified else f"The boundary is not identified: {why_unidentified(boundary)}."
    note = "" if is_identified else f"No b is drawn: {why_unidentified(boundary)}."
    placed = [point for point in points if point.orthogonal is not None]
    has_scores = any(point.harm_score is not None for point in placed)
    shown = points_to_draw(placed, map_bytes // 2 if has_scores else map_bytes)  # two maps share the bytes
    on_axis = [point for point in shown if point.harm_score is not None]
    is_sample = len(shown) < len(placed)
    counts = f"{len(shown):,} of {len(placed):,} prompts are drawn, selected ones first." if is_sample else ""
    return {
        "histogram": Plot(margin_histogram(points, boundary) if points else None, nothing, note),
        "curve": Plot(
            refusal_curve_plot(points, boundary) if boundary is not None and is_identified and points else None,
            unidentified or nothing,
        ),
        "map": Plot(
            prompt_map(shown, boundary, margin_span(points, boundary)) if shown else None,
            "No orthogonal component was stored with the margins of this language." if points else nothing,
            counts,
        ),
        "harm_map": Plot(
            harm_map(on_axis, boundary, margin_span(points, boundary)) if on_axis else None,
            "No prompt of this language has a harm score." if points else nothing,
        ),
        "offspring": Plot(
            offspring_plot(offspring, boundary) if offspring else None,
            "No generated prompt of this language was measured in this run.",
            note,
        ),
    }


def _cards(rows: Mapping[str, list[Row]], points: Sequence[Point]) -> list[tuple[str, str, str]]:
    """Return (value, name, note) of the key numbers; rates are of the model as it came, on given prompts."""
    given = [point for point in points if not point.is_generated]
    over = refusal_rate(point for point in given if point.is_benign)
    safe = refusal_rate(point for point in given if point.label == "harmful")
    n_new = len({row["prompt_id"] for row in rows["derivations"]})
    n_languages = len({point.language for point in points})

    def counts(rate: Row) -> str:
        return f"{rate['n_refused']:,} of {rate['n']:,} scored, {rate['n_unscored']:,} without an outcome"

    wide = f"; {show_percent(over['wide'])} with partial refusals" if over["n"] else ""
    return [
        (f"{len(given):,}", "prompts measured", f"{n_languages} language{'s' if n_languages != 1 else ''}"),
        (f"{n_new:,}", "candidates generated", f"{len(points) - len(given):,} of them measured"),
        (f"{len(rows['selections']):,}", "prompts selected", "benign and refused"),
        (show_percent(over["value"]), "over-refusal rate", counts(over) + wide),
        (show_percent(safe["value"]), "safety rate", counts(safe)),
    ]


def fact_texts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the run's facts as text; nested ones as JSON."""
    return [
        (
            name.replace("_", " "),
            ", ".join(f"{key} {value}" for key, value in fact.items())
            if isinstance(fact, Mapping)
            else ", ".join(map(str, fact))
            if isinstance(fact, list | tuple)
            else "–"
            if fact is None
            else str(fact),
        )
        for name, fact in run.items()
    ]


def _languages(points: Sequence[Point], boundaries: Mapping[str, Row]) -> list[str]:
    """Return the languages to show, those with a boundary and many given prompts first."""
    n_given = Counter(point.language for point in points if not point.is_generated)
    codes = {point.language for point in points} | set(boundaries)
    return sorted(
        codes, key=lambda code: (boundaries.get(code, {}).get("b") is None, -n_given[code], code != "en", code)
    )


def _page(rows: Mapping[str, list[Row]], title: str, run: Mapping[str, Any], target: str) -> str:
    """Join the tables, draw the figures and fill the template."""
    models = models_section(rows["boundaries"], rows["evaluations"], target)
    answers = answer_table(rows)
    rows = of_model(rows, target)
    boundaries = base_boundaries(rows["boundaries"])
    points = read_points(rows, boundaries)
    figures = harm_figures(rows["evaluations"])
    languages = _language_sections(rows, points, boundaries, figures)
    return fill_template(
        title=title,
        target=target,
        facts=fact_texts(run),
        cards=_cards(rows, points),
        languages=languages,
        overview=overview([str(language["verdict"]) for language in languages]),
        forest=_forest_plot(boundaries),
        boundary_rows=boundary_table(rows["boundaries"]),
        answers=answers,
        models=models,
        mitigated=mitigation_section(rows),
        harm_by_layer=harm_by_layer(rows["harm_axes"]),
        misalignment=misalignment_table(figures, rows["boundaries"]),
        moderators=moderators_section(rows),
        auc_plots=auc_plots(rows["directions"]),
        direction_rows=direction_table(rows["directions"]),
        arm_rows=arm_table(rows["rounds"]),
        writer_rows=writer_table(rows["writers"]),
        drop_rows=drop_table(rows["rounds"], rows["writers"]),
        shortages=[row for row in rows["quotas"] if (row["n_selected"] or 0) < (row["quota"] or 0)],
        evaluations=evaluation_table(rows["evaluations"]),
    )


def _language_sections(
    rows: Mapping[str, list[Row]], points: Sequence[Point], boundaries: Mapping[str, Row], figures: HarmRows
) -> list[dict[str, Any]]:
    """Return what the page shows of each language."""
    codes = _languages(points, boundaries)
    prompts = {row["prompt_id"]: row for row in rows["prompts"]}
    offspring = offspring_by_language(rows["derivations"], points)
    map_bytes = MAP_BYTES // max(1, len(codes))
    n_table = min(TABLE_ROWS_PER_LANGUAGE, TABLE_ROWS // max(1, len(codes)))
    sections = []
    for code in codes:
        mine = [point for point in points if point.language == code]
        boundary = boundaries.get(code)
        band = over_refusal_band(boundary)
        between = [p for p in mine if band and p.is_benign and not p.is_generated and band[0] < p.margin <= band[1]]
        sections.append(
            {
                "name": language_name(code),
                "headline": headline(code, boundary, refusal_rate(between)),
                "kinds": kinds_of_misalignment(boundary, figures.get(code, {})),
                "verdict": timing(boundary),
                "plots": _language_plots(mine, offspring[code], boundary, map_bytes),
                "selected": selected_rows(rows["selections"], prompts, code, n_table),
            }
        )
    return sections


def _forest_plot(boundaries: Mapping[str, Row]) -> Plot:
    has_any = any(row["b"] is not None or row["b_oracle"] is not None for row in boundaries.values())
    return Plot(
        forest(boundaries) if has_any else None,
        "No language has an identified boundary in this run; the table gives the reasons.",
    )
