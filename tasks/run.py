"""One run of a flow: its lake, its models, and stages that are computed once.

A stage is keyed by content: its name, its inputs, its settings and the code. What the lake holds
under that key is not computed again, whichever run wrote it. The commit record, not a task result,
vouches for the tables: a cached result would still hit with its Parquet deleted.
"""

import copy
import hashlib
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

import rass_core
from rass_core.config import RassConfig, content_sha256
from rass_core.errors import GateError, JudgeError, LakeError
from rass_core.executor.base import EXECUTORS, Executor, Shard, Worker, cut
from rass_core.generate.operators import operator_of
from rass_core.judges import Exchange, Judged
from rass_core.judges.base import JUDGES
from rass_core.judges.calibration import Calibration
from rass_core.judges.panel import Panel, panel_of
from rass_core.judges.workers import keep_panel
from rass_core.lake.schema import TABLES, rows_table
from rass_core.lake.store import Commit, Lake
from rass_core.models.chat_client import Endpoint, NoAnswer
from rass_core.models.identity import model_id
from rass_core.models.pool import ModelPool
from rass_core.models.self_check import SELF_CHECK, check_engine
from rass_core.models.settings import ENDPOINT_PATIENCE, EndpointConfig, ModelConfig
from rass_core.models.thinking import CUT_OFF
from rass_core.models.vllm_engine import SteeredEngine, longest_request
from rass_core.moderators.base import MODERATORS
from rass_core.moderators.panel import moderator_panel_of
from rass_core.moderators.worker import keep_moderators
from rass_core.text import digest
from rass_core.units import duration
from tasks.inputs import chat_of, check_inputs, check_turns, notes_of, take_inputs
from tasks.keys import PACKAGES, code_digest, own_code, shard_key, stage_key, versions
from tasks.progress import PROGRESS

__all__ = [
    "SHORT_S", "Run", "StageTime", "chat_of", "check_inputs", "code_digest", "own_code", "recorded", "table",
    "versions",
]  # fmt: skip

Rows = Iterable[Mapping[str, Any]]
_WRITING = ("refresh", "generate", "morbench")
"""Flows that let a model write prompts."""
SHORT_S = 2.0
"""A part of a stage that takes no longer gets no line of its own."""


@dataclass(frozen=True)
class StageTime:
    """How long a stage or a model load took, an entry of column `stages` of table `runs`."""

    stage: str
    seconds: float
    """Without the model loads inside, which have entries of their own."""
    cpu_seconds: float
    """Of this process, all its threads: what it would take on a quiet machine with one thread."""
    computed: bool
    """False where the lake held the stage."""


class Run:
    """What every task of a run shares; it lives in the flow's process and is never serialised."""

    def __init__(self, flow: str, config: RassConfig) -> None:
        # First, so that bad input leaves no lake behind.
        notes, self.given = notes_of(config), take_inputs(config)
        if flow in _WRITING:
            check_turns(config)
        self.flow = flow
        self.given_sha256 = config.sha256()
        self.config = config
        self.pool = ModelPool(config.seed, self._longest, self.loading, self._check, self.say)
        self.panel = panel_of(config.judge, self._ask_generator, self.say)
        self.calibration = _calibration_of(config, self.panel)
        self.moderators = moderator_panel_of(config.moderator, self._ask_generator, self.say)
        self.lake = Lake.open(config.lake)
        self.started_at = datetime.now(UTC)
        self.config = dated(config, self.lake, self.started_at.astimezone().date())
        # Workers in this process take the same panels.
        keep_panel(self.pool, self.config.judge, self.generator, self.panel)
        keep_moderators(self.pool, self.config.moderator, self.generator, self.moderators)
        self.executor: Executor = EXECUTORS.find(config.executor.kind).build(config.executor, self.pool)
        self.notes = [*notes, *_date_notes(self.config)]
        self.run_id = f"{self.started_at:%Y%m%dT%H%M%S}-{digest(flow, time.time_ns())[:6]}"
        self.commits: list[Commit] = []
        self.keys: dict[str, None] = {}
        """Keys of the commits of this run, those of shards included, in the order in which they were needed."""
        self.stages: list[StageTime] = []
        self._parts: list[Commit] = []
        self.note: str | None = None
        self._from_lake: str | None = None

    def once(
        self,
        name: str,
        inputs: Sequence[Any],
        compute: Callable[[], Mapping[str, pa.Table | Iterator[pa.RecordBatch]]],
        code: Sequence[str] = PACKAGES,
    ) -> Commit:
        """Return the commit of a stage, computing it where the lake does not hold it.

        Shards that are computed within it by `map` are committed by themselves and belong to it.

        Args:
            name: Of the stage.
            inputs: Commits and settings that determine it, with the code.
            compute: Returns table → rows.
            code: Modules and packages that compute it.
        """
        key = stage_key(name, inputs, code)
        started, cpu_started, n_before = time.monotonic(), time.process_time(), len(self.stages)
        commit = self._whole(key)
        is_computed = commit is None
        if commit is None:
            self._check_may_compute(name)
            outer, self._parts = self._parts, []
            try:
                with PROGRESS.running(name, self._log, ends=False):
                    tables = compute()
                    parts = list(dict.fromkeys(part.key for part in self._parts))
                    held = table("stages", [{"stage": name, "parts": parts}])
                    self.lake.commit(self.run_id, key, {**tables, "stages": held})
            finally:
                self._parts = outer
            commit = self._whole(key)
            assert commit is not None
        taken, cpu = time.monotonic() - started, time.process_time() - cpu_started
        if is_computed:
            n_of = Counter[str]()
            for file in commit.files:
                n_of[file.table] += file.rows
            rows = ", ".join(f"{n:,} {name}" for name, n in n_of.items() if name != "stages")
            self.say(f"{name}: {rows} in {duration(taken)}")
        else:
            self.say(f"{name}: already in the lake")
        # A model that this stage needed first has its own row.
        inside = self.stages[n_before:]
        taken -= sum(other.seconds for other in inside)
        cpu -= sum(other.cpu_seconds for other in inside)
        self.stages.append(StageTime(name, taken, cpu, is_computed))
        self.commits.append(commit)
        return commit

    @staticmethod
    def key(inputs: Sequence[Any]) -> str:
        """Return the digest of inputs with all code."""
        return stage_key("", inputs, PACKAGES)

    def map(self, what: str, worker: Worker, rows: pa.Table, name: str, times: int = 1) -> Commit:
        """Return what a worker makes of rows, as one commit; shards that the lake holds are not worked on again.

        Args:
            what: For the lines of progress: `answering the given prompts`.
            worker: Is built only if a shard is missing.
            rows: What it works on.
            name: Column with the id of each row.
            times: Shards are so many times as long as the configuration says, for quick work.
        """
        size = self.config.executor.rows_per_shard * times
        shards = [Shard(shard_key(worker, part), part) for part in cut(rows, name, size)]
        known = {shard.key: self.lake.committed(shard.key) for shard in shards}
        missing = [shard for shard in shards if known[shard.key] is None]
        if missing:
            self._check_may_compute(what)
            n_missing = sum(shard.rows.num_rows for shard in missing)
            if n_missing < rows.num_rows:
                self.say(f"{what}: {rows.num_rows - n_missing:,} of {rows.num_rows:,} are in the lake already")
            with self.progress(what, n_missing) as done:
                for shard, tables in self.executor.run(worker, missing, done):
                    known[shard.key] = self.lake.commit(self.run_id, shard.key, tables)
        found = [commit for commit in known.values() if commit is not None]
        self._parts += found
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
            self.run_id, key or digest(*(commit.key for commit in commits)), tuple(files.values()), self.lake.path
        )

    def _check_may_compute(self, name: str) -> None:
        if self._from_lake is not None:
            where = f"{self.lake.path}: has no {name} for this configuration"
            raise LakeError(f"{where}; run `{self._from_lake}` first")

    @contextmanager
    def from_lake(self, command: str) -> Iterator[None]:
        """Inside, stages are only read; a missing one names the command that makes it."""
        self._from_lake = command
        try:
            yield
        finally:
            self._from_lake = None

    def read(self, table: str, *commits: Commit, where: str | None = None) -> pa.Table:
        """Return the rows of a table that these commits hold."""
        return self.lake.read(table, commits=commits, columns=TABLES[table].names, where=where)

    def engine(self, model: ModelConfig) -> SteeredEngine:
        """Return the vLLM engine of a model, loaded at its first use and kept for the whole flow."""
        return self.pool.engine(model)

    @property
    def generator(self) -> ModelConfig:
        """Return the model that writes prompts: the target where the configuration names no other."""
        return self.config.generator or self.config.model

    def _longest(self, model: ModelConfig) -> int:
        """Return the tokens of the longest given prompt with the longest answer."""
        settings = self.config
        answers = [settings.probe.max_new_tokens, settings.generate.max_new_tokens]
        answers += [settings.mitigate.max_new_tokens] if settings.mitigate is not None else []
        return longest_request(chat_of(model), self.given.table["text"].to_pylist(), max(answers))

    def _check(self, model: ModelConfig, engine: SteeredEngine) -> None:
        """Compare an engine with transformers, keep what was found, and free a model that nothing else needs."""
        is_needed = model in (self.config.model, self.config.generator, *self.config.models)
        causal_lm = self.causal_lm(model)
        started, cpu_started = time.monotonic(), time.process_time()
        with self.status(f"comparing {model.name} in vLLM and transformers", after_s=SHORT_S):
            found = check_engine(engine, causal_lm, model.dtype)
        taken, cpu = time.monotonic() - started, time.process_time() - cpu_started
        name = model_id(model.reference)
        self.stages.append(StageTime(f"self-check of {model.name}", taken, cpu, True))
        self.say(f"self-check of {name}: {found.line()}")
        key = digest(SELF_CHECK, self.run_id, name, model.model_dump_json())
        self.commits.append(self.lake.commit(self.run_id, key, {"evaluations": table("evaluations", found.rows(name))}))
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

    def aimed_at(self, model: ModelConfig) -> "Run":
        """Return this run with another target; lake, models, judges and commits are shared."""
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"model": model, "generator": None})
        other.__dict__.pop("target_id", None)
        return other

    def release(self, model: ModelConfig) -> None:
        """Free the engine of a model that is not needed any more."""
        self.pool.release(model)

    @cached_property
    def judging(self) -> list[Any]:
        """Return what verdicts depend on, as an input of a stage; names carry the digests of checkpoints."""
        members = [member.model_dump(exclude=ENDPOINT_PATIENCE) for member in self.config.judge.members]
        own = JUDGES.own_code(member.kind for member in self.config.judge.members)
        return [members, sorted(self.panel.members), self._asked(self.config.judge.members), own]

    @cached_property
    def moderating(self) -> list[Any]:
        """Return what the moderators' words depend on, as an input of a stage."""
        moderator = self.config.moderator
        members = [member.model_dump(exclude=ENDPOINT_PATIENCE) for member in moderator.members]
        own = MODERATORS.own_code(member.kind for member in moderator.members)
        return [members, moderator.quorum, sorted(self.moderators.members), self._asked(moderator.members), own]

    @cached_property
    def writing(self) -> Any:
        """Return what written prompts depend on of the section `generate`, as an input of a stage."""
        settings = self.config.generate
        written_by = own_code(*map(operator_of, settings.operators))
        return [settings.model_dump(mode="json", exclude=ENDPOINT_PATIENCE | {"max_failed_share": True}), written_by]

    def _asked(self, members: Sequence[Any]) -> str | None:
        """Return the id of the model that judges or moderators without an endpoint ask, None where there are none."""
        if not any(member.asks_generator for member in members):
            return None
        return model_id((self.config.generator or self.config.model).reference)

    @cached_property
    def correcting(self) -> str | None:
        """Return what corrected rates depend on, as an input of a stage."""
        path = self.config.judge.calibration
        return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def _ask_generator(
        self, prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0, /
    ) -> list[str | NoAnswer]:
        """Ask the generator through its engine, which is loaded only then."""
        return self.pool.asking(self.generator)(prompts, schema, draw)

    @cached_property
    def target_id(self) -> str:
        """Return the id of the target model."""
        return model_id(self.config.model.reference)

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

    def record(self, state: str) -> None:
        """Write the run's row of table `runs`; the newest row of a run_id counts."""
        ended = state != "Running"
        row = {
            "flow": self.flow, "config": self.config.model_dump_json(), "config_sha256": self.given_sha256,
            "code_version": f"{rass_core.__version__}+{code_digest()[:8]}", "seed": self.config.seed,
            "commits": list(self.keys), "started_at": self.started_at,
            "finished_at": datetime.now(UTC) if ended else None, "state": state, "note": self.note,
            "stages": [asdict(stage) for stage in self.stages], "inputs": self._inputs(),
        }  # fmt: skip
        self.lake.commit(self.run_id, digest(self.run_id, state), {"runs": table("runs", [row])})

    def _inputs(self) -> list[str]:
        """Return the ids of the models and data sets that the run reads, with the commits of those on the hub."""
        models = [self.config.model, self.config.generator, *self.config.models]
        ids = [f"model {model_id(model.reference)}" for model in models if model is not None]
        sources = [source for source in self.config.prompts.sources if source.dataset is not None]
        return list(dict.fromkeys([*ids, *(f"dataset {each.dataset}@{each.commit()}" for each in sources)]))

    def close(self) -> None:
        """Free the models, and what the executor holds."""
        self.executor.close()
        self.pool.close()


@contextmanager
def recorded(flow: str, config: RassConfig) -> Iterator[Run]:
    """Open a run, record its start and how it ended, and free its models."""
    run = Run(flow, config)
    run.record("Running")
    warnings = _WarningLines(run)
    logging.getLogger("rass_core").addHandler(warnings)
    for note in run.notes:
        run.say(note)
    try:
        yield run
    except KeyboardInterrupt:
        run.note = "stopped by the user; the next run resumes from here"
        run.record("Cancelled")
        raise
    except GateError as error:
        run.note = " ".join(str(error).split())[:500]
        run.record("Rejected")
        raise
    except BaseException as error:
        run.note = " ".join(traceback.format_exception_only(error)[-1].split())[:500]
        run.record("Failed")
        raise
    else:
        run.record("Completed")
    finally:
        logging.getLogger("rass_core").removeHandler(warnings)
        run.close()


class _WarningLines(logging.Handler):
    """Writes the core's warnings as lines of the run; Prefect's set-up of logging swallows them otherwise."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._run.say(f"note: {record.getMessage()}")


def dated(config: RassConfig, lake: Lake, today: date) -> RassConfig:
    """Return the configuration with the date for each template that asks for one.

    Where it names none, a lake's first run of a model fixes it: what is taken up or gone on with later, by whichever
    command, reads the same prompts.
    """
    open_ones = [
        model for model in _models_of(config) if model.date is None and chat_of(model).template.date is not None
    ]
    if not open_ones:
        return config
    known = _dates_in(lake)

    def filled(model: ModelConfig) -> ModelConfig:
        if model not in open_ones:
            return model
        return model.model_copy(update={"date": known.get(_spoken_to(model.model_dump(mode="json")), today)})

    generator = None if config.generator is None else filled(config.generator)
    models = [filled(model) for model in config.models]
    return config.model_copy(update={"model": filled(config.model), "generator": generator, "models": models})


def _models_of(config: RassConfig) -> list[ModelConfig]:
    return [config.model, *([config.generator] if config.generator else []), *config.models]


def _dates_in(lake: Lake) -> dict[str, date]:
    """Return how a model is spoken to → the date that its first run in the lake took, where none was named."""
    found: dict[str, date] = {}
    for row in lake.query("SELECT config, config_sha256 FROM runs ORDER BY started_at, run_id").to_pylist():
        content = json.loads(row["config"])
        if content_sha256(content) == row["config_sha256"]:  # stored as it was given
            continue
        for model in filter(None, (content.get("model"), content.get("generator"), *content.get("models", []))):
            if model.get("date"):
                found.setdefault(_spoken_to(model), date.fromisoformat(model["date"]))
    return found


def _spoken_to(model: Mapping[str, Any]) -> str:
    return json.dumps([model.get(name) for name in ("name", "system_prompt", "template_kwargs", "response_prefix")])


def _date_notes(config: RassConfig) -> list[str]:
    dates = {model.name: chat_of(model).template.date for model in _models_of(config) if model.date is not None}
    return [f"{name}, date: the template uses {day} as today's date" for name, day in dates.items() if day is not None]


def _calibration_of(config: RassConfig, panel: Panel) -> Calibration | None:
    """Return what is known of the panel's errors, if the configuration names a file.

    Raises:
        JudgeError: No such file, or it was measured on a panel of other judges.
    """
    path = config.judge.calibration
    if path is None:
        return None
    known = Calibration.read(path)
    if known.members != panel.members:
        theirs, ours = ", ".join(sorted(known.members)), ", ".join(sorted(panel.members))
        raise JudgeError(f"{path}: measured a panel of {theirs}, this one is {ours}; calibrate again")
    return known


def table(name: str, rows: Rows) -> pa.Table:
    """Return rows as a table of the lake, as `rows_table`."""
    return rows_table(name, rows)
