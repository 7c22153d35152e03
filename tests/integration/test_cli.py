"""What a user meets who makes a mistake: one clear line, exit code 2, nothing half-written."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.cli import DEMO_CONFIG
from rass_core.lab.training import build_model, build_tokenizer, save
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from tests.report_pages import boundary

LAB = Path(DEMO_CONFIG).parent


def rass(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def config_file(folder: Path, prompts: Path, **changes: object) -> Path:
    content = yaml.safe_load(Path(DEMO_CONFIG).read_text(encoding="utf-8"))
    content["model"]["name"] = str(LAB / "weights" / "balanced")
    content["prompts"] = {"sources": [{"path": str(prompts)}]}
    content.update(changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def prompt_file(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


GOOD = [{"text": f"How do I draw cloud {i}?", "label": "harmless", "language": "en"} for i in range(3)]


def assert_one_clear_line(result: subprocess.CompletedProcess[str], lake: Path, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2, result.stderr
    assert [line for line in lines if line.startswith("rass: ")] == lines[-1:], result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]
    assert not lake.exists()


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["run"],
        ["sql"],
        ["plan"],
        ["doctor"],
        ["init"],
        ["report"],
        ["compare"],
        ["morbench"],
        ["evaluate"],
    ],
)
def test_every_help_reads_well_in_a_narrow_terminal(command: list[str]) -> None:
    result = rass(*command, "--help")
    assert result.returncode == 0
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_an_unknown_key_names_the_nearest_right_one(tmp_path: Path) -> None:
    config = config_file(tmp_path, prompt_file(tmp_path, GOOD), genrate={})
    assert_one_clear_line(rass("run", config, "--lake", tmp_path / "lake"), tmp_path / "lake", "genrate", "'generate'")


def test_a_missing_config_model_or_prompt_file_is_named(tmp_path: Path) -> None:
    lake, prompts = tmp_path / "lake", prompt_file(tmp_path, GOOD)
    assert_one_clear_line(rass("run", tmp_path / "no.yaml", "--lake", lake), lake, "no.yaml", "rass init")
    missing = config_file(tmp_path, tmp_path / "nowhere.jsonl")
    assert_one_clear_line(rass("run", missing, "--lake", lake), lake, "nowhere.jsonl")
    gone = config_file(tmp_path, prompts, model={"name": str(tmp_path / "no-model")})
    assert_one_clear_line(rass("run", gone, "--lake", lake), lake, "no-model")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "Hello", "label": "harmless", "language": "en"}], ["text"]),
        ([*GOOD, {**GOOD[0], "label": "harmful"}], ["harmless", "harmful", "cloud 0"]),
        ([*GOOD, {**GOOD[0], "text": "x" * 50_000}], ["50000"]),
        ([*GOOD, {**GOOD[0], "label": "evil"}], ["evil"]),
    ],
    ids=["no text column", "two labels", "50,000 characters", "unknown label"],
)
def test_unusable_prompts_are_named(tmp_path: Path, rows: list[dict[str, object]], words: list[str]) -> None:
    config = config_file(tmp_path, prompt_file(tmp_path, rows))
    assert_one_clear_line(rass("run", config, "--lake", tmp_path / "lake"), tmp_path / "lake", *words)


def test_invalid_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + b'\n{"text": "\xff\xfe"}')
    config = config_file(tmp_path, path)
    assert_one_clear_line(rass("run", config, "--lake", tmp_path / "lake"), tmp_path / "lake", "prompts.jsonl", "4")


def test_a_model_without_a_chat_template_is_named(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    save(build_model(tokenizer), tokenizer, tmp_path / "mute")
    config = config_file(tmp_path, prompt_file(tmp_path, GOOD), model={"name": str(tmp_path / "mute")})
    assert_one_clear_line(rass("run", config, "--lake", tmp_path / "lake"), tmp_path / "lake", "chat template")


@pytest.mark.parametrize("command", ["plan", "run", "evaluate"])
def test_a_template_that_opens_thinking_is_named_by_every_command(tmp_path: Path, command: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template += "<think>\n"
    save(build_model(tokenizer), tokenizer, tmp_path / "thinker")
    prompts, lake = prompt_file(tmp_path, GOOD), tmp_path / "lake"
    config = config_file(tmp_path, prompts, model={"name": str(tmp_path / "thinker")})
    given = (
        ["--dataset", prompts, "--model", tmp_path / "thinker"] if command == "evaluate" else [config, "--lake", lake]
    )
    words = ["thinker: every prompt ends inside thinking (<think>)", 'model.response_prefix: "\\n</think>\\n\\n"']
    assert_one_clear_line(rass(command, *given), lake, *words)


def test_a_lake_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    (lake / "_lake.json").write_text('{"format": 999}')
    result = rass("sql", "SELECT 1", "--lake", lake)
    assert result.returncode == 2
    assert "999" in result.stderr
    assert sorted(path.name for path in lake.iterdir()) == ["_lake.json"]


def test_a_stage_without_its_forerunner_names_the_command(tmp_path: Path) -> None:
    config = config_file(tmp_path, LAB / "prompts.parquet")
    result = rass("select", config, "--lake", tmp_path / "lake")
    assert result.returncode == 2
    assert "rass generate" in result.stderr


def test_sql_prints_tables_csv_and_json(tmp_path: Path) -> None:
    from rass_core.lake.schema import TABLES
    from rass_core.lake.store import Lake

    lake = Lake.open(tmp_path / "lake")
    row = dict.fromkeys(TABLES["prompts"].names) | {"prompt_id": "a", "text": "[bold]x", "language": "en"}
    lake.commit("r", "abcdef", {"prompts": pa.Table.from_pylist([row], TABLES["prompts"])})
    query = "SELECT prompt_id, text, label FROM prompts"
    assert "[bold]x" in rass("sql", query, "--lake", lake.path).stdout
    assert rass("sql", query, "--lake", lake.path, "--format", "csv").stdout == "prompt_id,text,label\na,[bold]x,\n"
    expected = [{"prompt_id": "a", "text": "[bold]x", "label": None}]
    assert json.loads(rass("sql", query, "--lake", lake.path, "--format", "json").stdout) == expected
    wrong = rass("sql", "SELECT * FROM promts", "--lake", lake.path)
    assert wrong.returncode == 2
    assert "prompts" in wrong.stderr


def test_compare_prints_a_table_csv_and_json(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake")
    for number, model in enumerate(("careful", "lenient")):
        rows = [boundary("en", 0.1 * number, 0.4, model_id=model)]
        lake.commit(
            f"run-{number}", f"{number:032x}", {"boundaries": pa.Table.from_pylist(rows, schema=TABLES["boundaries"])}
        )
    lines = rass("compare", "--lake", lake.path).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["careful", "en", "lenient", "en"]
    assert max(map(len, lines)) <= 80
    rows = json.loads(rass("compare", "--lake", lake.path, "--format", "json").stdout)
    assert [(row["model_id"], row["language"], row["b"]) for row in rows] == [
        ("careful", "en", 0.0), ("lenient", "en", 0.1)
    ]  # fmt: skip
    head = rass("compare", "--lake", lake.path, "--format", "csv").stdout.splitlines()[0]
    assert head.startswith("model_id,language,b,b_low,b_high,b_oracle,")
    result = rass("compare", "--lake", Lake.open(tmp_path / "empty").path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "no boundary was measured there" in result.stderr


def test_a_run_of_another_version_is_not_reported_on_but_named(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake")
    now = datetime.now(UTC)
    row = {
        "flow": "refresh", "config": '{"model": {"name": "m"}, "prompts": {"sources": []}, "colour": 1}',
        "code_version": "0.0.9+1234", "commits": [], "started_at": now, "finished_at": now, "state": "Completed",
    }  # fmt: skip
    lake.commit("run-1", "a" * 32, {"runs": pa.Table.from_pylist([row], schema=TABLES["runs"])})
    result = rass("report", "--lake", lake.path)
    greeting, error = result.stderr.splitlines()
    assert result.returncode == 2
    assert "writing the report of" in greeting
    assert "run run-1 was configured for RASS 0.0.9+1234, this one does not know its " in error


def test_init_writes_a_config_that_plan_reads(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert rass("init", "--model", LAB / "weights" / "balanced", "--out", out).returncode == 0
    assert rass("init", "--out", out).returncode == 2
    rows = [
        {"text": f"Is it {i}?", "label": label, "language": "en"} for i, label in enumerate(["harmless", "harmful"])
    ]
    config = config_file(tmp_path, prompt_file(tmp_path, rows))
    result = rass("plan", config)
    assert result.returncode == 0, result.stderr
    assert "prompts" in result.stdout


def test_prompts_file_of_the_lab_is_what_its_code_writes(tmp_path: Path) -> None:
    from rass_core.lab.prompts import write_prompts

    write_prompts(tmp_path)
    for name in ("prompts.parquet", "evaluation.parquet"):
        assert pq.read_table(tmp_path / name).equals(pq.read_table(LAB / name))


def test_the_first_line_comes_before_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys, flows.cli as cli\n"
        "cli._greet('probe', 'x.yaml', cli._load(cli.DEMO_CONFIG))\n"
        "print([name for name in ('torch', 'transformers', 'vllm', 'prefect', 'scipy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == "[]"
    assert "probe with x.yaml into" in result.stderr
