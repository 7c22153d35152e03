"""One run of a flow: its lake, its models, and stages that are computed once.

A stage is keyed by content: its name, its inputs, its settings and the code. What the lake holds under that key is not
computed again, whichever run wrote it. Prefect's cache is not used: it would report a hit even if the Parquet files
were deleted. The lake's commit record decides.
"""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property, reduce
from typing import Any, TypeAlias, cast

import pyarrow as pa
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from rass_core.config import RassConfig
from rass_core.errors import LakeError
from rass_core.executor.base import EXECUTORS, Executor, Shard, Worker, cut
from rass_core.judges import Exchange, Judged
from rass_core.judges.calibration import Calibration
from rass_core.judges.panel import panel_of
from rass_core.judges.workers import keep_panel
from rass_core.lake.running import end_dead_runs
from rass_core.lake.schema import TABLES, rows_table
from rass_core.lake.store import Commit, Lake
from rass_core.models.chat import chat_of
from rass_core.models.chat_client import Endpoint, NoAnswer
from rass_core.models.identity import model_id
from rass_core.models.pool import ModelPool
from rass_core.models.self_check import SELF_CHECK, check_engine
from rass_core.models.settings import EndpointConfig, ModelConfig
from rass_core.models.thinking import CUT_OFF
from rass_core.models.vllm_engine import SteeredEngine, longest_request
from rass_core.moderators.panel import moderator_panel_of
from rass_core.moderators.worker import keep_moderators
from rass_core.text import digest
from rass_core.units import duration
from tasks.dates import date_notes, dated
from tasks.derived import DERIVED, read_by
from tasks.inputs import check_turns, notes_of, take_inputs
from tasks.keys import shard_keys, stage_key
from tasks.progress import PROGRESS
from tasks.stage import DeclaredSettings, Stage, StageTables, StageTime

Rows = Iterable[Mapping[str, Any]]
ShardRows: TypeAlias = "pa.Table | Callable[[], Iterable[pa.RecordBatch]]"
_WRITING = ("refresh", "generate", "morbench")
"""Flows that let a model write prompts."""
SHORT_S = 2.0
"""A part of a stage that takes no longer gets no line of its own."""
READ_PER_ANSWERED = 4
"""Shards of reading and judging have so many times more rows: each row is quicker than an answer."""


class Session:
    """What every task of a run shares; it lives in the flow's process and is never serialised."""

    running_key = ""
    """Key of the stage that is being computed."""
    _stage: Stage[Any] | None = None
    _parts: Sequence[Commit] = ()
    """Shards of the stage that is being computed."""

    def __init__(self, flow: str, config: RassConfig) -> None:
        # First, so that bad input leaves no lake behind.
        notes, self.given = notes_of(config), take_inputs(config)
        if flow in _WRITING:
            check_turns(config)
        self.flow = flow
        self.given_sha256 = config.sha256()
        self.whole_config = config
        self.pool = ModelPool(config.seed, self._longest, self.loading, self._check, self.say)
        self.panel = panel_of(config.judge, self._ask_generator, self.say)
        self.calibration = Calibration.of_panel(config.judge.calibration, self.panel.members)
        self.moderators = moderator_panel_of(config.moderator, self._ask_generator, self.say)
        self.lake = Lake.open(config.lake)
        self.started_at = datetime.now(UTC)
        self.whole_config = config = dated(config, self.lake, self.started_at.astimezone().date())
        # Workers in this process take the same panels.
        keep_panel(self.pool, config.judge, self.asked_model, self.panel)
        keep_moderators(self.pool, config.moderator, self.asked_model, self.moderators)
        self.executor: Executor = EXECUTORS.find(config.executor.kind).build(config.executor, self.pool)
        crashed = [*self.lake.crashed, *end_dead_runs(self.lake, of_older_versions=True)]
        self.notes = [*crashed, *notes, *date_notes(config)]
        self.run_id = f"{self.started_at:%Y%m%dT%H%M%S}-{digest(flow, time.time_ns())[:6]}"
        self.commits: list[Commit] = []
        self.keys: dict[str, None] = {}
        """Keys of the commits of this run, those of shards included, in the order in which they were needed."""
        self.stages: list[StageTime] = []
        self.note: str | None = None
        self._from_lake: str | None = None

    def once(
        self, stage: Stage[Any], title: str, inputs: Mapping[str, Any], compute: Callable[[], StageTables]
    ) -> Commit:
        """Return the commit of a stage, computing it where the lake does not hold it.

        Shards that are computed within it by `map` are committed by themselves and belong to it.

        Args:
            stage: Its declaration.
            title: For people.
            inputs: Name → argument; with the declared settings and code they determine its rows.
            compute: Returns table → rows.
        """
        key = self._key(stage, inputs)
        started, cpu_started, n_before = time.monotonic(), time.process_time(), len(self.stages)
        commit = self._whole(key)
        is_computed = commit is None
        if commit is None:
            self._check_may_compute(title)
            with self._inside(stage, key), PROGRESS.running(title, self._log, ends=False):
                tables = compute()
                stage.check_writes(tables, self._parts)
                parts = list(dict.fromkeys(part.key for part in self._parts))
                held = rows_table("stages", [{"stage": title, "parts": parts}])
                self.lake.commit(self.run_id, key, {**tables, "stages": held})
            commit = self._whole(key)
            assert commit is not None
        taken, cpu = time.monotonic() - started, time.process_time() - cpu_started
        if is_computed:
            n_of = Counter[str]()
            for file in commit.files:
                n_of[file.table] += file.rows
            rows = ", ".join(f"{n:,} {name}" for name, n in n_of.items() if name != "stages")
            self.say(f"{title}: {rows} in {duration(taken)}")
        else:
            self.say(f"{title}: already in the lake")
        # A model that this stage needed first has its own row.
        inside = self.stages[n_before:]
        taken -= sum(other.seconds for other in inside)
        cpu -= sum(other.cpu_seconds for other in inside)
        self.stages.append(StageTime(title, taken, cpu, is_computed))
        self.commits.append(commit)
        return commit

    def _key(self, stage: Stage[Any], inputs: Mapping[str, Any]) -> str:
        """Return the key of a stage with these inputs."""
        settings = {name: self.setting(name) for name in stage.settings}
        return stage_key(stage.name, [dict(inputs), settings], stage.counted_code)

    def setting(self, name: str) -> Any:
        """Return a setting as a key counts it: of the configuration by its dotted key, or one of `DERIVED`."""
        if name in DERIVED:
            return DERIVED[name].value(self)
        parts = name.split(".")
        return reduce(lambda whole, part: None if whole is None else getattr(whole, part), parts, self.whole_config)

    @contextmanager
    def _inside(self, stage: Stage[Any], key: str) -> Iterator[None]:
        """Within it, a stage is computed: it collects shards and is held to its declaration."""
        outer = self._parts, self._stage, self.running_key
        self._parts, self._stage, self.running_key = [], stage, key
        try:
            yield
        finally:
            self._parts, self._stage, self.running_key = outer

    @property
    def config(self) -> RassConfig:
        """Return the configuration; within a stage, only the settings that it declares."""
        if self._stage is None:
            return self.whole_config
        return cast(RassConfig, DeclaredSettings(self.whole_config, read_by(self._stage.settings), self._stage.name))

    def map(self, what: str, worker: Worker, rows: ShardRows, name: str, times: int = 1) -> Commit:
        """Return what a worker makes of rows, as one commit; the executor works on the shards that the lake lacks.

        Args:
            what: For the lines of progress: `answering the given prompts`.
            worker: Is built only if a shard is missing.
            rows: What it works on, or a function that returns it in batches.
            name: Column with the id of each row.
            times: Multiplies `executor.rows_per_shard`; above 1 for work that is quick per row.
        """
        if self._stage is not None:
            self._stage.check_shards()
        size = self.whole_config.executor.rows_per_shard * times

        def parts() -> Iterator[pa.Table]:
            return cut(rows() if callable(rows) else rows, name, size)

        key_of, keys, known = shard_keys(worker), list[str](), dict[str, Commit | None]()
        n_all = n_missing = 0
        for part in parts():  # read twice rather than held
            keys.append(key_of(part))
            known[keys[-1]] = self.lake.committed(keys[-1])
            n_all += part.num_rows
            n_missing += part.num_rows if known[keys[-1]] is None else 0
        if n_missing:
            self._check_may_compute(what)
            if n_missing < n_all:
                self.say(f"{what}: {n_all - n_missing:,} of {n_all:,} are in the lake already")
            missing = (Shard(key, part) for key, part in zip(keys, parts(), strict=True) if known[key] is None)
            with self.progress(what, n_missing) as done:
                for shard, tables in self.executor.run(worker, missing, done):
                    known[shard.key] = self.lake.commit(self.run_id, shard.key, tables)
        found = [commit for commit in known.values() if commit is not None]
        self._parts = [*self._parts, *found]
        return self.union(found)

    def _whole(self, key: str) -> Commit | None:
        """Return a stage with its shards, None where the lake lacks one of them."""
        commit = self.lake.committed(key)
        if commit is None:
            return None
        held = self.lake.read("stages", commits=[commit], columns=["parts"]).to_pylist()
        keys = [part for row in held for part in row["parts"]]
        parts = [self.lake.committed(part) for part in keys]
        if None in parts:
            return None
        self.keys |= dict.fromkeys([key, *keys])
        return self.union([commit, *filter(None, parts)], key)

    def union(self, commits: Sequence[Commit], key: str | None = None) -> Commit:
        """Return several commits as one."""
        files = {file.path: file for commit in commits for file in commit.files}
        return Commit(
            self.run_id, key or digest(*(commit.key for commit in commits)), tuple(files.values()), self.lake.files
        )

    def _check_may_compute(self, name: str) -> None:
        if self._from_lake is not None:
            where = f"{self.lake}: has no {name} for this configuration"
            raise LakeError(f"{where}; run `{self._from_lake}` first")

    @contextmanager
    def from_lake(self, command: str) -> Iterator[None]:
        """Inside, stages are only read; a missing one names the command that makes it."""
        self._from_lake = command
        try:
            yield
        finally:
            self._from_lake = None

    def read(
        self, table: str, *commits: Commit, where: str | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return the rows of a table that these commits hold; within a stage, of one that it declares.

        Args:
            table: Of the lake.
            commits: That hold the rows.
            where: Condition in SQL.
            columns: Those that are wanted; None for all.
        """
        if self._stage is not None:
            self._stage.check_read(table)
        return self.lake.read(table, commits=commits, columns=list(columns or TABLES[table].names), where=where)

    def engine(self, model: ModelConfig) -> SteeredEngine:
        """Return the vLLM engine of a model, loaded at its first use and kept for the whole flow."""
        return self.pool.engine(model)

    @property
    def generator(self) -> ModelConfig:
        """Return the model that writes prompts: the target where the configuration names no other."""
        return self.config.generator or self.config.model

    @property
    def asked_model(self) -> ModelConfig:
        """Return the model that judges and moderators without an endpoint ask; `judging` and `moderating` count it."""
        return self.whole_config.generator or self.whole_config.model

    def _longest(self, model: ModelConfig) -> int:
        """Return the tokens of the longest given prompt with the longest answer."""
        settings = self.whole_config
        answers = [settings.probe.max_new_tokens, settings.generate.max_new_tokens]
        answers += [settings.mitigate.max_new_tokens] if settings.mitigate is not None else []
        return longest_request(chat_of(model), self.given.texts(), max(answers))

    def _check(self, model: ModelConfig, engine: SteeredEngine) -> None:
        """Compare an engine with transformers, keep what was found, and free a model that nothing else needs."""
        config = self.whole_config
        is_needed = model in (config.model, config.generator, *config.models)
        causal_lm = self.causal_lm(model)
        started, cpu_started = time.monotonic(), time.process_time()
        with self.status(f"comparing {model.name} in vLLM and transformers", after_s=SHORT_S):
            found = check_engine(engine, causal_lm, model.dtype)
        taken, cpu = time.monotonic() - started, time.process_time() - cpu_started
        name = model_id(model.reference)
        self.stages.append(StageTime(f"self-check of {model.name}", taken, cpu, True))
        self.say(f"self-check of {name}: {found.line()}")
        key = digest(SELF_CHECK, self.run_id, name, model.model_dump_json())
        self.commits.append(
            self.lake.commit(self.run_id, key, {"evaluations": rows_table("evaluations", found.rows(name))})
        )
        self.keys[key] = None
        if not is_needed:
            del causal_lm
            self.pool.release_causal_lm(model)

    def causal_lm(self, model: ModelConfig) -> Any:
        """Return the transformers model, loaded at its first use."""
        return self.pool.causal_lm(model)

    @contextmanager
    def loading(self, model: ModelConfig, where: str) -> Iterator[None]:
        """Show that a model is loaded, and keep the time apart from that of the stage that needs it."""
        what, started, cpu_started = f"loading {model.name} in {where}", time.monotonic(), time.process_time()
        with self.status(what):
            yield
        taken, cpu = time.monotonic() - started, time.process_time() - cpu_started
        self.stages.append(StageTime(what, taken, cpu, True))

    def aimed_at(self, model: ModelConfig) -> "Session":
        """Return this run with another target; lake, models, judges and commits are shared."""
        other = copy.copy(self)
        other.whole_config = self.whole_config.model_copy(update={"model": model, "generator": None})
        other.__dict__.pop("target_id", None)
        return other

    def release(self, model: ModelConfig) -> None:
        """Free the engine of a model that is not needed any more."""
        self.pool.release(model)

    def _ask_generator(
        self, prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0, /
    ) -> list[str | NoAnswer]:
        """Ask the generator through its engine, which is loaded only then."""
        return self.pool.asking(self.asked_model)(prompts, schema, draw)

    @cached_property
    def target_id(self) -> str:
        """Return the id of the target model; it digests the folder, so it is read once."""
        return model_id(self.whole_config.model.reference)

    def unchanged_since(self) -> str | None:
        """Return the last run that computed something of what this one took from the lake; None if this one did."""
        if not self.stages or any(each.computed for each in self.stages):
            return None
        writers = [re.search(r"run_id=([^/]+)", file.path) for commit in self.commits for file in commit.files]
        return max((found[1] for found in writers if found), default=None)

    def reviews(self) -> list[Commit]:
        """Return the commits of people's labels, whichever run they are about.

        Raises:
            LakeError: One of them is damaged: labels that people gave cannot be made again.
        """
        rows = self.lake.query("SELECT run_id, commits FROM runs WHERE flow = 'review' ORDER BY run_id").to_pylist()
        return [commit for row in rows for commit in self.lake.commits_of(row)]

    def say(self, message: str) -> None:
        """Write a line to standard error and to Prefect's log."""
        PROGRESS.say(message, self._log)

    def status(self, what: str, after_s: float = 0.0) -> AbstractContextManager[None]:
        """Show that something runs which has no steps to count; where it takes longer than `after_s`, in lines too."""
        return PROGRESS.running(what, self._log, after_s=after_s)

    def judge(self, exchanges: Sequence[Exchange]) -> Judged:
        """Return what the panel says of responses, showing that it runs."""
        with self.status(f"judging {len(exchanges):,} responses", after_s=SHORT_S):
            judged = self.panel.judge(exchanges)
        n_cut_off = sum(verdict.reason == CUT_OFF for verdict in judged.final)
        if n_cut_off:
            self.say(f"{n_cut_off:,} of {len(exchanges):,} responses are {CUT_OFF} and stay unscored")
        return judged

    def endpoint(self, config: EndpointConfig) -> Endpoint:
        """Return an endpoint that writes prompts, kept for the whole flow with what is known of it."""
        return self.pool.endpoint(config)

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        """Show how far something is; call what is yielded with the number done so far, and a total where it changes."""
        return PROGRESS.counting(what, total, self._log)

    def _log(self, message: str) -> None:
        with suppress(MissingContextError):  # in a thread that Prefect does not know
            get_run_logger().info("%s", message)

    def close(self) -> None:
        """Free the models, and what the executor holds."""
        self.executor.close()
        self.pool.close()
