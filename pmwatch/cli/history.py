"""`pmwatch history`: what happened to files, and what people did."""

import time
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from pmwatch.cli import app
from pmwatch.cli.common import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    ask_daemon,
    check_folder_name,
    console,
    open_ledger,
    place_of,
    print_json,
)
from pmwatch.config import Settings
from pmwatch.explain import history as history_of
from pmwatch.model import BY_HAND, Outcome, State, format_size


@app.command()
def history(
    *,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder", metavar="NAME", help=f'Only files of this folder; "{BY_HAND}" are those of pmwatch upload.'
        ),
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help=f"Only files in this state: {', '.join(State)}.")
    ] = None,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="OUTCOME", help=f"Only what ended so: {', '.join(Outcome)}.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="DURATION", help='The last "2h" or "7d".')] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="How many, newest first.")] = 50,
    people: Annotated[
        bool, typer.Option("--actions", help="What people did instead: retry, release, resend …, who and why.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show what happened to files, newest first: from the running daemon, else from the ledger."""
    place = place_of(config, state_dir=state_dir)
    if folder != BY_HAND and isinstance(place.read, Settings):
        check_folder_name(place.settings, folder, ledger_too=True)
    asked = {"folder": folder, "state": state, "outcome": outcome, "since": since, "limit": str(limit)}
    given = {key: value for key, value in asked.items() if value}
    found = ask_daemon(place.state_dir, "/api/v1/history", given)
    if found is None:
        with open_ledger(place.settings, read_only=True) as ledger:
            try:
                found = history_of(ledger, given, now=time.time())
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
    if json:
        print_json(found)
    elif people:
        _show_actions(found["actions"])
    else:
        _show(found["deliveries"])


def _show(deliveries: list[dict[str, Any]]) -> None:
    if not deliveries:
        console().print("nothing")
        return
    table = Table("id", "folder", Column("file", overflow="fold"), "size", "settled", "ended", "tries", "state", "why")
    for one in deliveries:
        state = one["state"] + (f" ({one['outcome']})" if one["outcome"] else "")
        of = f"{'again' if one['resent'] else 'same as'} {one['duplicate_of']}" if one["duplicate_of"] else ""
        reason = "" if one["reason"] in (one["outcome"], "resend") else one["reason"]
        rows = "" if one["row_count"] is None else f"{one['row_count']} rows in the datatable"
        why = "; ".join(part for part in (reason, one["detail"], of, rows) if part)
        times = (_at(one["settled_at"]), _at(one["finished_at"]))
        table.add_row(
            str(one["id"]),
            one["folder"],
            one["path"],
            format_size(one["size"]),
            *times,
            str(one["attempts"]),
            state,
            why,
        )
    console().print(table)


def _show_actions(actions: list[dict[str, Any]]) -> None:
    if not actions:
        console().print("nobody did anything")
        return
    table = Table("when", "who", "did", "to deliveries", "why")
    for one in actions:
        table.add_row(_at(one["at"]), one["who"], one["command"], one["deliveries"], one["why"])
    console().print(table)


def _at(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else "-"
