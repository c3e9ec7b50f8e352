"""`pmwatch audit`: is every file accounted for?"""

import time
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

import typer

from pmwatch.audit import Unentered
from pmwatch.audit import audit as account_for
from pmwatch.cli import app
from pmwatch.cli.common import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    ask_daemon,
    check_folder_name,
    console,
    open_ledger,
    print_json,
    settings_of,
)
from pmwatch.errors import ExitCode
from pmwatch.lock import read_holder
from pmwatch.model import Fingerprint, Folder

_SCAN_SECONDS: Final = 60.0  # that a scan may take


@app.command()
def audit(
    *,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only this folder.")] = None,
) -> None:
    """Compare folder, archive and ledger: each file has one state or one verdict. Exits 1 where one has none.

    The running daemon is asked what is settling. What it has not taken up yet is counted, and is no fault: all that is
    new where it does not run, else what came since its last scan. Nor is what people removed from the archive.
    """
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    with open_ledger(settings, read_only=True) as ledger:
        accounts = [
            account_for(one, ledger, unentered=judge_of(settings.state.dir, one, now=time.time()))
            for one in settings.folders
            if folder in (None, one.name)
        ]
    if json:
        print_json([account.as_dict() for account in accounts])
    for account in () if json else accounts:
        console().print(f"folder {account.folder}: {account.unaccounted} unaccounted")
        counted = (account.states, account.verdicts, account.archive)
        for what, count in (pair for counts in counted for pair in sorted(counts.items())):
            console().print(f"  {count:>8}  {what}")
        for name in account.named:
            console().print(f"  unaccounted: {name}")
    if any(account.unaccounted for account in accounts):
        raise typer.Exit(ExitCode.FAILURE)


def judge_of(state_dir: str, folder: Folder, *, now: float) -> Unentered:
    """Return what gives the verdict on a file that is not in the ledger; what the daemon has in hand is asked once."""
    if not read_holder(state_dir):
        return lambda _path, _seen: "not taken up yet (pmwatch is not running)"
    told = ask_daemon(state_dir, "/api/v1/unsettled", {"folder": folder.name}) or {}
    in_hand = {unquote_to_bytes(path) for path in told.get("paths", ())}
    last_scan_ns = (now - folder.rescan_seconds - _SCAN_SECONDS) * 1e9

    def judge(path: bytes, seen: Fingerprint) -> str:
        if path in in_hand or told.get("more"):
            return "settling"
        return "not taken up yet" if seen.ctime_ns > last_scan_ns else ""

    return judge
