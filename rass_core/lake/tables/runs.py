"""Runs of a flow, and the commits that they wrote."""

from datetime import datetime
from typing import Annotated, Required, TypedDict

from rass_core.lake.declaration import Column


class StageRow(TypedDict, total=False):
    """One stage of a run, or one model that it loaded."""

    stage: Required[Annotated[str, Column("Stage, or the model that was loaded.")]]
    seconds: Required[Annotated[float, Column("Time it took, without the models loaded inside it.", "seconds")]]
    cpu_seconds: Required[
        Annotated[float, Column("Time of all threads of this process: how long one thread would take.", "seconds")]
    ]
    computed: Required[Annotated[bool, Column("False where the lake already held the stage.")]]


class Runs(TypedDict, total=False):
    """One run of a flow: its configuration, its commits, and how it ended.

    A run writes a row when it starts and another when it ends. The view shows the newest row of each run.

    Example:
        SELECT run_id, flow, state, finished_at - started_at AS time FROM runs ORDER BY started_at
    """

    flow: Required[Annotated[str, Column("Flow that ran: refresh, probe, generate, select, morbench, review.")]]
    config: Annotated[str | None, Column("Configuration as JSON, defaults filled in; null for a review.")]
    config_sha256: Annotated[str | None, Column("SHA-256 of the configuration as it was given.")]
    code_version: Required[Annotated[str, Column("Version of RASS and the first digits of a digest of its code.")]]
    seed: Annotated[int | None, Column("Seed of the run.")]
    commits: Annotated[
        list[str] | None, Column("Keys of the commits that it wrote or took from the lake; see `commits`.")
    ]
    started_at: Required[Annotated[datetime, Column("When it started, UTC.")]]
    finished_at: Annotated[datetime | None, Column("When it ended, UTC; null while it runs.")]
    state: Required[
        Annotated[
            str,
            Column(
                "Running, Completed, Failed, Cancelled: stopped by Ctrl-C or SIGTERM, Crashed: its process died, or"
                " Rejected: the gate stopped a variant."
            ),
        ]
    ]
    note: Annotated[str | None, Column("Error that ended the run, that nothing changed, or what a review imported.")]
    stages: Annotated[list[StageRow] | None, Column("How long each stage and each load of a model took.")]
    inputs: Annotated[list[str] | None, Column("Models and data sets that it read, each with its version.")]
    host: Annotated[str | None, Column("Machine or container that it ran on.")]
    boot_id: Annotated[str | None, Column("Id of the machine's start, where the system has one.")]
    process_id: Annotated[int | None, Column("Id of its process there.")]


class Stages(TypedDict, total=False):
    """One stage that a commit ends: which shards, commits of their own, belong to it.

    Example:
        SELECT stage, len(parts) AS shards FROM stages ORDER BY shards DESC
    """

    stage: Required[Annotated[str, Column("Stage.")]]
    parts: Required[Annotated[list[str], Column("Keys of the commits of its shards, in order; see `commits`.")]]


class Commits(TypedDict, total=False):
    """One Parquet file of a commit; a commit is what one stage wrote, all of it or nothing.

    Only whole commits are listed: `damaged` names the others.

    Example:
        SELECT table_name, sum(rows) AS rows, sum(bytes) AS bytes FROM commits GROUP BY 1 ORDER BY bytes DESC
    """

    run_id: Required[Annotated[str, Column("Run that wrote it.")]]
    key: Required[Annotated[str, Column("Key of the stage: a digest of all that determines its rows.")]]
    table_name: Required[Annotated[str, Column("Table of the rows.")]]
    path: Required[Annotated[str, Column("Path of the file.")]]
    rows: Required[Annotated[int, Column("Rows in the file.", "rows")]]
    bytes: Required[Annotated[int, Column("Size of the file.", "bytes")]]
    committed_at: Required[Annotated[datetime, Column("When it was committed, UTC.")]]
    sha256: Annotated[str | None, Column("SHA-256 of the file; null in commits of lakes of format 1.")]


class Damaged(TypedDict, total=False):
    """One commit that does not count because a file of it is missing or has another size.

    Example:
        SELECT run_id, key FROM damaged
    """

    run_id: Required[Annotated[str, Column("Run that wrote it.")]]
    key: Required[Annotated[str, Column("Key of the stage.")]]
