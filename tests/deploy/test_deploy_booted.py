"""The unit under a really booted systemd: installed by the command, ready, reloaded, watched, confined, stopped."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.booted import PROGRAM, Booted

CONFIG = """
[api]
base_url = "http://127.0.0.1:9100"
[delivery]
shutdown_grace = "3s"
[defaults]
settle = "300ms"
rescan_interval = "2s"
[[tenants]]
name = "acme"
id = "{tenant}"
[[folders]]
name = "orders"
path = "/srv/drop/orders"
tenant = "acme"
datatable = "{datatable}"
after_upload = "archive"
"""
SHORT_WATCHDOG = "[Service]\nWatchdogSec=5\nRestartSec=1\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with Booted(tmp_path_factory.mktemp("booted")) as booted:
        booted.run("systemd-run", "--unit=sandbox", PROGRAM, "sandbox", "--ready-file", "/run/ready.json", check=True)
        booted.wait_for("the sandbox", lambda: booted.run("test", "-s", "/run/ready.json").returncode == 0)
        ready = json.loads(booted.run("cat", "/run/ready.json").stdout)
        tenant = ready["tenants"][0]
        table = tenant["datasets"][0]["datatables"][0]["id"]
        booted.write("/etc/pmwatch/config.toml", CONFIG.format(tenant=tenant["id"], datatable=table))
        booted.run(PROGRAM, "install", "systemd", check=True)
        booted.write("/etc/systemd/system/pmwatch.service.d/test.conf", SHORT_WATCHDOG)
        booted.run("systemd-sysusers", "pmwatch.conf", check=True)
        booted.run("systemd-tmpfiles", "--create", "pmwatch.conf", check=True)
        booted.write("/etc/pmwatch/credentials/acme", tenant["api_key"], mode=0o600)
        booted.run("chgrp", "pmwatch", "/etc/pmwatch/config.toml", check=True)
        booted.run("install", "-d", "-o", "root", "-g", "pmwatch", "-m", "2775", "/srv/drop/orders", check=True)
        booted.run("systemctl", "daemon-reload", check=True)
        yield booted


@pytest.fixture
def running(machine: Booted) -> Iterator[Booted]:
    done = machine.run("systemctl", "start", "pmwatch")
    assert done.returncode == 0, machine.run("journalctl", "-u", "pmwatch", "--no-pager").stdout
    yield machine
    machine.run("systemctl", "stop", "pmwatch")
    machine.run("curl", "-s", "-X", "DELETE", "http://127.0.0.1:9100/sandbox/faults")


def journal(machine: Booted) -> str:
    return machine.run("journalctl", "-u", "pmwatch", "--no-pager", "-o", "cat").stdout


def arrived(machine: Booted) -> list[str]:
    told = machine.run("curl", "-s", "http://127.0.0.1:9100/sandbox/objects").stdout
    return [one["filename"] for one in json.loads(told)["objects"]]


def uploading(machine: Booted) -> int:
    metrics = machine.run("curl", "-sf", "http://127.0.0.1:9108/metrics", check=True).stdout
    found = re.search(r'^pmwatch_deliveries\{folder="orders",state="uploading"\} ([0-9.]+)$', metrics, re.MULTILINE)
    assert found is not None, metrics
    return int(float(found[1]))


def test_it_is_ready_uploads_with_the_credential_and_archives(running: Booted) -> None:
    assert (running.show("pmwatch", "ActiveState"), running.show("pmwatch", "SubState")) == ("active", "running")
    assert "watching 1 folder;" in running.show("pmwatch", "StatusText")
    running.write("/srv/drop/orders/first.csv", "id\n1\n", mode=0o664)
    running.wait_for("the upload", lambda: "first.csv" in arrived(running))
    running.wait_for(
        "the archive", lambda: "first.csv" in running.run("find", "/srv/drop/orders/.pmwatch/archive").stdout
    )
    assert running.run("test", "-e", "/srv/drop/orders/first.csv").returncode == 1
    assert running.run("stat", "-c", "%U %a", "/var/lib/pmwatch").stdout == "pmwatch 700\n"


def test_a_reload_takes_over_what_is_right_and_refuses_what_is_wrong(running: Booted) -> None:
    config = running.run("cat", "/etc/pmwatch/config.toml").stdout
    try:
        running.write("/etc/pmwatch/config.toml", config + "\n[nonsense]\n", mode=0o640)
        running.run("systemctl", "reload", "pmwatch", check=True)
        running.wait_for("the refusal", lambda: "nonsense" in journal(running))
        assert running.show("pmwatch", "ActiveState") == "active"
    finally:
        running.write("/etc/pmwatch/config.toml", config, mode=0o640)
    running.run("systemctl", "reload", "pmwatch", check=True)
    running.wait_for("the reload", lambda: '"reloaded"' in journal(running))


def test_a_stuck_process_is_killed_and_replaced(running: Booted) -> None:
    before = running.show("pmwatch", "MainPID")
    running.run("kill", "-STOP", before, check=True)
    running.wait_for("the restart", lambda: running.show("pmwatch", "MainPID") not in (before, "0"))
    running.wait_for("ready again", lambda: running.show("pmwatch", "SubState") == "running")
    assert int(running.show("pmwatch", "NRestarts")) >= 1
    assert "Watchdog timeout" in journal(running)


def test_the_sandbox_of_the_unit_holds(running: Booted) -> None:
    pid = running.show("pmwatch", "MainPID")
    running.run("mkdir", "-p", "/home/somebody", check=True)

    def inside(script: str) -> int:
        """Run a script in the mount namespace of the service, as its user."""
        words = ("nsenter", "-t", pid, "-m", "--", "setpriv", "--reuid=pmwatch", "--regid=pmwatch", "--clear-groups")
        return running.run(*words, "sh", "-c", script).returncode

    assert inside("touch /srv/drop/orders/.probe && rm /srv/drop/orders/.probe") == 0
    for path in ("/etc", "/usr", "/var/tmp/..", "/opt/pmwatch", "/srv"):
        assert inside(f"touch {path}/probe") != 0, path
    assert inside("ls /home/somebody") != 0
    assert inside("cat /etc/pmwatch/credentials/acme") != 0
    status = running.run("cat", f"/proc/{pid}/status").stdout
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert "CapEff:\t0000000010000000" in status, "CAP_LEASE alone"


def test_it_stops_within_the_grace_while_a_slow_upload_runs(running: Booted) -> None:
    rule = json.dumps("PUT 503 delay=60")
    running.run(
        "curl", "-sf", "-X", "POST", "-H", "content-type: application/json", "-d", rule,
        "http://127.0.0.1:9100/sandbox/faults", check=True,
    )  # fmt: skip
    running.write("/srv/drop/orders/slow.csv", "id\nslow\n", mode=0o664)
    running.wait_for("the upload begins", lambda: uploading(running) == 1)
    before = time.monotonic()
    running.run("systemctl", "stop", "pmwatch", check=True)
    assert time.monotonic() - before < 15
    assert running.show("pmwatch", "Result") == "success"
    running.run("curl", "-s", "-X", "DELETE", "http://127.0.0.1:9100/sandbox/faults", check=True)
    running.run("systemctl", "start", "pmwatch", check=True)
    running.wait_for("it goes after all", lambda: "slow.csv" in arrived(running))
    assert arrived(running).count("slow.csv") == 1


def test_a_wrong_configuration_is_not_tried_again(machine: Booted) -> None:
    machine.write("/etc/pmwatch/broken.toml", "[nonsense]\n")
    config = Path("/etc/systemd/system/pmwatch-broken.service")
    unit = machine.run("cat", "/etc/systemd/system/pmwatch.service").stdout
    machine.write(str(config), unit.replace("/etc/pmwatch/config.toml", "/etc/pmwatch/broken.toml"))
    machine.run("systemctl", "daemon-reload", check=True)
    machine.run("systemctl", "start", "pmwatch-broken")
    machine.wait_for("it ends", lambda: machine.show("pmwatch-broken", "ActiveState") == "failed")
    assert machine.show("pmwatch-broken", "ExecMainStatus") == "78"
    assert machine.show("pmwatch-broken", "NRestarts") == "0"


def test_a_second_instance_has_a_ledger_and_a_key_of_its_own(running: Booted) -> None:
    config = running.run("cat", "/etc/pmwatch/config.toml").stdout.replace("/srv/drop/orders", "/srv/drop/eu")
    running.write("/etc/pmwatch/eu.toml", '[http]\nlisten = "127.0.0.1:9109"\n' + config, mode=0o640)
    running.run("chgrp", "pmwatch", "/etc/pmwatch/eu.toml", check=True)
    running.run("install", "-d", "-o", "root", "-g", "pmwatch", "-m", "2775", "/srv/drop/eu", check=True)
    running.run(PROGRAM, "install", "systemd", "--instance", "eu", check=True)
    running.run("systemctl", "daemon-reload", check=True)
    running.run("systemctl", "start", "pmwatch@eu", check=True)
    running.write("/srv/drop/eu/eu.csv", "id\neu\n", mode=0o664)
    running.wait_for("the upload", lambda: "eu.csv" in arrived(running))
    assert running.run("curl", "-sf", "http://127.0.0.1:9109/healthz").stdout == "ok\n"
    assert running.run("stat", "-c", "%U %a", "/var/lib/pmwatch/eu/ledger.db").stdout == "pmwatch 600\n"
    running.run("systemctl", "stop", "pmwatch@eu", check=True)
    assert running.show("pmwatch@eu", "Result") == "success"
    assert running.show("pmwatch", "ActiveState") == "active", "the first one was left alone"
