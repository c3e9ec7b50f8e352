"""`pmwatch backfill`: the answer to a held backlog: send it."""

from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.choosing import UNSURE, WhyOption, action, tell
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
def backfill(
    *,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only files of this folder.")] = None,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Send what is held as a backlog, or since the ledger was rebuilt, in its order."""
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    with open_ledger(settings, read_only=False) as ledger:
        wanted = sorted(id_ for why_held in UNSURE for id_ in ledger.ids(State.HELD, folder=folder, reason=why_held))
        count = ledger.requeue(wanted, by=action("backfill", why))
    tell("queued", "files of the backlog queued", count, wanted=wanted, refused={}, json=json)
