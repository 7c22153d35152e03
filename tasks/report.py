"""The report of a run, and what the Prefect UI shows of it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

import rass_core
from rass_core.config import RassConfig, stored_config
from rass_core.errors import LakeError, ModelError
from rass_core.lake.store import Commit, Lake
from rass_core.models.identity import model_id
from rass_core.models.self_check import SELF_CHECK
from rass_core.report import write_report
from rass_core.report.harm import harm_figures
from rass_core.report.mitigation import change_rows_shown, gate_markdown
from rass_core.report.page import READ, columns_shown
from tasks.session import Session

VERSIONS = ("torch", "transformers", "tokenizers", "prefect", "pyarrow", "duckdb")


@task(cache_policy=NO_CACHE)
def report(session: Session) -> Path:
    """Write the report of what this run computed or took from the lake."""
    path = _write(
        session.lake,
        session.commits,
        session.config,
        session.run_id,
        session.flow,
        session.started_at,
        session.target_id,
    )
    session.say(f"report: {path}")
    return path


def rewrite_report(lake: Lake) -> Path:
    """Write the report of the newest run of a lake again that finished, or that the gate stopped.

    Raises:
        LakeError: No run finished there, its configuration is of another version, or a table of it is damaged; the
            report that is there is kept then.
    """
    lake.check_whole("runs")  # else an older run would be reported on
    rows = lake.query(
        "SELECT * FROM runs WHERE state IN ('Completed', 'Rejected') AND flow NOT IN ('review', 'morbench')"
        " ORDER BY started_at DESC, run_id DESC LIMIT 1"
    ).to_pylist()
    if not rows:
        raise LakeError(f"{lake}: no finished run to report on; `rass run CONFIG.yaml` makes one")
    row = rows[0]
    config = stored_config(row, str(lake))
    commits = lake.commits_of(row)
    name = _target_of(lake, commits, config)
    return _write(lake, commits, config, row["run_id"], row["flow"], row["started_at"], name)


def _target_of(lake: Lake, commits: Sequence[Commit], config: RassConfig) -> str:
    """Return the id of a past run's target: as it is now, or where that has changed, the one probed first."""
    known = lake.read("boundaries", commits=commits, columns=["model_id"])["model_id"].to_pylist()
    try:
        now = model_id(config.model.reference)
    except ModelError:
        now = config.model.name
    return now if now in known or not known else str(known[0])


def _write(
    lake: Lake, commits: Sequence[Commit], config: RassConfig, run_id: str, flow: str, started: datetime, model: str
) -> Path:
    """Write `report.html` into the lake from the tables of these commits."""
    facts = {
        "run": run_id, "flow": flow, "model": config.model.name, "model id": model,
        "generator": (config.generator or config.model).name, "seed": config.seed,
        "configuration": config.sha256()[:16], "started": f"{started:%Y-%m-%d %H:%M} UTC",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "rass": rass_core.__version__,
        **{name: version(name) for name in VERSIONS},
    }  # fmt: skip
    facts |= _self_checks(lake, commits)
    tables = {name: lake.read(name, commits=commits, columns=columns_shown(name)) for name in READ}
    return write_report(tables, lake.path / "report.html", title=config.name, run=facts, target=model)


def _self_checks(lake: Lake, commits: Sequence[Commit]) -> dict[str, str]:
    """Return for each model whose engine this run loaded how far vLLM and transformers were apart."""
    columns = ["model_id", "metric", "value"]
    rows = lake.read("evaluations", commits=commits, columns=columns, where=f"dataset = '{SELF_CHECK}'").to_pylist()
    found: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (row["model_id"], row["metric"])):
        name = f"vLLM against transformers, {row['model_id']}"
        found[name] = "; ".join(filter(None, [found.get(name), f"{row['metric']} {row['value']:.2g}"]))
    return found


@task(cache_policy=NO_CACHE)
def show_run(session: Session) -> None:
    """Put a table of the run's facts into the Prefect UI."""
    facts = [
        {"what": "run", "value": session.run_id}, {"what": "model", "value": session.target_id},
        {"what": "lake", "value": str(session.lake)}, {"what": "seed", "value": str(session.config.seed)},
        {"what": "configuration", "value": session.config.sha256()[:16]},
    ]  # fmt: skip
    facts += [
        {
            "what": file.table,
            "value": f"{file.rows} rows, {'this run' if commit.run_id == session.run_id else commit.run_id}",
        }
        for commit in session.commits
        for file in commit.files
    ]
    create_table_artifact(key="rass-run", table=facts, description=f"# {session.config.name}: what this run holds")


@task(cache_policy=NO_CACHE)
def show_boundaries(session: Session, boundaries: Commit) -> None:
    """Put the boundaries into the Prefect UI."""
    shown = ("language", "b", "b_low", "b_high", "b_oracle", "misalignment", "auc", "n", "n_refused", "kind", "reason")
    rows = [
        {name: round(row[name], 3) if isinstance(row[name], float) else row[name] for name in shown}
        for row in session.read("boundaries", boundaries).to_pylist()
    ]
    figures = harm_figures(session.read("evaluations", boundaries).to_pylist())
    for row in rows:
        for line in [_boundary_line(row), *_kind_lines(str(row["kind"] or ""), figures.get(str(row["language"]), {}))]:
            session.say(line)
    create_table_artifact(
        key="rass-boundaries", table=rows, description=f"# Where {session.target_id} begins to refuse, by language"
    )


@task(cache_policy=NO_CACHE)
def show_evaluation(session: Session, commits: Sequence[Commit]) -> None:
    """Put before and after into the Prefect UI, one row per variant and language."""
    rows = [row for row in session.read("evaluations", *commits).to_pylist() if row["model_id"] == session.target_id]
    create_table_artifact(
        key="rass-before-after", table=change_rows_shown(rows),
        description=f"# What mitigation changed in {session.target_id}, before → after, in percent",
    )  # fmt: skip


@task(cache_policy=NO_CACHE)
def show_gate(session: Session, commits: Sequence[Commit]) -> None:
    """Put the gate's verdict on each variant into the Prefect UI."""
    rows = session.read("gates", *commits).to_pylist()
    create_markdown_artifact(
        key="rass-gate", markdown=f"# The gate on {session.target_id}\n\n{gate_markdown(rows)}",
        description="Which variants may be published",
    )  # fmt: skip


@task(cache_policy=NO_CACHE)
def show_report(session: Session, path: Path) -> None:
    """Link the report and a few selected prompts in the Prefect UI."""
    create_link_artifact(
        key="rass-report", link=path.as_uri(), link_text="report.html", description="The report, one file"
    )
    counts = {file.table: file.rows for commit in session.commits for file in commit.files}
    create_markdown_artifact(
        key="rass-summary",
        markdown=f"# {session.config.name}\n\n{counts.get('selections', 0)} prompts selected; report: `{path}`\n",
        description="Summary",
    )


def _boundary_line(row: dict[str, object]) -> str:
    """Say in a line where a language's boundary lies."""
    if row["b"] is None:
        return f"{row['language']}: boundary not identified: {row['reason']}"
    return (
        f"{row['language']}: refuses from margin {row['b']:.2f} [{row['b_low']:.2f}, {row['b_high']:.2f}],"
        f" harm begins at {_number(row['b_oracle'])}, AUC {_number(row['auc'])}"
    )


def _kind_lines(kind: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where over-refused prompts lie and how well harm is separated, and which kind of misalignment that shows."""
    names = ("over_refused_in_band", "over_refused_beyond", "harm_auc_margin", "harm_auc_axis")
    band, beyond, margin, axis = (figures.get(name, {}) for name in names)
    parts = []
    if band.get("value") is not None:
        parts.append(f"{band['n']} over-refused: {band['value']:.0%} in band, {beyond['value']:.0%} beyond")
    if margin.get("value") is not None:
        parts.append(f"harm AUC {margin['value']:.2f}, probe {_number(axis.get('value'))}")
    return ["  " + text for text in ("; ".join(parts), kind) if text]


def _number(value: object) -> str:
    return "unknown" if value is None else f"{value:.2f}"
