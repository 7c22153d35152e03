"""The tensors of a checkpoint, as its files store them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rass_core.errors import ModelError
from rass_core.models.identity import WEIGHT_SUFFIXES, loaded_files

_HEADER_LIMIT = 100_000_000
DTYPES_OF = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Data type in safetensors → in torch; all others are narrower than 16 bits."""
_SETS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""A single file of weights and the index of several, in the order in which transformers looks for them."""


class Stored(NamedTuple):
    """A tensor as the header of its file describes it."""

    shape: tuple[int, ...]
    dtype: str
    """In the spelling of safetensors."""
    file: Path


def read_json(file: Path) -> Any:
    """Return the content of a checkpoint's JSON file.

    Raises:
        ModelError: No such file, or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file.parent}: no {file.name} in it; name a folder written by save_pretrained") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{file}: cannot be read as JSON ({reason}); save or fetch the model again") from error


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return name → tensor of all weights that a loader takes from a folder, from the files' headers alone.

    Raises:
        ModelError: No weights, two sets of them, or a file that is missing, cut short or damaged.
    """
    for single, index in _SETS:
        has_single, has_index = (folder / single).is_file(), (folder / index).is_file()
        if has_single and has_index:
            raise ModelError(f"{folder}: holds both {single} and {index}; remove the set of weights that is not meant")
        read = safetensors_header if single.endswith(".safetensors") else pickled_header
        if has_single:
            return read(folder / single)
        if has_index:
            return _sharded(folder, index, read)
    there = ", ".join(sorted(file.name for file in loaded_files(folder) if file.suffix in WEIGHT_SUFFIXES)[:3])
    raise ModelError(
        f"{folder}: no weights in it (*.safetensors or *.bin) under a name that is loaded, such as model.safetensors"
        f"{f' (there is {there})' if there else ''}; save the weights with save_pretrained"
    )


def _sharded(folder: Path, index: str, read: Any) -> dict[str, Stored]:
    """Return the tensors of all shards, each where the index says that it is."""
    content = read_json(folder / index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder / index}: no weight_map in it; fetch the model again")
    stored: dict[str, Stored] = {}
    for shard in sorted({str(name) for name in places.values()}):
        if not (folder / shard).is_file():
            raise ModelError(f"{folder}: shard {shard} that {index} names is not there; fetch the model again")
        stored |= read(folder / shard)
    lost = sorted(name for name, shard in places.items() if name not in stored or stored[name].file.name != shard)
    if lost:
        raise ModelError(
            f"{folder}: {lost[0]} is not in {places[lost[0]]}, where {index} has it, and so for {len(lost)} tensors; "
            "fetch the model again"
        )
    return stored


def safetensors_header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file whose size is what its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise ValueError("a git-lfs pointer, not the weights themselves")
            if len(start) < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise ValueError("cut short or no safetensors file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"has {size} bytes where its header says {8 + length + end}")
        return {name: Stored(tuple(each["shape"]), str(each["dtype"]), file) for name, each in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{file}: cannot be read ({reason}); fetch the weights again") from error


def pickled_header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a torch file; nothing but tensors is unpickled."""
    import torch

    spelt = {torch_name: name for name, torch_name in DTYPES_OF.items()}
    try:
        tensors = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return {
            name: Stored(tuple(each.shape), spelt.get(str(each.dtype).removeprefix("torch."), str(each.dtype)), file)
            for name, each in tensors.items()
        }
    except Exception as error:  # a broken zip or pickle may raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(f"{file}: cannot be read ({reason}); fetch the weights again") from error
