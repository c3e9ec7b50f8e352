"""The files that `pmwatch install systemd` writes: what a configuration needs, and nothing that it does not."""

from pathlib import Path

import pytest

from pmwatch.config import load
from pmwatch.units import Needs, drop_in, unit_files


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
