"""A benchmark as a folder: it reads back, what was changed in it is seen, and its card says what a user needs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import yaml

from rass_core.benchmark.build import build
from rass_core.benchmark.folder import benchmark_rows, check_free, read_benchmark, save_benchmark
from rass_core.benchmark.types import Benchmark
from rass_core.data.prompts import load_prompts
from rass_core.data.sources import PromptSource
from rass_core.errors import PromptError, SelectionError
from rass_core.lab import world
from tests.morbench_prompts import LAB_CONFIG, built, harmful, lab_rows, one, small


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return build(*lab_rows(), LAB_CONFIG, seed=3)


@pytest.fixture
def folder(benchmark: Benchmark, tmp_path: Path) -> Path:
    save_benchmark(tmp_path / "morbench", benchmark, notes=["A note."])
    return tmp_path / "morbench"


def test_the_folder_reads_back(folder: Path, benchmark: Benchmark) -> None:
    rows, version = read_benchmark(folder)
    assert rows.to_pylist() == benchmark_rows(benchmark)
    assert version == (folder / "VERSION").read_text().splitlines()[0]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("file", ["README.md", "statistics.json", "VERSION", "data/test-00000-of-00001.parquet"])
def test_a_changed_or_missing_file_is_seen(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2 if file != "VERSION" else 0] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(PromptError):
        read_benchmark(folder)
    (folder / file).unlink()
    with pytest.raises(PromptError):
        read_benchmark(folder)


def test_a_file_added_to_the_data_is_seen(folder: Path) -> None:
    (folder / "data" / "more.parquet").write_bytes(b"")
    with pytest.raises(PromptError, match="more.parquet"):
        read_benchmark(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="not a benchmark"):
        read_benchmark(tmp_path)


def test_the_same_version_is_left_and_another_is_not_overwritten(folder: Path, benchmark: Benchmark) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    save_benchmark(folder, benchmark, notes=["A note."])
    other = replace(benchmark, items=benchmark.items[1:])
    with pytest.raises(PromptError, match="a version stays"):
        save_benchmark(folder, other, notes=["A note."])
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_with_something_else_is_not_touched(benchmark: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(PromptError, match="not a benchmark"):
        save_benchmark(tmp_path / "mine", benchmark)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_empty_benchmark_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="empty .en/c: stratum 0 has 0 of 2"):
        save_benchmark(tmp_path / "x", built([one("a b c")], [], small()))
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_a_user_needs(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["license"] == "apache-2.0"
    assert card["language"] == sorted(world.languages())
    assert card["size_categories"] == ["n<1K"]
    assert "A note." in body and "Shortages" not in body
    for row in ["| `bold` |", "| zh | 8/8 | 8/8 | 8/8 | 8/8 |", "| lab | apache-2.0 | 320 |"]:
        assert row in body


def test_several_licences_and_shortages_are_on_the_card(tmp_path: Path) -> None:
    result = built([one("a b c"), one("a b d")], [harmful("a b y", licence="CC-BY-4.0")], small())
    save_benchmark(tmp_path / "x", result)
    text = (tmp_path / "x" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "other"
    assert "- en/c: stratum 0 has 1 of 2" in text
    assert "| s | CC-BY-4.0 | 1 |" in text and "| s | MIT | 1 |" in text


def test_others_read_the_folder_with_nothing_of_ours(folder: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 320 and Counter(rows["label"]) == {"pseudo_harmful": 160, "harmful": 160}


def test_the_folder_is_a_source_of_prompts(folder: Path) -> None:
    prompts = load_prompts([PromptSource(path=str(folder), family_column="family")]).table.to_pylist()
    assert {each["prompt_id"] for each in prompts} == {
        row["prompt_id"] for row in read_benchmark(folder)[0].to_pylist()
    }


def test_a_folder_with_something_else_is_reported_before_the_work(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    check_free(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PromptError, match="not a benchmark"):
        check_free(tmp_path)
    with pytest.raises(PromptError, match="a file; name a folder"):
        check_free(tmp_path / "notes.txt")
