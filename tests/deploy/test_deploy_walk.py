"""deploy/README.md and upgrading.md as a stranger follows them, command by command, on a really booted machine."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from pmwatch.ledger import VERSION
from support.booted import Booted
from support.pages import DEPLOY, blocks
from support.versions import DUMPS

STATE = "/var/lib/pmwatch"
AT_HOME = '[api]\nbase_url = "http://127.0.0.1:9100"\n[defaults]\nsettle = "300ms"\n'


class Stranger:
    """Gives commands in a shell, as root, in a directory with a file of their own."""

    def __init__(self, machine: Booted, tenant: dict[str, str], datatable: str) -> None:
        self.machine = machine
        self._tenant, self._datatable = tenant, datatable
        machine.run("mkdir", "-p", "/root/work/deploy", check=True)
        # What it fetches is not to be had here; /opt/pmwatch is this tree already. Another test really runs it.
        machine.write("/root/work/deploy/install", "#!/bin/sh\ntest -x /opt/pmwatch/bin/pmwatch\n", mode=0o755)
        machine.write("/root/work/orders.csv", "case,activity\n1,paid\n")

    def gives(self, block: str) -> str:
        """Give the commands of a block, which must all succeed; return what they wrote."""
        done = self.tries(block)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def tries(self, block: str) -> "subprocess.CompletedProcess[str]":
        """Give the commands of a block, with the stranger's own names, up to the first that fails."""
        block = block.replace("YOUR-TENANT-ID", self._tenant["id"]).replace("Order to cash/Orders", self._datatable)
        block = block.replace('after_upload = "archive"\nEND', f'after_upload = "archive"\n{AT_HOME}END')
        script = 'cd /root/work; printf \'%s\\n\' "$1" | bash -euo pipefail -c "$0"'
        return self.machine.run("bash", "-c", script, block, self._tenant["api_key"])


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    program = "/opt/pmwatch/bin/pmwatch"
    with Booted(tmp_path_factory.mktemp("walk")) as booted:
        booted.run("systemd-run", "--unit=sandbox", program, "sandbox", "--ready-file", "/run/ready.json", check=True)
        booted.wait_for("the sandbox", lambda: booted.run("test", "-s", "/run/ready.json").returncode == 0)
        tenant = json.loads(booted.run("cat", "/run/ready.json").stdout)["tenants"][0]
        yield Stranger(booted, tenant, tenant["datasets"][0]["datatables"][0]["id"])


def arrived(machine: Booted) -> list[str]:
    told = machine.run("curl", "-s", "http://127.0.0.1:9100/sandbox/objects").stdout
    return [one["filename"] for one in json.loads(told)["objects"]]


def test_the_readme_leads_from_nothing_to_an_upload_with_a_hardened_service(stranger: Stranger) -> None:
    machine = stranger.machine
    for block in blocks("README.md", "A Linux host with systemd"):
        said = stranger.gives(block)
        assert "error" not in said or "doctor" not in block, said
    machine.wait_for("the upload", lambda: arrived(machine) == ["orders.csv"])
    archive = ("find", "/srv/drop/orders/.pmwatch/archive", "-name", "orders.csv")
    machine.wait_for("the archive", lambda: machine.run(*archive).stdout != "")
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/pmwatch/config.toml").stdout == "root:pmwatch 640\n"
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/pmwatch/credentials/acme").stdout == "root:root 600\n"
    assert machine.run("systemctl", "is-enabled", "pmwatch").stdout == "enabled\n"
    machine.run("/etc/cron.daily/pmwatch", check=True)
    assert machine.run("sh", "-c", "ls /var/backups/pmwatch/*.db | wc -l").stdout == "1\n"
    assert machine.run("curl", "-sf", "http://127.0.0.1:9108/metrics").stdout.startswith("# HELP")


def test_an_upgrade_by_the_page_takes_the_old_ledger_along(stranger: Stranger) -> None:
    machine = stranger.machine
    machine.run("systemctl", "stop", "pmwatch", check=True)
    machine.write("/root/1.sql", (DUMPS / "1.sql").read_text().replace("64768", device_of(machine, "/srv/drop/orders")))
    lay = "import sqlite3; sqlite3.connect('/var/lib/pmwatch/ledger.db').executescript(open('/root/1.sql').read())"
    old = (
        f'rm {STATE}/ledger.db*; python3 -c "$0"; chown pmwatch:pmwatch {STATE}/ledger.db; chmod 600 {STATE}/ledger.db'
    )
    machine.run("sh", "-euc", old, lay, check=True)
    [archived] = machine.run("find", "/srv/drop/orders/.pmwatch/archive", "-type", "f", check=True).stdout.split()
    know = f"UPDATE deliveries SET location = CAST('{archived}' AS BLOB) WHERE id = 3"
    change = f'import sqlite3; sqlite3.connect("{STATE}/ledger.db", isolation_level=None).execute("{know}")'
    machine.run("python3", "-c", change, check=True)
    upgrade, look = blocks("docs/upgrading.md", "systemd")
    said = stranger.gives(upgrade)
    assert f"version 1; it becomes version {VERSION}" in re.sub(r"\s+", " ", said)
    assert "ledger upgraded" in stranger.gives(look)
    ask = f"import sqlite3; print(*sqlite3.connect('{STATE}/ledger.db').execute('PRAGMA user_version').fetchone())"
    assert machine.run("python3", "-c", ask).stdout == f"{VERSION}\n"


def test_a_downgrade_is_refused_for_good_and_the_page_leads_back(stranger: Stranger) -> None:
    machine = stranger.machine
    machine.run("systemctl", "stop", "pmwatch", check=True)
    [backup] = machine.run("sh", "-c", "ls /var/backups/pmwatch/before-*.db", check=True).stdout.split()
    newer = f"import sqlite3; sqlite3.connect('{STATE}/ledger.db').execute('PRAGMA user_version = {VERSION + 1}')"
    machine.run("python3", "-c", newer, check=True)
    machine.run("systemctl", "start", "pmwatch")
    machine.wait_for("it ends", lambda: machine.show("pmwatch", "ActiveState") == "failed")
    assert (machine.show("pmwatch", "ExecMainStatus"), machine.show("pmwatch", "NRestarts")) == ("78", "0")
    [shown] = re.findall(r"```\n(pmwatch: .*?)```", (DEPLOY / "docs" / "upgrading.md").read_text(), flags=re.DOTALL)
    shown = shown.replace("version 3", f"version {VERSION + 1}").replace("up to 2", f"up to {VERSION}")
    journal = ("journalctl", "-u", "pmwatch", "-o", "cat", "--no-pager")
    machine.wait_for("the journal has it", lambda: shown in machine.run(*journal).stdout)
    [back] = blocks("docs/upgrading.md", "A ledger that a newer pmwatch wrote")
    back = back.replace("/var/backups/pmwatch/before-YYYY-MM-DD.db", backup)
    assert "held" in stranger.gives(back.replace("ledger rebuild", "ledger rebuild --yes"))
    assert machine.show("pmwatch", "ActiveState") == "active"
    assert machine.run("stat", "-c", "%U %a", f"{STATE}/ledger.db").stdout == "pmwatch 600\n"
    assert arrived(machine) == ["orders.csv"], "nothing went twice"


def device_of(machine: Booted, path: str) -> str:
    return machine.run("stat", "-c", "%d", path, check=True).stdout.strip()
