"""The systemd unit: accepted without a word, below the exposure limit, every directive with its reason."""

import re
import subprocess
from pathlib import Path

import pytest

from support.services import require_tool

SYSTEMD = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "pmwatch.service"
EXPOSURE_LIMIT = 20  # tenths: 2.0 of 10


def directives(text: str) -> dict[str, list[str]]:
    """Return the values of every directive, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def verify(unit: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Let systemd judge `unit`; the program it starts need not be installed here."""
    copy = directory / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.MULTILINE))
    tool = require_tool("systemd-analyze", "the Debian package systemd")
    command = [tool, "verify", "--man=no", "--recursive-errors=no", str(copy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.service("systemd-analyze")
def test_systemd_accepts_the_unit_without_a_word(tmp_path: Path) -> None:
    result = verify(UNIT.read_text(), tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.service("systemd-analyze")
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ProtectSytem=strict", "ProtectSytem"),
        ("RestartPreventExitStatus=lots", "lots"),
        ("SystemCallFilter=@no-such", "no-such"),
    ],
)
def test_a_mistake_in_the_unit_would_be_seen(tmp_path: Path, line: str, complaint: str) -> None:
    result = verify(UNIT.read_text().replace("[Service]", f"[Service]\n{line}"), tmp_path)
    assert complaint in result.stderr


@pytest.mark.service("systemd-analyze")
def test_exposure_stays_below_the_limit() -> None:
    tool = require_tool("systemd-analyze", "the Debian package systemd")
    command = [tool, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_LIMIT}", str(UNIT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.service("systemd-sysusers")
def test_the_account_is_created_as_described(tmp_path: Path) -> None:
    tool = require_tool("systemd-sysusers", "the Debian package systemd")
    (tmp_path / "etc").mkdir()
    command = [tool, f"--root={tmp_path}", str(SYSTEMD / "pmwatch.sysusers.conf")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    name, _, _, _, _, home, shell = (tmp_path / "etc" / "passwd").read_text().strip().split(":")
    assert (name, home) == ("pmwatch", "/var/lib/pmwatch")
    assert shell.endswith("nologin")


def test_the_unit_of_several_instances_differs_in_names_only() -> None:
    one, many = UNIT.read_text().splitlines(), (SYSTEMD / "pmwatch@.service").read_text().splitlines()
    same = [line for line in one if line in many]
    changed = {line.partition("=")[0] for line in many if line not in one and not line.startswith("#")}
    assert changed == {"Description", "ExecStart", "StateDirectory", "RuntimeDirectory"}
    assert len(one) - len(same) == 8
    directives_of_many = directives("\n".join(many))
    assert directives_of_many.keys() == directives("\n".join(one)).keys()
    assert directives_of_many["StateDirectory"] == ["pmwatch/%i"]


@pytest.mark.service("systemd-tmpfiles")
def test_the_directories_are_created_with_their_modes(tmp_path: Path) -> None:
    tool = require_tool("systemd-tmpfiles", "the Debian package systemd")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\npmwatch:x:0:\n")
    command = [tool, "--create", f"--root={tmp_path}", str(SYSTEMD / "pmwatch.tmpfiles.conf")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    modes = {name: (tmp_path / name).stat().st_mode & 0o7777 for name in ("etc/pmwatch", "srv/drop")}
    assert modes == {"etc/pmwatch": 0o750, "srv/drop": 0o2775}
    assert (tmp_path / "etc/pmwatch/credentials").stat().st_mode & 0o777 == 0o700


def test_every_directive_has_a_reason() -> None:
    in_service = UNIT.read_text().split("[Service]")[1].split("[Install]")[0].strip().splitlines()
    previous = ""
    for line in in_service:
        if "=" in line and not line.startswith("#"):
            reason = previous.startswith("# ") or (line.startswith("Group=") and previous.startswith("User="))
            assert reason, f"no reason above {line!r}"
        previous = line


def test_the_service_cannot_do_more_than_it_needs() -> None:
    unit = directives(UNIT.read_text())
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_LEASE"]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["UMask"] == ["0077"]
    assert unit["StateDirectoryMode"] == ["0700"]
    assert unit["LimitCORE"] == ["0"], "a core dump would contain the API keys"
    assert "PrivateUsers" not in unit, "in a user namespace CAP_LEASE counts for nothing"


def test_stopping_and_restarting_fit_what_pmwatch_promises() -> None:
    unit = directives(UNIT.read_text())
    assert unit["Type"] == ["notify"]
    assert unit["RestartPreventExitStatus"] == ["78 2"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    shutdown_grace_seconds = 20
    assert int(unit["TimeoutStopSec"][0]) >= shutdown_grace_seconds + 10
