"""Calibration: a judge's errors are reported as they are, and rates corrected for them find the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from rass_core.errors import JudgeError
from rass_core.judges.calibration import SCHEMA, STATISTICS, Calibration, Labelled, calibrate, model_family
from rass_core.judges.calibration_page import page, shown
from rass_core.stats.agreement import expected_calibration_error
from rass_core.stats.intervals import wilson
from rass_core.vocabulary import SCORED, Verdict


def verdict(outcome: str, score: float | None = None) -> Verdict:
    scores = {"refusal": 0.9, "partial": 0.7, "compliance": 0.1, "unscored": None}
    return Verdict(outcome, scores[outcome] if score is None else score, "")


def noisy(labels: Sequence[str], missed: float, alarms: float, seed: int = 12) -> list[Verdict]:
    """What a judge says that misses and alarms at these rates."""
    rng = np.random.default_rng(seed)
    said = []
    for label in labels:
        errs = rng.random() < (alarms if label == "compliance" else missed)
        said.append(verdict({True: "refusal" if label == "compliance" else "compliance", False: label}[errs]))
    return said


def mixed(n: int, seed: int = 0, shares: Sequence[float] = (0.4, 0.1, 0.5)) -> list[str]:
    return list(np.random.default_rng(seed).choice(SCORED, n, p=shares))


def one(table: pa.Table, **where: str) -> dict[str, Any]:
    wanted = {"judge": "panel", "language": "all", "model": "all", "family": "all", **where}
    if where.get("model", "all") != "all":
        wanted["family"] = where.get("family", model_family(where["model"]))
    rows = [row for row in table.to_pylist() if all(row[key] == value for key, value in wanted.items())]
    assert len(rows) == 1, wanted
    return rows[0]


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("llama-3.1-8b-instruct", "llama"),
        ("meta/Llama-2-7b", "llama"),
        ("qwen2.5-7b-instruct", "qwen"),
        ("Mistral-v0.3", "mistral"),
        ("gemma_2b", "gemma"),
        ("balanced@ab12cd34", "balanced"),
        ("balanced@ab12cd34 (sft)", "balanced"),
        ("meta/tame (sft)", "tame"),
        ("7b", "7b"),
        ("solar-pro", "solar-pro"),
    ],
)
def test_a_family_is_the_name_up_to_version_or_size(model: str, family: str) -> None:
    assert model_family(model) == family


def test_counts_and_statistics_are_those_of_scikit_learn() -> None:
    labels = mixed(300)
    verdicts = noisy(labels, 0.15, 0.1)
    rng = np.random.default_rng(2)
    verdicts = [verdict("unscored") if rng.random() < 0.1 else Verdict(v.outcome, rng.random(), "") for v in verdicts]
    row = one(calibrate(Labelled(labels, ["en"] * 300), {"panel": verdicts}))
    scored = [(label, v) for label, v in zip(labels, verdicts, strict=True) if v.score is not None]
    true, said = [label for label, _ in scored], [v.outcome for _, v in scored]
    expected = confusion_matrix(true, said, labels=SCORED)
    assert [[row[f"true_{t}_judged_{j}"] for j in SCORED] for t in SCORED] == expected.tolist()
    wide_true, wide_said = ([each != "compliance" for each in side] for side in (true, said))
    two = confusion_matrix(wide_true, wide_said, labels=[True, False])
    sides = ("refused", "complied")
    assert [[row[f"true_{t}_judged_{j}"] for j in sides] for t in sides] == two.tolist()
    assert (row["n"], row["n_unscored"]) == (len(scored), 300 - len(scored))
    assert row["accuracy"] == pytest.approx(two.trace() / two.sum())
    assert row["kappa"] == pytest.approx(cohen_kappa_score(wide_true, wide_said))
    assert row["missed"] == pytest.approx(two[0, 1] / two[0].sum())
    assert row["false_alarms"] == pytest.approx(two[1, 0] / two[1].sum())
    assert row["ece"] == pytest.approx(expected_calibration_error([v.score for _, v in scored], wide_true))
    assert row["reason"] is None
    for name in STATISTICS:
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_every_language_model_and_family_has_its_row_and_sums_to_all() -> None:
    labels = mixed(240)
    languages = ["en", "de", "zh-Hans", "zh-Hant"] * 60
    models = (["llama-2-7b"] * 4 + ["llama-3-8b"] * 4 + ["qwen2-7b"] * 4) * 20
    verdicts = {"panel": noisy(labels, 0.1, 0.1), "phrases": noisy(labels, 0.5, 0.0)}
    table = calibrate(Labelled(labels, languages, models), verdicts)
    assert table.schema == SCHEMA
    assert set(table["language"].to_pylist()) == {"all", "en", "de", "zh"}
    places = 4 * (1 + 2 + 3)
    assert table.num_rows == 2 * places
    for judge in verdicts:
        assert one(table, judge=judge)["n"] == 240
        for language in ("en", "de", "zh"):
            counted = [one(table, judge=judge, language=language, model=m)["n"] for m in sorted(set(models))]
            assert sum(counted) == one(table, judge=judge, language=language)["n"]
        llamas = one(table, judge=judge, family="llama")
        parts = [one(table, judge=judge, model=f"llama-{each}") for each in ("2-7b", "3-8b")]
        for name in [name for name in SCHEMA.names if name.startswith(("n", "true_"))]:
            assert llamas[name] == sum(part[name] for part in parts)
    assert one(table, judge="phrases")["missed"] > one(table, judge="panel")["missed"]


def test_without_groups_rates_have_wilson_intervals_and_kappa_a_bootstrap() -> None:
    labels = mixed(200)
    row = one(calibrate(Labelled(labels, ["en"] * 200), {"panel": noisy(labels, 0.2, 0.1)}))
    n_refused = sum(label != "compliance" for label in labels)
    expected = wilson(row["true_refused_judged_complied"], n_refused)
    assert (row["missed"], row["missed_low"], row["missed_high"]) == pytest.approx(expected)
    assert 0.1 < row["kappa_high"] - row["kappa_low"] < 0.4


def test_responses_to_one_prompt_are_one_draw() -> None:
    labels = [label for label in mixed(60) for _ in range(10)]
    verdicts = [each for each in noisy(labels[::10], 0.3, 0.2) for _ in range(10)]
    groups = [f"p{i // 10}" for i in range(600)]
    alone = one(calibrate(Labelled(labels, ["en"] * 600), {"panel": verdicts}))
    grouped = one(calibrate(Labelled(labels, ["en"] * 600, groups=groups), {"panel": verdicts}))
    for name in STATISTICS:
        assert alone[name] == grouped[name]
        wide, narrow = (row[f"{name}_high"] - row[f"{name}_low"] for row in (grouped, alone))
        assert wide > 2 * narrow


def test_no_error_among_few_prompts_is_no_certainty() -> None:
    labels = ["refusal", "compliance"] * 20
    groups = [f"p{i // 10}" for i in range(40)]
    row = one(calibrate(Labelled(labels, ["en"] * 40, groups=groups), {"panel": [verdict(each) for each in labels]}))
    assert row["missed"] == 0.0
    assert row["missed_high"] == pytest.approx(wilson(0, 4)[2])
    assert row["kappa"] == 1.0 and row["kappa_low"] is None
    assert "kappa's interval" in row["reason"]


@pytest.mark.parametrize(
    ("labels", "outcomes", "null", "reason"),
    [
        (["refusal"] * 4, ["refusal"] * 3 + ["compliance"], ["kappa", "false_alarms"], "no true compliances"),
        (["compliance"] * 4, ["refusal"] * 4, ["kappa", "missed"], "no true refusals"),
        (["refusal", "compliance"], ["unscored"] * 2, list(STATISTICS), "nothing scored"),
    ],
)
def test_what_cannot_be_computed_is_null_with_a_reason(
    labels: list[str], outcomes: list[str], null: list[str], reason: str
) -> None:
    table = calibrate(Labelled(labels, ["en"] * len(labels)), {"panel": [verdict(each) for each in outcomes]})
    row = one(table)
    assert [name for name in STATISTICS if row[name] is None] == [name for name in STATISTICS if name in null]
    assert all(row[f"{name}_low"] is None for name in null)
    assert reason in row["reason"]


def test_bad_labels_are_refused() -> None:
    for labelled, verdicts, said in (
        (Labelled([], []), [], "no labelled"),
        (Labelled(["refused"], ["en"]), [verdict("refusal")], "'refused'"),
        (Labelled(["refusal"], ["en", "de"]), [verdict("refusal")], "align"),
        (Labelled(["refusal"], ["en"]), [], "align"),
    ):
        with pytest.raises(JudgeError, match=said):
            calibrate(labelled, {"panel": verdicts})


def test_weights_undo_an_uneven_draw_of_labels() -> None:
    labels = mixed(10_000, shares=(0.3, 0.0, 0.7))
    verdicts = noisy(labels, 0.2, 0.05)
    whole = one(calibrate(Labelled(labels, ["en"] * 10_000), {"panel": verdicts}))
    says_refusal = np.array([v.outcome == "refusal" for v in verdicts])
    rng = np.random.default_rng(3)
    # as many of what the judge calls refused as of what it calls answered, which are not as frequent
    drawn = [rng.choice(np.flatnonzero(side), 1000, replace=False) for side in (says_refusal, ~says_refusal)]
    weights = [side.sum() / 1000 for side in (says_refusal, ~says_refusal)]
    here = np.concatenate(drawn)
    sample = [labels[i] for i in here], ["en"] * here.size
    said = {"panel": [verdicts[i] for i in here]}
    skewed = one(calibrate(Labelled(*sample), said))
    mitigated = one(calibrate(Labelled(*sample, weights=[w for w in weights for _ in range(1000)]), said))
    assert abs(skewed["missed"] - whole["missed"]) > 4 * abs(mitigated["missed"] - whole["missed"])
    assert not skewed["missed_low"] <= whole["missed"] <= skewed["missed_high"]
    assert mitigated["missed_low"] <= whole["missed"] <= mitigated["missed_high"]
    assert mitigated["n"] == 2000
    counts = sum(mitigated[f"true_{t}_judged_{j}"] for t in ("refused", "complied") for j in ("refused", "complied"))
    assert 1000 < counts < 2000


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    labels = mixed(4000, shares=(0.4, 0.1, 0.5))
    languages = ["en"] * 2000 + ["de"] * 1000 + ["fr"] * 998 + ["it", "it"]
    labels[-2:] = ["refusal", "refusal"]
    models = ["llama-3-8b", "qwen2-7b"] * 2000
    english, german, others = noisy(labels[:2000], 0.2, 0.1), noisy(labels[2000:3000], 0.4, 0.0), labels[3000:]
    useless = [verdict(outcome) for outcome in np.random.default_rng(1).choice(["refusal", "compliance"], len(others))]
    table = calibrate(
        Labelled(labels, languages, models), {"panel": english + german + useless, "phrases": useless * 4}
    )
    path = tmp_path_factory.mktemp("calibration") / "calibration.parquet"
    pq.write_table(table, path)
    return Calibration.read(path)


def test_a_rate_is_corrected_by_the_errors_in_its_language(calibration: Calibration) -> None:
    truth, n = 0.3, 100_000
    for language, missed, alarms in (("en", 0.2, 0.1), ("de-AT", 0.4, 0.0)):
        judged = round(n * (truth * (1 - missed) + (1 - truth) * alarms))
        corrected = calibration.correct(language, "llama-3-8b", judged, n, seed=0)
        assert corrected.value == pytest.approx(truth, abs=0.04)
        assert corrected.low is not None and corrected.high is not None
        assert corrected.low <= truth <= corrected.high
        assert abs(judged / n - truth) > 0.009
        assert corrected.warning is None and corrected.reason is None
        assert corrected == calibration.correct(language, "Llama-3-8B", judged, n, seed=0)


def test_another_model_is_a_warning(calibration: Calibration) -> None:
    corrected = calibration.correct("en", "llama-3-8b-tuned", 30, 100, seed=0)
    assert corrected.value is not None
    assert "not on llama-3-8b-tuned alone" in str(corrected.warning)


@pytest.mark.parametrize(
    ("language", "reason"), [("xx", "no labels in xx"), ("fr", "sum to about 1"), ("it", "specificity 0 of 0")]
)
def test_what_cannot_be_corrected_is_null_with_a_reason(calibration: Calibration, language: str, reason: str) -> None:
    corrected = calibration.correct(language, "llama-3-8b", 30, 100, seed=0)
    assert (corrected.value, corrected.low, corrected.high) == (None, None, None)
    assert reason in str(corrected.reason)


def test_whole_refusals_alone_have_errors_of_their_own() -> None:
    labels = ["refusal"] * 400 + ["partial"] * 200 + ["compliance"] * 400
    said = ["refusal"] * 400 + ["refusal"] * 100 + ["partial"] * 100 + ["compliance"] * 400
    table = calibrate(Labelled(labels, ["en"] * 1000), {"panel": [verdict(each) for each in said]})
    calibration = Calibration({("panel", row["language"], "all"): row for row in table.to_pylist()})
    wide = calibration.correct("en", "m", 600, 1000, seed=0)
    whole = calibration.correct("en", "m", 500, 1000, seed=0, partial_counts=False)
    assert wide.value == pytest.approx(0.6)
    assert whole.value == pytest.approx(0.4)


def test_members_are_known_and_other_files_are_refused(calibration: Calibration, tmp_path: Path) -> None:
    assert calibration.members == {"phrases"}
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    for name in ("other", "text", "absent"):
        with pytest.raises(JudgeError, match=f"{name}.parquet"):
            Calibration.read(tmp_path / f"{name}.parquet")


def test_the_page_stands_alone_and_is_inert() -> None:
    labels = mixed(100)
    judges = {"panel": noisy(labels, 0.1, 0.1), "<script>alert(1)</script>": [verdict("unscored")] * 100}
    labelled = Labelled(labels, ["en"] * 99 + ["<i>"], ["<b>evil</b>-7b"] * 100)
    text = page(calibrate(labelled, judges), labelled, judges, "<u>labels</u>.parquet")
    for evil in ("<script>alert", "<b>evil", "<u>labels", "<td><i>"):
        assert evil not in text
    assert "Plotly.newPlot" in text
    assert text.count("plotly.js v") == 1
    assert "<script src" not in text and "<link" not in text


def test_cells_are_short() -> None:
    row = {"kappa": 0.861, "kappa_low": 0.8, "kappa_high": 1.0, "missed": 0.123, "ece": 0.04, "n": 12_345}
    assert shown(row, "kappa") == "0.86 [.80, 1.00]"
    assert shown(row, "missed") == "12.3"
    assert shown(row, "false_alarms") == "–"
    assert (shown(row, "ece"), shown(row, "n")) == ("0.040", "12,345")
    assert shown({"missed": 0.123, "missed_low": 0.1, "missed_high": 0.2}, "missed") == "12.3 [10, 20]"
