"""Given prompts: what is kept, what is dropped and counted, and what is an error with its place."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rass_core.data.prompts import LoadedPrompts, load_prompts
from rass_core.data.sources import PromptSource
from rass_core.errors import PromptError
from rass_core.lake.schema import TABLES
from rass_core.text import prompt_id

NOTHING = {"empty": 0, "null": 0, "duplicate": 0}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    return path


def load(path: Path, **settings: Any) -> LoadedPrompts:
    return load_prompts([PromptSource(path=str(path), **settings)])


def texts(loaded: LoadedPrompts) -> list[str]:
    return list(loaded.table["text"].to_pylist())


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"text": 'How, "ex\nactly"?', "language": "en", "label": "pseudo_harmful", "category": "it"},
        {"text": "  Wie spa\u0308t ist es? ", "language": "de", "label": "harmless", "category": ""},
    ]
    loaded = load(write(tmp_path / f"given{suffix}", rows), licence="CC0-1.0")
    assert loaded.dropped == NOTHING
    assert loaded.table.schema == TABLES["prompts"]
    first, second = loaded.table.to_pylist()
    identity = prompt_id("en", rows[0]["text"])
    assert first == {
        "prompt_id": identity, "text": rows[0]["text"], "language": "en", "label": "pseudo_harmful",
        "category": "it", "source": "given", "licence": "CC0-1.0", "family": identity,
    }  # fmt: skip
    assert (second["text"], second["category"]) == ("Wie sp\u00e4t ist es?", None)


def test_columns_constants_and_families(tmp_path: Path) -> None:
    rows = [
        {"goal": "a", "lang": "x", "theme": "t", "seed": 7},
        {"goal": "b", "lang": "x", "theme": "t", "seed": None},
    ]
    path = write(tmp_path / "given.jsonl", rows)
    settings = {"text_column": "goal", "language": "zh-Hans", "label": "harmful", "category_column": "theme"}
    first, second = load(path, **settings, source="bench", family_column="seed").table.to_pylist()
    assert (first["language"], first["label"], first["category"]) == ("zh-Hans", "harmful", "t")
    assert (first["source"], first["family"]) == ("bench", "bench/7")
    assert second["family"] == second["prompt_id"]


def test_empty_null_and_duplicate_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    given_texts = ["A b", None, "", " \n", "a  B ", "A b", "c"]
    rows = [{"text": text, "language": "en", "label": "harmless"} for text in given_texts]
    loaded = load(write(tmp_path / "given.parquet", rows))
    assert texts(loaded) == ["A b", "c"]
    assert loaded.dropped == {"empty": 2, "null": 1, "duplicate": 2}
    again = write(tmp_path / "again.csv", [{"text": "C", "language": "en", "label": "harmless"}])
    both = load_prompts([PromptSource(path=str(tmp_path / "given.parquet")), PromptSource(path=str(again))])
    assert texts(both) == ["A b", "c"]
    assert both.dropped == {"empty": 2, "null": 1, "duplicate": 3}


def test_the_same_text_in_two_languages_is_two_prompts(tmp_path: Path) -> None:
    rows = [{"text": "Hallo", "language": tag, "label": "harmless"} for tag in ("de", "nl")]
    assert load(write(tmp_path / "given.csv", rows)).table.num_rows == 2


def test_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "_hidden.csv", "inner/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"text": name, "language": "en", "label": "harmless"}])
    (tmp_path / "README.md").write_text("not prompts")
    folder = load(tmp_path)
    assert texts(folder) == ["a.csv", "b.jsonl", "inner/c.parquet"]
    assert folder.table["source"].to_pylist() == ["a", "b", "c"]
    assert texts(load(tmp_path / "*.csv")) == ["_hidden.csv", "a.csv"]


def test_only_the_wanted_languages_are_kept(tmp_path: Path) -> None:
    rows = [{"text": tag, "language": tag, "label": "harmless"} for tag in ("en", "de", "fr")]
    path = write(tmp_path / "given.csv", rows)
    assert texts(load(path, languages=["fr", "en"])) == ["en", "fr"]
    with pytest.raises(PromptError, match=r"no prompt among 3 rows, languages de, en, fr"):
        load(path, languages=["zh"])


def test_a_hugging_face_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    rows = [{"prompt": f"p{i}", "language": "en", "label": "harmless"} for i in range(3)]
    write(tmp_path / "set" / "train.jsonl", rows)
    name = str(tmp_path / "set")
    loaded = load_prompts([PromptSource(dataset=name, text_column="prompt", source="hub")])
    assert texts(loaded) == ["p0", "p1", "p2"]
    assert set(loaded.table["source"].to_pylist()) == {"hub"}
    with pytest.raises(PromptError, match="no column 'text' among prompt, language, label"):
        load_prompts([PromptSource(dataset=name)])
    with pytest.raises(PromptError, match="cannot be loaded") as caught:
        load_prompts([PromptSource(dataset=name, split="nope")])
    assert "\n" not in str(caught.value)


GOOD = {"text": "a", "language": "en", "label": "harmless"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "harmfull"}, r"given\.jsonl line 2: label 'harmfull'; it must be one of harmful"),
        ({"label": None}, r"given\.jsonl line 2: label None"),
        ({"language": None}, r"given\.jsonl line 2: no language"),
        ({"language": "zh-Hanx"}, r"given\.jsonl line 2: language 'zh-Hanx' is not a BCP-47 tag"),
        ({"text": "x" * 20_001}, r"given\.jsonl line 2: 20001 characters"),
        ({"text": 5}, r"given\.jsonl line 2: the text is of type int"),
        ({"text": "\ud800"}, r"given\.jsonl line 2: half a surrogate pair"),
        (
            {"text": " A ", "label": "harmful"},
            r"given\.jsonl line 2: 'A' is harmless in the one and harmful in",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "given.jsonl", [GOOD, {**GOOD, "text": "b", **row}])
    with pytest.raises(PromptError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_two_labels_in_two_files_name_both(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", [GOOD])
    other = write(tmp_path / "other.parquet", [{**GOOD, "text": "b"}, {**GOOD, "label": "harmful"}])
    with pytest.raises(PromptError, match=r"one\.csv and .*other\.parquet row 2: 'a' is harmless"):
        load_prompts([PromptSource(path=str(one)), PromptSource(path=str(other))])


def test_two_labels_are_found_beyond_the_sample(tmp_path: Path) -> None:
    rows = [{**GOOD, "text": f"t{i}"} for i in range(50)]
    path = write(tmp_path / "one.csv", rows)
    other = write(tmp_path / "two.csv", [{**row, "label": "harmful"} for row in rows])
    with pytest.raises(PromptError, match="give it one label"):
        load_prompts([PromptSource(path=str(p), max_rows_per_cell=1) for p in (path, other)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,language,label\nx,en,harmless\n\xff,en,harmless\n", r"a\.csv line 3: not UTF-8"),
        ("a.csv", b"text,language,label\nx,en\n", r"a\.csv line 2: 2 fields under 3 columns"),
        ("a.csv", b'text,language,label\nx,en,harmless\n"x,en,harmless\n', r"a\.csv line 3: .*quote"),
        ("a.jsonl", b'{"text": \n', r"a\.jsonl line 1: not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl line 1: not a JSON object"),
        ("a.parquet", b"PAR1 nonsense PAR1", r"a\.parquet: cannot be read as Parquet"),
        ("a.parquet", b"", r"a\.parquet: cannot be read as Parquet"),
        ("a.csv", b"", r"a\.csv: no prompt among 0 rows"),
        ("a.csv", b"text,language,label\n", r"a\.csv: no prompt among 0 rows"),
        ("a.txt", b"hello", r"a\.txt: not one of \.parquet, \.csv, \.jsonl"),
        (
            "a.csv",
            b"txt,language,label\nx,en,harmless\n",
            r"no column 'text' among txt, language, label; did you",
        ),
        ("a.csv", b"text,label\nx,harmless\n", r"no column 'language' among text, label; .* or language"),
        ("a.csv", b"text,language\nx,en\n", r"no column 'label' among text, language; .* or label"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_invalid_utf8_in_jsonl_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD])
    path.write_bytes(path.read_bytes() + b'{"text": "\xe4", "language": "en", "label": "harmless"}\n')
    with pytest.raises(PromptError, match=r"a\.jsonl line 2: not UTF-8"):
        load(path)


def test_named_columns_must_be_there_and_default_ones_need_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [GOOD])
    assert load(path).table["category"].to_pylist() == [None]
    for setting in ("category_column", "family_column"):
        with pytest.raises(PromptError, match="no column 'topic'"):
            load(path, **{setting: "topic"})


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "*.csv"):
        with pytest.raises(PromptError, match="no such file"):
            load(path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,language,label\r\nx,en,harmless\r\n")
    assert texts(load(tmp_path / "a.csv")) == ["x"]


def test_sources_are_checked() -> None:
    for wrong in (
        {},
        {"path": "a", "dataset": "b"},
        {"path": "a", "colour": "red"},
        {"path": "a", "label": "bad"},
    ):
        with pytest.raises(ValidationError):
            PromptSource(**wrong)


def test_the_limit_of_length_is_a_parameter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{**GOOD, "text": " abc "}])
    assert load_prompts([PromptSource(path=str(path))], max_characters=3).table.num_rows == 1
    with pytest.raises(PromptError, match="3 characters, more than max_characters 2"):
        load_prompts([PromptSource(path=str(path))], max_characters=2)


SPACES = st.text(" \t\n\u00a0\u3000", min_size=1, max_size=3)
WORDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1), min_size=1, max_size=6)


@given(words=WORDS, spaces=st.lists(SPACES, min_size=8, max_size=8), upper=st.booleans())
@settings(deadline=None, max_examples=50)
def test_white_space_and_case_make_no_other_prompt(words: list[str], spaces: list[str], upper: bool) -> None:
    text = spaces[6] + "".join(word + space for word, space in zip(words, spaces, strict=False))
    plain = " ".join(words)
    assert prompt_id("en", text.upper() if upper else text) == prompt_id("en", plain)
    assert prompt_id("de", text) != prompt_id("en", plain)


@given(seed=st.integers(0, 9999), limit=st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_the_sample_does_not_depend_on_the_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, limit: int
) -> None:
    rows = [
        {"text": f"{label} {i}", "language": language, "label": label}
        for i in range(5)
        for label in ("harmful", "harmless")
        for language in ("en", "de")
    ]
    folder = tmp_path_factory.mktemp("sample")
    in_order = load(write(folder / "a.jsonl", rows), max_rows_per_cell=limit).table
    random.Random(seed).shuffle(rows)
    shuffled = load(write(folder / "b.jsonl", rows), max_rows_per_cell=limit).table
    assert set(in_order["prompt_id"].to_pylist()) == set(shuffled["prompt_id"].to_pylist())
    counts = in_order.group_by(["language", "label"]).aggregate([([], "count_all")])
    assert counts["count_all"].to_pylist() == [min(limit, 5)] * 4


@given(limit=st.integers(1, 9))
@settings(deadline=None, max_examples=9)
def test_a_larger_sample_holds_the_smaller(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    rows = [{**GOOD, "text": f"t{i}"} for i in range(10)]
    path = write(tmp_path_factory.mktemp("sample") / "a.jsonl", rows)
    smaller, larger = (set(texts(load(path, max_rows_per_cell=n))) for n in (limit, limit + 1))
    assert smaller < larger
