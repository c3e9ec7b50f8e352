"""What the commands that change deliveries share: which ones are meant, which cannot be, and what came of it."""

import getpass
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Final

import typer

from pmwatch.advice import is_gone
from pmwatch.cli.common import console, print_json
from pmwatch.config import Settings
from pmwatch.errors import ExitCode
from pmwatch.ledger import Action, Ledger
from pmwatch.model import State, parse_duration

_MOST_LOOKED_AT: Final = 10_000
UNSURE: Final = ("backlog", "rebuilt", "restored")
"""Reasons for which files are held without anybody having looked at them: they may have gone already."""

WhyOption = Annotated[
    str, typer.Option("--why", metavar="TEXT", help="Why you do it; `pmwatch history --actions` shows it later.")
]


def action(command: str, why: str) -> Action:
    """Return the record of what is about to be done, for the ledger."""
    caller = os.environ.get("SUDO_USER", "")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = f"uid {os.getuid()}"
    return Action(time.time(), f"{caller} (as {user})" if caller and caller != user else user, command, why)


def moment(option: str, text: str) -> float:
    """Return epoch seconds: `"2h"` is two hours ago, `"2026-11-01"` or `"2026-11-01T08:00"` local time."""
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        allowed = 'a duration such as "2h" (so long ago), or a date or time such as "2026-11-01" or "2026-11-01T08:00"'
        raise typer.BadParameter(f"{option}: {text!r} is neither: {allowed}") from None


def choose(
    ledger: Ledger, *states: State, folder: str | None, reason: str | None = None, since: str | None = None
) -> list[int]:
    """Return the deliveries in these states by folder, reason and age, the oldest of each state first.

    Where none has the reason, those that there are go to standard error: it may be a typo.
    """
    after = moment("--since", since) if since else 0.0
    ids = [id_ for state in states for id_ in ledger.ids(state, folder=folder, reason=reason)]
    if reason and not ids:
        _name_reasons(ledger, states, folder, reason)
    if not since:
        return ids
    found = [ledger.get(id_) for id_ in ids]
    return [one.id for one in found if one is not None and one.finished_at >= after]


def _name_reasons(ledger: Ledger, states: Sequence[State], folder: str | None, reason: str) -> None:
    there = Counter(one.reason for one in ledger.list(states=states, folder=folder, limit=_MOST_LOOKED_AT))
    if there:
        known = ", ".join(f"{word} ({n})" for word, n in there.most_common())
        sys.stderr.write(f"pmwatch: no {' or '.join(states)} file has the reason {reason!r}; there are: {known}\n")


def refusals(
    ledger: Ledger, ids: Sequence[int], allowed: Sequence[State], *, goes_to: Settings | None = None
) -> dict[int, str]:
    """Say of each delivery why it cannot be taken: it is in none of the `allowed` states, or cannot go.

    One that is to go needs its folder in `goes_to`, or it would come back to the queue for ever.
    """
    names = " or ".join(str(state) for state in allowed)
    known = None if goes_to is None else {folder.name: folder for folder in goes_to.folders}
    refused = {}
    for id_ in ids:
        delivery = ledger.get(id_)
        if delivery is None:
            refused[id_] = "there is no such delivery"
        elif delivery.state not in allowed:
            refused[id_] = f"is {delivery.state}, not {names}"
        elif known is not None and delivery.folder not in known:
            refused[id_] = f"its folder {delivery.folder} is no longer in the configuration"
        elif known is not None and is_gone(delivery, known[delivery.folder]):
            refused[id_] = f"it is no longer on disk; put it back, or give it up: pmwatch discard {id_}"
    return refused


def overtaken(ledger: Ledger, ids: Iterable[int]) -> dict[int, str]:
    """Say of each delivery that would arrive after a newer one which one that is."""
    newer = {id_: found for id_ in ids if (found := ledger.overtaken(id_)) is not None}
    return {
        id_: f"a newer file went to the same datatable meanwhile ({one.display_path}), which this one would follow; "
        "--force sends it all the same"
        for id_, one in newer.items()
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
