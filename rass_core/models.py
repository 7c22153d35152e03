"""Names of models, and the command line's view of a checkpoint on disk."""

import hashlib
import re

from rass_core.errors import ModelError
from rass_core.paths import short, user_path

_END_BYTES = 1 << 20


def model_id(name: str) -> str:
    """Return a name that changes when the model does: the folder's name and a digest of its files.

    Large files count by size and by their first and last MiB. A name on the hub stands for itself.

    Raises:
        ModelError: A folder without config.json, or a path that does not exist.
    """
    folder = user_path(name, ModelError)
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{short(name)}: a file; name the folder of a checkpoint")
    if not folder.is_dir():
        if name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise ModelError(f"{short(name)}: no such folder; name a checkpoint folder or a model of the hub")
        if not re.fullmatch(r"(?!.*(?:--|\.\.))(?:[\w.-]{1,96}/)?[\w.-]{1,96}", name, flags=re.ASCII):
            raise ModelError(f"{short(name)}: neither a folder nor a name of the hub; write ORGANISATION/NAME")
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
