"""Partners by SFTP on a really booted machine: chroot and permissions as deploy/sftp says, pmwatch as its own user."""

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.booted import PROGRAM, Booted
from support.daemon import folder_toml
from support.pages import blocks
from support.services import require_tool

SFTP = Path(__file__).resolve().parents[2] / "deploy" / "sftp"
CONFIG = re.findall(r"```toml\n(.*?)```", (SFTP / "README.md").read_text(), flags=re.DOTALL)[0]
SSH = "-q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -i /root/partner -P 2222"
LARGE = "head -c 6000000 /dev/urandom | base64 -w 100"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    require_tool("sshd", "the Debian package openssh-server")
    require_tool("rrsync", "the Debian package rsync")
    require_tool("lftp", "the Debian package lftp")
    with Booted(tmp_path_factory.mktemp("sftp")) as booted:
        booted.run("systemd-run", "--unit=sandbox", PROGRAM, "sandbox", "--ready-file", "/run/ready.json", check=True)
        booted.wait_for("the sandbox", lambda: booted.run("test", "-s", "/run/ready.json").returncode == 0)
        tenant = json.loads(booted.run("cat", "/run/ready.json").stdout)["tenants"][0]
        table = tenant["datasets"][0]["datatables"][0]["id"]
        told = '[api]\nbase_url = "http://127.0.0.1:9100"\n[defaults]\nsettle = "300ms"\nrescan_interval = "2s"\n'
        told += f'[[tenants]]\nname = "acme"\nid = "{tenant["id"]}"\n'
        told += CONFIG.replace("Order to cash/Orders", table)
        booted.write(
            "/etc/pmwatch/config.toml", told + folder_toml("feed", Path("/srv/feed"), tenant="acme", datatable=table)
        )
        booted.run(PROGRAM, "install", "systemd", check=True)
        booted.run("systemd-sysusers", "pmwatch.conf", check=True)
        booted.run("systemd-tmpfiles", "--create", "pmwatch.conf", check=True)
        booted.write("/etc/pmwatch/credentials/acme", tenant["api_key"], mode=0o600)
        booted.run("chgrp", "pmwatch", "/etc/pmwatch/config.toml", check=True)
        booted.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/partner", check=True)
        booted.write("/root/add-partner", (SFTP / "add-partner").read_text(), mode=0o755)
        booted.run("/root/add-partner", "acme", "/root/partner.pub", check=True)
        make_account, _ = blocks("sftp/README.md", "rsync")
        booted.run("sh", "-euc", make_account.replace("feeder.pub", "/root/partner.pub"), check=True)
        booted.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/host", check=True)
        plain = "ListenAddress 127.0.0.1\nPort 2222\nHostKey /root/host\nUsePAM no\nSubsystem sftp internal-sftp\n"
        booted.write("/root/sshd_config", plain + (SFTP / "sshd-partners.conf").read_text())
        booted.run("mkdir", "-p", "/run/sshd")
        booted.run("/usr/sbin/sshd", "-t", "-f", "/root/sshd_config", check=True)
        booted.run("systemd-run", "--unit=partners", "/usr/sbin/sshd", "-D", "-f", "/root/sshd_config", check=True)
        booted.run("systemctl", "daemon-reload", check=True)
        booted.run("systemctl", "start", "pmwatch", check=True)
        booted.wait_for("sshd", lambda: sftp(booted, "ls").returncode == 0)
        yield booted


def sftp(machine: Booted, *commands: str, more: str = "", options: str = "") -> subprocess.CompletedProcess[str]:
    """Run commands as the partner, from /root/work."""
    batch = "\n".join(commands) + "\n"
    script = f'mkdir -p /root/work && cd /root/work && printf %s "$0" | {more} sftp {options} {SSH} -b - acme@127.0.0.1'
    return machine.run("sh", "-c", script, batch)


def arrived(machine: Booted) -> dict[str, str]:
    """Return the SHA-256 of everything that arrived, by name."""
    told = machine.run("curl", "-s", "http://127.0.0.1:9100/sandbox/objects", check=True).stdout
    return {one["filename"]: one["sha256"] for one in json.loads(told)["objects"]}


def sha256(machine: Booted, path: str) -> str:
    return machine.run("sha256sum", path, check=True).stdout.split()[0]


def test_a_partner_sees_nothing_but_its_own_directory_and_gets_no_shell(machine: Booted) -> None:
    assert sftp(machine, "ls /").stdout.split("\n", 1)[1].split() == ["/in"]
    for forbidden in ("get /etc/passwd", "mkdir /elsewhere", "put /root/partner.pub /etc/x"):
        assert sftp(machine, forbidden).returncode != 0, forbidden
    words = SSH.replace("-P", "-p").split()
    assert "sftp connections only" in machine.run("ssh", *words, "acme@127.0.0.1", "id").stdout


def test_a_file_under_a_temporary_name_goes_once_it_is_renamed_and_is_archived(machine: Booted) -> None:
    machine.run("sh", "-c", "mkdir -p /root/work && printf 'id\\n1\\n' > /root/work/a.csv", check=True)
    assert sftp(machine, "put a.csv a.csv.part", "rename a.csv.part a.csv").returncode == 0
    machine.wait_for("the upload", lambda: "a.csv" in arrived(machine))
    find = ("find", "/var/lib/pmwatch/archive/acme", "-type", "f", "-name", "*a.csv*")
    machine.wait_for("the archive", lambda: machine.run(*find).stdout != "")
    assert sftp(machine, "ls").stdout.split("\n", 1)[1].split() == []


def test_a_broken_upload_is_taken_up_again_and_only_the_whole_file_goes(machine: Booted) -> None:
    machine.run("sh", "-c", f"mkdir -p /root/work && {LARGE} > /root/work/big.csv", check=True)
    broken = sftp(machine, "put big.csv big.csv.part", more="timeout -s KILL 2", options="-l 4000")
    assert broken.returncode != 0
    size = machine.run("stat", "-c", "%s", "/srv/sftp/acme/in/big.csv.part", check=True).stdout
    assert 0 < int(size) < 8_000_000
    done = sftp(machine, "reput big.csv big.csv.part", "rename big.csv.part big.csv")
    assert done.returncode == 0, done.stderr
    machine.wait_for("the upload", lambda: "big.csv" in arrived(machine))
    assert arrived(machine)["big.csv"] == sha256(machine, "/root/work/big.csv")


def test_a_file_under_its_final_name_goes_whole_after_the_partner_has_closed_it(machine: Booted) -> None:
    machine.run("sh", "-c", f"mkdir -p /root/work && {LARGE} > /root/work/place.csv", check=True)
    size = int(machine.run("stat", "-c", "%s", "/root/work/place.csv", check=True).stdout)

    def written() -> int:
        told = machine.run("stat", "-c", "%s", "/srv/sftp/acme/in/place.csv").stdout
        return int(told) if told else 0

    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(sftp, machine, "put place.csv", options="-l 16000")  # kbit/s: four seconds, many settles
        machine.wait_for("a part of it", lambda: 0 < written() < size)
        while 0 < written() < size:
            assert "place.csv" not in arrived(machine)
        assert upload.result().returncode == 0
    machine.wait_for("the upload", lambda: "place.csv" in arrived(machine))
    assert arrived(machine)["place.csv"] == sha256(machine, "/root/work/place.csv")
    told = machine.run("curl", "-s", "http://127.0.0.1:9100/sandbox/objects", check=True).stdout
    assert told.count('"place.csv"') == 1


def test_links_lead_nowhere(machine: Booted) -> None:
    before = arrived(machine).keys()
    machine.run("sh", "-c", "printf 'id\\nlinked\\n' > /root/work/x.csv", check=True)
    done = sftp(machine, "ln -s /etc/passwd secret.csv", "ln -s ../../../../etc/shadow shadow.csv", "put x.csv x.csv")
    assert done.returncode == 0, done.stderr
    for secret in ("/etc/shadow", "../../../../etc/shadow"):
        assert sftp(machine, f"ln {secret} hard.csv").returncode != 0, "a hard link does not leave the chroot either"
    machine.wait_for("a later file", lambda: "x.csv" in arrived(machine))
    assert arrived(machine).keys() - before == {"x.csv"}
    told = machine.run(PROGRAM, "why", "/srv/sftp/acme/in/secret.csv")
    assert "symbolic link" in told.stdout, told


def test_sftp_goes_by_the_line_of_the_page_and_after_a_break_with_reput(machine: Booted) -> None:
    [line] = [one for one in blocks("sftp/README.md", "Whole files only") if "| sftp" in one]
    line = (
        line.replace("sftp -b", f"sftp {SSH} -b")
        .replace("sftp.example.com", "127.0.0.1")
        .replace("orders.csv", "s.csv")
    )
    for content, given in (("first", line), ("second", line.replace("'put ", "'reput "))):
        make = f"cd /root/work && printf 'id\n{content}\n' > s.csv"
        if given != line:
            make += " && head -c 5 s.csv > /srv/sftp/acme/in/s.csv.part && chown acme /srv/sftp/acme/in/s.csv.part"
        machine.run("sh", "-euc", f"{make} && {given}", check=True)
        machine.wait_for("the upload", lambda: arrived(machine).get("s.csv") == sha256(machine, "/root/work/s.csv"))


def test_lftp_goes_by_the_line_of_the_page(machine: Booted) -> None:
    [line] = [one for one in blocks("sftp/README.md", "Whole files only") if one.startswith("lftp")]
    connect = f'set sftp:connect-program "ssh -a -x {SSH.replace("-P", "-p")}"'
    machine.write("/root/.lftprc", f"{connect}\n")
    line = f"HOME=/root {line.replace('sftp.example.com', '127.0.0.1')}"
    machine.run("sh", "-euc", f"cd /root/work && printf 'id\\nlftp\\n' > orders.csv && {line}", check=True)
    machine.wait_for("the upload", lambda: "orders.csv" in arrived(machine))
    assert arrived(machine)["orders.csv"] == sha256(machine, "/root/work/orders.csv")


def test_rsync_feeds_one_directory_by_the_lines_of_the_page_and_can_do_nothing_else(machine: Booted) -> None:
    _, line = blocks("sftp/README.md", "rsync")
    ssh = f"ssh {SSH.replace('-P', '-p')}"
    line = line.replace("rsync ", f"rsync -e '{ssh}' ", 1).replace("sftp.example.com", "127.0.0.1")
    line = line.replace("orders.csv", "fed.csv")
    machine.run("sh", "-euc", f"cd /root/work && printf 'id\\nfed\\n' > fed.csv && {line}", check=True)
    machine.wait_for("the upload", lambda: "fed.csv" in arrived(machine))
    assert machine.run("stat", "-c", "%U:%G %a", "/srv/feed/fed.csv").stdout == "feeder:pmwatch 640\n"
    assert machine.run("sh", "-c", f"{ssh} feeder@127.0.0.1 id").returncode != 0
    read = machine.run("rsync", "-e", ssh, "feeder@127.0.0.1:fed.csv", "/root/work/back.csv")
    assert read.returncode != 0, "it may only write"
