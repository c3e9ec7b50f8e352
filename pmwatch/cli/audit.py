"""`pmwatch audit`: is every file accounted for?"""

from typing import Annotated

import typer

from pmwatch.audit import audit as account_for
from pmwatch.cli import app
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
from pmwatch.errors import ExitCode


@app.command()
def audit(
    *,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    json: JsonOption = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only this folder.")] = None,
) -> None:
    """Compare folder, archive and ledger: each file has one state or one verdict. Exits 1 where one has none.

    A file that landed a moment ago may be settling, which only the running daemon knows; run it again then. What
    people removed from the archive is counted, and is no fault.
    """
    settings = settings_of(config, state_dir=state_dir)
    check_folder_name(settings, folder)
    with open_ledger(settings, read_only=True) as ledger:
        accounts = [account_for(one, ledger) for one in settings.folders if folder in (None, one.name)]
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
