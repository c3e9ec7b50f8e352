"""SIGKILL at each named failpoint, and a restart: counted by the storage against the writer's own list."""

import hashlib
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pmwatch.failpoints import NAMES
from pmwatch.model import State
from pmwatch.sandbox import ObjectRecord, SandboxServer
from support.daemon import Daemon, folder_toml, table_id

MIB = 1024 * 1024
TABLE = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "crashes.md"
LARGE = {0: 3 * MIB + 5, 11: 6 * MIB + 7}  # the first goes alone, then a run of small ones, and again
FILES = 20


@dataclass(frozen=True)
class Row:
    """Die at a failpoint, at its first or a later time; `before` is where the process before it died."""

    name: str
    first: int = 1  # among files in order
    second: int = 1  # where the order does not matter
    options: dict[str, str] = field(default_factory=dict)
    before: str = ""
    elsewhere: bool = False  # the archive is on another file system
    copies: int = 0  # more than one of a file in the archive


ROWS = [
    Row("after_claim", first=2),
    Row("after_presign", first=2),
    Row("mid_body", first=4, second=2),
    Row("after_last_byte", options={"dedup": '"off"'}),  # or small files are read once before they are sent
    Row("after_answer", first=5),
    Row("after_commit", first=2),
    Row("between_copy_and_unlink", first=3, second=3, elsewhere=True, copies=1),
    Row("during_archive_rename", first=3, second=3),
    Row("during_recovery", first=3, before="after_claim:2"),
]


def table() -> dict[str, int]:
    """Return the PUTs that the table for operators promises, by failpoint."""
    return {
        name: int(puts) for name, puts in re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) \|", TABLE.read_text(), re.MULTILINE)
    }


def test_the_table_has_a_line_for_each_failpoint_and_each_is_tried() -> None:
    assert list(table()) == list(NAMES)
    assert {row.name for row in ROWS} == set(NAMES)


@pytest.fixture
def other_file_system(drop: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pmwatch-test-") as name:
        if os.stat(name).st_dev == os.stat(drop).st_dev:
            pytest.fail("the tests run in /dev/shm: set TMPDIR or --basetemp to another file system")
        yield Path(name)


def write_files(drop: Path, chance: random.Random) -> dict[str, str]:
    """Write large and small files; return their hashes by name."""
    written = {}
    for number in range(FILES):
        name, content = f"{number:03}.csv", chance.randbytes(LARGE.get(number, chance.randrange(1, 30_000)))
        path = drop / name
        path.write_bytes(content)
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
        written[name] = hashlib.sha256(content).hexdigest()
    return written


def die_at(daemon: Daemon, failpoint: str) -> None:
    """Run until the failpoint lets the process die; it must."""
    daemon.start(wait=False, env={"PMWATCH_FAILPOINT": failpoint})
    try:
        code = daemon.wait(20)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{failpoint} was never reached:\n{daemon.log_text()[-4000:]}")
    assert code == -signal.SIGKILL, daemon.log_text()


def puts(sandbox: SandboxServer) -> dict[str, list[int]]:
    """Return the status of each PUT that the storage saw, by key."""
    found: dict[str, list[int]] = {}
    for request in sandbox.requests():
        if request.method == "PUT":
            found.setdefault(request.path, []).append(request.status)
    return found


def hashes(directory: Path) -> Counter[str]:
    """Return how often each content lies below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


@pytest.mark.parametrize("order", ["arrival", "none"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_is_lost_torn_or_stored_twice(  # noqa: PLR0917  a row of the table and where it is played
    tmp_path: Path, sandbox: SandboxServer, drop: Path, other_file_system: Path, row: Row, order: str
) -> None:
    in_order = order == "arrival"
    archive = other_file_system if row.elsewhere else tmp_path / "archive"
    options = {"order": f'"{order}"', "after_upload": '"archive"', "archive_dir": f'"{archive}"'} | row.options
    written = write_files(drop, random.Random(f"{row.name}{order}"))
    folder = folder_toml("orders", drop, datatable=table_id(sandbox), **options)
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        daemon.defaults = 'settle = "100ms"\nrescan_interval = "1s"'
        if row.before:
            die_at(daemon, row.before)
        die_at(daemon, f"{row.name}:{row.first if in_order else row.second}")
        assert {one.state for one in daemon.deliveries()} != {State.DONE}, "it died after all was over"
        under_way = {urlsplit(one.presigned_url).path for one in daemon.deliveries() if one.state is State.UPLOADING}
        daemon.start()
        daemon.wait_done(FILES)
        assert len(daemon.deliveries()) == FILES
    check_storage(sandbox.objects(), written, in_order=in_order)
    check_puts(puts(sandbox), under_way, table()[row.name], alone=in_order)
    assert [path.name for path in drop.iterdir() if path.is_file()] == []
    archived = hashes(archive)
    assert set(archived) == set(written.values())
    assert archived.total() == FILES + row.copies


def check_puts(seen: dict[str, list[int]], under_way: set[str], promised: int, *, alone: bool) -> None:
    """See that each key was stored by one PUT, and only what the kill met under way was tried more than once.

    Where the order does not matter, other threads are anywhere when one of them dies.
    """
    assert [statuses.count(200) for statuses in seen.values()] == [1] * FILES, seen
    repeated = {key for key, statuses in seen.items() if len(statuses) > 1}
    assert repeated <= under_way
    most = max(map(len, seen.values()))
    assert most == promised or (most == 2 and not alone), f"not the number of PUTs in {TABLE.name}: {seen}"


def check_storage(objects: list[ObjectRecord], written: dict[str, str], *, in_order: bool) -> None:
    """See that the storage holds exactly what was written, each under one key, PUT once."""
    assert sorted((record.filename, record.sha256) for record in objects) == sorted(written.items())
    assert {record.put_count for record in objects} == {1}
    if in_order:
        assert [record.filename for record in objects] == sorted(written)


# ---- kills at any moment -----------------------------------------------------------------------------------------

KILLS = 7 * int(os.environ.get("PMWATCH_TEST_SCALE", "1"))  # of each row
SIZES = (10, 4_000, 200_000, 3_000_000)
BACKLOG = 60  # files that wait at most, or many short lives would end with an hour's work, and all in the same place


def let_files_land(
    drop: Path, chance: random.Random, written: dict[str, str], seconds: float, *, most: int, also_in_place: bool
) -> None:
    """Write new files for a while, renamed into place or also in place; remember their hashes by name."""
    pace, end, most = threading.Event(), time.monotonic() + seconds, len(written) + most
    while (left := end - time.monotonic()) > 0:
        if len(written) >= most:
            pace.wait(left)
            return
        name, content = f"{len(written):05}.csv", chance.randbytes(chance.choice(SIZES))
        written[name] = hashlib.sha256(content).hexdigest()
        if also_in_place and chance.random() < 0.5:
            (drop / name).write_bytes(content)
        else:
            (drop / f".{name}").write_bytes(content)
            (drop / f".{name}").rename(drop / name)
        pace.wait(chance.uniform(0, 0.08))


@pytest.mark.parametrize(("after", "order"), [("archive", "arrival"), ("delete", "arrival"), ("keep", "none")])
def test_kills_at_any_moment_lose_nothing_tear_nothing_and_store_nothing_twice(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, after: str, order: str
) -> None:
    chance, in_order = random.Random(f"{after}{order}"), order == "arrival"
    archive = tmp_path / "archive"
    options = {"order": f'"{order}"', "after_upload": f'"{after}"', "archive_dir": f'"{archive}"'}
    written: dict[str, str] = {}
    folder = folder_toml("orders", drop, datatable=table_id(sandbox), **options)
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        daemon.defaults = 'settle = "100ms"\nrescan_interval = "1s"'
        if after != "archive":  # so far away that URLs are asked for side by side
            sandbox.faults.add("GET 0 x* delay=0.01 path=presignedurl")
        allowed: Counter[str] = Counter()
        met: Counter[str] = Counter()
        room = BACKLOG
        for _ in range(KILLS):
            daemon.start(wait=chance.random() < 0.5)  # half of them may die while they start
            let_files_land(drop, chance, written, chance.uniform(0, 2), most=room, also_in_place=not in_order)
            daemon.kill()
            found = daemon.deliveries()
            allowed.update(urlsplit(one.presigned_url).path for one in found if one.presigned_url)
            met.update({str(one.state) for one in found})
            room = BACKLOG - len(written) + sum(one.state is State.DONE for one in found)
        daemon.start()
        # The table for operators: what five kills met under way waits for a person. Here a person says that it may go.
        late = {one.display_path for one in daemon.deliveries() if one.state is State.HELD}
        if late:
            released = daemon.command(
                "release", "--reason", "crash_loop", "--force", "--why", "the kills were the test's"
            )
            assert released.returncode == 0, released.stdout + released.stderr
        done = daemon.wait_done(len(written))
        assert daemon.stop() == 0
        counted = Counter((one.state, one.outcome) for one in daemon.deliveries())
        assert counted == {(State.DONE, "uploaded"): len(written)}
    again = sum(len(statuses) > 1 for statuses in puts(sandbox).values())
    print(
        f"{KILLS} kills, {len(written)} files, {again} of them tried again, {len(late)} held after five kills; "
        f"how many kills met a file that was {dict(met)}"
    )
    check_storage(sandbox.objects(), written, in_order=False)
    if in_order:
        names = [record.filename for record in sandbox.objects() if record.filename not in late]
        assert names == sorted(names)
    for key, statuses in puts(sandbox).items():
        assert statuses.count(200) == 1, (key, statuses)
        assert len(statuses) <= 1 + allowed[key], f"{key} was tried {len(statuses)} times after {allowed[key]} kills"
    left = {path.name for path in drop.iterdir() if path.is_file()}
    assert left == (set(written) if after == "keep" else set())
    if after == "archive":
        assert set(hashes(archive)) == set(written.values())
        assert all(os.path.isfile(one.location) for one in done)
