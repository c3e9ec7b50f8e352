"""`pmwatch release`: held files, and failed ones that are named, go as they are."""

from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.choosing import WhyOption, action, choose, overtaken, refusals, tell
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
def release(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="Deliveries, as `pmwatch status` lists them."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every held file.")] = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only files of this folder.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="WORD", help="Only files held for this reason.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also files that newer ones have overtaken.")] = False,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Send held files, or failed ones by id, as they are: no guard and no check asks about them again."""
    if not ids and not (every or folder or reason):
        raise typer.BadParameter("name deliveries by id, or choose with --all, --folder or --reason")
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    with open_ledger(settings, read_only=False) as ledger:
        wanted = list(dict.fromkeys(ids or ())) or choose(ledger, State.HELD, folder=folder, reason=reason)
        refused = refusals(ledger, wanted, (State.HELD, State.FAILED), goes_to=settings)
        if not force:
            refused |= overtaken(ledger, [id_ for id_ in wanted if id_ not in refused])
        count = ledger.requeue([id_ for id_ in wanted if id_ not in refused], release=True, by=action("release", why))
    tell("queued", "released", count, wanted=wanted, refused=refused, json=json)
