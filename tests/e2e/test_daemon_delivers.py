"""The main job with real processes: files land in many ways, and arrive byte-identical, once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch.sandbox import SandboxServer
from pmwatch.sandbox.eventlogs import csv_bytes, order_to_cash, xlsx_bytes
from support.daemon import Daemon, folder_toml, stored, table_id, wait_for

SLOW_WRITER = """
import sys, time
data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "wb", buffering=0) as out:
    for start in range(0, len(data), len(data) // 6 + 1):
        out.write(data[start:start + len(data) // 6 + 1])
        time.sleep(0.4)  # longer than settle: only the open file tells that it goes on
"""


@pytest.fixture
def daemon(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> Iterator[Daemon]:
    with Daemon.for_sandbox(
        tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox), recursive="true")
    ) as daemon:
        yield daemon


def event_logs(directory: Path) -> dict[str, Path]:
    """Return event logs to send: real ones where PMWATCH_TEST_DATA points to some, generated ones always."""
    made = {
        "o2c.csv": csv_bytes(order_to_cash(800, seed=1)),
        "o2c-semicolon.csv": csv_bytes(order_to_cash(500, seed=2), delimiter=";"),
        "o2c.xlsx": xlsx_bytes(order_to_cash(300, seed=3)),
        "größe & 'quotes' %41.csv": csv_bytes(order_to_cash(50, seed=4)),
    }
    directory.mkdir()
    for name, content in made.items():
        (directory / name).write_bytes(content)
    real = os.environ.get("PMWATCH_TEST_DATA")
    for path in sorted(Path(real).iterdir()) if real else ():
        if path.suffix in (".csv", ".xes"):
            shutil.copyfile(path, directory / path.name)
    return {path.name: path for path in directory.iterdir()}


def test_event_logs_arrive_byte_identical_once_however_they_are_written(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    sources = event_logs(tmp_path / "sources")
    daemon.start()
    expected: dict[str, bytes] = {}
    writers = []
    for name, source in sources.items():
        for how in ("cp", "mv", "slow", "rename"):
            target = drop / f"{how}-{name}"
            content = source.read_bytes() + f"\n{how}\n".encode()  # else dedup would rightly send it once
            made = tmp_path / f"made-{how}-{name}"
            made.write_bytes(content)
            expected[target.name] = content
            if how == "cp":
                subprocess.run(["cp", made, target], check=True)
            elif how == "mv":
                subprocess.run(["mv", made, target], check=True)
            elif how == "rename":
                shutil.copyfile(made, drop / f".{name}.part")
                (drop / f".{name}.part").rename(target)
            else:
                writers.append(subprocess.Popen([sys.executable, "-c", SLOW_WRITER, made, target]))
    for writer in writers:
        assert writer.wait(60) == 0
    daemon.wait_done(len(expected))
    assert stored(sandbox) == expected
    assert daemon.stop() == 0
    assert {delivery.outcome for delivery in daemon.deliveries()} == {"uploaded"}
    assert len(daemon.deliveries()) == len(expected)


def test_files_that_were_there_before_the_start_are_sent_in_order_of_mtime(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    for name, mtime in (("b.csv", 1_600_000_000), ("a.csv", 1_700_000_000), ("c.csv", 1_500_000_000)):
        (drop / name).write_bytes(csv_bytes(order_to_cash(3, seed=mtime % 97)))
        os.utime(drop / name, (mtime, mtime))
    daemon.start()
    daemon.wait_done(3)
    assert [record.filename for record in sandbox.objects()] == ["c.csv", "b.csv", "a.csv"]


def test_the_api_is_asked_with_dataset_name_size_and_mtime(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    path = drop / "a b.csv"
    path.write_bytes(b"case,activity\n1,a\n")
    daemon.start()
    daemon.wait_done(1)
    asked = next(record for record in sandbox.requests() if "presignedurl" in record.path)
    assert asked.status == 200
    assert [record.filename for record in sandbox.objects()] == ["a b.csv"]


class OneInode:
    """Makes files, one after the other, that have the same inode number, because the kernel gives it again."""

    def __init__(self, staging: Path) -> None:
        staging.mkdir()
        self._staging = staging
        self._held = staging / "held"  # a second name, so that the number is free only when its time has come
        self._number = 0

    def put(self, path: Path, content: bytes) -> None:
        """Rename a new file into place; what was there must be gone. Skips the test where the number is not given."""
        self._held.unlink(missing_ok=True)
        new = self._create()
        new.write_bytes(content)
        os.link(new, self._held)
        new.rename(path)
        self._number = path.stat().st_ino

    def _create(self) -> Path:
        made = []
        for number in range(20_000):  # the lowest that is free is given, so all below are taken first
            made.append(self._staging / str(number))
            made[-1].touch()
            if self._number in {0, made[-1].stat().st_ino}:
                break
        else:
            pytest.skip("this file system gives no inode number again, or gave it to another file")
        for other in made[:-1]:
            other.unlink()
        return made[-1]


@pytest.mark.parametrize("after_upload", ["keep", "delete"])
def test_a_new_file_with_the_inode_number_of_the_one_before_it_is_delivered(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path, after_upload: str
) -> None:
    daemon.defaults += f'\nafter_upload = "{after_upload}"'
    versions = [b"case,activity\n%d,a\n" % number for number in range(3)]
    path, files = drop / "a.csv", OneInode(tmp_path / "staging")
    files.put(path, versions[0])
    daemon.start()
    daemon.wait_done(1)
    assert daemon.stop() == 0
    path.unlink(missing_ok=True)
    files.put(path, versions[1])
    daemon.start()
    daemon.wait_done(2)
    path.unlink(missing_ok=True)
    files.put(path, versions[2])
    delivered = daemon.wait_done(3)
    assert len({(one.fingerprint.inode, one.fingerprint.device, one.fingerprint.size) for one in delivered}) == 1
    assert [sandbox.object_path(record).read_bytes() for record in sandbox.objects()] == versions


def test_unfinished_and_unsupported_names_are_left_alone_and_explained(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    for name in (".hidden.csv", "~$book.xlsx", "x.csv.part", "y.tmp", "notes.pdf", ".~lock.a.csv#"):
        (drop / name).write_bytes(b"case,activity\n1,a\n")
    (drop / "good.CSV").write_bytes(b"case,activity\n1,a\n")
    daemon.start()
    daemon.wait_done(1)
    assert set(stored(sandbox)) == {"good.CSV"}
    told = subprocess.run(
        [sys.executable, "-m", "pmwatch", "why", "--config", daemon.config, drop / "notes.pdf"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ignored" in told.stdout
    assert "unsupported type" in told.stdout


def test_links_pipes_and_strange_names_neither_block_nor_escape(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("do,not\nsend,me\n")
    (drop / "link.csv").symlink_to(secret)
    (drop / "dir.csv").mkdir()
    (drop / "linked-dir").symlink_to(tmp_path)
    os.mkfifo(drop / "pipe.csv")
    content = {
        b"\xff\xfe.csv": b"a,b\n1,1\n",
        b"new\nline.csv": b"a,b\n2,2\n",
        b"<script>.csv": b"a,b\n3,3\n",
        b"x" * 251 + b".csv": b"a,b\n4,4\n",
    }
    for name, data in content.items():
        with open(os.path.join(os.fsencode(drop), name), "wb") as file:
            file.write(data)
    daemon.start()
    daemon.wait_done(len(content))
    assert sorted(stored(sandbox).values()) == sorted(content.values())
    assert {delivery.path for delivery in daemon.deliveries()} == set(content)
    assert "<script>.csv" not in daemon.get("/")
    assert "&lt;script&gt;.csv" in daemon.get("/")
    assert daemon.stop() == 0


def test_a_second_version_goes_after_the_first_and_a_touched_file_does_not(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    path = drop / "orders.csv"
    path.write_bytes(b"a,b\n1,1\n")
    daemon.start()
    daemon.wait_done(1)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    wait_for("the touched file was looked at", lambda: daemon.deliveries()[-1].fingerprint.mtime_ns % 10**9 == 0)
    path.write_bytes(b"a,b\n1,1\n2,2\n")
    daemon.wait_done(2)
    objects = sandbox.objects()
    assert [record.size for record in objects] == [8, 12]
    assert len(daemon.deliveries()) == 2


def test_the_same_content_under_another_name_is_recorded_as_a_duplicate(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    (drop / "first.csv").write_bytes(b"a,b\n1,1\n")
    daemon.start()
    first = daemon.wait_done(1)[0]
    (drop / "second.csv").write_bytes(b"a,b\n1,1\n")
    second = daemon.wait_done(2)[1]
    assert second.outcome == "duplicate"
    assert second.duplicate_of == first.id
    assert set(stored(sandbox)) == {"first.csv"}
    assert daemon.metric("pmwatch_duplicates_total", folder="orders") == 1


def test_a_directory_moved_in_and_a_new_one_are_seen(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "in.csv").write_bytes(b"a,b\n1,1\n")
    daemon.defaults = 'settle = "300ms"\nrescan_interval = "1h"'
    daemon.start()
    (tmp_path / "outside").rename(drop / "moved")
    daemon.wait_done(1)
    (drop / "moved" / "deep" / "later.csv").write_bytes(b"a,b\n2,2\n")
    (drop / "new").mkdir()
    (drop / "new" / "fresh.csv").write_bytes(b"a,b\n3,3\n")
    daemon.wait_done(3)
    assert set(stored(sandbox)) == {"in.csv", "later.csv", "fresh.csv"}


@pytest.mark.parametrize("policy", ["archive", "delete"])
def test_sources_are_archived_or_deleted_after_the_upload(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path, policy: str
) -> None:
    daemon.defaults += f'\nafter_upload = "{policy}"'
    daemon.start()
    for number in range(3):
        (drop / "orders.csv").write_bytes(f"a,b\n{number},{number}\n".encode())
        daemon.wait_done(number + 1)
        wait_for("the source is gone", lambda: not (drop / "orders.csv").exists())
    archived = sorted((drop / ".pmwatch" / "archive").rglob("*.csv")) if policy == "archive" else []
    assert [path.name for path in archived] == (
        ["orders.1.csv", "orders.2.csv", "orders.csv"] if policy == "archive" else []
    )
    assert len(sandbox.objects()) == 3
    assert all(delivery.outcome == "uploaded" for delivery in daemon.deliveries())


def test_one_entry_with_placeholders_maps_a_whole_tree(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    folder = f'[[folders]]\nname = "tree"\npath = "{drop}/{{tenant}}/{{datatable}}"\ndataset = "Order to cash"\n'
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        for table in ("Orders", "Invoices"):
            (drop / "demo" / table).mkdir(parents=True)
            (drop / "demo" / table / f"{table}.csv").write_bytes(f"a,b\n{table},1\n".encode())
        (drop / "nobody" / "Orders").mkdir(parents=True)
        (drop / "nobody" / "Orders" / "x.csv").write_bytes(b"a,b\n")
        (drop / "stray.csv").write_bytes(b"a,b\n")
        daemon.start()
        daemon.wait_done(2)
        arrived = {record.filename: record.datatable_id for record in sandbox.objects()}
        assert arrived == {f"{table}.csv": table_id(sandbox, table) for table in ("Orders", "Invoices")}
        (drop / "demo" / "late.csv").write_bytes(b"a,b\n")
        wait_for("the scan that counts it", lambda: daemon.metric("pmwatch_ignored_files", reason="unmapped") == 3)
        told = {line["directory"]: line["why"] for line in daemon.events("unmapped directory")}
        assert told == {
            f"{drop}": "unmapped: not inside {tenant}/{datatable}",
            f"{drop}/demo": "unmapped: not inside {tenant}/{datatable}",
            f"{drop}/nobody/Orders": "unmapped: there is no tenant 'nobody'",
        }
        assert len(daemon.events("unmapped directory")) == len(told), "told of once, however many scans"
        assert "folder tree: unmapped files: 3" in daemon.command("status").stdout
        assert "3 unmapped" in daemon.get("/")
        assert f"1 in {drop}/nobody/Orders: there is no tenant 'nobody'" in daemon.command("doctor").stdout
