"""A benchmark as a folder: rows, statistics, card, version."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.benchmark.card import (
    CARD_FILE,
    COLUMN_TEXTS,
    ROWS_FILE,
    STATISTICS_FILE,
    VERSION_FILE,
    card_text,
    statistics_of,
)
from rass_core.benchmark.types import Benchmark
from rass_core.errors import PromptError, SelectionError
from rass_core.lake.files import folder_beside, sync
from rass_core.paths import check_writable, user_path
from rass_core.text import digest

_SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMN_TEXTS.items()])


def benchmark_rows(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Return the rows of the Parquet file, two a pair, in its order."""
    return [
        {
            "prompt_id": each.prompt_id, "pair_id": item.pair_id, "text": each.text, "language": each.language,
            "label": each.label, "category": each.category, "family": each.family, "source": each.source,
            "licence": each.licence, "model_id": item.model_id, "stratum": item.stratum, "near": list(item.near),
            "change": item.change,
            "positions": [
                {"model_id": model, "margin": float(each.margins[model]), "distance": float(each.distances[model])}
                for model in sorted(each.margins)
            ],
        }
        for item in benchmark.items
        for each in (item.benign, item.contrast)
    ]  # fmt: skip


def save_benchmark(folder: Path, benchmark: Benchmark, name: str = "MORBench", notes: Sequence[str] = ()) -> str:
    """Write the dataset folder, all of it or nothing, and return its version.

    Args:
        folder: To be made; where this very version lies there already, it is left as it is.
        name: Heading of the card.
        notes: Sentences on what should be known before use.

    Raises:
        SelectionError: A benchmark without a pair.
        PromptError: The folder holds something else.
    """
    if not benchmark.items:
        reasons = [f"{cell.language}/{cell.category}: {cell.reason}" for cell in benchmark.cells]
        raise SelectionError(f"{folder}: the benchmark is empty ({reasons[0] if reasons else 'no cell'}); widen it")
    try:
        with folder_beside(folder) as staging:
            version = _write_files(staging, benchmark, name, notes)
            if folder.exists() and any(folder.iterdir()):
                _check_same(folder, staging)
            else:
                os.rename(staging, folder)
    except OSError as error:
        raise PromptError(f"{folder}: cannot be written ({error.strerror}); fix it or choose another folder") from error
    return version


def check_free(folder: Path) -> None:
    """Check before hours of work whether a benchmark may be written to a folder.

    Raises:
        PromptError: It is a file, or holds anything but a benchmark.
    """
    folder = user_path(folder, PromptError, "--out")
    if folder.exists() and not folder.is_dir():
        raise PromptError(f"{folder}: a file; name a folder for the benchmark with --out")
    check_writable(folder, PromptError)
    if folder.is_dir() and any(folder.iterdir()):
        read_benchmark(folder)


def read_benchmark(folder: Path) -> tuple[pa.Table, str]:
    """Return the rows of a benchmark and its version, after checking every file against it.

    Raises:
        PromptError: No benchmark there, or a file was changed, added to data/ or removed.
    """
    try:
        first, *lines = (folder / VERSION_FILE).read_text(encoding="utf-8").splitlines()
        known = {file: checksum for checksum, file in (line.split("  ", 1) for line in lines)}
        there = {path.relative_to(folder).as_posix() for path in (folder / "data").rglob("*") if path.is_file()}
    except (OSError, ValueError) as error:
        raise PromptError(
            f"{folder}: not a benchmark, its file VERSION cannot be read; `rass morbench` builds one"
        ) from error
    for file in sorted({ROWS_FILE, CARD_FILE, STATISTICS_FILE} | there | set(known)):
        path = folder / file
        if not path.is_file() or _sha256(path) != known.get(file):
            raise PromptError(f"{path}: not as it was when the benchmark was frozen; fetch or build it again")
    if first != _version(known):
        raise PromptError(f"{folder / VERSION_FILE}: does not name these files; fetch or build the benchmark again")
    return pq.read_table(folder / ROWS_FILE), first


def _write_files(folder: Path, benchmark: Benchmark, name: str, notes: Sequence[str]) -> str:
    (folder / "data").mkdir(parents=True)
    rows = benchmark_rows(benchmark)
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / ROWS_FILE, compression="zstd")
    figures = statistics_of(benchmark)
    text = json.dumps(figures, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    (folder / STATISTICS_FILE).write_text(f"{text}\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card_text(rows, figures, name, notes), encoding="utf-8")
    checksums = {file: _sha256(folder / file) for file in sorted((ROWS_FILE, CARD_FILE, STATISTICS_FILE))}
    version = _version(checksums)
    lines = [version, *(f"{checksum}  {file}" for file, checksum in checksums.items())]
    (folder / VERSION_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in (*(folder / file for file in (*checksums, VERSION_FILE)), folder / "data", folder):
        sync(path)
    return version


def _version(checksums: Mapping[str, str]) -> str:
    return digest("morbench", *(f"{checksums[file]} {file}" for file in sorted(checksums)))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_same(folder: Path, staging: Path) -> None:
    """Raise PromptError unless both hold the same version, unchanged."""
    _, there = read_benchmark(folder)
    _, here = read_benchmark(staging)
    if there != here:
        raise PromptError(f"{folder}: holds version {there}, this is {here}; a version stays: choose another folder")
