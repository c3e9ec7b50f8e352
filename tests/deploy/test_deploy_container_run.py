"""The image, really built and run: as its own user on a read-only root, ready, uploading, well, stopped."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from pmwatch.sandbox import SandboxServer
from support.containers import BASE, IMAGE, RUN, Containers
from support.daemon import folder_toml, stored, table_id
from support.pages import blocks
from support.services import free_port

pytestmark = pytest.mark.service("podman")

SCALE = int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
PREPARE, BUILD_AND_RUN, LOOK, BY_DIGEST = blocks("README.md", "A container")
UID = 10001
OTHER_UID = 10002
LOCKED_DOWN = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges")


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    short = TemporaryDirectory(prefix="pmw-", dir="/tmp", ignore_cleanup_errors=True)  # podman takes 50 characters
    with short as directory, Containers(Path(directory)) as made:
        _pull, ask, build = BY_DIGEST.split("\n", 2)  # what it pulls is here already
        made.build(build.replace("sha256:DIGEST", made.shell(ask).strip().rpartition("@")[2]))
        yield made


class Installed:
    """A directory of configuration, key and drop folder on the host, as deploy/README.md has it mounted."""

    def __init__(self, directory: Path, sandbox: SandboxServer) -> None:
        self.etc = directory / "etc"
        self.drop = directory / "drop"
        self.port = free_port()
        self.etc.mkdir()
        self.drop.mkdir()
        os.chown(self.drop, UID, UID)
        self.drop.chmod(0o2777)
        tenant = sandbox.tenants[0]
        (self.etc / "demo.key").write_text(tenant["api_key"])
        (self.etc / "config.toml").write_text(
            f'[api]\nbase_url = "{sandbox.base_url}"\n[http]\nlisten = "127.0.0.1:{self.port}"\n'
            f'[defaults]\nsettle = "300ms"\n[[tenants]]\nname = "demo"\nid = "{tenant["id"]}"\n'
            'api_key_file = "/etc/pmwatch/demo.key"\n'
            + folder_toml("orders", Path("/srv/drop"), datatable=table_id(sandbox))
        )

    @property
    def mounts(self) -> tuple[str, ...]:
        return (f"-v={self.etc}:/etc/pmwatch:ro", f"-v={self.drop}:/srv/drop")

    def answers(self, path: str) -> bool:
        return answers(self.port, path)


def answers(port: int, path: str) -> bool:
    """Ask a daemon on the network of this machine."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except URLError:
        return False


@pytest.fixture
def installed(tmp_path: Path, sandbox: SandboxServer) -> Installed:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # pytest's directories are root's alone
    return Installed(tmp_path, sandbox)


def test_the_image_is_small_says_what_it_is_and_keeps_the_health_check(containers: Containers) -> None:
    image = containers.inspect()
    assert image["Size"] - containers.inspect(BASE)["Size"] < 90_000_000
    assert len(image["RootFS"]["Layers"]) == 2, "the base, and one of ours"
    config = image["Config"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["Labels"]["org.opencontainers.image.title"] == "pmwatch"
    assert config["Labels"]["org.opencontainers.image.version"]
    assert image["Healthcheck"]["Test"][0] == "CMD"


@pytest.mark.skipif(SCALE == 1, reason="a second build takes half a minute; PMWATCH_TEST_SCALE=2 runs it")
def test_the_same_source_gives_the_same_layers(containers: Containers) -> None:
    plain = BUILD_AND_RUN.splitlines()[0].replace("pmwatch:0.1.0", "pmwatch:again")
    containers.build(plain, "--no-cache", "--timestamp", "0")
    assert containers.inspect("localhost/pmwatch:again")["RootFS"] == containers.inspect()["RootFS"]


def test_it_gets_ready_uploads_is_well_and_stops(
    containers: Containers, installed: Installed, sandbox: SandboxServer
) -> None:
    name = "pmwatch-ready"
    state = "-v=pmwatch-state:/var/lib/pmwatch"
    containers.start(name, *LOCKED_DOWN, "--stop-timeout", "45", state, *installed.mounts)
    containers.wait_for("ready", lambda: installed.answers("/readyz"), name=name)
    write(installed.drop, "first.csv")
    containers.wait_for("the upload", lambda: bool(stored(sandbox)), name=name)
    assert stored(sandbox) == {"first.csv": b"id\nfirst.csv\n"}
    assert containers.health(name)
    assert containers.exec(name, "pmwatch", "health", "--ready").stdout == "ok\n"
    identity = containers.exec(name, "cat", "/proc/1/status").stdout
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in identity
    assert "CapEff:\t0000000000000000" in identity
    assert "NoNewPrivs:\t1" in identity
    assert "Read-only" in containers.exec(name, "touch", "/opt/pmwatch/probe").stderr
    assert containers.stop(name, seconds=45) == 0
    assert events(containers.log(name))[-1] == "stopped"
    assert not containers.health(name)


def test_the_page_leads_from_nothing_to_an_upload(
    containers: Containers, tmp_path: Path, sandbox: SandboxServer
) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    tenant, port = sandbox.tenants[0], free_port()
    (containers.directory / "orders.csv").write_text("case,activity\n1,paid\n")

    def on_the_host(block: str) -> str:
        """Name directories of the test where the page means the host's own, and not what the container sees."""
        inside = ("path =", "api_key_file", "podman exec")
        lines = [line if line.startswith(inside) else _moved(line, tmp_path) for line in block.splitlines()]
        return "\n".join(lines)

    at_home = f'[api]\nbase_url = "{sandbox.base_url}"\n[defaults]\nsettle = "300ms"\nEND'
    prepare = PREPARE.replace("YOUR-TENANT-ID", tenant["id"]).replace("Order to cash/Orders", table_id(sandbox))
    prepare = prepare.replace("9108", str(port)).replace('"archive"\nEND', f'"archive"\n{at_home}')
    containers.shell(f"printf '%s\\n' {tenant['api_key']} | (\n{on_the_host(prepare)}\n)")
    run = BUILD_AND_RUN[BUILD_AND_RUN.index("podman run") :].replace("-p 127.0.0.1:9108:9108", " ".join(RUN))
    containers.adopt("pmwatch")
    containers.shell(on_the_host(run).replace("pmwatch-state:", "by-the-page:"))
    containers.wait_for("ready", lambda: answers(port, "/readyz"), name="pmwatch")
    said = containers.shell(on_the_host(LOOK))
    assert "error" not in said, said
    containers.wait_for("the upload", lambda: bool(stored(sandbox)), name="pmwatch")
    archive = tmp_path / "drop" / "orders" / ".pmwatch" / "archive"
    containers.wait_for("the archive", lambda: [*archive.rglob("orders.csv")] != [], name="pmwatch")
    containers.shell("podman stop pmwatch && podman rm pmwatch")


def _moved(line: str, to: Path) -> str:
    line = re.sub(r"(?<!:)/etc/pmwatch", f"{to}/etc", line)
    return re.sub(r"(?<!:)/srv/drop", f"{to}/drop", line)


def test_an_upgrade_and_the_way_back_by_the_page(
    containers: Containers, installed: Installed, sandbox: SandboxServer
) -> None:
    run = BUILD_AND_RUN[BUILD_AND_RUN.index("podman run") :].replace(
        " -p 127.0.0.1:9108:9108", f" {' '.join(RUN)}"
    )  # no bridge here
    run = run.replace("/etc/pmwatch:/etc", f"{installed.etc}:/etc").replace("/srv/drop:", f"{installed.drop}:")
    run = run.replace("pmwatch-state:", "upgraded:").replace("pmwatch:0.1.0", IMAGE)
    containers.adopt("pmwatch")
    containers.shell(run)
    containers.wait_for("ready", lambda: installed.answers("/readyz"), name="pmwatch")
    write(installed.drop, "first.csv")
    containers.wait_for("the upload", lambda: bool(stored(sandbox)), name="pmwatch")

    [upgrade] = blocks("docs/upgrading.md", "A container")
    assert "checked" in containers.shell(upgrade)
    containers.shell(run)
    containers.wait_for("ready again", lambda: installed.answers("/readyz"), name="pmwatch")
    assert "ready" in events(containers.shell("podman logs pmwatch"))
    assert "0 unaccounted" in containers.shell("podman exec pmwatch pmwatch audit")

    write(installed.drop, "since.csv")
    containers.wait_for("the second upload", lambda: len(stored(sandbox)) == 2, name="pmwatch")
    containers.shell("podman stop pmwatch && podman rm pmwatch")
    back = re.sub(r"-d --name pmwatch|--stop-timeout 45", "--rm", run).rstrip()
    back += " ledger rebuild --from /var/lib/pmwatch/before-upgrade.db --yes"
    assert "1 files in the folders" in containers.shell(back)
    containers.shell(run)
    containers.wait_for("ready with the old ledger", lambda: installed.answers("/readyz"), name="pmwatch")
    assert "since.csv" in containers.shell("podman exec pmwatch pmwatch history --state held")
    assert len(stored(sandbox)) == 2, "nothing went twice"


def test_beside_a_writer_of_another_user_the_doctor_says_what_cannot_be_seen(
    containers: Containers, installed: Installed, sandbox: SandboxServer
) -> None:
    name, slow = "pmwatch-beside", "writer"
    (installed.etc / "config.toml").write_text(
        (installed.etc / "config.toml").read_text().replace('settle = "300ms"', 'settle = "1h"')
    )
    containers.start(name, *LOCKED_DOWN, *installed.mounts)
    containers.wait_for("ready", lambda: installed.answers("/readyz"), name=name)
    write = "exec 3> /srv/drop/slow.csv; echo id >&3; exec sleep 600"
    containers.start(
        slow, *LOCKED_DOWN, "--user", str(OTHER_UID), "--entrypoint", "sh", *installed.mounts, "--", "-c", write
    )
    seen = installed.drop / "slow.csv"
    containers.wait_for("the file", lambda: seen.exists() and seen.stat().st_size == 3, name=slow)
    assert seen.stat().st_uid == OTHER_UID
    [finding] = [one for one in doctor(containers, name) if "slow.csv" in one["says"]]
    assert finding["level"] == "warning"
    assert "its owner is another user, and CAP_LEASE is missing" in finding["says"]
    assert "temporary names" in finding["hint"]
    why = containers.exec(name, "pmwatch", "why", "/srv/drop/slow.csv").stdout
    assert re.search(r"unknown.*another user", why, flags=re.DOTALL), why
    assert stored(sandbox) == {}


def write(drop: Path, name: str) -> None:
    """Let a whole file land."""
    part = drop / f".{name}.part"
    part.write_text(f"id\n{name}\n")
    part.rename(drop / name)


def events(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]


def doctor(containers: Containers, name: str) -> list[dict[str, str]]:
    done: subprocess.CompletedProcess[str] = containers.exec(name, "pmwatch", "doctor", "--json")
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found
