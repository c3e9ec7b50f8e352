"""Writers of all kinds, a storage and an API in trouble, kills, stops and reloads, all at the same time.

The storage counts, and each writer knows what it has finished: PMWATCH_TEST_SCALE makes it last longer.
"""

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pmwatch.model import Delivery, State
from pmwatch.sandbox import Fault, SandboxServer, TenantSeed
from support.daemon import Daemon, folder_toml, table_id, wait_for

SECONDS = 12.0 * int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
SIZES = (10, 4_000, 4_000, 200_000, 3_000_000)
FOLDERS = {  # the tenant's place, the datatable, and what is special
    "archived": (0, "Orders", {"after_upload": '"archive"'}),
    "deleted": (0, "Invoices", {"after_upload": '"delete"'}),
    "kept": (1, "Orders", {"dedup": '"latest"'}),
    "any-order": (1, "Invoices", {"after_upload": '"archive"', "order": '"none"'}),
}
FAULTS = [
    Fault(status=0, delay=0.2, times=20),
    Fault(status=400, code="RequestTimeout", times=2),
    Fault(status=403, code="ExpiredToken"),
    Fault(status=409, times=2),
    Fault(status=429, times=2),
    Fault(status=500, times=3),
    Fault(status=503, times=2),
    Fault(status=503, retry_after=1),
    Fault(close=True, times=3),
    Fault(close=True, times=12),
    Fault(close=True, when="mid", times=2),
    Fault(close=True, when="after"),
    Fault(status=500, when="after", times=3),
    Fault(method="GET", status=0, delay=0.01, times=200),
    Fault(method="GET", status=401, times=2),
    Fault(method="GET", status=429, times=2),
    Fault(method="GET", status=500, times=3),
    Fault(method="GET", close=True, times=3),
]
RELOADS = ("", "max_parallel = 2", "max_parallel_per_tenant = 1", 'bandwidth = "20MiB/s"')


@dataclass
class Writer:
    """Writes into one folder until told to stop, and knows what it finished: `last` must arrive, `replaced` may."""

    drop: Path
    stage: Path
    chance: random.Random
    stop: threading.Event
    last: dict[str, str] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)

    def work(self) -> None:
        """Write file after file, each in one of the ways that writers have."""
        ways: list[Callable[[str, bytes], None]]
        ways = [self.renamed, self.renamed, self.slow, self.linked, self.in_a_directory, self.rewritten, self.doubled]
        while not self.stop.wait(self.chance.uniform(0, 0.3)):
            content = self.chance.randbytes(self.chance.choice(SIZES))
            name = f"{len(self.last):05}.csv"
            self.chance.choice(ways)(name, content)
            self.last[hashlib.sha256(content).hexdigest()] = name

    def renamed(self, name: str, content: bytes) -> None:
        """Under a hidden name first."""
        (self.drop / f".{name}").write_bytes(content)
        (self.drop / f".{name}").rename(self.drop / name)

    def slow(self, name: str, content: bytes) -> None:
        """Piece by piece under its own name, always open."""
        size = len(content) // 4 + 1
        with (self.drop / name).open("wb", buffering=0) as file:
            for start in range(0, len(content), size):
                file.write(content[start : start + size])
                self.stop.wait(self.chance.uniform(0, 0.5))

    def linked(self, name: str, content: bytes) -> None:
        """As a hard link, for which no event says that anybody has written."""
        (self.stage / name).write_bytes(content)
        (self.drop / name).hardlink_to(self.stage / name)

    def in_a_directory(self, name: str, content: bytes) -> None:
        """In a directory that is moved in as a whole."""
        (self.stage / f"{name}.d").mkdir()
        (self.stage / f"{name}.d" / name).write_bytes(content)
        (self.stage / f"{name}.d").rename(self.drop / f"{name}.d")

    def rewritten(self, name: str, content: bytes) -> None:
        """Twice, the second time with another content, whatever has become of the first."""
        first = self.chance.randbytes(3_000)
        self.replaced.add(hashlib.sha256(first).hexdigest())
        self.renamed(name, first)
        self.stop.wait(self.chance.uniform(0, 1))
        self.renamed(name, content)

    def doubled(self, name: str, content: bytes) -> None:
        """Under two names at once."""
        self.renamed(name, content)
        self.renamed(f"again-{name}", content)


def make_trouble(daemon: Daemon, sandbox: SandboxServer, chance: random.Random) -> str:
    """Do one bad thing; return its name."""
    what = chance.choice(["kill", "kill", "stop", "reload", "reload", *["fault"] * 6])
    if what == "fault":
        sandbox.faults.add(chance.choice(FAULTS))
    elif what == "reload":
        if any("READY=1" in text for text in daemon.notifications):  # else the signal may find no handler yet
            daemon.extra = f'retry_max = "2s"\n{chance.choice(RELOADS)}'
            daemon.write_config()
            daemon.signal(signal.SIGHUP)
    else:
        if what == "kill":
            daemon.kill()
        else:
            assert daemon.stop() in (0, -signal.SIGTERM)  # the latter before it has any handler
        daemon.start(wait=chance.random() < 0.7)
    return what


def in_the_end(daemon: Daemon, writers: dict[str, Writer], sandbox: SandboxServer) -> tuple[list[Delivery], set[int]]:
    """Wait until nothing is left to do; return all deliveries, and which a person had to release."""
    released: set[int] = set()

    def over() -> list[Delivery] | None:
        found = daemon.deliveries()
        held = {one.id for one in found if one.state is State.HELD}
        if held:  # what five kills met under way waits for a person
            released.update(held)
            said = daemon.command("release", "--reason", "crash_loop", "--force", "--why", "the kills were the test's")
            assert said.returncode == 0, said.stdout + said.stderr
        there = {record.sha256 for record in sandbox.objects()}
        missing = [name for writer in writers.values() for sha256, name in writer.last.items() if sha256 not in there]
        ended = all(one.state in (State.DONE, State.VANISHED) for one in found)
        return found if ended and not missing else None

    try:
        return wait_for("everything has arrived", over, seconds=120 + SECONDS), released
    except AssertionError as error:
        raise AssertionError(f"{error}\n{daemon.post_mortem()}") from None


def test_everything_arrives_once_whole_and_in_order(tmp_path: Path) -> None:
    chance, stop = random.Random("trouble"), threading.Event()
    seeds = [TenantSeed(name, {"Sales": ("Orders", "Invoices")}) for name in ("acme", "globex")]
    writers, folders = {}, ""
    with SandboxServer(tmp_path / "sandbox", tenants=seeds) as sandbox:
        for name, (tenant, table, options) in FOLDERS.items():
            drop, stage = tmp_path / "drop" / name, tmp_path / "stage" / name
            drop.mkdir(parents=True)
            stage.mkdir(parents=True)
            writers[name] = Writer(drop, stage, random.Random(name), stop)
            id_ = table_id(sandbox, table, tenant=tenant)
            folders += folder_toml(name, drop, tenant=seeds[tenant].name, datatable=id_, recursive="true", **options)
        with Daemon.for_sandbox(tmp_path, sandbox, folders) as daemon:
            daemon.defaults = 'settle = "300ms"\nrescan_interval = "1s"'
            daemon.extra = 'retry_max = "2s"'
            daemon.start()
            threads = [threading.Thread(target=writer.work) for writer in writers.values()]
            for thread in threads:
                thread.start()
            end, did = time.monotonic() + SECONDS, Counter[str]()
            try:
                while time.monotonic() < end:
                    stop.wait(chance.uniform(0.1, 1.5))
                    did[make_trouble(daemon, sandbox, chance)] += 1
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            sandbox.faults.clear()
            deliveries, released = in_the_end(daemon, writers, sandbox)
            audit = daemon.command("audit")
            assert audit.returncode == 0, audit.stdout + audit.stderr
            assert daemon.stop() == 0
        objects = sandbox.objects()
    print(f"{dict(did)}; {len(objects)} stored; {Counter((one.state, one.outcome) for one in deliveries)}")
    stored = Counter(record.sha256 for record in objects)
    for writer in writers.values():
        assert {sha256: stored[sha256] for sha256 in writer.last} == dict.fromkeys(writer.last, 1)
    replaced = set[str]().union(*(writer.replaced for writer in writers.values()))
    finished = replaced.union(*(writer.last for writer in writers.values()))
    assert set(stored) <= finished, "something went that no writer had finished"
    assert {record.put_count for record in objects} == {1}
    assert max(stored.values()) == 1
    check_order(deliveries, released, [record.sha256 for record in objects])
    check_sources(writers)


def check_order(deliveries: list[Delivery], released: set[int], stored: list[str]) -> None:
    """See that each folder's files were stored in the ledger's order, except where a person let one go later."""
    for name, (_, _, options) in FOLDERS.items():
        went = [one for one in deliveries if (one.folder, one.outcome) == (name, "uploaded")]
        went = [one for one in went if one.id not in released]
        places = [stored.index(one.sha256) for one in sorted(went, key=lambda one: one.seq)]
        assert options.get("order") or places == sorted(places), name


def check_sources(writers: dict[str, Writer]) -> None:
    """See that each source lies where its folder says."""
    for name, (_, _, options) in FOLDERS.items():
        left = {path for path in writers[name].drop.rglob("*.csv") if ".pmwatch" not in path.parts}
        assert bool(left) == ("after_upload" not in options), left
        kept = left or set((writers[name].drop / ".pmwatch" / "archive").rglob("*.csv"))
        there = {hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
        assert name == "deleted" or set(writers[name].last) <= there
