"""`rass model`: fetch real chat models, and list those that can be fetched."""

from pathlib import Path
from typing import Annotated

import typer

from rass_core.errors import ModelError
from rass_core.models.fetched import MODELS, fetch_checkpoint, fetched_folder, is_fetched
from rass_core.paths import check_writable, user_path

model = typer.Typer(no_args_is_help=True, help="Fetch a real chat model, and list those that can be fetched.")


@model.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `rass model list` shows.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to write; by default one in the user's cache.")
    ] = None,
) -> None:
    """Download a model with pip, check it, convert it to a Hugging Face folder, and print the folder."""
    if name not in MODELS:
        raise ModelError(f"{name}: no such model; known are {', '.join(MODELS)}")
    if to is not None:
        user_path(to, ModelError, "--to")
        if to.exists() and not to.is_dir():
            raise ModelError(f"{to}: a file; name a folder with --to")
        check_writable(to, ModelError, "--to")
    chosen = MODELS[name]
    typer.echo(f"{name}: {chosen.hub_name}, licence {chosen.licence}", err=True)
    folder = fetch_checkpoint(chosen, to, lambda line: typer.echo(f"{name}: {line}", err=True))
    use = name if to is None else folder
    typer.echo(f"{name}: ready; write `model: {{name: {use}, dtype: float32}}` in a configuration", err=True)
    typer.echo(folder)


@model.command("list")
def list_models() -> None:
    """Show the models that can be fetched, their licence, size and where they are."""
    for each in MODELS.values():
        folder = fetched_folder(each.name)
        where = f"in {folder}" if is_fetched(folder) else f"not fetched; run `rass model fetch {each.name}`"
        typer.echo(f"{each.name}: {where}")
        typer.echo(f"    {each.about}")
        typer.echo(f"    {each.hub_name} on the hub; licence {each.licence}; download {each.megabytes} MB")
