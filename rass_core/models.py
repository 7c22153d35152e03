"""Names of models, and the command line's view of a checkpoint on disk."""

import hashlib
from pathlib import Path

from rass_core.errors import ModelError

_END_BYTES = 1 << 20


def model_id(name: str) -> str:
    """Return a name that changes when the model does: the folder's name and a digest of its files.

    Large files count by size and by their first and last MiB. A name on the hub stands for itself.

    Raises:
        ModelError: A folder without config.json, or a path that does not exist.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise ModelError(f"{name}: no such folder; name a checkpoint folder or a model of the hub")
        return name
    if not (folder / "config.json").exists():
        raise ModelError(f"{name}: no config.json in it; name a folder written by save_pretrained")
    content = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            size = file.stat().st_size
            content.update(f"{file.name}:{size}".encode())
            with file.open("rb") as stream:
                content.update(stream.read(_END_BYTES))
                stream.seek(max(0, size - _END_BYTES))
                content.update(stream.read(_END_BYTES))
    return f"{folder.name}@{content.hexdigest()[:8]}"
