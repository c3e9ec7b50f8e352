"""`pmwatch why PATH`: where one file is, and what it waits for."""

import os
import time
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from pmwatch.cli import app
from pmwatch.cli.common import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    ask_daemon,
    console,
    has_ledger,
    not_asked,
    open_ledger,
    place_of,
    print_json,
)
from pmwatch.explain import why as explain
from pmwatch.model import Outcome, format_duration


@app.command()
def why(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file in a drop folder, or one that was there.")],
    *,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Say where a file is and what it waits for, in plain words."""
    place = place_of(config, state_dir=state_dir)
    absolute = os.fsencode(os.path.abspath(path))
    answer = ask_daemon(place.state_dir, "/api/v1/why", {"path": absolute})
    if answer is None:
        settings = place.settings
        with open_ledger(settings, read_only=True) if has_ledger(settings) else nullcontext() as ledger:
            answer = explain(
                absolute,
                folders=settings.folders,
                ledger=ledger,
                candidate_of=None,
                now=time.time(),
                unasked=not_asked(settings.state.dir),
            ).as_dict()
    if json:
        print_json(answer)
        return
    out = console()
    folder = f" (folder {answer['folder']})" if answer["folder"] else ""
    out.print(f"{answer['path']}{folder}: {answer['verdict']}")
    for sentence in answer["sentences"]:
        out.print(f"  {sentence}")
    for delivery in answer["history"][1:]:
        age = format_duration(time.time() - delivery["settled_at"])
        out.print(f"  Before that, {age} ago: {_ending(delivery)}")


def _ending(delivery: dict[str, Any]) -> str:
    """Return in a few words how a delivery ended."""
    outcome, reason = delivery["outcome"], delivery["reason"]
    if outcome == Outcome.SUPERSEDED:
        return "superseded by a newer version" + (f", while held: {reason}" if reason not in ("", outcome) else "")
    ended = outcome or delivery["state"]
    return f"{ended} ({reason})" if reason not in ("", ended) else str(ended)
