"""`pmwatch retry`: failed files go again."""

import time
from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.common import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    check_folder_name,
    console,
    open_ledger,
    print_json,
    settings_of,
)
from pmwatch.errors import ExitCode
from pmwatch.ledger import Ledger
from pmwatch.model import State, parse_duration


@app.command()
def retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ID]...", help="Deliveries, as `pmwatch status` lists them."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every failed file.")] = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only files of this folder.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Only files that failed for this reason.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help='Only what failed in the last "2h".')
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Queue failed files again, from quarantine or from where they lie. The running daemon takes them up by itself."""
    if not ids and not (every or folder or reason or since):
        raise typer.BadParameter("name deliveries by id, or choose with --all, --folder, --reason or --since")
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    ledger = open_ledger(settings, read_only=False)
    wanted = list(ids or ()) or _choose(ledger, folder, reason, since)
    refused = _refused(ledger, wanted)
    count = ledger.requeue(wanted)
    ledger.close()
    if json:
        print_json({"queued": count, "refused": refused})
    else:
        console().print(f"{count} of {len(wanted)} queued again")
        for id_, why in refused.items():
            console().print(f"  {id_}: {why}")
    if count < len(wanted) or not wanted:
        raise typer.Exit(ExitCode.FAILURE if wanted else ExitCode.OK)


def _refused(ledger: Ledger, ids: list[int]) -> dict[int, str]:
    """Say of each delivery that cannot be queued again why not."""
    found = {id_: ledger.get(id_) for id_ in ids}
    states = {id_: delivery.state if delivery else None for id_, delivery in found.items()}
    return {
        id_: f"is {state}, not failed or held" if state else "there is no such delivery"
        for id_, state in states.items()
        if state not in (State.FAILED, State.HELD)
    }


def _choose(ledger: Ledger, folder: str | None, reason: str | None, since: str | None) -> list[int]:
    try:
        after = time.time() - parse_duration(since) if since else 0.0
    except ValueError as error:
        raise typer.BadParameter(f"--since: {error}") from None
    failed = ledger.list(states=[State.FAILED], folder=folder, limit=1_000_000)
    chosen = [one for one in failed if one.finished_at >= after and reason in (None, one.reason)]
    return [delivery.id for delivery in sorted(chosen, key=lambda delivery: delivery.seq)]
