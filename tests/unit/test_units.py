"""The files that `pmwatch install systemd` writes: what a configuration needs, and nothing that it does not."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmwatch import units
from pmwatch.cli import load as load_commands
from pmwatch.config import load
from pmwatch.units import Needs, drop_in, hidden, unit_files, what_runs


def needs_of(tmp_path: Path, text: str, *, key: str = "") -> Needs:
    path = tmp_path / "config.toml"
    path.write_text(f'[[tenants]]\nname = "acme"\nid = "t"\n{key}{text}')
    settings = load(str(path))
    return Needs(settings.folders, settings.tenants, settings.delivery.shutdown_grace)


def folder(path: str, more: str = "") -> str:
    name = path.replace("/", "-")
    return f'[[folders]]\nname = "{name}"\npath = "/{path}"\ntenant = "acme"\ndatatable = "x"\n{more}\n'


@pytest.fixture(autouse=True)
def in_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/pmwatch")


def lines_of(needs: Needs) -> list[str]:
    return [line for line in drop_in(needs) if not line.startswith("#")]


def test_write_access_for_what_is_written_to_and_a_credential_for_each_key(tmp_path: Path) -> None:
    text = folder("a") + folder("b", 'after_upload = "archive"\narchive_dir = "/archive"')
    text += folder("c", 'quarantine = "link"') + folder("d", 'quarantine = "link"\nafter_upload = "delete"')
    assert lines_of(needs_of(tmp_path, text)) == [
        "[Service]",
        "ReadWritePaths=-/a",
        "ReadWritePaths=-/b",
        "ReadWritePaths=-/archive",
        "ReadWritePaths=-/d",
        "LoadCredential=pmwatch-acme:/etc/pmwatch/credentials/acme",
    ]


def test_what_the_unit_hides_is_shown_again_where_a_folder_lies_there(tmp_path: Path) -> None:
    key = 'api_key_file = "/run/pmwatch/acme"\n'
    needs = needs_of(tmp_path, folder("home/ftp/in") + folder("var/tmp/x"), key=key)
    assert lines_of(needs)[-2:] == ["ProtectHome=no", "PrivateTmp=no"]
    assert not any("LoadCredential" in line for line in lines_of(needs))
    assert "ProtectHome=no" not in lines_of(needs_of(tmp_path, folder("homes")))


def test_a_longer_grace_gets_a_longer_time_to_stop(tmp_path: Path) -> None:
    needs = needs_of(tmp_path, '[delivery]\nshutdown_grace = "2m"\n' + folder("a"))
    assert "TimeoutStopSec=145" in lines_of(needs)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("a b", 'ReadWritePaths="-/a b"'),
        ("100%", "ReadWritePaths=-/100%%"),
        ("it's", 'ReadWritePaths="-/it\'s"'),
        ("größe", "ReadWritePaths=-/größe"),
    ],
)
def test_odd_paths_stay_one_word(tmp_path: Path, path: str, line: str) -> None:
    text = folder("x").replace('path = "/x"', f'path = "/{path}"')
    assert line in lines_of(needs_of(tmp_path, text))


def test_the_unit_runs_this_program_with_this_configuration(tmp_path: Path) -> None:
    needs = needs_of(tmp_path, folder("a"))
    files = {one.path: one.text for one in unit_files(needs, config="/etc/other.toml", program="/opt/x/pmwatch")}
    assert "ExecStart=/opt/x/pmwatch run --config /etc/other.toml\n" in files["/etc/systemd/system/pmwatch.service"]
    assert files.keys() == {
        "/etc/systemd/system/pmwatch.service",
        "/etc/systemd/system/pmwatch.service.d/folders.conf",
        "/etc/sysusers.d/pmwatch.conf",
        "/etc/tmpfiles.d/pmwatch.conf",
    }
    several = {one.path: one.text for one in unit_files(needs, config="/etc/pmwatch/eu.toml", instance="eu")}
    unit = several["/etc/systemd/system/pmwatch@.service"]
    assert "run --config /etc/pmwatch/%i.toml --state-dir %S/pmwatch/%i\n" in unit
    assert "/etc/systemd/system/pmwatch@eu.service.d/folders.conf" in several


def test_what_the_unit_hides_from_the_service_is_told_with_what_to_do(tmp_path: Path) -> None:
    needs = needs_of(tmp_path, folder("srv/a"), key='api_key_file = "/home/ann/key"\n')
    told = list(
        hidden(needs, config="/root/config.toml", programs=["/opt/bin/pmwatch", "/tmp/x/python3", "/tmp/x/python3"])
    )
    assert [line.partition(": ")[0] for line in told] == [
        "/tmp/x/python3 (what runs pmwatch) lies below /tmp, which the unit hides, so the service cannot use it",
        "/root/config.toml (the configuration) lies below /root, which the unit hides, so the service cannot use it",
        "/home/ann/key (a tenant's API key) lies below /home, which the unit hides, so the service cannot use it",
    ]
    assert "deploy/install /opt/pmwatch" in told[0]
    programs = ["/opt/bin/pmwatch"]
    assert list(hidden(needs_of(tmp_path, folder("srv/a")), config="/etc/pmwatch/config.toml", programs=programs)) == []
    shown = needs_of(tmp_path, folder("home/ann/drop"))
    assert list(hidden(shown, config="/home/ann/config.toml", programs=programs)) == [], "the drop-in shows /home"


def test_links_to_what_runs_the_program_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "python3").symlink_to(tmp_path / "real")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3"))
    assert what_runs("/opt/bin/pmwatch") == ["/opt/bin/pmwatch", str((tmp_path / "real").resolve())]


def test_below_a_root_paths_are_named_as_they_are_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc/pmwatch").mkdir(parents=True)
    needs_of(tmp_path / "etc/pmwatch", folder("srv/a"))
    (tmp_path / "other.toml").write_text((tmp_path / "etc/pmwatch/config.toml").read_text())
    app = load_commands(["install"])
    for words, name in (([], "/etc/pmwatch/config.toml"), (["--config", f"{tmp_path}/other.toml"], "/other.toml")):
        done = CliRunner().invoke(
            app, ["install", "systemd", "--root", str(tmp_path), *words], env={"PMWATCH_CONFIG": ""}
        )
        assert done.exit_code == 0, done.output
        unit = (tmp_path / "etc/systemd/system/pmwatch.service").read_text()
        assert f"--config {name}\n" in unit
        assert f"chgrp pmwatch {name} &&" in done.stdout
        assert str(tmp_path) not in unit + done.stdout
    monkeypatch.setitem(units._HIDDEN, "PrivateTmp", (str(tmp_path),))
    hiding = CliRunner().invoke(app, ["install", "systemd", "--dry-run", "--config", f"{tmp_path}/other.toml"])
    assert f"pmwatch: warning: {tmp_path}/other.toml (the configuration) lies below {tmp_path}" in hiding.stderr
