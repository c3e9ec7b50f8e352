"""`pmwatch resend`: what was uploaded goes once more."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from pmwatch.cli import app
from pmwatch.cli.choosing import WhyOption, action, moment
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
from pmwatch.delivery.dispose import source_of
from pmwatch.errors import ExitCode
from pmwatch.files import look
from pmwatch.model import Delivery, Fingerprint, Folder, Order, State, format_size


@app.command()
def resend(
    *,
    folder: Annotated[str, typer.Option("--folder", metavar="NAME", help="The folder whose files go again.")],
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help='What was uploaded since then: "2h", "2026-11-01T08:00".')
    ],
    until: Annotated[str, typer.Option("--until", metavar="WHEN", help="…and not after this; by default now.")] = "0s",
    from_archive: Annotated[
        bool, typer.Option("--from-archive", help="Also what was archived; it goes from there and stays there.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    why: WhyOption = "",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
) -> None:
    """Send what was uploaded once more, in the original order and past dedup: the datatable gets it twice.

    For a datatable that was emptied or damaged on the other side. Each file must still be there as it was sent;
    who asked and why is kept in the ledger.
    """
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    [entry] = [one for one in settings.folders if one.name == folder]
    start, end = moment("--since", since), moment("--until", until)
    ledger = open_ledger(settings, read_only=False)
    try:
        found = ledger.uploads(folder, since=start, until=end)
        lacking = {one.id: said for one in found if (said := _lacks(one, entry, from_archive=from_archive))}
        wanted = [one for one in found if one.id not in lacking]
        queued: list[int] = []
        if wanted and not dry_run:
            if not (yes or json):
                _confirm(wanted)
            order: dict[str, Order] = {entry.name: entry.order}
            queued = ledger.resend([one.id for one in wanted], order_of=order.__getitem__, by=action("resend", why))
    finally:
        ledger.close()
    if json:
        print_json({"found": len(found), "queued": queued, "would_go": [one.id for one in wanted], "lacking": lacking})
    else:
        _show(found, lacking, queued, dry_run=dry_run)
    if lacking or (len(queued) < len(wanted) and not dry_run):
        raise typer.Exit(ExitCode.FAILURE)


def _lacks(delivery: Delivery, folder: Folder, *, from_archive: bool) -> str:
    """Say why a delivery cannot go again; empty where it can."""
    if delivery.state is not State.DONE:
        return "its source is still being archived or deleted; try again in a moment"
    if delivery.location and not from_archive:
        return "it is in the archive; add --from-archive"
    st = look(*source_of(delivery, folder))
    if st is None:
        return "its source is not there any more"
    if not Fingerprint.of(st).same_content_as(delivery.fingerprint):
        return "a newer version stands in its place"
    return ""


def _confirm(wanted: Sequence[Delivery]) -> None:
    size = format_size(sum(one.fingerprint.size for one in wanted))
    targets = ", ".join(sorted({str(one.target) for one in wanted}))
    first, last = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.uploaded_at)) for one in (wanted[0], wanted[-1])
    )
    console().print(f"{len(wanted)} files, {size}, uploaded from {first} to {last}, go a second time to {targets}")
    typer.confirm("Go on?", abort=True)


def _show(found: Sequence[Delivery], lacking: dict[int, str], queued: Sequence[int], *, dry_run: bool) -> None:
    out = console()
    if not found:
        out.print("nothing was uploaded in that time")
        return
    if dry_run:
        table = Table("id", "file", "size", "uploaded", "goes again")
        for one in found:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.uploaded_at))
            size = format_size(one.fingerprint.size)
            table.add_row(str(one.id), one.display_path, size, at, lacking.get(one.id, "yes"))
        out.print(table)
        return
    out.print(f"{len(queued)} of {len(found)} queued again")
    for one in found:
        if one.id in lacking:
            out.print(f"  {one.id} {one.display_path}: {lacking[one.id]}")
    waiting = len(found) - len(lacking) - len(queued)
    if waiting:
        out.print(f"  {waiting} wait for an earlier resend already")
