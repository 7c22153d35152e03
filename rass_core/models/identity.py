"""What a model is called, where its files are, and an id that changes when any byte of them does.

A model is named by a reference: a folder, a name on the hub, or `name@revision` with a branch, tag or commit.
"""

import functools
import hashlib
import json
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rass_core.errors import ModelError
from rass_core.lake.files import write_whole
from rass_core.paths import short, user_path

CACHE_FILE = "digests.json"
"""In `cache_folder()`: path → size, mtime_ns, ctime_ns, inode and SHA-256 of files read before."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".ot")
_CHUNK_BYTES = 1 << 20
_CLOCK_S = 0.02
"""Coarsest tick of a file system's clock: of a younger file a later change might show in no time stamp."""
_HUB_TIMEOUT_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
_NOT_LOADED = re.compile(r"(readme|license|licence|notice)\b.*|.*\.(md|png|jpe?g|gif|svg|pdf|log|lock)", re.IGNORECASE)
"""Files that change nothing in what a model says."""
_UNUSED_ON_HUB = [
    "*.py", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite", "onnx/*", "original/*",
    "consolidated*",
]  # fmt: skip
_LOG = logging.getLogger(__name__)

RepoKind = Literal["model", "dataset"]


def cache_folder() -> Path:
    """Return rass in $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "rass"


def model_id(reference: str) -> str:
    """Return a name that changes when the model does.

    It is a folder's name with a digest of every byte that is loaded, or a hub name with its commit.

    Raises:
        ModelError: A folder without config.json, a path that does not exist, or a name whose commit is not known.
    """
    folder = local_folder(reference)
    if folder is None:
        name, revision = split_reference(reference)
        return f"{name}@{hub_commit(name, revision)}"
    if not (folder / "config.json").exists():
        raise ModelError(f"{reference}: no config.json in it; name a folder written by save_pretrained")
    return folder_id(folder)


def folder_id(folder: Path) -> str:
    """Return the folder's name and a digest of the files in it, nested ones too; adapters have one as well.

    Raises:
        ModelError: A file that cannot be read, such as a link to nowhere.
    """
    content = hashlib.sha256()
    for file in loaded_files(folder):
        content.update(f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n".encode())
    return f"{folder.name or folder.resolve().name}@{content.hexdigest()[:8]}"


def local_folder(reference: str) -> Path | None:
    """Return the folder that is named; None for a name on the hub.

    Raises:
        ModelError: Neither a folder that exists nor a possible name.
    """
    folder = user_path(reference, ModelError)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{short(reference)}: a file; name the folder of a checkpoint")
    name, revision = split_reference(reference)
    if reference.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{short(reference)}: no such folder; name a checkpoint folder or a model of the hub")
    if not _HUB_NAME.fullmatch(name) or revision == "":
        raise ModelError(f"{short(reference)}: neither a folder nor a name of the hub; write ORGANISATION/NAME")
    return None


def split_reference(reference: str) -> tuple[str, str | None]:
    """Return name and revision of `name@revision`; a folder, even one with an @, has no revision."""
    if Path(reference).expanduser().exists():
        return reference, None
    name, mark, revision = reference.partition("@")
    return name, revision if mark else None


def model_folder(reference: str) -> Path:
    """Return the folder with a model's files; those of a hub model are fetched where they are not in its cache.

    Raises:
        ModelError: As `model_id`, or the files cannot be fetched.
    """
    folder = local_folder(reference)
    if folder is not None:
        return folder
    name, revision = split_reference(reference)
    return _snapshot(name, hub_commit(name, revision))


def cached_folder(reference: str) -> Path | None:
    """Return the folder with a model's files; None for a hub model that is not on this machine. Nothing is fetched."""
    folder = local_folder(reference)
    if folder is not None:
        return folder
    name, revision = split_reference(reference)
    commit = _cached_commit(name, revision or "main", "model")
    snapshot = _hub_cache(name, "model") / "snapshots" / (commit or "none")
    return snapshot if snapshot.is_dir() else None


@functools.cache
def hub_commit(name: str, revision: str | None = None, kind: RepoKind = "model") -> str:
    """Return the commit of a hub name's branch or tag, as the hub says, else as the hub's cache has it.

    A process asks once, so that all of a run is of one commit.

    Raises:
        ModelError: No such name or revision, or no network and nothing in the cache.
    """
    wanted = revision or "main"
    if _COMMIT.fullmatch(wanted):
        return wanted
    from huggingface_hub import HfApi, is_offline_mode

    why = "the hub is switched off here (HF_HUB_OFFLINE)"
    if not is_offline_mode():
        try:
            found = HfApi().repo_info(name, revision=wanted, repo_type=kind, timeout=_HUB_TIMEOUT_S).sha
            return str(found)
        except Exception as error:  # no network, no such name, no right to it: the hub's client raises many kinds
            why = _line(error)
    cached = _cached_commit(name, wanted, kind)
    if cached is None:
        where = "no such folder, and " if kind == "model" else ""
        raise ModelError(
            f"{name}: {where}revision {wanted} is not in the hub's cache and cannot be looked up ({why}); "
            "correct the name or revision, or fetch it where there is a network"
        )
    return cached


def loaded_files(folder: Path) -> list[Path]:
    """Return the files that matter to what a model says: all but hidden ones, cards, licences and pictures."""
    return [file for file in all_files(folder) if not _NOT_LOADED.fullmatch(file.name)]


def all_files(folder: Path) -> list[Path]:
    """Return all files below a folder that are not hidden, sorted; links are followed."""
    seen: set[Path] = set()
    found: list[Path] = []
    for here, folders, names in os.walk(folder, followlinks=True):
        real = Path(here).resolve()
        folders[:] = [] if real in seen else [each for each in folders if not each.startswith(".")]
        if real not in seen:
            found += [Path(here) / name for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(found)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, from the cache where path, size, time stamps and inode are as before.

    Raises:
        ModelError: The file cannot be read.
    """
    try:
        path, stamp = str(file.resolve()), _stamp(file)
        known = _cached_digests().get(path)
        if isinstance(known, list) and len(known) == 5 and known[:4] == stamp:
            return str(known[4])
        found = _read_digest(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); fetch or copy the model again") from error
    _keep_digest(path, [*stamp, found])
    return found


def _read_digest(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, of a time after which any change shows in its time stamps."""
    if time.time() - file.stat().st_ctime < _CLOCK_S:
        time.sleep(_CLOCK_S)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp(file: Path) -> list[int]:
    """Return size, mtime_ns, ctime_ns and inode; tools that set mtime back cannot set ctime."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _cached_digests() -> dict[str, Any]:
    """Return what the cache holds; one that is broken or not there holds nothing."""
    file = cache_folder() / CACHE_FILE
    try:
        return _parsed(file, *_stamp(file))
    except (OSError, ValueError, RecursionError):
        return {}


@functools.lru_cache(maxsize=1)
def _parsed(file: Path, *_stamp: int) -> dict[str, Any]:
    """Return the content of the cache's file while its stamp is the same: a run asks for it hundreds of times."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    return kept if isinstance(kept, dict) else {}


def _keep_digest(path: str, entry: list[Any]) -> None:
    """Add an entry and drop those of files that are gone; where nothing can be written, nothing is kept."""
    kept = {known: value for known, value in _cached_digests().items() if os.path.exists(known)} | {path: entry}
    with suppress(OSError):
        write_whole(cache_folder() / CACHE_FILE, json.dumps(kept))


def _hub_cache(name: str, kind: RepoKind) -> Path:
    """Return the folder of a hub name in the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def _cached_commit(name: str, revision: str, kind: RepoKind) -> str | None:
    """Return the commit of a revision in the hub's cache, None where it is not there."""
    folder = _hub_cache(name, kind)
    with suppress(OSError):
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    found = [each.name for each in folder.glob("snapshots/*") if len(revision) >= 7 and each.name.startswith(revision)]
    return found[0] if len(found) == 1 else None


@functools.cache
def _snapshot(name: str, commit: str) -> Path:
    """Return the folder of a commit in the hub's cache, fetching what is missing."""
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download

    folder = _hub_cache(name, "model") / "snapshots" / commit
    why = "the hub is switched off here (HF_HUB_OFFLINE)"
    if not is_offline_mode():
        try:
            files = HfApi().list_repo_files(name, revision=commit)
            pickled = ["*.bin", "*.pt"] if any(file.endswith(".safetensors") for file in files) else []
            return Path(snapshot_download(name, revision=commit, ignore_patterns=[*_UNUSED_ON_HUB, *pickled]))
        except Exception as error:  # as in hub_commit, and a full disk
            why = _line(error)
    if not folder.is_dir():
        raise ModelError(f"{name}: commit {commit} is not in the hub's cache and cannot be fetched ({why})")
    _LOG.warning("%s: taken from the hub's cache (%s)", name, why)
    return folder


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
