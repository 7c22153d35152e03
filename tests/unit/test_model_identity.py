"""Ids of models follow every byte that is loaded, and names on the hub follow commits."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from rass_core.data.sources import PromptSource
from rass_core.errors import ModelError
from rass_core.models import identity
from rass_core.models.identity import cache_folder, cached_folder, file_digest, hub_commit, model_folder, model_id
from rass_core.models.settings import ModelConfig
from tasks import keys
from tasks.keys import PACKAGES, input_key, stage_key

OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for each in (hub_commit, identity._snapshot):
        each.cache_clear()
    yield cache_folder() / identity.CACHE_FILE
    for each in (hub_commit, identity._snapshot):
        each.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 5 MB: its middle is far from both ends."""
    made = tmp_path / "made"
    (made / "chat_templates").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_templates/tools.jinja", "README.md"):
        (made / name).write_text("{}", encoding="utf-8")
    (made / "model.safetensors").write_bytes(bytes(5_000_000))
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    seen: list[str] = []
    truly = identity._read_digest
    monkeypatch.setattr(identity, "_read_digest", lambda file: (seen.append(file.name), truly(file))[1])
    return seen


def flip_middle(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"\1")


def flip_middle_and_set_time_back(folder: Path) -> None:
    before = (folder / "model.safetensors").stat()
    flip_middle(folder)
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))


def write(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]", encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        (flip_middle, True),
        (flip_middle_and_set_time_back, True),
        (write("tokenizer.json"), True),
        (write("generation_config.json"), True),
        (write("chat_template.jinja"), True),
        (write("chat_templates/tools.jinja"), True),
        (write("shards/model-00002.safetensors"), True),
        (write("adapter_config.json"), True),
        (lambda folder: (folder / "tokenizer.json").rename(folder / "tokeniser.json"), True),
        (write("README.md"), False),
        (write(".cache/lock"), False),
        (lambda folder: os.utime(folder / "model.safetensors"), False),
    ],
)
def test_an_id_changes_with_what_is_loaded_and_with_nothing_else(
    folder: Path, change: Callable[[Path], object], is_other: bool
) -> None:
    before = model_id(str(folder))
    change(folder)
    assert (model_id(str(folder)) != before) == is_other
    assert before.startswith("made@")


def test_the_second_id_reads_no_file_and_a_broken_cache_is_ignored(folder: Path, cache: Path, read: list[str]) -> None:
    first = model_id(str(folder))
    assert sorted(read) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tools.jinja",
    ]
    read.clear()
    assert model_id(str(folder)) == first
    assert read == []
    flip_middle(folder)
    assert model_id(str(folder)) != first
    assert read == ["model.safetensors"]
    for broken in ("{", "[]", json.dumps({str(folder / "config.json"): 1}), "\0"):
        cache.write_text(broken, encoding="utf-8")
        flip = model_id(str(folder))
    assert flip != first
    cache.unlink()
    cache.mkdir()
    assert model_id(str(folder)) == flip, "a cache that cannot be written is none"


def test_files_that_are_gone_leave_the_cache(folder: Path, cache: Path) -> None:
    model_id(str(folder))
    (folder / "tokenizer.json").unlink()
    write("new.json")(folder)
    model_id(str(folder))
    kept = [Path(name).name for name in json.loads(cache.read_text(encoding="utf-8"))]
    assert "tokenizer.json" not in kept
    assert {"model.safetensors", "new.json"} <= set(kept)


def test_links_are_followed_and_a_broken_one_is_named(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked" / "made"
    (linked / "chat_templates").mkdir(parents=True)
    for file in identity.all_files(folder):
        (linked / file.relative_to(folder)).symlink_to(file)
    assert model_id(str(linked)) == model_id(str(folder))
    flip_middle(folder)
    assert model_id(str(linked)) == model_id(str(folder))
    (linked / "loop").symlink_to(linked, target_is_directory=True)
    assert model_id(str(linked)) == model_id(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        model_id(str(linked))


def test_a_file_changed_at_once_after_it_was_read_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    for round_number in range(20):
        file.write_bytes(b"a" * 9)
        first = file_digest(file)
        with file.open("r+b") as stream:
            stream.write(b"b" * 9)
        assert file_digest(file) != first, round_number


def in_hub_cache(tmp_path: Path, commit: str, kind: str = "model", name: str = "org--chat") -> Path:
    """Lay a name out as the hub's client does: refs, blobs, and links to them."""
    root = tmp_path / "hub" / f"{kind}s--{name}"
    for each in ("refs", "blobs", f"snapshots/{commit}"):
        (root / each).mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit, encoding="utf-8")
    (root / "blobs" / f"b{commit}").write_text("{}", encoding="utf-8")
    (root / "snapshots" / commit / "config.json").symlink_to(root / "blobs" / f"b{commit}")
    return root / "snapshots" / commit


def test_hub_names_mean_commits_in_the_cache(tmp_path: Path) -> None:
    new = in_hub_cache(tmp_path, NEW)
    old = in_hub_cache(tmp_path, OLD)
    assert model_id("org/chat") == f"org/chat@{OLD}"
    for reference, commit, where in [
        ("org/chat@main", OLD, old),
        (f"org/chat@{NEW}", NEW, new),
        (f"org/chat@{NEW[:8]}", NEW, new),
    ]:
        assert model_id(reference) == f"org/chat@{commit}"
        assert model_folder(reference) == cached_folder(reference) == where
    config = ModelConfig(name="org/chat", revision=NEW)
    assert model_id(config.reference) == f"org/chat@{NEW}"
    assert input_key(config) != input_key(ModelConfig(name="org/chat"))
    assert input_key(config) == input_key(config.model_copy(update={"self_check": False}))


@pytest.mark.parametrize("reference", ["org/none", "org/chat@v2", "org/chat@3333333"])
def test_what_is_not_in_the_cache_is_a_clear_error_without_a_network(tmp_path: Path, reference: str) -> None:
    in_hub_cache(tmp_path, OLD)
    with pytest.raises(ModelError, match=r"is not in the hub's cache and cannot be looked up \(.*HF_HUB_OFFLINE"):
        model_id(reference)
    assert cached_folder(reference) is None


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("./none", "no such folder"),
        ("~/none@v1", "no such folder"),
        ("a/b/c", "no such folder"),
        ("a name", "neither a folder nor a name"),
        ("org/chat@", "neither a folder nor a name"),
    ],
)
def test_what_names_no_model_is_said(reference: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        model_id(reference)


def test_a_revision_belongs_to_a_name_on_the_hub(folder: Path) -> None:
    for settings in ({"name": str(folder), "revision": "v1"}, {"name": "org/chat@v1", "revision": "v2"}):
        with pytest.raises(ValueError, match="leave revision out"):
            ModelConfig.model_validate(settings)
    with pytest.raises(ValueError, match="a file has none"):
        PromptSource(path="prompts.csv", revision="v1")
    assert ModelConfig(name="org/chat", revision="v1").at(str(folder)).reference == str(folder)


def test_data_sets_have_commits_too(tmp_path: Path) -> None:
    in_hub_cache(tmp_path, NEW, "dataset", "org--prompts")
    assert PromptSource(dataset="org/prompts").commit() == NEW
    assert PromptSource(dataset="org/prompts", revision=OLD).commit() == OLD
    assert PromptSource(dataset="org/other", revision="v1").commit() == "v1", "datasets has a cache of its own"
    assert PromptSource(dataset=str(tmp_path)).commit() is None


class Hub(BaseHTTPRequestHandler):
    """Answers where a branch of a name is, as the hub does."""

    commit = OLD
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        is_known = self.path.startswith("/api/models/org/chat/revision/main")
        body = json.dumps({"id": "org/chat", "sha": self.commit, "siblings": []} if is_known else {"error": "none"})
        self.send_response(200 if is_known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Hub.asked.clear()
    yield Hub
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_once_a_process_and_the_cache_where_it_does_not_answer(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_hub_cache(tmp_path, OLD)
    hub.commit = NEW
    assert model_id("org/chat") == model_id("org/chat") == f"org/chat@{NEW}", "the branch has moved on"
    assert len(hub.asked) == 1
    with pytest.raises(ModelError, match="org/none: no such folder, and revision main"):
        model_id("org/none")
    hub_commit.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert model_id("org/chat") == f"org/chat@{OLD}", "no network: what the cache has"


def test_stages_of_a_changed_model_or_of_other_libraries_are_other_stages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(name=str(folder))
    before = stage_key("responses", [config], PACKAGES)
    assert stage_key("responses", [config], PACKAGES) == before
    flip_middle(folder)
    changed, truly = stage_key("responses", [config], PACKAGES), keys._version
    assert changed != before
    for library in ("torch", "transformers", "tokenizers", "vllm", "scikit-learn"):
        assert library in keys.LIBRARIES
        there = {name: keys._version(name) for name in keys.LIBRARIES} | {library: "0"}
        monkeypatch.setattr(keys, "_version", there.get)
        keys.versions.cache_clear()
        assert stage_key("responses", [config], PACKAGES) != changed, library
        monkeypatch.setattr(keys, "_version", truly)
    keys.versions.cache_clear()
