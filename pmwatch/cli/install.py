"""`pmwatch install systemd`."""

import os
import shlex
from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.common import DEFAULT_CONFIG, ConfigOption, console, settings_of
from pmwatch.errors import PmwatchError
from pmwatch.model import display
from pmwatch.systemd import CREDENTIALS
from pmwatch.units import Needs, UnitFile, hidden, this_program, unit_files, what_runs

install = typer.Typer(no_args_is_help=True, help="Set pmwatch up as a service of this machine.")
app.add_typer(install, name="install")


@install.callback()
def _group() -> None:
    """Keep `systemd` a word of its own while it is the only one."""


@install.command()
def systemd(
    *,
    instance: Annotated[
        str,
        typer.Option("--instance", metavar="NAME", help="One of several: pmwatch@NAME, /etc/pmwatch/NAME.toml."),
    ] = "",
    root: Annotated[
        str, typer.Option("--root", metavar="DIR", help="Read and write below this directory, such as an image's root.")
    ] = "/",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the files.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write the unit, its account and its directories for a configuration, and say what to do then.

    A drop-in gives the hardened unit write access to the configured folders and nothing else, and hands it the key of
    each tenant without api_key_file as a credential. Nothing is started.
    """
    if instance and (not instance.replace("-", "").replace("_", "").isalnum() or not instance.isascii()):
        raise typer.BadParameter(f"--instance {instance}: letters, digits, - and _ only")
    default = f"/etc/pmwatch/{instance}.toml" if instance else DEFAULT_CONFIG
    root = os.path.abspath(root)
    given = os.path.abspath(config or os.path.join(root, default.lstrip("/")))
    os.environ.setdefault("CREDENTIALS_DIRECTORY", "/run/credentials/pmwatch")  # as it will be in the service
    settings = settings_of(given)
    path, program = _inside(given, root), _inside(this_program(), root)
    needs = Needs(settings.folders, settings.tenants, settings.delivery.shutdown_grace)
    files = unit_files(needs, config=path, instance=instance, program=program)
    for warning in hidden(needs, config=path, programs=[program, *(_inside(one, root) for one in what_runs(program))]):
        typer.echo(f"pmwatch: warning: {warning}", err=True)
    out = console()
    for one in files:
        if dry_run:
            out.print(f"# {one.path}: {one.what}\n{one.text}", soft_wrap=True, markup=False)
        else:
            _write(root, one)
            out.print(f"{one.path}: {one.what}", soft_wrap=True, markup=False)
    if dry_run:
        return
    service = f"pmwatch@{instance}" if instance else "pmwatch"
    keys = [one.name for one in settings.tenants if one.from_systemd]
    out.print("\nThen, as root:", markup=False)
    steps = ["systemd-sysusers pmwatch.conf", "systemd-tmpfiles --create pmwatch.conf"]
    steps += [f"install -m 0600 KEYFILE {CREDENTIALS}/{name}" for name in keys]
    path = shlex.quote(path)
    steps += [f"chgrp pmwatch {path} && chmod 0640 {path}"]
    steps += ["systemctl daemon-reload", f"systemctl enable --now {service}"]
    for step in steps:
        out.print(f"  {step}", soft_wrap=True, markup=False)


def _inside(path: str, root: str) -> str:
    """Return a path as it is called inside the root."""
    prefix = root.rstrip("/") + "/"
    return "/" + path.removeprefix(prefix) if path.startswith(prefix) else path


def _write(root: str, file: UnitFile) -> None:
    path = os.path.join(root, file.path.lstrip("/"))
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as out:
            out.write(file.text)
        os.replace(partial, path)
    except OSError as error:
        raise PmwatchError(
            f"{display(os.fsencode(path))} cannot be written: {error.strerror}",
            hint="Run it as root, or look first with --dry-run.",
        ) from None
