"""`pmwatch health`: is the running daemon well?"""

from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.common import ConfigOption, StateDirOption, place_of
from pmwatch.health import ask_health


@app.command()
def health(
    *,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    ready: Annotated[bool, typer.Option("--ready", help="Ask whether all folders are watched (/readyz).")] = False,
) -> None:
    """Ask the running daemon whether all of its threads make their turns. Exits 1 where it does not run or is ill."""
    typer.echo(ask_health(place_of(config, state_dir=state_dir).state_dir, ready=ready))
