"""A variant's folder: made once, recorded with the digest of its files, and made again where files are gone."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from rass_core.mitigate.base import MitigatedModel, MitigationContext, MitigationMethod
from rass_core.text import digest

RECORD = "outcome.json"
"""Written last into a variant's folder: the result, and the digest of its files."""
DIRECTION = "direction.npy"
"""The direction that is removed while the model runs."""


def mitigate(method: MitigationMethod[Any], context: MitigationContext) -> tuple[MitigatedModel, str]:
    """Return the variant and the digest of its files, from its folder if that is whole.

    Raises:
        RassError: As the method's `apply`.
    """
    known = _read(context.folder)
    if known is not None:
        return known
    context.folder.mkdir(parents=True, exist_ok=True)
    made = method.apply(context)
    return made, _write(made, context.folder)


def _write(made: MitigatedModel, folder: Path) -> str:
    """Record a variant in its folder and return the digest of its files."""
    if made.ablated is not None:
        np.save(folder / DIRECTION, made.ablated)
    content = files_digest(folder)
    record = {
        "weights": _below(made.weights, folder),
        "adapter": _below(made.adapter, folder),
        "ablates": made.ablated is not None,
        "strength": made.strength,
        "losses": list(made.losses),
        "n_too_long": made.n_too_long,
        "harm_cosine": made.harm_cosine,
        "reason": made.reason,
        "digest": content,
    }
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return content


def _read(folder: Path) -> tuple[MitigatedModel, str] | None:
    """Return the variant of a folder whose files are all there, else None."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["digest"] != files_digest(folder):
            return None
        made = MitigatedModel(
            weights=None if record["weights"] is None else folder / record["weights"],
            adapter=None if record["adapter"] is None else folder / record["adapter"],
            ablated=np.load(folder / DIRECTION) if record["ablates"] else None,
            strength=record["strength"],
            losses=record["losses"],
            n_too_long=record["n_too_long"],
            harm_cosine=record["harm_cosine"],
            reason=record["reason"],
        )
    except (OSError, ValueError, KeyError):
        return None
    return made, record["digest"]


def _below(path: Path | None, folder: Path) -> str | None:
    return None if path is None else path.relative_to(folder).as_posix()


def files_digest(folder: Path) -> str:
    """Return a digest of the weights and arrays below a folder."""
    content = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npy")):
        content.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            content.update(hashlib.file_digest(stream, "sha256").digest())
    return digest(content.hexdigest())
