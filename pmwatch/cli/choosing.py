"""What the commands that change deliveries share: which ones are meant, which cannot be, and what came of it."""

import time
from collections.abc import Sequence

import typer

from pmwatch.cli.common import console, print_json
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


def refusals(ledger: Ledger, ids: Sequence[int], allowed: Sequence[State]) -> dict[int, str]:
    """Say of each delivery that is in none of the `allowed` states why it cannot be taken."""
    found = {id_: ledger.get(id_) for id_ in ids}
    states = {id_: delivery.state if delivery else None for id_, delivery in found.items()}
    names = " or ".join(str(state) for state in allowed)
    return {
        id_: f"is {state}, not {names}" if state else "there is no such delivery"
        for id_, state in states.items()
        if state not in allowed
    }


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
