"""`rass judge` and `rass review` on files as people have them: all columns kept, whole results or none."""

import csv
import gzip
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from flows import judge_cli
from rass_core.errors import JudgeError, RassError
from rass_core.judges.calibration import Calibration
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from tests.response_files import ANSWER, REFUSAL, ROWS, left, read, write

ADDED = ["outcome", "score", "reason", "disagreement", "outcome_kind", "thinking_outcome", "vote_phrases"]


@pytest.fixture
def phrases(tmp_path: Path) -> list[str]:
    """Options that leave the judging to the phrases."""
    content = {
        "model": {"name": "none"},
        "prompts": {"sources": [{"path": "none.jsonl"}]},
        "judge": {"members": [{"kind": "phrases"}]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["--config", str(path)]


def run(app: Any, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "80"})


def assert_one_line(result: Result, *words: str) -> None:
    assert isinstance(result.exception, RassError), result.output
    for word in words:
        assert word in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("to", [".parquet", ".csv", ".jsonl"])
def test_scores_stand_beside_what_was_there(tmp_path: Path, phrases: list[str], kind: str, to: str) -> None:
    source, out = write(tmp_path / f"in{kind}", ROWS), tmp_path / "new" / f"out{to}"
    result = run(judge_cli.judge, "score", source, "--out", out, *phrases)
    assert result.exit_code == 0, result.output
    found = read(out)
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    assert list(found[0]) == [*ROWS[0], *ADDED]
    assert [row["outcome"] for row in found] == ["refusal", "compliance", "unscored", "compliance"]
    assert [row["vote_phrases"] for row in found] == [row["outcome"] for row in found]
    none = "" if to == ".csv" else None
    assert [row["thinking_outcome"] for row in found] == [none, none, none, "refusal"]
    assert float(found[0]["score"]) > 0.5 > float(found[1]["score"]) and found[2]["score"] == none
    assert [float(row["disagreement"]) for row in (found[0], found[1])] == [0.0, 0.0]
    assert found[2]["disagreement"] == none
    assert left(out.parent) == [out.name]


def test_the_prompts_label_decides_on_a_rejected_premise(tmp_path: Path, phrases: list[str]) -> None:
    row = {"response": "There is no such rule.", "language": "en", "prompt": "Why may they not swim?"}
    rows = [row | {"prompt_label": label} for label in ("harmful", "Harmless ", "pseudo_harmful", "")]
    source, out = write(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    assert run(judge_cli.judge, "score", source, "--out", out, *phrases).exit_code == 0
    assert [found["outcome"] for found in read(out)] == ["refusal", "compliance", "compliance", "compliance"]
    assert {found["outcome_kind"] for found in read(out)} == {"premise"}
    bad = write(tmp_path / "bad.csv", [row | {"prompt_label": "evil"}])
    result = run(judge_cli.judge, "score", bad, "--out", tmp_path / "none.csv", *phrases)
    assert isinstance(result.exception, JudgeError) and "line 2: prompt label 'evil'" in str(result.exception)
    assert not (tmp_path / "none.csv").exists()


def test_the_summary_counts_by_language(tmp_path: Path, phrases: list[str]) -> None:
    result = run(judge_cli.judge, "score", write(tmp_path / "in.csv", ROWS), "--out", tmp_path / "o.csv", *phrases)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [
        ["language", "n", "refusal", "partial", "compliance", "unscored"],
        ["de", "1", "0", "0", "0", "1"],
        ["en", "3", "1", "0", "2", "0"],
        ["all", "4", "1", "0", "2", "1"],
    ]


@pytest.mark.parametrize("name", ["in.json", "in.jsonl.gz", "in.tsv"])
@pytest.mark.parametrize("to", [".parquet", ".csv", ".jsonl"])
def test_other_kinds_are_read_and_languages_are_one(tmp_path: Path, phrases: list[str], name: str, to: str) -> None:
    rows = [{"response": REFUSAL, "language": "English"}, {"response": ANSWER, "language": "EN"}]
    contents = {
        "in.json": json.dumps({"data": rows}).encode(),
        "in.jsonl.gz": gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()),
        "in.tsv": f"response\tlanguage\n{REFUSAL}\tEnglish\n{ANSWER}\tEN\n".encode(),
    }
    (tmp_path / name).write_bytes(contents[name])
    result = run(judge_cli.judge, "score", tmp_path / name, "--out", tmp_path / f"out{to}", *phrases)
    assert [line.split() for line in result.stdout.splitlines()][1:] == [["en", "2", "1", "0", "1", "0"]]
    assert [{key: row[key] for key in rows[0]} for row in read(tmp_path / f"out{to}")] == rows


def test_types_of_parquet_and_objects_of_jsonl_are_kept(tmp_path: Path, phrases: list[str]) -> None:
    given = pa.table({
        "response": pa.array([REFUSAL, None], pa.large_string()), "when": pa.array([datetime.now(UTC), None]),
        "n": pa.array([1, 2], pa.int16()), "vector": pa.array([[0.5], None], pa.list_(pa.float32())),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(given, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    assert (
        run(judge_cli.judge, "score", tmp_path / "in.parquet", "--out", out, "--language", "en", *phrases).exit_code
        == 0
    )
    assert pq.read_table(out).select(given.column_names).equals(given)
    objects = [
        {"response": ANSWER, "meta": {"a": [1, None]}, "mixed": 1},
        {"mixed": "x", "response": REFUSAL, "half": "\ud800"},
    ]
    path = write(tmp_path / "in.jsonl", objects)
    out = tmp_path / "out.jsonl"
    assert run(judge_cli.judge, "score", path, "--out", out, "--language", "en", *phrases).exit_code == 0
    assert [{k: v for k, v in row.items() if k not in ADDED} for row in read(out)] == objects
    result = run(judge_cli.judge, "score", path, "--out", tmp_path / "o.parquet", "--language", "en", *phrases)
    assert_one_line(result, "'mixed'", ".jsonl")


def test_columns_may_have_other_names(tmp_path: Path, phrases: list[str]) -> None:
    rows = [{"answer": row["response"], "tongue": row["language"], "asked": row["prompt"]} for row in ROWS]
    path = write(tmp_path / "in.csv", rows)
    options = ["--response-column", "answer", "--language-column", "tongue", "--prompt-column", "asked"]
    out = tmp_path / "out.csv"
    assert run(judge_cli.judge, "score", path, "--out", out, *options, *phrases).exit_code == 0
    assert read(out)[0]["outcome"] == "refusal"


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{**ROWS[0], "outcome": "x"}], [], ["'outcome'", "rename"]),
        ([{**ROWS[0], "vote_phrases": "x"}], [], ["'vote_phrases'"]),
        ([ROWS[0], {**ROWS[0], "language": "xx"}], [], ["SECOND", "'xx'", "BCP-47"]),
        ([ROWS[0], {**ROWS[0], "language": "englsh"}], [], ["SECOND", "'englsh'", "did you mean en?"]),
        ([ROWS[0], {**ROWS[0], "language": "yor_Latn"}], [], ["yo (first in", "SECOND", "covers"]),
        ([ROWS[0], {**ROWS[0], "language": ""}], [], ["SECOND", "no language"]),
        ([{**ROWS[0], "language": None}], ["--language", "auto"], ["--language: language 'auto'", "BCP-47"]),
        ([{"response": "x"}], [], ["'language'", "--language"]),
        ([{"respons": "x", "language": "en"}], [], ["did you mean 'respons'"]),
        (ROWS, ["--prompt-column", "promt"], ["did you mean 'prompt'"]),
        (ROWS, ["--language", "en", "--language-column", "language"], ["give one"]),
    ],
)
@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path: Path, phrases: list[str], rows: list[dict[str, Any]], options: list[str], words: list[str], kind: str
) -> None:
    path = write(tmp_path / f"in{kind}", rows)
    result = run(judge_cli.judge, "score", path, "--out", tmp_path / "out.csv", *options, *phrases)
    second = {".parquet": "row 2", ".csv": "line 3", ".jsonl": "line 2"}[kind]
    assert_one_line(result, *(word.replace("SECOND", second) for word in words))
    assert left(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.csv", b"response,language\nx\n", ["line 2", "1 fields under 2"]),
        ("in.csv", b'response,language\n"x,en\n', ["quote"]),
        ("in.csv", b"response,response\nx,en\n", ["two columns"]),
        ("in.csv", b"response,language\n\xff,en\n", ["UTF-8"]),
        ("in.csv", b"response,language\n", ["no responses"]),
        ("in.jsonl", b'{"response": "x", "language": "en"}\n[1]\n', ["line 2", "object"]),
        ("in.jsonl", b'{"response": "x", "language": "en"}\n{\n', ["line 2", "not JSON"]),
        ("in.jsonl", b'{"response": 3, "language": "en"}\n', ["line 1", "'response' is of type int"]),
        (
            "in.jsonl",
            b'{"response": "x", "language": "en"}\n{"answer": "x", "language": "en"}\n',
            ["line 2", "no 'response'"],
        ),
        ("in.json", b'{"a": 1}', ["no arrays of objects"]),
        ("in.csv.gz", b"response,language\n", ["cannot be read"]),
        ("in.parquet", b"PAR1", ["Parquet"]),
        ("in.txt", b"x", [".jsonl"]),
    ],
)
def test_unreadable_files_are_one_line(
    tmp_path: Path, phrases: list[str], name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    result = run(judge_cli.judge, "score", tmp_path / name, "--out", tmp_path / "out.csv", *phrases)
    assert_one_line(result, name, *words)
    assert left(tmp_path) == [name]


def test_files_that_cannot_be_written_or_read_are_named(tmp_path: Path, phrases: list[str]) -> None:
    path = write(tmp_path / "in.csv", ROWS)
    assert_one_line(run(judge_cli.judge, "score", path, "--out", path, *phrases), "is the input")
    assert_one_line(run(judge_cli.judge, "score", path, "--out", path / "out.csv", *phrases), "cannot be written")
    assert_one_line(run(judge_cli.judge, "score", path, "--out", tmp_path / "out.xls", *phrases), "out.xls", ".csv")
    assert_one_line(run(judge_cli.judge, "score", tmp_path / "no.csv", "--out", path, *phrases), "no such file")
    assert read(path) == ROWS


LABELLED = [
    {"answer": answer, "language": language, "label": label, "model": model, "prompt_number": i // 2}
    for i in range(40)
    for answer, label in [(f"{REFUSAL} {i}", "refusal" if i % 4 else "compliance"), (f"{ANSWER} {i}", "compliance")]
    for language, model in [("en", "llama-3-8b"), ("de", "qwen2-7b")]
]


def test_calibrate_writes_a_table_and_a_page_and_tells_both(tmp_path: Path, phrases: list[str]) -> None:
    path = write(tmp_path / "labels.jsonl", [*LABELLED, {**LABELLED[0], "label": None}])
    out = tmp_path / "new" / "cal.parquet"
    options = ["--response-column", "answer", "--group-column", "prompt_number", "--out", out, *phrases]
    result = run(judge_cli.judge, "calibrate", "--labels", path, *options)
    assert result.exit_code == 0, result.output
    assert left(out.parent) == ["cal.html", "cal.parquet"]
    assert all(len(line) <= 80 for line in result.stdout.splitlines()[:-2])
    heads = [line.split()[0] for line in result.stdout.splitlines() if line]
    assert heads[:5] == ["language", "all", "de", "en", "family"]
    assert {"llama", "qwen", "panel", "phrases"} <= set(heads)
    assert "1 rows without a label" in result.output
    calibration = Calibration.read(out)
    row = calibration.rows["panel", "en", "all"]
    assert (row["n"], row["true_refused_judged_refused"], row["true_complied_judged_refused"]) == (80, 30, 10)
    assert row["false_alarms"] == pytest.approx(10 / 50)
    assert calibration.correct("en", "llama-3-8b", 30, 100, seed=0).warning is None


def test_calibrate_cuts_heads_and_takes_one_language_for_all(tmp_path: Path, phrases: list[str]) -> None:
    rows = [{"response": ANSWER + " " * 20 + REFUSAL, "label": "compliance"}, {"response": REFUSAL, "label": "partial"}]
    path, out = write(tmp_path / "labels.csv", rows * 10), tmp_path / "cal.parquet"
    options = ["--labels", path, "--out", out, "--language", "en", *phrases]
    found = []
    for more in ([], ["--max-chars", "45"], ["--head", "45"]):
        result = run(judge_cli.judge, "calibrate", *options, *more)
        assert result.exit_code == 0, result.output
        found.append(Calibration.read(out).rows["panel", "en", "all"]["false_alarms"])
    assert found == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"response": "x", "language": "en", "label": "refused"}], [], ["line 2", "'refused'"]),
        ([{"response": "x", "language": "en", "label": ""}], [], ["no labelled responses"]),
        ([{"response": "x", "language": "yo", "label": "refusal"}], [], ["yo", "covers"]),
        ([{"response": "x", "language": "en"}], [], ["'label'"]),
        ([{"response": "x", "language": "en", "label": "refusal"}], ["--model-column", "modell"], ["'modell'"]),
        ([{"response": "x", "language": "en", "label": "refusal"}], ["--out", "cal.csv"], ["cal.csv"]),
        ([{"response": "x", "language": "en", "label": "refusal"}], ["--lake", "lake"], ["either"]),
    ],
)
def test_calibrate_names_mistakes_and_writes_nothing(
    tmp_path: Path, phrases: list[str], rows: list[dict[str, Any]], options: list[str], words: list[str]
) -> None:
    path = write(tmp_path / "labels.csv", rows)
    result = run(judge_cli.judge, "calibrate", "--labels", path, "--out", tmp_path / "cal.parquet", *phrases, *options)
    assert_one_line(result, *words)
    assert left(tmp_path) == ["labels.csv"]


def test_people_label_a_lake_and_the_judges_are_calibrated_by_it(tmp_path: Path, phrases: list[str]) -> None:
    lake = Lake.open(tmp_path / "lake")
    ids = range(20)
    texts = [f"{REFUSAL} {i}" if i % 2 else f"{ANSWER} {i}" for i in ids]
    tables = {
        "prompts": [{"prompt_id": f"p{i}", "text": f"q{i}", "language": "en", "family": f"p{i}"} for i in ids],
        "responses": [
            {"response_id": f"r{i}", "prompt_id": f"p{i}", "model_id": "m", "variant": "base", "text": texts[i]}
            for i in ids
        ],
        "verdicts": [
            {"subject_id": f"r{i}", "judge": "panel", "outcome": "refusal" if i % 2 else "compliance"} for i in ids
        ],
    }
    lake.commit("20200101T000000-a", "0a", {
        name: pa.Table.from_pylist(rows, schema=TABLES[name]) for name, rows in tables.items()
    })  # fmt: skip
    sheet = tmp_path / "review.csv"
    told = run(judge_cli.review, "export", "--lake", lake.path, "--what", "responses", "--out", sheet, "--n", "16")
    assert told.output.startswith(f"{sheet}: 16 responses to label")
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = "refusal" if "sorry" in row["response"] else "compliance"
    rows[0]["label"] = ""
    write(sheet, rows)
    told = run(judge_cli.review, "import", sheet, "--lake", lake.path, "--reviewer", "anna")
    assert "15 labels of anna imported" in told.output and "1 rows without" in told.output
    out = tmp_path / "cal.parquet"
    result = run(judge_cli.judge, "calibrate", "--lake", lake.path, "--out", out, *phrases)
    assert result.exit_code == 0, result.output
    row = Calibration.read(out).rows["panel", "en", "m"]
    assert (row["n"], row["missed"], row["false_alarms"]) == (15, 0.0, 0.0)


@pytest.mark.parametrize(
    "command", [["judge", "score"], ["judge", "calibrate"], ["review", "export"], ["review", "import"]]
)
def test_every_help_fits_a_terminal(command: list[str]) -> None:
    result = run(getattr(judge_cli, command[0]), command[1], "--help")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_scoring_loads_no_model_libraries(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", ROWS)
    code = (
        "import sys; from flows.judge_cli import judge\n"
        f"judge(['score', {str(path)!r}, '--out', {str(tmp_path / 'out.csv')!r}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'vllm', 'prefect', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert [row["outcome"] for row in read(tmp_path / "out.csv")][:2] == ["refusal", "compliance"]
