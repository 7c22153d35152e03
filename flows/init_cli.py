"""`rass init`: write a configuration to start from."""

from pathlib import Path
from typing import Annotated

import typer

from rass_core.errors import ConfigError
from rass_core.paths import check_out, user_path


def init(
    model: Annotated[str, typer.Option("--model", help="Folder or hub name of the chat model.")] = "path/to/model",
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("rass.yaml"),
) -> None:
    """Write a configuration to start from, with every key as a comment."""
    user_path(model, option="--model")
    path = check_out(out)
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{out}: already there; name another file with --out")
    from rass_core.config.starting_file import starting_file

    text = starting_file(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: fill in the prompts, then `rass plan {out}` and `rass run {out}`")
