"""Commands that look after a lake: `rass lake check`."""

from pathlib import Path
from typing import Annotated

import typer

lake_commands = typer.Typer(no_args_is_help=True, help="Look after a lake: find damaged files.")
LakeFolder = Annotated[Path, typer.Option("--lake", metavar="DIR", help="Folder of tables and report.")]


@lake_commands.callback()
def _group() -> None:
    """Look after a lake."""


@lake_commands.command()
def check(lake: LakeFolder = Path("lake")) -> None:
    """Read every file of a lake and compare it with its digest; exit code 1 if something is wrong."""
    from rass_core.lake.checking import check_lake
    from rass_core.lake.store import Lake
    from rass_core.units import size
    from tasks.progress import PROGRESS

    opened = Lake.open(str(lake), create=False)
    with PROGRESS.counting("checking commits", None) as done:
        checked = check_lake(opened, done)
    for line in opened.crashed:
        typer.echo(f"note: {line}", err=True)
    for each in checked.findings:
        typer.echo(f"{each.file}: {each.what}; {each.cure}")
    n = len(checked.findings)
    verdict = "nothing wrong" if n == 0 else f"{n:,} {'file is' if n == 1 else 'files are'} damaged or left over"
    typer.echo(f"{checked.n_commits:,} commits, {checked.n_files:,} files, {size(checked.n_bytes)}: {verdict}")
    if n:
        raise typer.Exit(1)
