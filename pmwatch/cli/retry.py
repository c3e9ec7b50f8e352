"""`pmwatch retry`: failed files go again."""

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
def retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="Deliveries, as `pmwatch status` lists them."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every failed file.")] = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only files of this folder.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="WORD", help="Only files that failed for this reason.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help='Only what failed in the last "2h".')
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also held files, named by id, that newer ones have overtaken.")
    ] = False,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Queue failed files again, from quarantine or from where they lie. The running daemon takes them up by itself."""
    if not ids and not (every or folder or reason or since):
        raise typer.BadParameter("name deliveries by id, or choose with --all, --folder, --reason or --since")
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    with open_ledger(settings, read_only=False) as ledger:
        wanted = list(dict.fromkeys(ids or ())) or choose(
            ledger, State.FAILED, folder=folder, reason=reason, since=since
        )
        refused = refusals(ledger, wanted, (State.FAILED, State.HELD), goes_to=settings)
        if not force:  # a failed file was overtaken with open eyes: that is what on_failure says
            held = [one.id for one in map(ledger.get, wanted) if one is not None and one.state is State.HELD]
            refused |= overtaken(ledger, [id_ for id_ in held if id_ not in refused])
        count = ledger.requeue([id_ for id_ in wanted if id_ not in refused], by=action("retry", why))
    tell("queued", "queued again", count, wanted=wanted, refused=refused, json=json)
