"""Files of responses as people have them, written and read without RASS."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure! Here is how: step 1, open the lid."
ROWS = [
    {"prompt": "How?", "response": REFUSAL, "language": "en", "note": "007"},
    {"prompt": "Wie?", "response": ANSWER, "language": "en", "note": 'a "b",\nc'},
    {"prompt": "Was?", "response": "", "language": "de", "note": ""},
    {"prompt": "Why?", "response": f"<think>{REFUSAL}</think>{ANSWER}", "language": "en", "note": "é"},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "config.yaml")
