"""Prompt files of any kind, written for one test and loaded."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rass_core.data.prompts import LoadedPrompts, load_prompts
from rass_core.data.sources import PromptSource

HEAD = "text,language,label\n"
ALL_EN = {"language": "en", "label": "harmless"}


def load(path: Path, **settings: Any) -> LoadedPrompts:
    return load_prompts([PromptSource(path=str(path), **settings)])


def place(folder: Path, name: str, content: Any) -> Path:
    """Write a file: bytes and text as they are, a table as Parquet, other values as JSON or JSONL."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
        return path
    if not isinstance(content, str | bytes):
        is_lines = ".jsonl" in name or ".ndjson" in name
        content = "".join(json.dumps(row) + "\n" for row in content) if is_lines else json.dumps(content)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def rows(*texts: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"text": text, **ALL_EN, **more} for text in texts]
