"""`rass morbench` and `rass evaluate` on the lab, only smaller than configs/lab-morbench.yaml."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from rass_core.benchmark.folder import read_benchmark
from rass_core.config import RassConfig, load_config
from rass_core.errors import JudgeError, ModelError, PromptError, RassError
from rass_core.lab import world
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from rass_core.probe.geometry import split_of
from rass_core.text import digest

CONFIG = Path(__file__).parents[2] / "configs" / "lab-morbench.yaml"
LANGUAGES = ("de", "en")
CATEGORIES = ("assault", "destruction", "disappearance", "everyday", "killing")
N_PER_CELL = 2


def small(lake: Path) -> RassConfig:
    """Two models, two languages, one short round."""
    config = load_config(CONFIG, lake=str(lake))
    fewer = {"languages": list(LANGUAGES), "max_rows_per_cell": 60}
    given, more = (
        [source.model_copy(update=fewer) for source in section.sources] for section in (config.prompts, config.evaluate)
    )
    return config.model_copy(update={
        "models": config.models[:1], "probe": config.probe.model_copy(update={"n_bootstrap": 100}),
        "prompts": config.prompts.model_copy(update={"sources": given}),
        "evaluate": config.evaluate.model_copy(update={"sources": more}),
        "generate": config.generate.model_copy(update={"rounds": 1, "candidates_per_round": 160}),
        "morbench": config.morbench.model_copy(update={"n_per_cell": N_PER_CELL, "n_strata": 2}),
    })  # fmt: skip


def built(lake: Path, out: Path | None = None, n_per_cell: int = N_PER_CELL) -> Path:
    from flows.morbench import morbench as flow

    config = small(lake)
    wanted = config.morbench.model_copy(update={"n_per_cell": n_per_cell})
    return Path(flow(config.model_copy(update={"morbench": wanted}), out))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_benchmark(folder)[0].to_pylist()  # type: ignore[no-any-return]


def n_commits(lake: Path) -> int:
    return int(Lake.open(str(lake), create=False).query("SELECT count(*) AS n FROM commits").to_pylist()[0]["n"])


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    return tmp_path_factory.mktemp("morbench") / "lake"


@pytest.fixture(scope="module")
def folder(lake: Path) -> Path:
    return built(lake)


@pytest.fixture(scope="module")
def all_that_may(lake: Path, folder: Path) -> Path:
    """More is wanted than there is, so that whatever may enter does."""
    return built(lake, lake.parent / "all", n_per_cell=60)


def test_every_cell_is_filled_and_true_by_the_oracle(folder: Path) -> None:
    rows = rows_of(folder)
    cells = Counter((row["language"], row["category"], row["label"] == "harmful") for row in rows)
    assert cells == {(x, y, z): N_PER_CELL for x in LANGUAGES for y in CATEGORIES for z in (True, False)}
    for row in rows:
        sentence = world.parse(row["text"], row["language"])
        assert sentence is not None and sentence.label == row["label"]
        assert row["licence"] == "Apache-2.0"


def test_pairs_lie_near_a_boundary_and_tell_their_place_under_both_models(folder: Path) -> None:
    rows = rows_of(folder)
    models = {each["model_id"] for row in rows for each in row["positions"]}
    assert sorted(model.split("@")[0] for model in models) == ["balanced", "cautious"]
    assert {row["model_id"] for row in rows} == models, "each model has pairs standing for it"
    width = small(folder).morbench.width
    for row in rows:
        assert {each["model_id"] for each in row["positions"]} == models
        if row["label"] != "harmful":
            distance = {each["model_id"]: each["distance"] for each in row["positions"]}
            assert abs(distance[row["model_id"]]) <= width


def test_pairs_change_little(folder: Path) -> None:
    by_pair: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(folder):
        by_pair.setdefault(row["pair_id"], []).append(row)
    same_verb = 0
    for first, second in by_pair.values():
        assert {first["label"] == "harmful", second["label"] == "harmful"} == {True, False}
        sentences = [world.parse(each["text"], each["language"]) for each in (first, second)]
        same_verb += sentences[0].verb == sentences[1].verb  # type: ignore[union-attr]
        assert first["change"] <= 0.5
    assert same_verb >= 0.8 * len(by_pair)


def test_nothing_stems_from_the_splits_that_are_trained_on(lake: Path, all_that_may: Path) -> None:
    config = small(lake)
    given = pq.read_table(str(config.prompts.sources[0].path)).to_pylist()
    trained = {
        row["family"] for row in given
        if row["language"] in LANGUAGES and split_of(f"lab/{row['family']}", config.seed) != "test"
    }  # fmt: skip
    rows = Lake.open(str(lake), create=False).query("SELECT family FROM prompts").to_pylist()
    trained &= {row["family"].removeprefix("lab/") for row in rows}  # those that were sampled
    assert len(trained) > 50
    assert {row["family"] for row in rows_of(all_that_may)}.isdisjoint(trained)


def test_the_same_seed_gives_the_same_bytes_in_another_lake(folder: Path, tmp_path: Path) -> None:
    other = built(tmp_path / "lake")
    assert files_of(other) == files_of(folder)
    assert len(files_of(folder)) == 4


def test_a_second_build_computes_nothing_and_leaves_the_folder(lake: Path, folder: Path) -> None:
    before, files = n_commits(lake), files_of(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert built(lake) == folder
    assert n_commits(lake) == before + 2, "its own start and end in `runs`"
    assert files_of(folder) == files
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


def test_what_a_pair_of_the_lake_trains_on_is_kept_out_with_its_rewordings(
    lake: Path, folder: Path, tmp_path: Path
) -> None:
    benign = [row for row in rows_of(folder) if row["label"] != "harmful"]
    written = [row for row in benign if row["source"].startswith("rass:")]
    assert written, "some prompts of the benchmark were written"
    planted = written[:3]
    rows = [{"prompt_id": row["prompt_id"], "language": row["language"], "kind": "over_refusal"} for row in planted]
    schema = TABLES["preferences"]
    table = pa.table({field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema})
    Lake.open(str(lake), create=False).commit("planted", digest("planted"), {"preferences": table.cast(schema)})
    again = rows_of(built(lake, tmp_path / "disjoint"))
    families = {world.parse(row["text"], row["language"]).family for row in planted}  # type: ignore[union-attr]
    assert {row["prompt_id"] for row in again}.isdisjoint(row["prompt_id"] for row in planted)
    assert {row["family"] for row in again}.isdisjoint(families)
    with pytest.raises(PromptError, match="a version stays"):
        built(lake)


def test_translations_that_came_back_changed_did_not_enter(lake: Path, all_that_may: Path) -> None:
    rows = Lake.open(str(lake), create=False).query("""
        SELECT subject_id, outcome FROM verdicts WHERE judge = 'back_translation'
    """)
    said = {row["subject_id"]: row["outcome"] for row in rows.to_pylist()}
    assert set(said.values()) == {"same", "changed"}
    entered = {row["prompt_id"] for row in rows_of(all_that_may)}
    assert entered & set(said)
    assert all(said.get(prompt_id, "same") == "same" for prompt_id in entered)


def test_a_folder_that_holds_something_else_is_reported_before_the_work(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PromptError, match="not a benchmark"):
        built(tmp_path / "lake", tmp_path)
    assert not (tmp_path / "lake").exists()


# rass evaluate


def evaluated(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def model(name: str) -> Path:
    return CONFIG.parents[1] / "rass_core" / "lab" / "weights" / name


def test_two_models_are_scored_on_the_benchmark(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    result = evaluated(
        "--dataset", folder, "--model", model("cautious"), "--model", model("permissive"), "--config", CONFIG,
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text(encoding="utf-8"))
    found = {
        (row["model_id"].split("@")[0], row["language"], row["metric"]): row
        for row in rows if row["dataset"].startswith("morbench@")
    }  # fmt: skip
    for name in ("cautious", "permissive"):
        for language, n in (("de", 10), ("en", 10), ("all", 20)):
            safety, over = (found[name, language, metric] for metric in ("safety_rate", "over_refusal_rate"))
            assert safety["value"] >= 0.9 and safety["n"] == n
            assert 0 <= over["low"] <= over["value"] <= over["high"] <= 1 and over["n"] == n
            assert found[name, language, "unscored_rate"]["value"] == 0.0
        shown = next(line for line in result.output.splitlines() if line.startswith(f"{name}@"))
        assert f"on morbench@{read_benchmark(folder)[1]}" in shown
        assert re.search(rf"self-check of {name}@\w+: stream_difference, plain [\d.e-]+ \(at most", result.output)
    assert (
        found["cautious", "all", "over_refusal_rate"]["value"]
        > found["permissive", "all", "over_refusal_rate"]["value"]
    )
    assert "text" not in json.dumps(rows), "no prompt and no answer is kept"


def test_a_mitigated_adapter_is_merged_and_scored(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from rass_core.models.causal_lm import load_causal_lm

    base, tokenizer = load_causal_lm(str(model("cautious")), "float32", device="cpu")
    adapted = get_peft_model(base, LoraConfig(r=1, target_modules=["down_proj"], init_lora_weights=True))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    rates = []
    for name in (tmp_path / "adapter", model("cautious")):
        out = tmp_path / "rates.parquet"
        arguments = ("--dataset", folder, "--model", name, "--base", model("cautious"), "--language", "en")
        result = evaluated(*arguments, "--out", out)
        assert result.exit_code == 0, result.output
        rows = pq.read_table(out).to_pylist()
        rates.append({(row["dataset"], row["language"], row["metric"]): row["value"] for row in rows})
        assert {row["language"] for row in rows} == {"en", "all"}
    assert "adapter@" in str(rows[0]["model_id"]) or "cautious@" in str(rows[0]["model_id"])
    assert rates[0] == rates[1], "an adapter that changes nothing changes no rate"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--dataset", "nowhere", "--model", "m"], PromptError, "nowhere: no such folder or file"),
        (["--dataset", "FOLDER", "--model", "/no/model"], ModelError, "/no/model: no such folder"),
        (["--dataset", "FOLDER", "--model", "MODEL", "--language", "fr"], PromptError, "no prompt in fr"),
        (["--dataset", "FOLDER", "--model", "MODEL", "--dtype", "int3"], RassError, "--dtype int3"),
        (["--dataset", "FOLDER", "--model", "MODEL", "--out", "rates.xlsx"], RassError, "rates.xlsx"),
        (["--dataset", "UNKNOWN", "--model", "MODEL"], JudgeError, "language yo"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, arguments: list[str], error: type[RassError], words: str
) -> None:
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"text": "Hello", "label": "harmless", "language": "yo"}\n', encoding="utf-8")
    places = {"FOLDER": str(folder), "MODEL": str(model("balanced")), "UNKNOWN": str(unknown)}
    result = evaluated(*(places.get(each, each) for each in arguments))
    assert isinstance(result.exception, error), result.output
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)
