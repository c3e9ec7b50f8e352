"""`pmwatch check`: is the configuration right?"""

import os

import typer
from rich.table import Table

from pmwatch.cli import app
from pmwatch.cli.common import ConfigOption, JsonOption, console, print_json, settings_of
from pmwatch.errors import ConfigError, ExitCode
from pmwatch.model import display, format_duration


@app.command()
def check(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check the configuration and show what it says; exits 78 and lists every problem where it is wrong.

    Looks at the text only: a directory or key file that is not there yet is no error. See `pmwatch doctor`.
    """
    try:
        settings = settings_of(config)
    except ConfigError as error:
        if not json:
            raise
        print_json({"ok": False, "problems": error.problems, "hint": error.hint})
        raise typer.Exit(ExitCode.CONFIG) from None
    rows = [
        {
            "folder": folder.name,
            "path": display(os.path.join(folder.root, *(level.encode() for level in folder.levels))),
            "target": str(folder.target),
            "settle": format_duration(folder.settle_seconds),
            "dedup": str(folder.dedup),
            "after_upload": str(folder.after_upload),
        }
        for folder in settings.folders
    ]
    if json:
        print_json({"ok": True, "tenants": [tenant.name for tenant in settings.tenants], "folders": rows})
        return
    table = Table(*rows[0], title=None)
    for row in rows:
        table.add_row(*row.values())
    console().print(table)
    console().print("The configuration is fine.")
