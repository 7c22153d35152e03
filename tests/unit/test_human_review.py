"""Review: people see texts without verdicts, and their labels come back as verdicts, once, or not at all."""

import csv
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from openpyxl import load_workbook

from rass_core.errors import JudgeError
from rass_core.judges.human_review import REVIEW_LABELS, export, import_labels, labelled_responses
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake

EVIL = '=HYPERLINK("http://x")'


def rows(table: str, *given: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(given), schema=TABLES[table])


def vote(subject: str, judge: str, outcome: str) -> dict[str, Any]:
    return {"subject_id": subject, "judge": judge, "outcome": outcome, "score": 0.5, "reason": f"why-{judge}"}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Thirty harmless prompts in two languages with responses, the harmful ones' texts not stored."""
    lake = Lake.open(tmp_path / "lake")
    prompts, responses, verdicts = [], [], []
    for i in range(30):
        language = "en" if i % 3 else "ar"
        prompts.append({"prompt_id": f"p{i}", "text": f"question {i}", "language": language, "label": "harmless",
                        "family": f"f{i // 2}"})  # fmt: skip
        stored = i < 26
        text = {0: EVIL, 1: "-1 is\nthe answer\x07", 2: "@all " + "x" * 40_000}.get(i, f"answer {i}")
        responses.append({"response_id": f"r{i}", "prompt_id": f"p{i}", "model_id": "m@1", "variant": "base",
                          "sample": 0, "text": text if stored else None})  # fmt: skip
        outcome = "refusal" if i % 5 == 0 else "compliance"
        other = "refusal" if i in (3, 7) else outcome
        verdicts += [vote(f"r{i}", "phrases", outcome), vote(f"r{i}", "other", other), vote(f"r{i}", "panel", outcome)]
        verdicts += [vote(f"r{i}", "first_token", "refusal")]
        if i < 10:
            verdicts.append(vote(f"p{i}", "panel", "pseudo_harmful"))
    tables = {"prompts": rows("prompts", *prompts), "responses": rows("responses", *responses)}
    lake.commit("20200101T000000-a", "0a", {**tables, "verdicts": rows("verdicts", *verdicts)})
    return lake


def sheet(path: Path) -> list[dict[str, Any]]:
    header, *cells = load_workbook(path)["review"].iter_rows(values_only=True)
    return [dict(zip(header, row, strict=True)) for row in cells]


def fill(path: Path, labels: dict[str, str], comment: str = "") -> None:
    book = load_workbook(path)
    found = book["review"]
    for row in found.iter_rows(min_row=2):
        cells = dict(zip([cell.value for cell in found[1]], row, strict=True))
        if cells["id"].value in labels:
            cells["label"].value = labels[cells["id"].value]
            cells["comment"].value = comment or None
    book.save(path)


def human(lake: Lake) -> list[dict[str, Any]]:
    return lake.read("verdicts", where="judge LIKE 'human:%'").to_pylist()


def test_a_spreadsheet_of_responses_shows_no_verdict(lake: Lake, tmp_path: Path) -> None:
    out = tmp_path / "new" / "review.xlsx"
    done = export(lake, "responses", out, n=200, seed=0)
    found = sheet(out)
    assert (done.n, done.n_not_stored) == (26, 4)
    assert list(found[0]) == ["id", "language", "prompt", "response", "label", "comment"]
    assert {row["id"] for row in found} == {f"r{i}" for i in range(26)}
    assert all(row["prompt"] == f"question {row['id'][1:]}" for row in found)
    assert all(row["label"] is None and row["comment"] is None for row in found)
    shown = " ".join(str(cell) for row in found for cell in row.values())
    assert not any(word in shown for word in ("why-", "phrases", "panel", "refusal"))


def test_cells_are_text_and_fit_for_reading(lake: Lake, tmp_path: Path) -> None:
    export(lake, "responses", tmp_path / "a.xlsx", n=200, seed=0)
    found = load_workbook(tmp_path / "a.xlsx")["review"]
    cells = {row[0].value: row[3] for row in found.iter_rows(min_row=2)}
    assert cells["r0"].value == EVIL
    assert {cell.data_type for row in found.iter_rows(min_row=2, max_col=4) for cell in row} == {"s"}
    assert cells["r0"].quotePrefix and cells["r0"].alignment.wrap_text
    assert cells["r1"].value == "-1 is\nthe answer\N{REPLACEMENT CHARACTER}"
    assert len(cells["r2"].value) == 32_767 and cells["r2"].value.endswith("[cut]")
    assert found.freeze_panes == "A2"
    assert all(found.column_dimensions[letter].width >= 10 for letter in "ABCDEF")
    (choice,) = found.data_validations.dataValidation
    assert choice.formula1 == '"refusal,partial,compliance"' and str(choice.sqref) == "E2:E27"


def test_csv_cells_are_neither_formulas_nor_numbers(lake: Lake, tmp_path: Path) -> None:
    lake.commit("20200102T000000-a", "0b", {
        "prompts": rows("prompts", {"prompt_id": "1234567890123456", "text": "+1", "language": "en"}),
        "verdicts": rows("verdicts", vote("1234567890123456", "panel", "harmless")),
    })  # fmt: skip
    for what in ("prompts", "responses"):
        export(lake, what, tmp_path / f"{what}.csv", n=200, seed=0)
        with (tmp_path / f"{what}.csv").open(encoding="utf-8-sig", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row if cell]
        assert not any(cell[0] in "=+-@\t\r" or cell.isdigit() for cell in cells)
        assert ("'" + EVIL in cells) == (what == "responses")
    path = tmp_path / "prompts.csv"
    path.write_text("id;label\r\n'1234567890123456;harmless\r\n", encoding="utf-8")
    assert import_labels(lake, path, "anna").n_new == 1
    assert human(lake)[0]["subject_id"] == "1234567890123456"


def test_the_sample_is_spread_and_disputed_ones_come_first(lake: Lake, tmp_path: Path) -> None:
    export(lake, "responses", tmp_path / "a.xlsx", n=6, seed=0)
    export(lake, "responses", tmp_path / "b.xlsx", n=2, seed=0)
    assert {row["id"] for row in sheet(tmp_path / "b.xlsx")} == {"r3", "r7"}
    found = sheet(tmp_path / "a.xlsx")
    assert {"r3", "r7"} <= {row["id"] for row in found}  # the only two on which the judges differ
    kinds = Counter((row["language"], int(row["id"][1:]) % 5 == 0) for row in found)
    assert kinds == {("ar", True): 1, ("ar", False): 2, ("en", True): 1, ("en", False): 2}


def test_the_sample_repeats_with_its_seed(lake: Lake, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        export(lake, "responses", tmp_path / f"{number}.xlsx", n=8, seed=seed)
        found.append([row["id"] for row in sheet(tmp_path / f"{number}.xlsx")])
    assert found[0] == found[1] != found[2]


def test_labels_come_back_as_verdicts_once(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    export(lake, "responses", path, n=200, seed=0)
    fill(path, {"r0": "refusal", "r1": " Partial", "r2": "compliance"}, "a word")
    assert import_labels(lake, path, "anna") == (3, 0, 23)
    assert {row["subject_id"]: (row["judge"], row["outcome"], row["score"], row["reason"]) for row in human(lake)} == {
        "r0": ("human:anna", "refusal", 1.0, "a word"),
        "r1": ("human:anna", "partial", 1.0, "a word"),
        "r2": ("human:anna", "compliance", 0.0, "a word"),
    }
    (run,) = lake.read("runs").to_pylist()
    assert (run["flow"], run["state"], run["run_id"]) == ("review", "Completed", human(lake)[0]["run_id"])
    assert lake.committed(run["commits"][0]) is not None
    assert import_labels(lake, path, "anna") == (0, 3, 23)
    assert len(human(lake)) == 3 and lake.read("runs").num_rows == 1
    assert import_labels(lake, path, "bert") == (3, 0, 23)


def test_a_changed_label_is_added_and_counts(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    export(lake, "responses", path, n=200, seed=0)
    for label in ("refusal", "compliance", "refusal"):
        fill(path, {"r0": label, "r1": "compliance"})
        import_labels(lake, path, "anna")
    assert len(human(lake)) == 4  # r1 once
    assert {row["response"]: row["label"] for row in labelled_responses(lake)}[EVIL] == "refusal"


def test_prompts_have_labels_of_their_own(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    done = export(lake, "prompts", path, n=200, seed=0)
    assert (done.n, done.n_not_stored) == (10, 0)
    assert list(sheet(path)[0]) == ["id", "language", "prompt", "label", "comment"]
    fill(path, {"p0": "harmful", "p1": "pseudo_harmful", "p2": "harmless"})
    import_labels(lake, path, "anna")
    assert {row["subject_id"]: row["score"] for row in human(lake)} == {"p0": 0.0, "p1": 1.0, "p2": 1.0}
    done = export(lake, "prompts", path, n=200, seed=0, reviewer="anna")
    assert done.n == 7
    assert export(lake, "prompts", path, n=200, seed=0, reviewer="bert").n == 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "id,label\nr0,refusal\nr1,refused\n", "a.csv row 3: label 'refused' is not one of refusal"),
        ("a.csv", "id,label\nr0,harmless\n", "row 2: label 'harmless' is not one of refusal"),
        ("a.csv", "id,label\n\nr0,refusal\nnobody,refusal\n", "row 4: id 'nobody'"),
        ("a.csv", "id,label\nr0,refusal\nr0,partial\n", "row 3: id 'r0' has another label above"),
        ("a.csv", "id,lable\nr0,refusal\n", "no column 'label'"),
        ("a.csv", "", "no column 'id'"),
        ("a.csv", 'id,label\nr0,"refusal\n', "cannot be read as CSV"),
        ("a.xlsx", "no spreadsheet", "cannot be read as a spreadsheet"),
        ("a.txt", "id", "not .xlsx or .csv"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    lake: Lake, tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(JudgeError, match=said) as caught:
        import_labels(lake, tmp_path / name, "anna")
    assert "\n" not in str(caught.value)
    assert human(lake) == [] and lake.read("runs").num_rows == 0


def test_names_and_absent_files_are_refused(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="reviewer"):
        import_labels(lake, tmp_path / "a.csv", "anna'; DROP")
    with pytest.raises(JudgeError, match="absent.xlsx"):
        import_labels(lake, tmp_path / "absent.xlsx", "anna")
    empty = Lake.open(tmp_path / "empty")
    with pytest.raises(JudgeError, match="no responses with verdicts"):
        export(empty, "responses", tmp_path / "a.xlsx", n=3, seed=0)
    assert not (tmp_path / "a.xlsx").exists()
    with pytest.raises(JudgeError, match="no response"):
        labelled_responses(empty)


def test_labels_for_calibration_are_the_majority_with_its_weight(lake: Lake, tmp_path: Path) -> None:
    words = {"anna": ("refusal", "refusal", "partial"), "bert": ("refusal", "compliance", "partial"),
             "carl": ("compliance", None, None)}  # fmt: skip
    for reviewer, labels in words.items():
        lines = [f"r{i},{label}" for i, label in zip((5, 4, 8), labels, strict=True) if label]
        (tmp_path / "a.csv").write_text("id,label\n" + "\n".join(lines), encoding="utf-8")
        import_labels(lake, tmp_path / "a.csv", reviewer)
    found = {row["response"]: row for row in labelled_responses(lake)}
    assert set(found) == {"answer 5", "answer 8"}  # on r4 two differ
    assert [found[f"answer {i}"]["label"] for i in (5, 8)] == ["refusal", "partial"]
    row = found["answer 5"]
    assert {name: row[name] for name in ("prompt", "language", "model", "family")} == {
        "prompt": "question 5", "language": "en", "model": "m@1", "family": "f2",
    }  # fmt: skip
    refused_in_english = [i for i in range(26) if i % 3 and i % 5 == 0]
    assert row["weight"] == len(refused_in_english)


def test_a_label_stays_with_the_text_that_was_labelled(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,label\nr5,refusal\n", encoding="utf-8")
    import_labels(lake, tmp_path / "a.csv", "anna")
    later = f"{datetime.now(UTC):%Y}1231T235959-z"
    answer = {"response_id": "r5", "prompt_id": "p5", "model_id": "m@1", "variant": "sft", "text": "another"}
    lake.commit(later, "0c", {"responses": rows("responses", answer)})
    assert [(row["response"], row["model"]) for row in labelled_responses(lake)] == [("answer 5", "m@1")]
    lake.commit("20200101T000000-b", "0d", {"responses": rows("responses", answer)})
    assert [(row["response"], row["model"]) for row in labelled_responses(lake)] == [("another", "m@1 (sft)")]


def test_every_label_has_a_meaning(lake: Lake, tmp_path: Path) -> None:
    export(lake, "responses", tmp_path / "a.xlsx", n=1, seed=0)
    told = dict(load_workbook(tmp_path / "a.xlsx")["labels"].iter_rows(values_only=True))
    assert told == REVIEW_LABELS["responses"]
