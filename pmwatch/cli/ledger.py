"""`pmwatch ledger`: check, back up, rebuild."""

import os
import time
from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.choosing import WhyOption, action
from pmwatch.cli.common import ConfigOption, JsonOption, StateDirOption, console, open_ledger, print_json, settings_of
from pmwatch.ledger import StateLock
from pmwatch.model import format_size
from pmwatch.rebuild import rebuild as rebuild_ledger

ledger = typer.Typer(no_args_is_help=True, help="Look after the ledger, which knows where every file is.")
app.add_typer(ledger, name="ledger")


@ledger.command()
def check(*, config: ConfigOption = None, state_dir: StateDirOption = None, json: JsonOption = False) -> None:
    """See whether the ledger's file is whole, also before an upgrade. Exits 1 where it is damaged.

    The daemon may be running.
    """
    with open_ledger(settings_of(config, state_dir=state_dir), read_only=True, older_too=True) as opened:
        opened.check()
        counts = opened.counts()
    total, size = sum(counts.values()), os.path.getsize(opened.path)
    if json:
        print_json({"ok": True, "deliveries": total, "bytes": size})
    else:
        console().print(f"{opened.path} is whole: {total} deliveries, {format_size(size)}")


@ledger.command()
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The new file to write.")],
    *,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Copy the ledger to FILE, also while the daemon runs. Presigned URLs, which are secrets, are blanked.

    A ledger of an older pmwatch is copied as it is: the thing to do before an upgrade.

    To restore one: stop the daemon, then `pmwatch ledger rebuild --from FILE`. Do not copy it into place: it knows
    nothing of what went since.
    """
    with open_ledger(settings_of(config, state_dir=state_dir), read_only=True, older_too=True) as opened:
        opened.backup(file)
    size = os.path.getsize(file)
    if json:
        print_json({"file": os.path.abspath(file), "bytes": size})
    else:
        console().print(f"{file}: {format_size(size)}, checked")


@ledger.command()
def rebuild(
    *,
    backup: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="Begin with this backup instead of with nothing."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make a new ledger from archive, quarantine and folders, in place of a damaged or lost one.

    The old one is set aside, not removed. Nothing is sent: what lies in the folders, and what waited when the backup
    was made, is held until you say `pmwatch backfill` (send it) or `pmwatch mark-seen` (it has gone). The daemon must
    not be running. Every archived file is read once, for its SHA-256.
    """
    settings = settings_of(config, state_dir=state_dir)
    if backup is not None and not os.path.isfile(backup):
        raise typer.BadParameter(f"--from: {backup} is not a file")
    os.makedirs(settings.state.dir, mode=0o700, exist_ok=True)
    lock = StateLock(settings.state.dir)
    lock.acquire()
    try:
        if not (yes or json):
            names = ", ".join(folder.name for folder in settings.folders)
            console().print(f"a new ledger in {settings.state.dir} for the folders {names}; the old one is set aside")
            typer.confirm("Go on?", abort=True)
        out, shown = console(), [0.0]

        def progress(folder: str, path: str) -> None:
            if not json and time.monotonic() - shown[0] > 1:
                shown[0] = time.monotonic()
                out.print(f"  {folder}: {path}")

        made = rebuild_ledger(
            settings.state.dir, settings.folders, backup=backup, by=action("ledger rebuild", why), progress=progress
        )
    finally:
        lock.release()
    if json:
        facts = {name: getattr(made, name) for name in ("archived", "quarantined", "held", "restored", "set_aside")}
        print_json(facts)
        return
    out.print(f"{made.archived} archived files known as uploaded, {made.quarantined} failed ones in quarantine")
    out.print(f"{made.held} files in the folders and {made.restored} of the backup are held: nobody knows if they went")
    if made.set_aside:
        out.print(f"the old ledger is {made.set_aside}")
    if made.held or made.restored:
        out.print("next: pmwatch history --state held; then pmwatch backfill, or pmwatch mark-seen, by --folder")
