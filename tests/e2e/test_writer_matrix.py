"""How files come into being: real programs write into one daemon's folders, and only what is whole is ever stored.

Every row has a folder and a datatable of its own, and the writers work side by side. What counts is all that the
storage ever took for that datatable: each final version once, byte for byte, and nothing else.
"""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

from pmwatch.sandbox import Fault, ObjectRecord, SandboxServer, TenantSeed
from pmwatch.sandbox.eventlogs import csv_bytes, order_to_cash, xlsx_bytes
from support import writers
from support.daemon import Daemon, folder_toml, table_id, wait_for
from support.services import missing, require_tool
from support.sshd import HOST, Sshd, running_sshd

SETTLE_SECONDS = 0.4
PAUSE = str(1.5 * SETTLE_SECONDS)  # a writer that is silent for so long is only known by its open file
AWAY_SECONDS = 3 * SETTLE_SECONDS
AWAY = str(AWAY_SECONDS)
SLOW_KBYTES = 1600  # a second: one file takes several times `settle`
SIDE_BY_SIDE = 8
PACKAGES = {"sftp": "openssh-client", "scp": "openssh-client", "mount": "mount", "umount": "mount"} | dict.fromkeys(
    ("cp", "mv", "ln", "dd", "chown", "chgrp", "chmod"), "coreutils"
)
KEPT_FILES = 100
TORN_WORKBOOK = "it is torn: a workbook ends with its zip directory"

Versions = Mapping[str, Sequence[bytes]]
"""What must be stored: by file name, all versions in their order."""


@cache
def content(version: int) -> bytes:
    """Return an event log of about 2.5 MB; each later version is shorter than the one before."""
    return csv_bytes(order_to_cash(4000 - 400 * version, seed=version))


@cache
def workbook() -> bytes:
    """Return an event log as an .xlsx with a picture in it, of about 2.5 MB."""
    buffer = io.BytesIO(xlsx_bytes(order_to_cash(300, seed=1)))
    with zipfile.ZipFile(buffer, "a") as archive:
        picture = zipfile.ZipInfo("xl/media/image1.png")  # without the time of day: two rows may build it at once
        archive.writestr(picture, content(1))
    return buffer.getvalue()


def orders(*versions: int) -> Versions:
    return {"orders.csv": [content(version) for version in versions]}


@dataclass(frozen=True)
class Place:
    """Where one row takes place: `drop` is the daemon's folder, `work` an own directory beside it."""

    matrix: "Matrix"
    name: str
    table: str
    drop: Path
    work: Path

    @property
    def target(self) -> Path:
        return self.drop / "orders.csv"

    def source(self, version: int = 1) -> Path:
        """Return a file outside of the drop folder that holds a version."""
        path = self.work / f"version-{version}.csv"
        path.write_bytes(content(version))
        return path

    def run(self, program: str, *arguments: str | Path, stdin: str = "") -> None:
        """Run a program to its good end."""
        command = [require_tool(program, PACKAGES.get(program, program)), *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"

    def run_writer(self, program: str, *arguments: str | Path, returns: int = 0) -> None:
        """Run one of our own slow writers."""
        command = [sys.executable, writers.__file__, program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == returns, f"{program}: {done.stderr}"

    @contextmanager
    def running(self, program: str, *arguments: str | Path, stdin: str = "") -> Iterator[subprocess.Popen[str]]:
        """Run a program that is to be ended in the middle, with all its children."""
        command = [require_tool(program, PACKAGES.get(program, program)), *map(str, arguments)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, text=True, start_new_session=True
        ) as process:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.flush()
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def arrived(self) -> list[ObjectRecord]:
        """Return every object that the storage has for this row."""
        return [record for record in self.matrix.sandbox.objects() if record.datatable_id == self.table]

    def wait_stored(self, count: int) -> None:
        wait_for(f"{self.name}: {count} objects", lambda: len(self.arrived()) >= count)

    def wait_seen(self) -> None:
        """Wait until the daemon knows of a file that is not complete yet."""
        wait_for(f"{self.name}: seen", lambda: self.metric("settling_files"))

    def is_waiting(self, name: str, what: str) -> bool:
        """Tell whether a file is shown as one that waits for `what`, and is counted so."""
        answer = self.why(name)
        shown = answer["verdict"] == "settling" and f"It waits for {what}." in answer["sentences"]
        return shown and self.metric("settling_files") == 1

    def is_held(self, name: str, detail: str) -> bool:
        """Tell whether a file is shown as held because it is not valid, in which detail, and is counted so."""
        answer = self.why(name)
        newest = answer["history"][0] if answer["history"] else {"state": "", "reason": "", "detail": ""}
        shown = (answer["verdict"], newest["state"], newest["reason"]) == ("held", "held", "invalid")
        return shown and re.match(detail, newest["detail"]) is not None and self.metric("deliveries", state="held") == 1

    def why(self, name: str) -> dict[str, Any]:
        """Return what the daemon answers to `pmwatch why`."""
        asked = urllib.parse.urlencode({"path": self.drop / name})
        answer: dict[str, Any] = json.loads(self.matrix.daemon.get(f"/api/v1/why?{asked}"))
        return answer

    def wait_scanned(self) -> None:
        """Wait until a whole scan has passed that began after this call."""
        before = self.scans()
        wait_for(f"{self.name}: scanned", lambda: self.scans() >= before + 2)

    def scans(self) -> float:
        return self.metric("scan_duration_seconds_count")

    def pending(self) -> float:
        """Return how many files pmwatch still has something to do with."""
        settling = self.metric("settling_files")  # asked first: what leaves it is found in one of the others
        states = (self.metric("deliveries", state=state) for state in ("queued", "uploading", "uploaded", "held"))
        return settling + sum(states)

    def metric(self, name: str, **labels: str) -> float:
        return self.matrix.daemon.metric(f"pmwatch_{name}", folder=self.name, **labels) or 0.0


Write = Callable[[Place], Versions]


@dataclass(frozen=True)
class Row:
    """One way to write. `write` returns when the writer has ended, with what must be stored."""

    name: str
    write: Write
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The row's name as folders may be called."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")


# ---- programs of every day ----------------------------------------------------------------------------------


def cp(place: Place) -> Versions:
    place.run("cp", place.source(), place.target)
    return orders(1)


def cp_p(place: Place) -> Versions:
    os.utime(place.source(), (1_000_000_000, 1_000_000_000))
    place.run("cp", "-p", place.work / "version-1.csv", place.target)
    return orders(1)


def cp_over(place: Place) -> Versions:
    for version in (1, 2, 3):
        place.run("cp", place.source(version), place.target)
        place.wait_stored(version)
    return orders(1, 2, 3)


def mv(place: Place) -> Versions:
    place.run("mv", place.source(), place.target)
    return orders(1)


def mv_across(place: Place) -> Versions:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        assert os.stat(memory).st_dev != os.stat(place.drop).st_dev
        source = Path(shutil.copy(place.source(), memory))
        place.run("mv", source, place.target)
    return orders(1)


def ln(place: Place) -> Versions:
    place.run("ln", place.source(), place.target)
    return orders(1)


def unzip(place: Place) -> Versions:
    names = ("a.csv", "b.csv", "deep/er/c.csv")
    with zipfile.ZipFile(place.work / "logs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for version, name in enumerate(names, start=1):
            archive.writestr(name, content(version))
    place.run("unzip", "-q", place.work / "logs.zip", "-d", place.drop)
    return {os.path.basename(name): [content(version)] for version, name in enumerate(names, start=1)}


def tree(place: Place) -> Versions:
    names = ("a.csv", "one/b.csv", "one/two/c.csv", "other/d.csv")
    for version, name in enumerate(names, start=1):
        path = place.work / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(version))
    place.run("mv", place.work / "tree", place.drop / "tree")
    return {os.path.basename(name): [content(version)] for version, name in enumerate(names, start=1)}


# ---- rsync --------------------------------------------------------------------------------------------------


def rsync(place: Place) -> Versions:
    place.run("rsync", f"--bwlimit={SLOW_KBYTES}", place.source(), place.target)
    return orders(1)


def rsync_ssh(place: Place) -> Versions:
    place.run("rsync", "-t", "-e", place.matrix.sshd.command, place.source(), f"{HOST}:{place.target}")
    return orders(1)


def rsync_inplace(place: Place) -> Versions:
    for version in (1, 2):
        place.run("rsync", "--inplace", f"--bwlimit={SLOW_KBYTES}", place.source(version), place.target)
        place.wait_stored(version)
    return orders(1, 2)


def rsync_partial(place: Place) -> Versions:
    place.run("rsync", "--partial", f"--bwlimit={SLOW_KBYTES}", place.source(), place.target)
    return orders(1)


def break_rsync_off(place: Place, *options: str, source: Path, target: Path) -> bytes:
    """End an `rsync --partial` in the middle; return the torn file, which rsync renamed to its final name."""
    with place.running("rsync", *options, "--partial", f"--bwlimit={SLOW_KBYTES}", source, target) as process:
        wait_for("rsync writes", lambda: any(path.stat().st_size for path in place.drop.iterdir()))
        process.terminate()
        process.wait()
    wait_for("the torn file has its final name", target.exists)
    part = target.read_bytes()
    assert part == source.read_bytes()[: len(part)]
    assert 0 < len(part) < source.stat().st_size
    return part


def rsync_resumed(place: Place) -> Versions:
    source = place.source()
    break_rsync_off(place, "-t", source=source, target=place.target)
    place.wait_seen()
    place.run("rsync", "-t", "--partial", source, place.target)
    return orders(1)


def rsync_torn_unseen(place: Place) -> Versions:
    """A limit: without `-t` nothing tells the torn file, which is renamed into place, from a whole one."""
    source = place.source()
    part = break_rsync_off(place, source=source, target=place.target)
    place.wait_stored(1)
    place.run("rsync", "--partial", source, place.target)
    return {"orders.csv": [part, content(1)]}


def rsync_torn_workbook(place: Place) -> Versions:
    source, target = place.work / "orders.xlsx", place.drop / "orders.xlsx"
    source.write_bytes(workbook())
    break_rsync_off(place, source=source, target=target)
    wait_for(f"{place.name}: held", lambda: place.is_held(target.name, TORN_WORKBOOK))
    place.run("rsync", "--partial", source, target)
    return {"orders.xlsx": [workbook()]}


# ---- ssh ----------------------------------------------------------------------------------------------------


def scp(place: Place) -> Versions:
    for version in (1, 2):
        limit = ("-l", str(SLOW_KBYTES * 8))
        place.run("scp", "-q", *limit, "-F", place.matrix.sshd.config, place.source(version), f"{HOST}:{place.target}")
        place.wait_stored(version)
    return orders(1, 2)


def sftp_arguments(place: Place, *, kbytes: int = SLOW_KBYTES) -> tuple[str | Path, ...]:
    return "-q", "-l", str(kbytes * 8), "-F", place.matrix.sshd.config, "-b", "-", HOST


def sftp_put(place: Place) -> Versions:
    place.run("sftp", *sftp_arguments(place), stdin=f"put {place.source()} {place.target}\n")
    return orders(1)


def sftp_reput(place: Place) -> Versions:
    source = place.source()
    with place.running("sftp", *sftp_arguments(place), stdin=f"put {source} {place.target}\n") as process:
        wait_for("a part is there", lambda: place.target.exists() and place.target.stat().st_size)
        os.killpg(process.pid, signal.SIGKILL)
    wait_for("the server has noticed", lambda: not writers.is_open_for_writing(place.target))
    assert 0 < place.target.stat().st_size < len(content(1))
    place.wait_seen()
    place.run("sftp", *sftp_arguments(place, kbytes=4 * SLOW_KBYTES), stdin=f"reput {source} {place.target}\n")
    return orders(1)


def paramiko(program: str, *arguments: str) -> Write:
    def write(place: Place) -> Versions:
        place.run_writer(program, place.matrix.sshd.config, HOST, place.source(), place.target, *arguments)
        return orders(1)

    return write


def lftp(*settings: str) -> Write:
    def write(place: Place) -> Versions:
        server = place.matrix.sshd
        commands = (
            f'set sftp:connect-program "{server.command}"',
            f"set net:limit-rate {SLOW_KBYTES * 512}",
            *settings,
            f"open -u {server.user}, sftp://{HOST}",
            f"put {place.source()} -o {place.target}",
            "bye",
        )
        place.run("lftp", "--norc", "-c", "; ".join(commands))
        return orders(1)

    return write


# ---- slow and mortal writers --------------------------------------------------------------------------------


def curl(place: Place) -> Versions:
    with writers.slow_server(content(1), float(PAUSE)) as url:
        place.run("curl", "-sS", "--noproxy", "*", "-o", place.target, url)
    return orders(1)


def own(program: str, *, pause: str = PAUSE, before: bool = False) -> Write:
    """Return one of our own writers; with `before`, an older version lies there already."""

    def write(place: Place) -> Versions:
        if before:
            place.run("mv", place.source(1), place.target)
            place.wait_stored(1)
        version = 2 if before else 1
        place.run_writer(program, place.source(version), place.target, pause)
        return orders(1, 2) if before else orders(1)

    return write


def die_in_the_middle(place: Place, source: Path, target: Path) -> float:
    """Let a writer be killed when it has written the first half; return when that was."""
    place.run_writer("dies", source, target, returns=-signal.SIGKILL)
    assert target.read_bytes() == writers.torn(source.read_bytes())
    return time.monotonic()


def stay_away(since: float) -> None:
    """Let three times `settle` pass by the clock: whoever comes back then comes back to a file that looks complete."""
    wait_for("three times settle", lambda: time.monotonic() - since >= AWAY_SECONDS)


def killed(place: Place) -> Versions:
    """The documented limit: without a marker or a check the part of a dead writer looks like a whole file."""
    died = die_in_the_middle(place, place.source(), place.target)
    place.wait_stored(1)
    stay_away(died)
    place.run_writer("rewriter", place.source(), place.target, PAUSE)
    return {"orders.csv": [writers.torn(content(1)), content(1)]}


def killed_with_marker(place: Place) -> Versions:
    def waiting() -> bool:
        return place.is_waiting(place.target.name, "its marker orders.csv.done")

    died = die_in_the_middle(place, place.source(), place.target)
    wait_for(f"{place.name}: waiting", waiting)
    stay_away(died)
    assert waiting()
    place.run_writer("rewriter", place.source(), place.target, PAUSE)
    stay_away(time.monotonic())
    assert waiting(), "it is whole, and nobody has said so yet"
    assert place.arrived() == []
    (place.drop / "orders.csv.done").touch()
    return orders(1)


def killed_with_check(place: Place, source: Path, target: Path, *, says: str) -> None:
    """Let a writer be killed and come back; in the meantime the format tells that the file is torn."""
    died = die_in_the_middle(place, source, target)
    wait_for(f"{place.name}: held", lambda: place.is_held(target.name, says))
    stay_away(died)
    assert place.is_held(target.name, says)
    assert place.arrived() == []
    place.run_writer("rewriter", source, target, PAUSE)


def killed_with_structure(place: Place) -> Versions:
    killed_with_check(place, place.source(), place.target, says=r"line \d+ is torn: ")
    return orders(1)


def killed_workbook(place: Place) -> Versions:
    source, target = place.work / "orders.xlsx", place.drop / "orders.xlsx"
    source.write_bytes(workbook())
    killed_with_check(place, source, target, says=TORN_WORKBOOK)
    return {"orders.xlsx": [workbook()]}


# ---- a new version while the old one is being sent ----------------------------------------------------------


def start_sending(place: Place, first: Path) -> None:
    """Move the first version in, and return while the storage lets its PUT wait."""
    rule = place.matrix.sandbox.faults.add(Fault(method="PUT", status=0, delay=2.0, path_contains=place.table))
    place.run("mv", first, place.target)
    wait_for(f"{place.name}: the PUT", lambda: not place.matrix.is_pending(rule))


def replaced_while_sent(place: Place) -> Versions:
    second = place.source(2)
    start_sending(place, place.source(1))
    place.run("mv", second, place.target)
    return orders(1, 2)


def rewritten_while_sent(place: Place) -> Versions:
    """Of the same size, and too large for the buffers: half of the old and half of the new would be a good body."""
    first, second = (place.work / name for name in ("old.csv", "new.csv"))
    old = content(1) * 30
    new = old.translate(bytes.maketrans(b"0123456789", b"1234567890"))
    first.write_bytes(old)
    second.write_bytes(new)
    start_sending(place, first)
    place.run("dd", f"if={second}", f"of={place.target}", "bs=1M", "conv=notrunc", "status=none")
    assert place.arrived() == []
    return {"orders.csv": [new]}


# ---- nothing new --------------------------------------------------------------------------------------------


def keep_files(place: Place) -> dict[str, Sequence[bytes]]:
    """Let many small files be uploaded, and stay."""
    files = {f"kept-{number:03}.csv": [f"case,activity\n{number},a\n".encode()] for number in range(KEPT_FILES)}
    for name, versions in files.items():
        (place.work / name).write_bytes(versions[0])
        (place.work / name).rename(place.drop / name)
    place.wait_stored(KEPT_FILES)
    return dict(files)


def change_all(place: Place, program: str, *arguments: str) -> None:
    """Let a program change what is known of all kept files, but not what is in them."""
    before = {path: path.stat() for path in place.drop.iterdir()}
    place.run(program, "-R", *arguments, place.drop)
    assert len(before) == KEPT_FILES
    assert all(path.stat().st_ctime_ns > st.st_ctime_ns for path, st in before.items())


def chown(place: Place) -> Versions:
    if os.getuid() != 0:
        missing("the right to give files away", "root")
    kept = keep_files(place)
    change_all(place, "chown", "12345:12345")
    return kept


def chgrp(place: Place) -> Versions:
    """What the owner of the files may do."""
    kept = keep_files(place)
    change_all(place, "chgrp", str(os.getgid()))
    change_all(place, "chmod", "g+rwX,o-w")
    return kept


def remount(place: Place) -> Versions:
    """A copy on another device takes the folder's place for a while; it and its old files are told from new ones."""
    if os.getuid() != 0:
        missing("the right to mount", "root")
    kept = keep_files(place)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        place.run("cp", "-a", f"{place.drop}/.", memory)
        before = os.stat(place.drop).st_dev
        command = [require_tool("mount", PACKAGES["mount"]), "--bind", memory, str(place.drop)]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode:
            missing(f"the right to mount ({tried.stderr.strip()})", "CAP_SYS_ADMIN, which not every container has")
        try:
            assert os.stat(place.drop).st_dev != before
            place.run("cp", place.source(), place.target)
            place.wait_stored(KEPT_FILES + 1)
            place.wait_scanned()
        finally:
            place.run("umount", "--lazy", place.drop)
    assert os.stat(place.drop).st_dev == before
    return {**kept, **orders(1)}


# ---- the matrix ---------------------------------------------------------------------------------------------

LONG = '"3s"'  # for writers that leave a closed part for a moment: longer than the moment, on any machine
RECURSIVE = {"recursive": "true"}
STRUCTURE = {"validate": '"structure"'}
ALWAYS_SENT = {"dedup": '"off"'}  # so that nothing but the look of a file can tell that it is no news
MARKER = {"complete_when": '"marker"', "marker": '"{name}.done"'}

ROWS = (
    Row("sftp reput after a disconnect", sftp_reput, {"settle": LONG}),
    Row("rsync -t --partial, broken off and resumed", rsync_resumed, {"settle": LONG}),
    Row("rsync --partial, broken off, no -t", rsync_torn_unseen),
    Row("rsync --partial, broken off, no -t, structure", rsync_torn_workbook, STRUCTURE),
    Row("append, closed after every piece", own("reopening_appender"), {"settle": LONG}),
    Row("LibreOffice in place", own("office_in_place", before=True)),
    Row("truncate, wait and rewrite", own("truncator", before=True)),
    Row("restarted writer", killed),
    Row("restarted writer, marker", killed_with_marker, MARKER),
    Row("restarted writer, structure", killed_with_structure, STRUCTURE),
    Row("restarted writer, structure of a workbook", killed_workbook, STRUCTURE),
    Row("same name while uploading, renamed", replaced_while_sent),
    Row("same name while uploading, in place", rewritten_while_sent),
    Row("scp", scp),
    Row("rsync --inplace", rsync_inplace),
    Row("slow appender", own("appender")),
    Row("tmp and rename", own("temporary")),
    Row("LibreOffice", own("office", before=True)),
    Row("curl -o", curl),
    Row("lftp put", lftp()),
    Row("lftp put, temporary name", lftp("set xfer:use-temp-file yes")),
    Row("sftp put", sftp_put),
    Row("rsync", rsync),
    Row("rsync over ssh", rsync_ssh),
    Row("rsync --partial", rsync_partial),
    Row("O_TMPFILE and link", own("unnamed")),
    Row("mmap after close", own("mapped", pause=AWAY)),
    Row("paramiko put", paramiko("sftp_put")),
    Row("paramiko plain rename", paramiko("sftp_rename", AWAY)),
    Row("cp", cp),
    Row("cp -p", cp_p),
    Row("cp over the old version", cp_over),
    Row("mv", mv),
    Row("mv across file systems", mv_across),
    Row("ln", ln),
    Row("unzip", unzip, RECURSIVE),
    Row("directory tree moved in", tree, RECURSIVE),
    Row("kept files, chown -R", chown, ALWAYS_SENT),
    Row("kept files, chgrp -R and chmod -R", chgrp, ALWAYS_SENT),
    Row("kept files, remount", remount, ALWAYS_SENT),
)


class Matrix:
    """One sandbox and one daemon with a folder for each row; every row starts as soon as there is a hand for it."""

    def __init__(self, root: Path, rows: Sequence[Row], stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._lock = threading.Lock()
        seed = TenantSeed("demo", {"Matrix": tuple(row.folder for row in rows)})
        self.sandbox = stack.enter_context(SandboxServer(root / "sandbox", tenants=[seed]))
        self.daemon = stack.enter_context(Daemon.for_sandbox(root, self.sandbox))
        self.places = {row.name: self._place(row) for row in rows}
        self.daemon.extra = "max_parallel = 8"
        self.daemon.defaults = f'settle = "{SETTLE_SECONDS}s"\nrescan_interval = "1s"'
        self.daemon.start()
        pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        stack.callback(pool.shutdown, cancel_futures=True)
        self._ends = {row.name: pool.submit(self._write, row) for row in rows}

    def _place(self, row: Row) -> Place:
        drop, work = (self._root / kind / row.folder for kind in ("drop", "work"))
        drop.mkdir(parents=True)
        work.mkdir(parents=True)
        table = table_id(self.sandbox, row.folder)
        self.daemon.folders += folder_toml(row.folder, drop, datatable=table, **row.options)
        return Place(self, row.folder, table, drop, work)

    @cached_property
    def _started_sshd(self) -> Sshd:
        directory = Path(tempfile.mkdtemp(prefix="sshd-", dir=self._root))
        return self._stack.enter_context(running_sshd(directory))

    @property
    def sshd(self) -> Sshd:
        """The one SSH server, started by the first row that needs it."""
        with self._lock:
            return self._started_sshd

    def is_pending(self, rule: Fault) -> bool:
        """Tell whether a fault has still to happen."""
        return any(pending["path_contains"] == rule.path_contains for pending in self.sandbox.faults.pending())

    def _write(self, row: Row) -> tuple[Versions, float]:
        """Let a row happen; return what must be stored, and how often the folder had been scanned when it was."""
        place = self.places[row.name]
        expected = row.write(place)
        place.wait_stored(sum(len(versions) for versions in expected.values()))
        return expected, place.scans()

    def end_of(self, row: Row) -> tuple[Versions, float]:
        """Wait for a row to end. Raises what its writer raised."""
        return self._ends[row.name].result()


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """Everything of this module that was selected, on its way."""
    selected = [
        next(row for row in ROWS if row.name == item.callspec.id)
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module == request.module
    ]
    with ExitStack() as stack:
        yield Matrix(tmp_path_factory.mktemp("matrix"), selected, stack)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_final_version_is_stored_once_and_no_part_ever(matrix: Matrix, row: Row) -> None:
    place = matrix.places[row.name]
    expected, scans = matrix.end_of(row)
    wait_for("two further scans", lambda: place.scans() >= scans + 2)
    wait_for("nothing left to do", lambda: not place.pending())
    arrived = place.arrived()
    stored: dict[str, list[bytes]] = {}
    for record in arrived:
        stored.setdefault(record.filename, []).append(matrix.sandbox.object_path(record).read_bytes())
    assert {name: list(map(len, versions)) for name, versions in stored.items()} == {
        name: list(map(len, versions)) for name, versions in expected.items()
    }
    assert stored == expected
    assert [record.put_count for record in arrived] == [1] * len(arrived)
    puts = [request for request in matrix.sandbox.requests() if request.method == "PUT" and place.table in request.path]
    assert [put.status for put in puts if put.status == 200] == [200] * len(arrived)
