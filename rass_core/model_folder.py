"""A checkpoint folder, looked at before anything is loaded: what is missing or cut off is said at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rass_core.errors import ModelError
from rass_core.paths import short, user_path

_HEADER_BYTES = 8
"""Of a safetensors file: the length of its JSON header, little-endian."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")


def check_folder(name: str) -> None:
    """Check a folder with a checkpoint without loading it; a name on the hub is not looked at.

    Raises:
        ModelError: A config.json that is none, no weights, a shard that is missing or a file that was cut off.
    """
    folder = user_path(name, ModelError)
    if not folder.is_dir():
        return
    config = read_json(folder / "config.json")
    if not (config.get("model_type") or config.get("architectures")):
        raise ModelError(f"{folder / 'config.json'}: names no model_type; name a folder written by save_pretrained")
    check_weights(folder)


def check_weights(folder: Path) -> None:
    """Check that weights are there and whole as far as their headers say.

    Raises:
        ModelError: No weights, a shard that is missing or a file that was cut off.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        for shard in sorted(set(_shards(index))):
            if not (folder / shard).is_file():
                raise ModelError(f"{folder / shard}: named by {index.name} and not there; fetch the model again")
    if not any(file.is_file() for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise ModelError(f"{folder}: no weights in it (*.safetensors); fetch the model again")
    for file in sorted(folder.glob("*.safetensors")):
        _check_length(file)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ModelError: No such file, or something else in it.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent}: no {path.name} in it; name a folder written by save_pretrained") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = short(" ".join(str(error).split()))
        raise ModelError(f"{path}: cannot be read as JSON ({reason}); fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: no JSON object in it; fetch the model again")
    return content


def _shards(index: Path) -> Iterator[str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise ModelError(f"{index}: has no weight_map; fetch the model again")
    yield from map(str, names.values())


def _check_length(file: Path) -> None:
    """Raise where a safetensors file is not as long as its header says."""
    n_bytes = file.stat().st_size
    with file.open("rb") as content:
        n_header = int.from_bytes(content.read(_HEADER_BYTES), "little")
        if n_bytes < _HEADER_BYTES or n_header > n_bytes - _HEADER_BYTES:
            raise ModelError(f"{file}: cut off or no safetensors file ({n_bytes:,} bytes); fetch the model again")
        header = content.read(n_header)
    try:
        ends = [each["data_offsets"][1] for name, each in json.loads(header).items() if name != "__metadata__"]
        n_expected = _HEADER_BYTES + n_header + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: no safetensors file; fetch the model again") from error
    if n_bytes != n_expected:
        raise ModelError(f"{file}: cut off, {n_bytes:,} of {n_expected:,} bytes; fetch the model again")
