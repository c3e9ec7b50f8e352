"""`pmwatch status`: where everything is."""

import time
from typing import Any

from rich.table import Column, Table

from pmwatch.cli import app
from pmwatch.cli.common import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    ask_daemon,
    console,
    not_asked,
    open_ledger,
    place_of,
    print_json,
)
from pmwatch.explain import as_dict, blocker_as_dict, needing_a_person
from pmwatch.intake.rules import UNMAPPED
from pmwatch.model import BY_HAND, State, format_duration, format_size

_NOT_RUNNING = "pmwatch does not run with this state directory"
_SHOWN_STATES = ("queued", "uploading", "uploaded", "done", "held", "failed", "vanished")
_UNMAPPED_HINT = "Their directories lead to no datatable; pmwatch doctor lists them."


@app.command()
def status(*, config: ConfigOption = None, state_dir: StateDirOption = None, json: JsonOption = False) -> None:
    """Show folders, what waits and why, and the latest files: from the running daemon, else from the ledger."""
    place = place_of(config, state_dir=state_dir)
    found = ask_daemon(place.state_dir, "/api/v1/status")
    if found is None:
        settings = place.settings
        unasked = not_asked(settings.state.dir)
        known = {folder.name for folder in settings.folders}
        with open_ledger(settings, read_only=True) as ledger:
            counts = ledger.counts()
            found = {
                "summary": f"{unasked or _NOT_RUNNING}; this is what its ledger says",
                "folders": [
                    {
                        "name": name,
                        "configured": name == BY_HAND or name in known,
                        "up": None if unasked else False,
                        "problem": "",
                        "settling": 0,
                        "states": {str(state): counts.get((name, state), 0) for state in State},
                    }
                    for name in sorted({folder for folder, _ in counts} | known)
                ],
                "gates": [],
                "destinations": [],
                "blockers": [blocker_as_dict(blocker) for blocker in ledger.blockers()],
                "needs_a_person": needing_a_person(ledger),
                "deliveries": [as_dict(delivery) for delivery in ledger.list(limit=20)],
            }
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    out = console()
    out.print(found["summary"])
    table = Table("folder", "watch", "settling", "ignored", *_SHOWN_STATES)
    for folder in found["folders"]:
        counts = [str(folder["states"].get(state, 0)) for state in _SHOWN_STATES]
        ignored = str(sum(folder["ignored"].values())) if "ignored" in folder else ""
        table.add_row(folder["name"], _watch(folder), str(folder["settling"]), ignored, *counts)
    out.print(table)
    _show_folder_troubles(found["folders"])
    for gate in found["gates"]:
        if not gate["open"]:
            since = format_duration(gate["closed_seconds"])
            out.print(f"waiting for {gate['name']} since {since}: {gate['message']}\n  {gate['hint']}")
    for tenant, uploads in found.get("slowed", {}).items():
        out.print(f"tenant {tenant} was asked to slow down: {uploads} uploads at a time for now")
    for problem in found["destinations"]:
        out.print(f"{problem['target']}: {problem['message']}\n  {problem['hint']}")
    for one in found.get("blockers", []):  # a daemon of before does not say it
        why = ", ".join(part for part in (one["state"], one["reason"], one["detail"]) if part)
        since = format_duration(time.time() - one["since"])
        out.print(f"{one['waiting']} wait behind {one['path']} of folder {one['folder']} since {since} ({why})")
        out.print(f"  {one['hint']}")
    held = found.get("needs_a_person", [])
    _show_deliveries(held, "these need a person; pmwatch why FILE tells what can be done")
    known = {one["id"] for one in held}
    _show_deliveries([one for one in found["deliveries"] if one["id"] not in known][:20], "the latest files")


def _watch(folder: dict[str, Any]) -> str:
    if not folder.get("configured", True):
        return "not in the configuration"
    if folder["up"] is None:
        return "unknown"
    return ("polled" if folder.get("polled") else "up") if folder["up"] else "down"


def _show_folder_troubles(folders: list[dict[str, Any]]) -> None:
    out = console()
    for folder in folders:
        if folder["problem"]:
            out.print(f"folder {folder['name']}: {folder['problem']}\n  {folder.get('hint', '')}")
        unmapped = folder.get("ignored", {}).get(UNMAPPED)
        if unmapped:
            out.print(f"folder {folder['name']}: unmapped files: {unmapped}\n  {_UNMAPPED_HINT}")
        for one in folder.get("never_settling", []):
            since = format_duration(one["seconds"])
            out.print(f"{one['path']} in folder {folder['name']} does not settle since {since}: {one['waits_for']}")


def _show_deliveries(deliveries: list[dict[str, Any]], heading: str) -> None:
    if not deliveries:
        return
    console().print(f"{heading}:")
    table = Table("id", "folder", Column("file", overflow="fold"), "size", "state", "why", "age")
    now = time.time()
    for delivery in deliveries:
        state = delivery["state"] + (f" ({delivery['outcome']})" if delivery["outcome"] else "")
        age = format_duration(now - delivery["settled_at"])
        why = " ".join(part for part in (delivery["reason"], delivery["detail"]) if part)
        table.add_row(
            str(delivery["id"]),
            delivery["folder"],
            delivery["path"],
            format_size(delivery["size"]),
            state,
            why,
            age,
        )
    console().print(table)
