"""`pmwatch run`: the daemon."""

from typing import Annotated

import typer

from pmwatch import log
from pmwatch.cli import app
from pmwatch.cli.common import ConfigOption, ListenOption, LogLevelOption, StateDirOption, settings_of
from pmwatch.config import Settings
from pmwatch.service import Mode, Service


@app.command()
def run(
    *,
    config: ConfigOption = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Scan, settle and upload everything, then exit: 0, or 1 if anything is left."),
    ] = False,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="On SIGTERM do one last scan and upload everything before exiting."),
    ] = False,
    state_dir: StateDirOption = None,
    listen: ListenOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Watch the folders and upload what lands in them, until SIGTERM.

    SIGHUP reads the configuration again. A second SIGTERM does not wait for running uploads.
    """

    def load_settings() -> Settings:
        return settings_of(config, state_dir=state_dir, listen=listen, log_level=log_level)

    settings = load_settings()
    log.configure(level=settings.log.level, style=settings.log.format)
    mode = Mode.ONCE if once else Mode.DRAIN if drain else Mode.FOREVER
    raise typer.Exit(Service(settings, mode=mode, reload=load_settings).run())
