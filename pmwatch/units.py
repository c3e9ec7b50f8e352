"""What a systemd host needs to run pmwatch, as files: the unit as it is shipped, and a drop-in for one configuration.

Sources: systemd.exec(5), systemd.unit(5), sysusers.d(5), tmpfiles.d(5).
"""

import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pmwatch.model import AfterUpload, Folder, Quarantine, Tenant
from pmwatch.systemd import CREDENTIALS

_SHIPPED: Final = tuple(parent / "deploy" / "systemd" for parent in Path(__file__).parents[:2])
_PROGRAM: Final = "/opt/pmwatch/bin/pmwatch"
_HIDDEN: Final = {"ProtectHome": ("/home", "/root", "/run/user"), "PrivateTmp": ("/tmp", "/var/tmp")}  # noqa: S108  what systemd hides
_GRACE_SECONDS: Final = 20.0  # for which the unit's TimeoutStopSec is made
_ROOM_SECONDS: Final = 25.0


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A file to write: its absolute path, what is in it, and what it is for."""

    path: str
    text: str
    what: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What of a configuration a unit has to know; `grace_seconds` is for running uploads at a stop."""

    folders: Sequence[Folder]
    tenants: Sequence[Tenant]
    grace_seconds: float


def unit_files(needs: Needs, *, config: str, instance: str = "", program: str = "") -> list[UnitFile]:
    """Return the files for a host on which `config` (absolute) is run, by default by this installation of pmwatch.

    With `instance` it is one of several: pmwatch@INSTANCE, whose unit takes /etc/pmwatch/INSTANCE.toml.
    """
    program = program or this_program()
    name = "pmwatch@.service" if instance else "pmwatch.service"
    unit = _shipped(name).replace(_PROGRAM, _quoted(program))
    if not instance:
        unit = unit.replace("/etc/pmwatch/config.toml", _quoted(config))
    service = f"pmwatch@{instance}.service" if instance else name
    return [
        UnitFile(f"/etc/systemd/system/{name}", unit, "the service, hardened; an upgrade of pmwatch replaces it"),
        UnitFile(
            f"/etc/systemd/system/{service}.d/folders.conf",
            "\n".join(drop_in(needs)) + "\n",
            "what this configuration needs: write access to its folders, its tenants' credentials",
        ),
        UnitFile("/etc/sysusers.d/pmwatch.conf", _shipped("pmwatch.sysusers.conf"), "its account, pmwatch"),
        UnitFile(
            "/etc/tmpfiles.d/pmwatch.conf", _shipped("pmwatch.tmpfiles.conf"), "its directories, with their modes"
        ),
    ]


def this_program() -> str:
    """Return where this installation's command is."""
    return os.path.join(sysconfig.get_path("scripts"), "pmwatch")


def what_runs(program: str) -> list[str]:
    """Return what the service needs to run a program of this installation, links followed: itself and its Python."""
    return list(dict.fromkeys(map(os.path.realpath, (program, sys.executable))))


def hidden(needs: Needs, *, config: str, programs: Sequence[str]) -> Iterator[str]:
    """Yield what the unit hides from the service, which therefore could not start, and what to do about it."""
    elsewhere = "install pmwatch elsewhere (deploy/install /opt/pmwatch), and run that one's install systemd"
    keys = [one.api_key_file for one in needs.tenants if one.api_key_file and not one.from_systemd]
    wanted = [(path, "what runs pmwatch", elsewhere) for path in dict.fromkeys(programs)]
    wanted += [(config, "the configuration", "move it to /etc/pmwatch, and name it with --config")]
    wanted += [(path, "a tenant's API key", f"move it to {CREDENTIALS}, and change api_key_file") for path in keys]
    shown = {line.partition("=")[0] for line in drop_in(needs) if line.endswith("=no")}
    for path, what, help_ in wanted:
        directory = _hidden_by(path, shown)
        if directory:
            yield f"{path} ({what}) lies below {directory}, which the unit hides, so the service cannot use it: {help_}"


def _hidden_by(path: str, shown: set[str]) -> str:
    """Return which directory the unit hides above a path; empty for none. `shown` directives are switched off."""
    hiding = (one for directive, hides in _HIDDEN.items() if directive not in shown for one in hides)
    return next((one for one in hiding if _is_below(path, one)), "")


def drop_in(needs: Needs) -> Iterator[str]:
    """Yield the lines of a drop-in: `ReadWritePaths=` for what pmwatch writes to, and a credential for each key."""
    yield "# Written by `pmwatch install systemd`; run it again after folders or tenants have changed."
    yield "[Service]"
    paths = dict.fromkeys(path for folder in needs.folders for path in _written(folder))
    if paths:
        yield '# Archive, delete and quarantine write there; with "-" the service starts while one of them is away.'
        yield from (f"ReadWritePaths={_quoted('-' + path)}" for path in paths)
    if needs.grace_seconds > _GRACE_SECONDS:
        yield "# [delivery] shutdown_grace, and room to give the rest back to the ledger."
        yield f"TimeoutStopSec={needs.grace_seconds + _ROOM_SECONDS:.0f}"
    for directive, hidden in _HIDDEN.items():
        inside = [path for path in _all_paths(needs) if any(_is_below(path, one) for one in hidden)]
        if inside:
            yield f"# The unit hides {' and '.join(hidden)}, and {inside[0]} is needed."
            yield f"{directive}=no"
    for tenant in needs.tenants:
        if tenant.from_systemd:
            yield f"# The key of tenant {tenant.name}, a file of root's with mode 0600; copied when the service starts."
            yield f"LoadCredential=pmwatch-{tenant.name}:{CREDENTIALS}/{tenant.name}"


def _written(folder: Folder) -> Iterator[str]:
    if folder.after_upload is not AfterUpload.KEEP or folder.quarantine is Quarantine.MOVE:
        yield os.fsdecode(folder.root)
    for own in (folder.archive_dir, folder.quarantine_dir):
        if not _is_below(os.fsdecode(own), os.fsdecode(folder.root)):
            yield os.fsdecode(own)


def _all_paths(needs: Needs) -> list[str]:
    return list(dict.fromkeys(os.fsdecode(path) for one in needs.folders for path in (one.root, *one.own_dirs)))


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _quoted(path: str) -> str:
    r"""Return a path as one word of a unit file: `%` is a specifier there, quotes and backslashes mean something."""
    escaped = path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(character.isspace() or character in "\"'\\" for character in path) else escaped


def _shipped(name: str) -> str:
    """Return a file of deploy/systemd: from the wheel, or from the source tree beside the package."""
    found = next(path for directory in _SHIPPED if (path := directory / name).is_file())
    return found.read_text(encoding="utf-8")
