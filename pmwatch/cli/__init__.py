"""The commands, one file each."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from pmwatch import __version__
from pmwatch.cli.help import make_readable
from pmwatch.errors import ConfigError, ExitCode, LedgerNewer, PmwatchError

app = typer.Typer(
    name="pmwatch",
    help="Watches drop folders and uploads every event log to its ProcessMind datatable: "
    "exactly as written, once, in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try it without any configuration: pmwatch demo",
)


COMMANDS: Final = (
    "api",
    "apply",
    "audit",
    "backfill",
    "check",
    "demo",
    "discard",
    "doctor",
    "health",
    "history",
    "install",
    "ledger",
    "mark-seen",
    "release",
    "resend",
    "retry",
    "run",
    "sandbox",
    "status",
    "upload",
    "version",
    "why",
)


def load(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return `app` with the command that the arguments begin with, or with all where they begin with none.

    The module of a command has its name and adds it to `app`. Who asks for one need not wait for the rest.
    """
    names = [name for name in arguments[:1] if name in COMMANDS] if "_PMWATCH_COMPLETE" not in os.environ else []
    for name in names or COMMANDS:
        importlib.import_module(f"pmwatch.cli.{name.replace('-', '_')}")
    make_readable(app)
    return app


def _show_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it with the option's value
    if wanted:
        typer.echo(f"pmwatch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every error of pmwatch's own ends as a message with a hint, never as a traceback."""
    gc.disable()
    try:
        load(sys.argv[1:])
        # What was imported stays to the end: no search for garbage need look at it, while it comes, now, or at exit.
        gc.freeze()
        gc.enable()
        app()
    except ConfigError as error:
        _complain(f"the {error.subject} is wrong:", *(f"  {problem}" for problem in error.problems), hint=error.hint)
        sys.exit(ExitCode.CONFIG)
    except PmwatchError as error:
        _complain(error.sentence, hint=error.hint)
        sys.exit(ExitCode.CONFIG if isinstance(error, LedgerNewer) else ExitCode.FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as shells have it


def _complain(*lines: str, hint: str) -> None:
    sys.stderr.write("pmwatch: " + "\n".join(lines) + "\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")
