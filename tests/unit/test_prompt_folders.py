"""Folders of prompt files: which files are read, and what their names say."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rass_core.errors import PromptError
from tests.prompt_files import ALL_EN, load, place, rows


def test_folders_named_key_value_are_columns(tmp_path: Path) -> None:
    for language, label, text in (("de", "harmless", "a"), ("pt%2DBR", "harmful", "b")):
        place(tmp_path, f"language={language}/label={label}/part-0.parquet", pa.table({"text": [text]}))
    expected = [("a", "de", "harmless"), ("b", "pt-BR", "harmful")]
    for path in (tmp_path, tmp_path / "*" / "*" / "*.parquet"):
        table = load(path).table
        assert list(zip(*(table[name].to_pylist() for name in ("text", "language", "label")), strict=True)) == expected
    assert load(tmp_path / "language=de" / "label=harmless" / "part-0.parquet").table["language"].to_pylist() == ["de"]
    assert load(tmp_path, where={"label": "harmful"}).table["text"].to_pylist() == ["b"]


def test_a_column_of_the_file_has_precedence_over_its_folder(tmp_path: Path) -> None:
    place(tmp_path, "language=de/a.jsonl", rows("a", language="fr"))
    assert load(tmp_path).table["language"].to_pylist() == ["fr"]
    place(tmp_path, "language=__HIVE_DEFAULT_PARTITION__/b.csv", "text,label\nb,harmless\n")
    with pytest.raises(PromptError, match=r"b\.csv line 2: no language"):
        load(tmp_path)


def test_a_folder_gives_all_its_kinds_and_no_temporary_files(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.jsonl", "c.json", "d.tsv", "sub/e.parquet"):
        kind = name.partition(".")[2]
        stem = Path(name).name[0]
        content: Any = {"csv.gz": f"text\n{stem}\n", "tsv": f"text\n{stem}\n"}.get(kind) or [{"text": stem}]
        place(tmp_path, name, pa.table({"text": [stem]}) if kind == "parquet" else content)
    for junk in (".a.csv", "_b.csv", "~$c.csv", "d.csv~", "e.csv.tmp", "#f.csv#", ".git/g.csv", "README.md", "_SUCCESS",
                 "dataset_info.json", "h.csv.crdownload"):  # fmt: skip
        place(tmp_path, junk, "not prompts")
    place(tmp_path, "statistics.json", [{"n": 1}])
    place(tmp_path, "card.json", {"licence": "CC0-1.0"})
    loaded = load(tmp_path, **ALL_EN)
    assert loaded.table["text"].to_pylist() == loaded.table["source"].to_pylist() == ["a", "b", "c", "d", "e"]


def test_json_alone_or_broken_is_not_passed_over(tmp_path: Path) -> None:
    place(tmp_path, "a.json", [{"n": 1}])
    with pytest.raises(PromptError, match=r"a\.json: no column 'text' among n"):
        load(tmp_path, **ALL_EN)
    place(tmp_path, "b.csv", "text\na\n")
    place(tmp_path, "c.json", '[{"text": "b"}')
    with pytest.raises(PromptError, match=r"c\.json: not JSON"):
        load(tmp_path, **ALL_EN)


@pytest.mark.parametrize("name", ["b.jsonl.zst", "b.zip", "b.xlsx", "b.arrow", "b.parquet.gz"])
def test_a_folder_is_not_read_in_part(tmp_path: Path, name: str) -> None:
    place(tmp_path, "a.jsonl", rows("a"))
    place(tmp_path, name, b"x")
    with pytest.raises(PromptError, match=rf"{name}: cannot be read, .*unpack or convert") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match=r"not one of \.parquet, \.csv, \.jsonl"):
        load(tmp_path / name)
