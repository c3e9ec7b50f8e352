"""`pmwatch resend`: what was uploaded goes once more."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.table import Column, Table

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
from pmwatch.ledger import Ledger
from pmwatch.model import BY_HAND, Delivery, Fingerprint, Folder, Outcome, State, format_size


@app.command()
def resend(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="Uploaded deliveries, as `pmwatch history` lists them."),
    ] = None,
    *,
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="NAME", help="The folder whose files go again.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help='What was uploaded since then: "2h", "2026-11-01T08:00".'),
    ] = None,
    until: Annotated[
        str, typer.Option("--until", metavar="WHEN", help="…and not after this; by default now.", show_default=False)
    ] = "0s",
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
    if not ids and not (folder and since):
        raise typer.BadParameter("name deliveries by id, or choose with --folder and --since")
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    folders = {one.name: one for one in settings.folders}
    with open_ledger(settings, read_only=False) as ledger:
        if ids:
            found = _named(ledger, ids)
        else:
            assert folder is not None
            assert since is not None
            found = ledger.uploads(folder, since=moment("--since", since), until=moment("--until", until))
        lacking = {one.id: said for one in found if (said := _lacks(one, folders, from_archive=from_archive))}
        wanted = [one for one in found if one.id not in lacking]
        queued: list[int] = []
        if wanted and not dry_run:
            if not (yes or json):
                _confirm(wanted)
            queued = ledger.resend(
                [one.id for one in wanted], order_of=lambda name: folders[name].order, by=action("resend", why)
            )
    if json:
        print_json({"found": len(found), "queued": queued, "would_go": [one.id for one in wanted], "lacking": lacking})
    else:
        _show(found, lacking, queued, dry_run=dry_run)
    if lacking or (len(queued) < len(wanted) and not dry_run):
        raise typer.Exit(ExitCode.FAILURE)


def _named(ledger: Ledger, ids: Sequence[int]) -> list[Delivery]:
    """Return uploaded deliveries by id, in the order in which they were uploaded."""
    found = {id_: ledger.get(id_) for id_ in ids}
    wrong = [id_ for id_, one in found.items() if one is None or one.outcome != Outcome.UPLOADED]
    if wrong:
        raise typer.BadParameter(f"{', '.join(map(str, wrong))}: no such upload; `pmwatch history` lists them")
    return sorted((one for one in found.values() if one is not None), key=lambda one: (one.uploaded_at, one.seq))


def _lacks(delivery: Delivery, folders: Mapping[str, Folder], *, from_archive: bool) -> str:
    """Say why a delivery cannot go again; empty where it can."""
    folder = folders.get(delivery.folder)
    if folder is None:
        by_hand = "it came by pmwatch upload: use that again, with --force"
        gone = f"its folder {delivery.folder} is no longer in the configuration"
        return by_hand if delivery.folder == BY_HAND else gone
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
        table = Table("id", Column("file", overflow="fold"), "size", "uploaded", "goes again")
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
