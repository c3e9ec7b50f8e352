"""`pmwatch mark-seen`: the answer to a held backlog: leave it."""

import time
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


@app.command("mark-seen")
def mark_seen(
    *,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only files of this folder.")] = None,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Never send what is held as a backlog, or since a rebuild. A new version of it goes like any other."""
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    with open_ledger(settings, read_only=False) as ledger:
        wanted = sorted(id_ for why_held in UNSURE for id_ in ledger.ids(State.HELD, folder=folder, reason=why_held))
        count = ledger.discard(wanted, now=time.time(), by=action("mark-seen", why))
    tell("discarded", "files of the backlog marked as seen", count, wanted=wanted, refused={}, json=json)
