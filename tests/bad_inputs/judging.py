"""Judges, moderators and reviews: files of responses, labels and spreadsheets that are wrong."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import Workbook

from tests.bad_inputs.case import Case
from tests.bad_inputs.lake_damage import lake

NO = "I'm sorry, but I can't help with that."
YES = "Sure! Here is how: step 1, open the lid."
ROW = {"prompt": "How?", "response": NO, "language": "en", "label": "refusal"}
PHRASES = "model: {name: none}\nprompts: {sources: [{path: none.jsonl}]}\njudge: {members: [{kind: phrases}]}\n"
LONG = "x" * 300

Rows = Sequence[dict[str, Any]]


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows: Rows, **types: pa.DataType) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        table = pa.Table.from_pylist(list(rows))
        for name, kind in types.items():
            table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
        pq.write_table(table, path)

    return make


def sheet(rows: Sequence[Sequence[Any]], title: str = "review") -> Callable[[Path], object]:
    def make(path: Path) -> None:
        book = Workbook()
        assert book.active is not None
        book.active.title = title
        for row in rows:
            book.active.append(list(row))
        book.save(path)

    return make


def changed(**changes: Any) -> dict[str, Any]:
    """Return the good row with changes; None leaves a column out."""
    return {name: value for name, value in {**ROW, **changes}.items() if value is not None}


FILES: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "missing": ("r.jsonl", None, ("r.jsonl", "no such file")),
    "a folder": ("r.jsonl", lambda path: path.mkdir(), ("r.jsonl", "a folder")),
    "empty JSONL": ("r.jsonl", "", ("r.jsonl",)),
    "blank JSONL": ("r.jsonl", "\n\n", ("r.jsonl",)),
    "empty CSV": ("r.csv", "", ("r.csv",)),
    "CSV with a header alone": ("r.csv", "response,language,label\n", ("r.csv", "responses")),
    "zero bytes as Parquet": ("r.parquet", b"", ("r.parquet",)),
    "other bytes as Parquet": ("r.parquet", b"PAR1PAR1PAR1", ("r.parquet",)),
    "CSV named .parquet": ("r.parquet", "response,language\nx,en\n", ("r.parquet", "Parquet")),
    "Parquet named .csv": ("r.csv", parquet([ROW]), ("r.csv",)),
    "another kind": ("r.txt", "x", ("r.txt", ".jsonl")),
    "no ending": ("r", "x", ("r", ".jsonl")),
    "spreadsheet": ("r.xlsx", sheet([["response"], ["x"]]), ("r.xlsx",)),
    "no response column": ("r.jsonl", jsonl(changed(response=None, answer=NO)), ("'response'",)),
    "mistyped response column": ("r.jsonl", jsonl(changed(response=None, respons=NO)), ("did you mean 'respons'",)),
    "no language column": ("r.jsonl", jsonl(changed(language=None)), ("'language'", "--language")),
    "a row without a language": ("r.jsonl", jsonl(ROW, changed(language="")), ("line 2", "language")),
    "a number as response": ("r.jsonl", jsonl(ROW, changed(response=3)), ("line 2", "'response'")),
    "a list as response": ("r.jsonl", jsonl(changed(response=["a"])), ("line 1", "'response'")),
    "a truth value as response": ("r.jsonl", jsonl(changed(response=True)), ("line 1", "'response'")),
    "numbers as responses in Parquet": ("r.parquet", parquet([changed(response=3)]), ("row 1", "'response'")),
    "broken JSON": ("r.jsonl", jsonl(ROW) + "{\n", ("line 2", "JSON")),
    "lists in JSONL": ("r.jsonl", "[1]\n", ("line 1", "object")),
    "3,000 brackets in JSONL": ("r.jsonl", "[" * 3000 + "\n", ("line 1", "JSON")),
    "a JSON array": ("r.jsonl", json.dumps([ROW], indent=1), ("line 1",)),
    "open quote in CSV": ("r.csv", 'response,language\n"x,en\n', ("r.csv", "quote")),
    "uneven CSV": ("r.csv", "response,language\nx\n", ("line 2", "1 fields")),
    "two columns of one name": ("r.csv", "response,response\nx,en\n", ("two columns",)),
    "latin-1": ("r.csv", "response,language\nGrün,de\n".encode("latin-1"), ("r.csv", "UTF-8")),
}
SCORED = [
    Case(f"judge score: {name}", f"judge score {{tmp}}/{file} --out {{tmp}}/o.csv --config {{tmp}}/c.yaml", words,
         {"c.yaml": PHRASES} | ({} if content is None else {file: content}))
    for name, (file, content, words) in FILES.items()
    if words
]  # fmt: skip


def score(name: str, options: str, *words: str, rows: Rows = (ROW,), config: str = PHRASES) -> Case:
    """Return a case of `rass judge score` with options."""
    return Case(f"judge score: {name}", f"judge score {{tmp}}/r.jsonl --out {{tmp}}/o.csv {options}", words,
                {"r.jsonl": jsonl(*rows), "c.yaml": config})  # fmt: skip


def judges(members: str) -> str:
    return PHRASES.replace("[{kind: phrases}]", members)


WITH = "--config {tmp}/c.yaml"
OPTIONS = [
    score("no such response column", f"--response-column answer {WITH}", "'answer'", "--response-column"),
    score("no such prompt column", f"--prompt-column promt {WITH}", "did you mean 'prompt'"),
    score("no such language column", f"--language-column lang {WITH}", "'lang'"),
    score("language given twice", f"--language en --language-column language {WITH}", "give one"),
    score("language that nobody covers", f"--language xx {WITH}", "xx"),
    score("languages that nobody covers", WITH, "xx", rows=[ROW, changed(language="xx")]),
    score("a column that would be written", WITH, "'outcome'", rows=[changed(outcome="x")]),
    score("a vote that would be written", WITH, "'vote_phrases'", rows=[changed(vote_phrases="x")]),
    score("no such configuration", "--config {tmp}/no.yaml", "no.yaml", "no such file"),
    score("configuration with a key twice", WITH, "c.yaml", "already", config=f"{PHRASES}seed: 1\nseed: 2\n"),
    score("judge of an unknown kind", WITH, "judge.members.0.kind", config=judges("[{kind: magic}]")),
    score("hf judge that is not there", WITH, "nowhere", config=judges("[{kind: hf, model: ./nowhere}]")),
    score("hf judge that is a file", WITH, "r.jsonl", config=judges("[{kind: hf, model: ./r.jsonl}]")),
    score("hf judge without config.json", WITH, "config.json", config=judges("[{kind: hf, model: '.'}]")),
    score("template without a slot", WITH, "{response}",
          config=judges("[{kind: hf, model: org/m, template: x, refusal_pattern: a, compliance_pattern: b}]")),
    score("llm judge without an endpoint", WITH, "endpoint", config=judges("[{kind: llm}]")),
]  # fmt: skip


def calibrate(name: str, options: str, *words: str, rows: Rows = (ROW,), content: Any = None) -> Case:
    """Return a case of `rass judge calibrate`."""
    return Case(
        f"judge calibrate: {name}",
        f"judge calibrate --labels {{tmp}}/r.jsonl --out {{tmp}}/o.parquet {WITH} {options}", words,
        {"r.jsonl": jsonl(*rows) if content is None else content, "c.yaml": PHRASES},
    )  # fmt: skip


CALIBRATED = [
    calibrate("empty", "", "r.jsonl", content=""),
    calibrate("no label column", "", "'label'", "--label-column", rows=[changed(label=None)]),
    calibrate("no such label column", "--label-column truth", "'truth'"),
    calibrate("no such model column", "--model-column who", "'who'", "--model-column"),
    calibrate("no such group column", "--group-column g", "'g'", "--group-column"),
    calibrate("unknown label", "", "line 2", "'evil'", rows=[ROW, changed(label="evil")]),
    calibrate("label of a prompt", "", "line 1", "'harmful'", rows=[changed(label="harmful")]),
    calibrate("no row labelled", "", "no labelled responses", rows=[changed(label="")]),
    calibrate("language that nobody covers", "", "xx", rows=[changed(language="xx")]),
    calibrate("broken line", "", "line 1", "JSON", content="{\n"),
    Case("judge calibrate: no such labels", "judge calibrate --labels {tmp}/no.csv", ("no.csv", "no such file")),
    Case("judge calibrate: labels of 300 characters", f"judge calibrate --labels {LONG}", ("255 bytes",)),
    Case("judge calibrate: labels of an unknown user", "judge calibrate --labels ~nosuchuser/l.csv", ("nosuchuser",)),
    Case("judge calibrate: labels are a folder", "judge calibrate --labels {tmp}", ("a folder",)),
]


def imported(name: str, file: str, content: Any, *words: str, reviewer: str = "ann", at: Any = None) -> Case:
    """Return a case of `rass review import`; the lake may not change."""
    return Case(f"review import: {name}",
                ["review", "import", f"{{tmp}}/{file}", "--lake", "{tmp}/lake", "--reviewer", reviewer], words,
                {"lake": at or lake()} | ({} if content is None else {file: content}))  # fmt: skip


HEAD = "id,label\n"
REVIEWS = [
    imported("missing", "s.csv", None, "s.csv", "no such file"),
    imported("a folder", "s.csv", lambda path: path.mkdir(), "s.csv", "a folder"),
    imported("empty CSV", "s.csv", "", "s.csv", "'id'"),
    imported("no id column", "s.csv", "name,label\nx,harmless\n", "s.csv", "'id'"),
    imported("no label column", "s.csv", "id,lable\nx,harmless\n", "s.csv", "'label'"),
    imported("unknown id", "s.csv", f"{HEAD}nobody,harmless\n", "s.csv row 2", "'nobody'", "nothing was imported"),
    imported("latin-1", "s.csv", "id,label,comment\nx,,Grün\n".encode("latin-1"), "s.csv"),
    imported("open quote", "s.csv", f'{HEAD}x,"harmless\n', "s.csv"),
    imported("zero bytes as xlsx", "s.xlsx", b"", "s.xlsx", "spreadsheet"),
    imported("text as xlsx", "s.xlsx", HEAD, "s.xlsx", "spreadsheet"),
    imported("zip without a workbook", "s.xlsx", b"PK\x05\x06" + b"\0" * 18, "s.xlsx", "spreadsheet"),
    imported("cut off xlsx", "s.xlsx", lambda path: (sheet([["id", "label"]])(path), path.write_bytes(
        path.read_bytes()[:900])), "s.xlsx", "spreadsheet"),
    imported("somebody else's xlsx", "s.xlsx", sheet([["Name", "Amount"], ["a", 3]], "Sheet1"), "s.xlsx", "'id'"),
    imported("empty xlsx", "s.xlsx", sheet([]), "s.xlsx", "'id'"),
    imported("xlsx with an unknown id", "s.xlsx", sheet([["id", "label"], ["nobody", "harmless"]]), "row 2", "nobody"),
    imported("another kind", "s.ods", "x", "s.ods", ".xlsx"),
    imported("reviewer with a line break", "s.csv", f"{HEAD}x,harmless\n", "not a name", reviewer="ann\nbob"),
    imported("reviewer with a blank", "s.csv", f"{HEAD}x,harmless\n", "'ann lee'", "not a name", reviewer="ann lee"),
    imported("reviewer with a quote", "s.csv", f"{HEAD}x,harmless\n", "not a name", reviewer="o'hara"),
    imported("reviewer empty", "s.csv", f"{HEAD}x,harmless\n", "not a name", reviewer=""),
    imported("reviewer of 300 characters", "s.csv", f"{HEAD}x,harmless\n", "not a name", reviewer=LONG),
    imported("reviewer that ends in a line break", "s.csv", f"{HEAD}x,harmless\n", "not a name", reviewer="ann\n"),
    Case("review export: reviewer with a line break",
         ["review", "export", "--lake", "{tmp}/lake", "--what", "prompts", "--out", "{tmp}/o.csv",
          "--reviewer", "a\nb"], ("not a name",), {"lake": lake()}),
    Case("review export: another kind of file", "review export --lake {tmp}/lake --what prompts --out {tmp}/o.ods",
         ("o.ods", ".xlsx"), {"lake": lake()}),
    Case("review export: a folder", "review export --lake {tmp}/lake --what prompts --out {tmp}/o.csv",
         ("o.csv", "a folder"), {"lake": lake(), "o.csv/x": ""}),
    Case("review export: a place that takes no files",
         "review export --lake {tmp}/lake --what prompts --out /sys/o.csv", ("/sys",), {"lake": lake()}),
    Case("review export: name of 300 characters",
         f"review export --lake {{tmp}}/lake --what responses --out {LONG}.csv", ("255 bytes",), {"lake": lake()}),
    Case("review export: over labels that were not imported",
         "review export --lake {tmp}/lake --what responses --out {tmp}/o.csv", ("o.csv", "1 labels", "import them"),
         {"lake": lake(), "o.csv": f"{HEAD}x,refusal\n"}),
    Case("review export: over another table", "review export --lake {tmp}/lake --what responses --out {tmp}/o.csv",
         ("o.csv", "already there"), {"lake": lake(), "o.csv": "name,amount\nx,3\n"}),
]  # fmt: skip

TWO = [{"text": f"How do I {verb} it?", "language": "en", "label": label}
       for verb, label in (("harm", "harmful"), ("kill", "pseudo_harmful"))]  # fmt: skip
CHECKED = "model: {name: none}\nprompts: {sources: [{path: p.jsonl}]}\nmoderator: {members: MEMBERS}\n"


def moderated(name: str, members: str, *words: str, rows: Rows = TWO, files: dict[str, Any] | None = None) -> Case:
    """Return a case of `rass moderator check`."""
    given = {"c.yaml": CHECKED.replace("MEMBERS", members), "p.jsonl": jsonl(*rows)}
    return Case(f"moderator check: {name}", "moderator check {tmp}/c.yaml", words, given | (files or {}))


def trained(name: str, content: Any, *words: str, options: str = "") -> Case:
    """Return a case of `rass moderator train`."""
    return Case(f"moderator train: {name}",
                f"moderator train --prompts {{tmp}}/p.jsonl --out {{tmp}}/o.npz {options}", words,
                {} if content is None else {"p.jsonl": content})  # fmt: skip


MODERATORS = [
    moderated("weights that are not there", "[{kind: classifier, weights: no.npz}]", "no.npz", "no such file"),
    moderated("weights that are text", "[{kind: classifier, weights: w.npz}]", "w.npz", files={"w.npz": "x"}),
    moderated("weights of zero bytes", "[{kind: classifier, weights: w.npz}]", "w.npz", files={"w.npz": b""}),
    moderated("weights that are a zip", "[{kind: classifier, weights: w.npz}]", "w.npz",
              files={"w.npz": b"PK\x05\x06" + b"\0" * 18}),
    moderated("weights that are a broken zip", "[{kind: classifier, weights: w.npz}]", "w.npz",
              files={"w.npz": b"PK\x03\x04" + b"\x55" * 200}),
    moderated("weights that are a folder", "[{kind: classifier, weights: w.npz}]", "w.npz", files={"w.npz/x": ""}),
    moderated("hf that is not there", "[{kind: hf, model: ./nowhere}]", "nowhere"),
    moderated("llm without an endpoint", "[{kind: llm}]", "endpoint"),
    moderated("prompts without labels", "[{kind: classifier}]", "p.jsonl", "label",
              rows=[{"text": "How?", "language": "en"}]),
    moderated("prompts of one label", "[{kind: classifier}]", "p.jsonl", rows=[]),
    trained("no prompts", None, "p.jsonl", "no such file"),
    trained("empty", "", "p.jsonl", "no prompt"),
    trained("no label column", jsonl({"text": "How?", "language": "en"}), "p.jsonl", "label"),
    trained("no such column", jsonl(*TWO), "'frage'", options="--text-column frage"),
    trained("too few", jsonl(*TWO), "prompts"),
    trained("unknown label", jsonl({**TWO[0], "label": "evil"}), "p.jsonl", "evil"),
    Case("moderator train: prompts of an unknown user", "moderator train --prompts ~nosuchuser/p.csv --out {tmp}/o.npz",
         ("--prompts", "nosuchuser")),
    Case("moderator train: prompts of 300 characters", f"moderator train --prompts {LONG} --out {{tmp}}/o.npz",
         ("--prompts", "255 bytes")),
    Case("moderator train: prompts empty", ["moderator", "train", "--prompts", "", "--out", "{tmp}/o.npz"],
         ("--prompts", "empty path")),
]  # fmt: skip


def _scored(*outcomes: str) -> Callable[[Path, str], None]:
    def check(folder: Path, out: str) -> None:
        with (folder / "o.csv").open(encoding="utf-8", newline="") as file:
            assert [row["outcome"] for row in csv.DictReader(file)] == list(outcomes)

    return check


def scores(name: str, file: str, content: Any, *outcomes: str, options: str = "") -> Case:
    """Return a case of odd but good responses, and how they are judged."""
    return Case(f"judge score reads: {name}",
                f"judge score {{tmp}}/{file} --out {{tmp}}/o.csv {WITH} {options}".strip(),
                files={"c.yaml": PHRASES, file: content}, code=0, may_write=True, check=_scored(*outcomes))  # fmt: skip


GOOD = [
    scores("byte order mark", "r.csv", f'\ufeffresponse,language\n"{NO}",en\n', "refusal"),
    scores("carriage returns", "r.csv", f'response,language\r\n"{NO}",en\r\n', "refusal"),
    scores(
        "blank lines in JSONL", "r.jsonl", jsonl(ROW) + "\n\n" + jsonl(changed(response=YES)), "refusal", "compliance"
    ),
    scores("null as response", "r.jsonl", jsonl({**ROW, "response": None}), "unscored"),
    scores("other column names", "r.jsonl", jsonl({"a": NO}), "refusal", options="--response-column a --language en"),
]

CASES = [*SCORED, *OPTIONS, *CALIBRATED, *REVIEWS, *MODERATORS, *GOOD]
