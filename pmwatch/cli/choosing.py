"""What the commands that change deliveries share: which ones are meant, which cannot be, and what came of it."""

import time
from collections.abc import Sequence

import typer

from pmwatch.cli.common import console, print_json
from pmwatch.config import Settings
from pmwatch.errors import ExitCode
from pmwatch.ledger import Ledger
from pmwatch.model import State, parse_duration


def choose(
    ledger: Ledger, state: State, *, folder: str | None, reason: str | None = None, since: str | None = None
) -> list[int]:
    """Return the deliveries in a state by folder, reason and age, oldest first."""
    try:
        after = time.time() - parse_duration(since) if since else 0.0
    except ValueError as error:
        raise typer.BadParameter(f"--since: {error}") from None
    ids = ledger.ids(state, folder=folder, reason=reason)
    if not since:
        return ids
    found = [ledger.get(id_) for id_ in ids]
    return [one.id for one in found if one is not None and one.finished_at >= after]


def refusals(
    ledger: Ledger, ids: Sequence[int], allowed: Sequence[State], *, goes_to: Settings | None = None
) -> dict[int, str]:
    """Say of each delivery why it cannot be taken: it is in none of the `allowed` states, or cannot go.

    One that is to go needs its folder in `goes_to`, or it would come back to the queue for ever.
    """
    names = " or ".join(str(state) for state in allowed)
    known = None if goes_to is None else {folder.name for folder in goes_to.folders}
    refused = {}
    for id_ in ids:
        delivery = ledger.get(id_)
        if delivery is None:
            refused[id_] = "there is no such delivery"
        elif delivery.state not in allowed:
            refused[id_] = f"is {delivery.state}, not {names}"
        elif known is not None and delivery.folder not in known:
            refused[id_] = f"its folder {delivery.folder} is no longer in the configuration"
    return refused


def tell(key: str, done: str, count: int, *, wanted: Sequence[int], refused: dict[int, str], json: bool) -> None:
    """Print what came of it, and exit 1 unless all that was wanted was done."""
    if json:
        print_json({key: count, "refused": refused})
    else:
        console().print(f"{count} of {len(wanted)} {done}")
        for id_, why in refused.items():
            console().print(f"  {id_}: {why}")
    if count < len(wanted):
        raise typer.Exit(ExitCode.FAILURE)
