"""Files of responses: as `readers` knows them, read and written a batch at a time, whole or not at all.

Parquet keeps its types, CSV its text and JSONL its objects as they are; values are converted only from
one kind of file to another.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.data.cells import class_name
from rass_core.data.readers import Batch
from rass_core.errors import JudgeError
from rass_core.judges.calibration import Labelled
from rass_core.judges.panel import Panel
from rass_core.judges.responses_file import Layout, ResponsesFile, check_columns
from rass_core.lake import files
from rass_core.models.failures import Failures
from rass_core.models.retrying import Say, ignored
from rass_core.models.thinking import split_thinking
from rass_core.vocabulary import SCORED, Exchange

WRITTEN_KINDS = (".parquet", ".csv", ".jsonl")
BYTES_PER_GROUP = 32 << 20

_ADDED = ("outcome", "score", "reason", "disagreement", "outcome_kind", "thinking_outcome")


def written_kind(path: Path) -> str:
    """Return the kind of a file to be written by its ending.

    Raises:
        JudgeError: None that is written.
    """
    kind = path.suffix.lower()
    if kind not in WRITTEN_KINDS:
        raise JudgeError(f"{path}: not one of {', '.join(WRITTEN_KINDS)}; name such a file")
    return kind


def score_file(
    source: ResponsesFile,
    out: Path,
    panel: Panel,
    layout: Layout,
    report: Callable[[int, int], object] = lambda done, total: None,
    say: Say = ignored,
) -> Counter[tuple[str, str]]:
    """Write a file of responses with what the panel says of each beside them.

    New columns: outcome, score, reason, disagreement (share of the voting weight against the outcome), outcome_kind,
    thinking_outcome (the chain of thought, judged apart; null where there is none) and, for each judge,
    vote_NAME with its outcome.

    Args:
        source: The responses.
        out: File to write; what stood there is replaced once all is judged.
        panel: The judges.
        layout: Columns of the responses.
        report: Called with the number of rows done so far, and of all.
        say: Gets a line for each judge that gave no verdict on some.

    Returns:
        (language, outcome) → number of responses.

    Raises:
        JudgeError: A language that no judge covers, a judge that fails too often, a column that is there
            already, a file that cannot be read or written, or one without rows. Nothing is written then.
    """
    if out.expanduser().resolve() == source.path.resolve():
        raise JudgeError(f"{out}: is the input; name another file with --out")
    _check_new(source.path, source.columns(), [*_ADDED, *map(_vote_column, sorted(panel.members))])
    n_rows = _check_languages(source, panel, layout)
    counts: Counter[tuple[str, str]] = Counter()
    failures = panel.failures(n_rows)
    with whole_file(out) as temporary, _writing(temporary, written_kind(out), source) as write:
        for batch in source.batches():
            exchanges = layout.exchanges(batch)
            added = judged_columns(panel, exchanges, failures)
            write(batch, added)
            counts.update(zip((each.language for each in exchanges), added["outcome"].to_pylist(), strict=True))
            report(counts.total(), n_rows)
    for line in failures.lines("responses"):
        say(line)
    return counts


def _check_languages(source: ResponsesFile, panel: Panel, layout: Layout) -> int:
    """Read the languages, before anything is judged, and return the number of rows.

    Raises:
        JudgeError: No rows, one without a language, or a language that no judge covers.
    """
    column = layout.language_column or layout.response
    n, places = 0, dict[str, str]()
    for batch in source.batches([column]):
        for language, number in zip(layout.languages(batch), batch.numbers, strict=True):
            places.setdefault(language, f"{batch.place} {number}")
        n += len(batch.numbers)
    if n == 0:
        raise JudgeError(f"{source.path}: no responses in it; name a file that has some")
    panel.check_covers(places)
    return n


def judged_columns(panel: Panel, exchanges: Sequence[Exchange], failures: Failures) -> dict[str, pa.Array]:
    """Return the columns that judging adds."""
    thoughts = {i: thinking for i, each in enumerate(exchanges) if (thinking := split_thinking(each.response)[0])}
    asides = [replace(exchanges[i], response=thinking) for i, thinking in thoughts.items()]
    judged = panel.judge(exchanges, failures)
    of_thinking = dict(zip(thoughts, (verdict.outcome for verdict in panel(asides)), strict=True)) if asides else {}
    final = judged.final
    columns = (
        pa.array([verdict.outcome for verdict in final], pa.string()),
        pa.array([verdict.score for verdict in final], pa.float64()),
        pa.array([verdict.reason for verdict in final], pa.string()),
        pa.array([verdict.disagreement for verdict in final], pa.float64()),
        pa.array([verdict.kind for verdict in final], pa.string()),
        pa.array([of_thinking.get(i) for i in range(len(exchanges))], pa.string()),
    )
    votes = {
        _vote_column(judge): pa.array([verdict.outcome for verdict in given], pa.string())
        for judge, given in judged.votes.items()
    }
    return dict(zip(_ADDED, columns, strict=True)) | votes


def read_labelled(
    source: ResponsesFile, layout: Layout, label: str = "label", model: str | None = None, group: str | None = None
) -> tuple[Labelled, list[Exchange], int]:
    """Return the labelled responses of a file, and how many rows are left out because their label is empty.

    Args:
        source: The responses.
        layout: Their columns.
        label: Column with refusal, partial or compliance.
        model: Column with who answered; None takes `model` where it is there.
        group: Column that names the prompt, if one does; if it is empty, the response is a draw of its own.

    Raises:
        JudgeError: A column that is not there, an unknown label, no labels at all, or an unreadable file.
    """
    there = source.columns()
    check_columns(source.path, there, {"--label-column": label, "--model-column": model, "--group-column": group})
    model = model or ("model" if "model" in there else None)
    names = [name for name in (label, model, group) if name is not None]
    exchanges: list[Exchange] = []
    cells: dict[str, list[str]] = {name: [] for name in names}
    n, classes = 0, source.class_names().get(label)
    for batch in source.batches(list(dict.fromkeys([*layout.columns(), *names]))):
        columns = {name: [None if value is None else str(value) for value in batch.values(name)] for name in names}
        given = [class_name(value, classes) for value in batch.values(label)]
        columns[label] = [None if value is None else str(value).strip().casefold() for value in given]
        kept = [i for i, said in enumerate(columns[label]) if said]
        for i in kept:
            if columns[label][i] not in SCORED:
                said = f"label {columns[label][i]!r} is not one of {', '.join(SCORED)}"
                raise JudgeError(f"{batch.place} {batch.numbers[i]}: {said}; fix it or name the --label-column")
        read = layout.exchanges(batch)
        exchanges += [read[i] for i in kept]
        for name, column in columns.items():
            cells[name] += [column[i] or (f"row {n + i + 1}" if name == group else "unknown") for i in kept]
        n += len(batch.numbers)
    if not exchanges:
        raise JudgeError(f"{source.path}: no labelled responses in it; fill in {label!r}")
    models, groups = (None if name is None else cells[name] for name in (model, group))
    return Labelled(cells[label], [each.language for each in exchanges], models, groups), exchanges, n - len(exchanges)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Yield a path beside `out` to write to; it takes the place of `out` where nothing is raised.

    Raises:
        JudgeError: It cannot be written.
    """
    out = out.expanduser()
    try:
        with files.whole_file(out) as temporary:
            yield temporary
    except OSError as error:
        raise JudgeError(f"{out}: cannot be written ({error.strerror or error}); choose another file") from error


Write = Callable[[Batch, Mapping[str, pa.Array]], None]


def _check_new(path: Path, there: Sequence[str], added: Iterable[str]) -> None:
    clashing = [name for name in added if name in there]
    if clashing:
        raise JudgeError(f"{path}: has a column {clashing[0]!r} already; rename it there")


def _vote_column(judge: str) -> str:
    return f"vote_{judge}"


def _writing(path: Path, kind: str, source: ResponsesFile) -> AbstractContextManager[Write]:
    """Return what, entered, writes a batch of the source with new columns beside it."""
    return _parquet_writing(path, source) if kind == ".parquet" else _text_writing(path, kind, source.columns())


@contextmanager
def _parquet_writing(path: Path, source: ResponsesFile) -> Iterator[Write]:
    schema = source.schema()
    pending: list[pa.RecordBatch] = []
    writers: list[pq.ParquetWriter] = []

    def flush() -> None:
        if pending and not writers:
            writers.append(pq.ParquetWriter(path, pending[0].schema, compression="zstd"))
        if pending:
            writers[0].write_table(pa.Table.from_batches(pending))
        pending.clear()

    def write(batch: Batch, added: Mapping[str, pa.Array]) -> None:
        given = batch.rows
        rows = given if isinstance(given, pa.RecordBatch) else pa.RecordBatch.from_pylist(given, schema=schema)
        for name, column in added.items():
            rows = rows.append_column(name, column)
        pending.append(rows)
        if sum(each.nbytes for each in pending) >= BYTES_PER_GROUP:
            flush()

    try:
        yield write
        flush()
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def _text_writing(path: Path, kind: str, there: Sequence[str]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")

        def write(batch: Batch, added: Mapping[str, pa.Array]) -> None:
            rows = batch.rows.to_pylist() if isinstance(batch.rows, pa.RecordBatch) else batch.rows
            new = zip(*(column.to_pylist() for column in added.values()), strict=True)
            if kind == ".csv" and file.tell() == 0:
                table.writerow([*there, *added])
            for row, cells in zip(rows, new, strict=True):
                if kind == ".csv":
                    table.writerow([*(_cell(row.get(name)) for name in there), *map(_cell, cells)])
                else:
                    file.write(_json({**row, **dict(zip(added, cells, strict=True))}) + "\n")

        yield write


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, dict | list) else value


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        return json.dumps(value, default=str)
    return text
