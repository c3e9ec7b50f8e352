"""`pmwatch discard`: held and failed files that nobody wants."""

import time
from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.choosing import WhyOption, action, choose, refusals, tell
from pmwatch.cli.common import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    check_folder_name,
    open_ledger,
    settings_of,
)
from pmwatch.model import State


@app.command()
def discard(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="Deliveries, as `pmwatch status` lists them."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every held and failed file.")] = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only files of this folder.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="WORD", help="Only files held or failed for this reason.")
    ] = None,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """End held or failed files, or waiting ones by id, without sending them. The files stay where they lie."""
    if not ids and not (every or folder or reason):
        raise typer.BadParameter("name deliveries by id, or choose with --all, --folder or --reason")
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder, ledger_too=True)
    with open_ledger(settings, read_only=False) as ledger:
        wanted = list(dict.fromkeys(ids or ())) or choose(
            ledger, State.HELD, State.FAILED, folder=folder, reason=reason
        )
        allowed = (State.HELD, State.FAILED, *((State.QUEUED,) if ids else ()))
        refused = refusals(ledger, wanted, allowed)
        count = ledger.discard(wanted, now=time.time(), by=action("discard", why))
    tell("discarded", "discarded", count, wanted=wanted, refused=refused, json=json)
