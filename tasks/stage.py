"""A stage of a flow is a function with its declaration: what it reads and writes, and what its rows depend on.

```python
@stage("first tokens", reads=["responses"], writes=["verdicts"], settings=["model"], code=[MODEL_CODE])
def compare_first_token(session, responses):
    ...  # its docstring says what it does
    return {"verdicts": rows}
```

Calling it returns the commit with its rows. They are computed only where the lake does not hold them: the stage's key
counts its arguments, the settings that it declares, and the code of its module with all that this imports. The
declaration also gives the Prefect task, the line of progress and, with the first sentence of the docstring, the row of
`docs/stages.md`. It is checked while the stage runs: reading another setting or, by `session.read`, another table, or
writing another table, is an error.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from pydantic import BaseModel

from rass_core.lake.store import Commit

if TYPE_CHECKING:
    from tasks.session import Session

StageTables = Mapping[str, pa.Table | Iterator[pa.RecordBatch]]
"""Table of the lake → rows."""
Inputs = ParamSpec("Inputs")
MODEL_CODE = "rass_core.models.pool"
"""Code of a stage that uses models itself, by `session.engine` or `session.causal_lm`."""
FREE_SETTINGS = ("name", "lake", "executor")
"""Settings that change no row: any stage may read them."""


@dataclass(frozen=True)
class Stage(Generic[Inputs]):
    """A declared stage; call it with a session and its inputs."""

    compute: Callable[Concatenate["Session", Inputs], StageTables]
    """Returns the rows, beside those that it commits in shards by `session.map`."""
    title: str
    """For people; names inputs in braces: `evaluation of {variant.name}`."""
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: tuple[str, ...]
    """Dotted keys of the configuration, and names of `tasks.derived.DERIVED`."""
    code: tuple[str, ...]
    in_shards: bool = False
    """Whether its rows are computed by workers in shards, by `session.map`, which an executor may spread."""

    @property
    def name(self) -> str:
        """Return its name: that of the function."""
        return self.compute.__name__

    @property
    def counted_code(self) -> tuple[str, ...]:
        """Return the modules that its key counts, with all that they import."""
        return (self.compute.__module__, *self.code)

    def __call__(self, session: "Session", *args: Inputs.args, **kwargs: Inputs.kwargs) -> Commit:
        """Return the commit with its rows, computed where the lake does not hold them."""
        bound = inspect.signature(self.compute).bind(session, *args, **kwargs)
        bound.apply_defaults()
        inputs = {name: value for name, value in bound.arguments.items() if value is not session}
        title = self.title.format_map(inputs)

        def compute() -> Commit:
            return session.once(self, title, inputs, lambda: self.compute(session, *args, **kwargs))

        if FlowRunContext.get() is None:  # in a script a task would start a Prefect server
            return compute()
        return task(name=self.name, task_run_name=title, cache_policy=NO_CACHE)(_called)(compute)

    def check_read(self, table: str) -> None:
        """Raise RuntimeError where the stage reads a table that is in neither reads nor writes."""
        if table not in (*self.reads, *self.writes):
            raise RuntimeError(f"stage {self.name}: reads the table {table}; add it to the stage's reads")

    def check_shards(self) -> None:
        """Raise RuntimeError where the stage does not declare that it works in shards."""
        if not self.in_shards:
            raise RuntimeError(f"stage {self.name}: works in shards; declare in_shards=True")

    def check_writes(self, tables: Collection[str], parts: Sequence[Commit]) -> None:
        """Raise RuntimeError where the stage writes a table that it does not declare, itself or in shards."""
        written = {*tables, *(file.table for part in parts for file in part.files)}
        for table in sorted(written - {*self.writes}):
            raise RuntimeError(f"stage {self.name}: writes the table {table}; add it to the stage's writes")


STAGES: dict[str, Stage[Any]] = {}
"""Every stage by its name, in the order in which they are declared."""


def stage(
    title: str, *, reads: Collection[str] = (), writes: Collection[str], settings: Collection[str] = (),
    code: Collection[str] = (), in_shards: bool = False,
) -> Callable[[Callable[Concatenate["Session", Inputs], StageTables]], Stage[Inputs]]:  # fmt: skip
    """Declare a stage.

    Args:
        title: For people, such as `responses`; names inputs in braces.
        reads: Tables of the lake.
        writes: Tables of the lake.
        settings: Dotted keys of the configuration, such as `probe.layers`, and names of `tasks.derived.DERIVED`.
        code: Modules and packages that its rows depend on and that its own module does not import: `MODEL_CODE` if
            it calls `session.engine` or `session.causal_lm`.
        in_shards: Whether it calls `session.map`.
    """

    def declare(compute: Callable[Concatenate["Session", Inputs], StageTables]) -> Stage[Inputs]:
        declared = Stage(compute, title, tuple(reads), tuple(writes), tuple(settings), tuple(code), in_shards)
        STAGES[declared.name] = declared
        return declared

    return declare


def _called(compute: Callable[[], Commit]) -> Commit:
    """Call what computes a stage: the function of the Prefect task, whose one argument needs no serialising."""
    return compute()


class DeclaredSettings:
    """A configuration, or a section of it, of which a stage can read what it declares."""

    def __init__(self, whole: BaseModel, names: Collection[str], stage: str) -> None:
        self._whole, self._names, self._stage = whole, names, stage

    def __getattr__(self, name: str) -> Any:
        """Return a declared setting."""
        inner = {rest for first, _, rest in (each.partition(".") for each in self._names) if first == name}
        if not inner:
            raise RuntimeError(f"stage {self._stage}: reads the setting {name}; add it to the stage's settings")
        value = getattr(self._whole, name)
        return value if "" in inner or not isinstance(value, BaseModel) else DeclaredSettings(value, inner, self._stage)


@dataclass(frozen=True)
class StageTime:
    """How long a stage or a model load took, an entry of column `stages` of table `runs`."""

    stage: str
    seconds: float
    """Excludes model loads, each of which has its own entry."""
    cpu_seconds: float
    """CPU time of this process, all its threads: the time on a quiet machine with one thread."""
    computed: bool
    """False where the lake held the stage."""
