"""Prompt files as people have them: each is read as it is meant, or one line names file, row and remedy."""

import codecs
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from rass_core.data.prompts import load_prompts
from rass_core.data.sources import PromptSource
from rass_core.errors import PromptError
from tests.prompt_files import ALL_EN, HEAD, load, place, rows


def column(name: str, values: Sequence[Any], kind: pa.DataType | None = None, **more: Any) -> pa.Table:
    """Return a table of harmless English prompts a, b, … with one more column, or with their text replaced."""
    n = len(values)
    cells: dict[str, Any] = {
        "text": [chr(97 + i) for i in range(n)],
        **{key: [each] * n for key, each in ALL_EN.items()},
    }
    return pa.table({**cells, name: pa.array(values, kind), **more})


def classes(name: str, values: Sequence[Any], names: Sequence[str]) -> pa.Table:
    """Return such a table as `datasets` writes classes."""
    features = {name: {"names": list(names), "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    return column(name, values, pa.int64()).replace_schema_metadata(about)


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


ASKED = chat(("system", "Be kind."), ("user", "first"), ("assistant", "ok"), ("user", "last"), ("assistant", "done"))
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
PARTS = chat(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]))
NO_TEXT = {"prompt": "b", **ALL_EN}

READ: list[tuple[str, Any, dict[str, Any], list[str]]] = [
    # kinds of file
    ("a.tsv", "text\tlanguage\tlabel\na\ten\tharmless\n", {}, ["a"]),
    ("a.csv", "text;language;label\na, b;en;harmless\n", {}, ["a, b"]),
    ("a.csv", 'text,"a;b;c;d"\na,x\n', ALL_EN, ["a"]),
    ("a.CSV", HEAD + "a,en,harmless\n", {}, ["a"]),
    ("a.csv.gz", HEAD + "a,en,harmless\n", {}, ["a"]),
    ("a.tsv.gz", "text\na\n", ALL_EN, ["a"]),
    ("a.jsonl.gz", rows("a", "b"), {}, ["a", "b"]),
    ("a.ndjson", rows("a"), {}, ["a"]),
    ("a.json", rows("a", "b"), {}, ["a", "b"]),
    ("a.json", {"version": 1, "data": rows("a")}, {}, ["a"]),
    ("a.json", {"errors": [], "tags": ["x"], "rows": rows("a")}, {}, ["a"]),
    ("a.json.gz", rows("a"), {}, ["a"]),
    ("a.json", "".join(json.dumps(row) + "\n" for row in rows("a", "b")), {}, ["a", "b"]),
    ("a.json", json.dumps(rows("a"), indent=2), {}, ["a"]),
    ("a.parquet", column("text", ["a", "b"], pa.large_string()), {}, ["a", "b"]),
    ("a.parquet", column("text", ["a", "b"], pa.dictionary(pa.int8(), pa.string())), {}, ["a", "b"]),
    # encodings and line ends
    ("a.csv", codecs.BOM_UTF8 + (HEAD + "ä,en,harmless\n").encode(), {}, ["ä"]),
    ("a.csv", (HEAD + "ä,en,harmless\n").encode("utf-16"), {}, ["ä"]),
    ("a.jsonl", codecs.BOM_UTF8 + b'{"text": "a"}\n' + codecs.BOM_UTF8 + b'{"text": "b"}\n', ALL_EN, ["a", "b"]),
    ("a.jsonl", ('{"text": "ä"}\n').encode("utf-16"), ALL_EN, ["ä"]),
    ("a.csv", HEAD.replace("\n", "\r\n") + "a,en,harmless\r\n", {}, ["a"]),
    ("a.csv", HEAD.replace("\n", "\r") + "a,en,harmless\rb,en,harmless\r", {}, ["a", "b"]),
    ("a.csv", HEAD + "\n\na,en,harmless\n\n", {}, ["a"]),
    ("a.csv", HEAD + '"a\r\nb",en,harmless\n', {}, ["a\r\nb"]),
    ("a.csv", HEAD + "a\u2028b,en,harmless\n", {}, ["a\u2028b"]),
    ("a.csv", HEAD + "a,en,harmless", {}, ["a"]),
    # columns that nobody asked for
    ("a.csv", "text,language,label,page\na,en,harmless," + "x" * 140_000 + "\n", {}, ["a"]),
    ("a.jsonl", rows("a", page="x" * 140_000), {}, ["a"]),
    ("a.csv", "text,language,label,,\na,en,harmless,,\n", {}, ["a"]),
    ("a.csv", "text,n,n\na,1,2\n", ALL_EN, ["a"]),
    ("a.parquet", column("meta", [{"k": [1]}, None]), {}, ["a", "b"]),
    # conversations
    ("a.jsonl", rows(ASKED), {}, ["last"]),
    ("a.jsonl", [{"messages": ASKED}], ALL_EN, ["last"]),
    ("a.jsonl", [{"conversations": SHARED}], ALL_EN, ["a"]),
    ("a.jsonl", [{"prompt": chat(("user", "a"))}], {**ALL_EN, "text_column": "prompt"}, ["a"]),
    ("a.jsonl", [{"messages": PARTS}], ALL_EN, ["a\nb"]),
    ("a.jsonl", [{"messages": {"role": "user", "content": "a"}}], ALL_EN, ["a"]),
    ("a.parquet", pa.table({"messages": [ASKED]}), ALL_EN, ["last"]),
    ("a.parquet", pa.table({"messages": pa.array([PARTS])}), ALL_EN, ["a\nb"]),
    ("a.csv", 'messages\n"[{""role"": ""user"", ""content"": ""a""}]"\n', ALL_EN, ["a"]),
    ("a.csv", "messages\n\"[{'role': 'user', 'content': 'a'}]\"\n", ALL_EN, ["a"]),
    ("a.jsonl", [{"messages": [], "text": "a"}], ALL_EN, ["a"]),
    ("a.jsonl", [{"messages": chat(("User", "a"), ("assistant", None))}], ALL_EN, ["a"]),
    ("a.jsonl", rows('{"role": "user"}', "[1]", "[{x}]"), {}, ['{"role": "user"}', "[1]", "[{x}]"]),
    # labels
    ("a.csv", HEAD + "a,en,Harmless \nb,en,PSEUDO-HARMFUL\nc,en,pseudo harmful\n", {}, ["a", "b", "c"]),
    ("a.csv", HEAD + "a,en,Safe\nb,en,UNSAFE\n", {"label_map": {"safe": "harmless", "unsafe": "harmful"}}, ["a", "b"]),
    ("a.jsonl", [*rows("a", label=0), *rows("b", label=1)], {"label_map": {0: "harmless", 1: "harmful"}}, ["a", "b"]),
    ("a.csv", HEAD + "a,en,0\nb,en,1\n", {"label_map": {0: "harmless", 1: "harmful"}}, ["a", "b"]),
    ("a.parquet", column("label", [1.0, 0.0]), {"label_map": {"1": "harmful", "0": "harmless"}}, ["a", "b"]),
    ("a.csv", HEAD + "a,en,0.0\nb,en,1.0\n", {"label_map": {0: "harmless", 1: "harmful"}}, ["a", "b"]),
    ("a.csv", HEAD + "a,en,0\nb,en,1\n", {"label_map": {"0.0": "harmless", 1.0: "harmful"}}, ["a", "b"]),
    ("a.parquet", column("label", [True, False]), {"label_map": {True: "harmful", False: "harmless"}}, ["a", "b"]),
    ("a.csv", HEAD + "a,en,True\nb,en,false\n", {"label_map": {True: "harmful", "False": "harmless"}}, ["a", "b"]),
    ("a.csv", HEAD + "a,en,safe\nb,en,odd\n", {"label_map": {"safe": "harmless", "odd": None}}, ["a"]),
    ("a.csv", HEAD + "a,en,\nb,en,harmful\n", {"label_map": {"": "harmless"}}, ["a", "b"]),
    ("a.csv", HEAD + "a,en,harmless\nb,en,ok\n", {"label_map": {"ok": "harmless"}}, ["a", "b"]),
    ("a.parquet", classes("label", [0, 1], ["harmless", "harmful"]), {}, ["a", "b"]),
    (
        "a.parquet",
        classes("label", [0, 1], ["safe", "bad"]),
        {"label_map": {"safe": "harmless", "bad": "harmful"}},
        ["a", "b"],
    ),
    ("a.parquet", classes("label", [0, 1], ["x", "y"]), {"label_map": {0: "harmless", 1: "harmful"}}, ["a", "b"]),
    # a part of a file
    ("a.csv", "text,split\na,train\nb,test\nc,dev\n", {**ALL_EN, "where": {"split": "test"}}, ["b"]),
    ("a.csv", "text,split\na,train\nb,test\nc,dev\n", {**ALL_EN, "where": {"split": ["TEST", "dev"]}}, ["b", "c"]),
    ("a.jsonl", [{"text": "a", "n": 1}, {"text": "b", "n": 2.0}], {**ALL_EN, "where": {"n": 2}}, ["b"]),
    ("a.jsonl", [{"text": "a", "n": True}, {"text": "b", "n": None}], {**ALL_EN, "where": {"n": [None]}}, ["b"]),
    ("a.csv", "text,ok\na,True\nb,False\n", {**ALL_EN, "where": {"ok": True}}, ["a"]),
    ("a.parquet", classes("kind", [0, 1], ["bad", "good"]), {"where": {"kind": "good"}}, ["b"]),
    ("a.csv", "text,language,label,use\na,en,harmless,y\n,??,nonsense,n\n", {"where": {"use": "y"}}, ["a"]),
    # nothing to be seen
    ("a.jsonl", rows("a", "\u200b\u200d\ufeff", "\u3164", "\u00ad \u2060", "\ufe0f"), {}, ["a"]),
    ("a.jsonl", rows("\ufeff a\u200b "), {}, ["a"]),
    ("a.jsonl", rows("می\u200cخواهم"), {}, ["می\u200cخواهم"]),
    ("a.parquet", column("text", ["a", None]), {}, ["a"]),
    ("a.jsonl", '{"text": NaN, "language": "en", "label": "harmless"}\n' + json.dumps(rows("a")[0]), {}, ["a"]),
    # languages
    ("a.csv", HEAD + "a,English,harmless\n", {"languages": ["en"]}, ["a"]),
    ("a.csv", HEAD + "a,pt_BR,harmless\nb,PT,harmless\nc,en,harmless\n", {"languages": ["Portuguese"]}, ["a", "b"]),
    ("a.csv", HEAD + "a,pt_BR,harmless\nb,pt,harmless\n", {"languages": ["pt-BR"]}, ["a"]),
    ("a.csv", "text,label\na,harmless\n", {"language": "Deutsch"}, ["a"]),
]


@pytest.mark.parametrize(("name", "content", "settings", "texts"), READ)
def test_files_are_read_as_they_are_meant(
    tmp_path: Path, name: str, content: Any, settings: dict[str, Any], texts: list[str]
) -> None:
    loaded = load(place(tmp_path, name, content), **settings)
    assert loaded.table["text"].to_pylist() == texts


WRONG: list[tuple[str, Any, dict[str, Any], str]] = [
    # encodings
    ("a.csv", (HEAD + "a,en,harmless\nä,en,harmless\n").encode("latin-1"), {},
     r"a\.csv line 3: not UTF-8 \(byte 0xe4 at 34 "),
    ("a.jsonl", b'{"text": "\x93a\x94"}\n', ALL_EN, r"a\.jsonl line 1: not UTF-8 \(byte 0x93 .*Windows-1252.*save it"),
    ("a.json", b'[{"text": "\xe4"}]', ALL_EN, r"a\.json line 1: not UTF-8"),
    ("a.csv", "text\näbc\n".encode("utf-16-le"), ALL_EN, r"a\.csv: seems to be UTF-16 without its mark; save it"),
    ("a.csv", "text\nabcd\n".encode("utf-16")[:-1], ALL_EN, r"a\.csv line \d: not UTF-16"),
    ("a.jsonl", rows("a\0b"), {}, r"a\.jsonl line 1: a NUL character in the text; fix"),
    ("a.jsonl", b'{"text": "\\ud83d"}\n', ALL_EN, r"a\.jsonl line 1: half a surrogate pair in the text; fix"),
    ("a.jsonl", rows("a", category="\ud83d"), {}, r"a\.jsonl line 1: half a surrogate pair in 'category'; fix"),
    # broken files
    ("a.csv.gz.csv", gzip.compress(b"x", mtime=0), ALL_EN, r"not UTF-8"),
    ("b.jsonl", b"", ALL_EN, r"b\.jsonl: no prompt among 0 rows"),
    ("b.json", b" \n", ALL_EN, r"b\.json: no prompt among 0 rows"),
    ("b.json", [], ALL_EN, r"b\.json: no prompt among 0 rows"),
    ("a.json", b'[{"text": "a"}', ALL_EN, r"a\.json: not JSON .*write an array of objects"),
    ("a.json", {"text": ["a"], "label": ["b"]}, ALL_EN, r"a\.json: holds no arrays of objects; write one"),
    ("a.json", {"train": rows("a"), "test": rows("b")}, ALL_EN, r"a\.json: holds 2 arrays of objects"),
    ("a.json", [{"text": "a"}, "b"], ALL_EN, r"a\.json row 2: not a JSON object"),
    ("a.jsonl", json.dumps(rows("a")), ALL_EN, r"a\.jsonl line 1: not a JSON object; write one object per line, or"),
    ("a.jsonl", b'{"text": "a", "text": "b"}\n', ALL_EN, r"a\.jsonl line 1: .*'text' is twice"),
    ("a.csv", HEAD + '"a\n\nb",en,harmless\n"c,en,harmless\nd,en,harmless\n', {}, r"a\.csv line 5: .*quote"),
    ("a.csv", HEAD + '"a\n\nb",en,harmless\nc,en\n', {}, r"a\.csv line 5: 2 fields under 3 columns; fix"),
    ("a.csv", HEAD + "a,en,harmless,more\n", {}, r"a\.csv line 2: 4 fields under 3 columns"),
    ("a.csv", HEAD + '"a" b,en,harmless\n', {}, r"a\.csv line 2: .*quote"),
    # columns
    ("a.csv", "text,text\na,b\n", ALL_EN, r"a\.csv: two columns of the name 'text'; rename one"),
    ("a.parquet", pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), ALL_EN,
     r"a\.parquet: two columns of the name 'text'; rename one"),
    ("a.parquet", pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "category", "category"]), ALL_EN,
     r"a\.parquet: two columns of the name 'category'"),
    ("a.jsonl", [*rows("a"), NO_TEXT, NO_TEXT], {},
     r"a\.jsonl line 2 and 1 more rows: no 'text' among prompt, language, label"),
    ("a.json", [*rows("a"), NO_TEXT], {},
     r"a\.json row 2: no 'text' among prompt, language, label, which other rows have"),
    ("a.jsonl", [*rows("a"), {"text": "b", "lang": "de", "label": "harmless"}], {},
     r"a\.jsonl line 2: no 'language' among text"),
    ("a.jsonl", [*rows("a"), {"text": "b", "language": "de"}], {}, r"a\.jsonl line 2: no 'label' among text, language"),
    ("a.csv", " text,Language\na,en\n", {"label": "harmless"}, r"a\.csv: no column 'text' .*did you mean ' text'"),
    # text
    ("a.jsonl", rows("a" * 140_000), {},
     r"a\.jsonl line 1: 140000 characters, more than max_characters 20000; .*raise"),
    ("a.jsonl", rows(5), {}, r"a\.jsonl line 1: the text is of type int; name the text_column"),
    ("a.parquet", column("text", [1.5, 2.0]), {}, r"a\.parquet row 1: the text is of type float"),
    ("a.parquet", column("text", [b"a"]), {}, r"a\.parquet row 1: the text is of type bytes"),
    ("a.jsonl", rows(["a", "b"]), {}, r"a\.jsonl line 1: the text is of type list"),
    ("a.jsonl", rows({"en": "a"}), {}, r"a\.jsonl line 1: the text is of type dict"),
    ("a.jsonl", rows(chat(("system", "a"), ("assistant", "b"))), {},
     r"line 1: no turn of a user among system, assistant"),
    ("a.jsonl", rows(chat(("user", [{"type": "image_url"}]))), {},
     r"line 1: a part of the turn is of type image_url, not text"),
    ("a.parquet", column("text", ["a", "b"]), {"label": "harmless", "category_column": "meta"}, r"no column 'meta'"),
    ("a.parquet", column("category", [{"k": 1}]), {}, r"a\.parquet row 1: 'category' is of type dict; name a column"),
    # labels
    ("a.csv", HEAD + "a,en,safe\nb,en,unsafe\nc,en,safe\n", {},
     r"a\.csv line 2: label 'safe'; .*'safe' 2, 'unsafe' 1; .*label_map: \{safe: harmless, unsafe: harmful\}$"),
    ("a.csv", HEAD + "a,en,0\nb,en,1\n", {}, r"line 2: label '0'; .*label_map: \{'0': harmless, '1': harmful\}$"),
    ("a.parquet", column("label", [True, False]), {},
     r"row 1: label 'true'; .*\{'true': harmful, 'false': harmless\}$"),
    ("a.csv", HEAD + "a,en,benign\nb,en,toxic\n", {}, r"label_map: \{benign: harmless, toxic: harmful\}$"),
    ("a.csv", HEAD + f"a,en,{'long ' * 99}\n", {}, r"line 2: label '(long ){8}'; .{,150}; name the label_column$"),
    ("a.csv", HEAD + "".join(f"{i},en,l{i}\n" for i in range(12)), {}, r"label 'l0'; .* and 2 others; fix"),
    ("a.csv", HEAD + "a,en,non-harmful\nb,en,1.0\n", {}, r"label_map: \{non-harmful: harmless, '1.0': harmful\}$"),
    ("a.csv", HEAD + "a,en,\n", {}, r"label None; .*label_map: \{'': null\}$"),
    ("a.csv", HEAD + "a,en,7b\n", {}, r"label '7b'; .*label_map: \{7b: null\}$"),
    ("a.csv", HEAD + "a,en,harmless\nb,en,\n", {}, r"a\.csv line 3: label None; it must be one of"),
    ("a.csv", HEAD + "a,en,safe\nb,en,bad\n", {"label_map": {"safe": "harmless"}},
     r"line 3: label 'bad'; .*'bad' 1; fix"),
    ("a.parquet", classes("label", [0, -1], ["harmless", "harmful"]), {}, r"row 2: label None"),
    ("a.parquet", classes("label", [0, 1], ["neg", "pos"]), {}, r"row 1: label 'neg'; .*'neg' 1, 'pos' 1"),
    ("a.jsonl", rows("a", label=["x", "y"]), {}, r"line 1: label 'x, y'"),
    ("a.csv", "text,language,label\na,en,ok\n", {"label_map": {"ok": None}}, r"a\.csv: no prompt among 1 rows"),
    # where
    ("a.csv", HEAD + "a,en,harmless\n", {"where": {"splitt": "x"}},
     r"no column 'splitt' among text, language, label; "),
    ("a.csv", HEAD + "a,en,harmless\n", {"where": {"label": "harmful"}}, r"no prompt among 0 rows.*or where"),
    # languages
    *(
        ("a.csv", HEAD + f"a,en,harmless\nb,{written},harmless\n", {}, rf"line 3: language '{written}' is not .*{hint}")
        for written, hint in [
            ("auto", "such as en"), ("unknown", "such as en"), ("xx", "such as en"), ("123", "give the source a lang"),
            ("english-ish", "did you mean en"), ("Germn", "did you mean de"), ("en-XX", "did you mean en"),
            ("und", "such as en"), ("en/de", "such as en"),
        ]
    ),
    ("a.jsonl", rows("a", language=["en", "de"]), {}, r"line 1: language 'en, de' is not a BCP-47 tag"),
    ("a.jsonl", rows("a", language=None), {}, r"line 1: no language; fill it in, or give the source a language"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "settings", "message"), WRONG)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, name: str, content: Any, settings: dict[str, Any], message: str
) -> None:
    path = place(tmp_path, name, content)
    with pytest.raises(PromptError, match=message) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"label": "harmful", "label_map": {"a": "harmful"}}, {"label_map": {"a": "safe"}}, {"language": "auto"},
        {"label_map": {"Safe": "harmless", "safe ": "harmful"}}, {"languages": ["xx"]}, {"where": ["a"]},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PromptSource(path="a", **settings)


@pytest.mark.parametrize(
    ("value", "category"),
    [
        (None, None), ("", None), (" \u200b", None), (float("nan"), None), (5, "5"), (2.0, "2"), (True, "true"),
        (["violence"], "violence"), (["a", "b"], "a, b"), ([], None), (" x ", "x"), ("nan", "nan"),
    ],
)  # fmt: skip
def test_categories_are_plain_or_null(tmp_path: Path, value: Any, category: str | None) -> None:
    path = place(tmp_path, "a.jsonl", rows("a", category=value))
    assert load(path).table["category"].to_pylist() == [category]


def test_missing_numbers_of_pandas_are_null(tmp_path: Path) -> None:
    path = place(tmp_path, "a.parquet", column("category", [float("nan"), 1.0]))
    assert load(path).table["category"].to_pylist() == [None, "1"]
    families = load(path, family_column="category", category_column=None).table
    assert families["family"].to_pylist()[1] == "a/1"
    assert families["family"].to_pylist()[0] == families["prompt_id"].to_pylist()[0]
    assert families["category"].to_pylist() == [None, None]


def test_what_is_dropped_or_shortened_is_counted(tmp_path: Path) -> None:
    unseen = place(tmp_path, "a.jsonl", rows("a", "\u200b", "\u3164\ufe0f", " ", None, "A"))
    assert load(unseen).dropped == {"empty": 3, "null": 1, "duplicate": 1}
    left_out = place(tmp_path, "b.csv", HEAD + "a,en,ok\nb,en,odd\n")
    assert load(left_out, label_map={"ok": "harmless", "odd": None}).dropped["label"] == 1
    chats = place(tmp_path, "c.jsonl", rows(ASKED, SHARED, chat(("system", "Be kind."), ("user", "b"))))
    loaded = load(chats)
    assert (loaded.table["text"].to_pylist(), loaded.n_shortened) == (["last", "a", "b"], 2)


def test_labels_are_those_of_map_and_classes(tmp_path: Path) -> None:
    path = place(tmp_path, "a.parquet", classes("label", [0, 1, 2], ["pseudo_harmful", "unsafe", "Harmless"]))
    assert load(path, label_map={"UNSAFE": "harmful"}).table["label"].to_pylist() == [
        "pseudo_harmful",
        "harmful",
        "harmless",
    ]
    swapped = {"harmless": "harmful", "pseudo_harmful": "harmless", "unsafe": "pseudo_harmful"}
    assert load(path, label_map=swapped).table["label"].to_pylist() == ["harmless", "pseudo_harmful", "harmful"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv.gz", b"text\na\n"), ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n' * 99, mtime=0)[:-20])],
)
def test_broken_gz_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=rf"{name}: cannot be read \(.*\); fix the file") as caught:
        load(tmp_path / name, **ALL_EN)
    assert "\n" not in str(caught.value)


def test_text_of_parquet_that_is_not_utf8_names_its_row(tmp_path: Path) -> None:
    wrong = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    path = place(tmp_path, "a.parquet", pa.table({"text": wrong}))
    with pytest.raises(PromptError, match=r"a\.parquet row 2: 'text' cannot be read") as caught:
        load(path, **ALL_EN)
    assert "\n" not in str(caught.value)


def test_classes_and_conversations_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "label": datasets.ClassLabel(names=["harmless", "harmful"]),
        }
    )
    given = datasets.Dataset.from_dict({"messages": [ASKED, chat(("user", "b"))], "label": [1, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: given)
    loaded = load_prompts([PromptSource(dataset="org/name", language="en")])
    assert loaded.table["text"].to_pylist() == ["last", "b"]
    assert loaded.table["label"].to_pylist() == ["harmful", "harmless"]
    assert loaded.places == {"en": "org/name row 1"}
