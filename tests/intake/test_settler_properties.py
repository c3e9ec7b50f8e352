"""Whatever the order of looks and events: no changing file is released, and disk and ledger come to agree."""

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pmwatch.errors import FolderDown
from pmwatch.intake import folder as folder_module
from pmwatch.intake.evidence import Answer, Evidence, quietens_leases
from pmwatch.intake.folder import FolderIntake
from pmwatch.intake.settle import Candidate, Settler
from pmwatch.ledger import Arrived, Disposed, Ledger
from pmwatch.model import CompleteWhen, Fingerprint, Folder, State
from support.folders import make_folder
from support.intakes import QuietWatcher
from support.ledgers import DESTINATION, TARGET, sha

NAMES = st.sampled_from([b"a.csv", b"b.csv"])
WAITS = st.sampled_from([0.0, 0.1, 0.4, 0.5, 1.0, 4.9, 5.0, 70.0])
FIRST_MTIME = 10**18


# ---- the settler alone, with a model of the disk and of the clock ---------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of the model: what a look at it sees, when it last changed, and how many have it open for writing."""

    fingerprint: Fingerprint
    changed_at: float
    writers: int


class SettlerMachine(RuleBasedStateMachine):
    """Writers change files, events are lost, doubled and late, and looks come at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ticks = 0
        self.files: dict[bytes, ModelFile] = {}
        self.hints: list[tuple[bytes, bool]] = []
        self.markers: dict[bytes, int] = {}  # when each was written, in the model's ctime
        self.vouched: dict[bytes, Fingerprint] = {}  # seen by a look that a rename's event asked for
        self.released: dict[bytes, Fingerprint] = {}

    @initialize(settle=st.sampled_from([0.5, 5.0]), leases=st.booleans(), when=st.sampled_from(CompleteWhen))
    def begin(self, *, settle: float, leases: bool, when: CompleteWhen) -> None:
        self.settle, self.leases, self.when = settle, leases, when
        self.settler = Settler(settle, self._no_writer, when=when, marked=self._marked)

    def _marked(self, path: bytes, ctime_ns: int) -> Evidence:
        return Evidence(Answer.YES if self.markers.get(path, -1) >= ctime_ns else Answer.NO, "the marker")

    def _no_writer(self, path: bytes) -> Evidence:
        if not self.leases or path not in self.files:
            return Evidence(Answer.UNKNOWN, "no lease")
        return Evidence(Answer.NO if self.files[path].writers else Answer.YES, "the lease")

    def _tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def _put(self, path: bytes, size: int, *, mtime_ns: int | None = None, writers: int = 0) -> None:
        tick = self._tick()
        seen = Fingerprint(size, FIRST_MTIME + tick if mtime_ns is None else mtime_ns, tick, tick, 1)
        self.files[path] = ModelFile(seen, self.now, writers)

    # ---- writers

    @rule(path=NAMES, size=st.integers(0, 3))
    def create(self, path: bytes, size: int) -> None:
        self._put(path, size, writers=1)
        self.hints.append((path, False))

    @rule(path=NAMES, size=st.integers(0, 3), mtime=st.sampled_from([0, FIRST_MTIME]), writers=st.integers(0, 1))
    def rename_into_place(self, path: bytes, size: int, mtime: int, writers: int) -> None:
        self._put(path, size, mtime_ns=mtime, writers=writers)
        self.hints.append((path, True))

    @rule(path=NAMES, size=st.integers(1, 3))
    def append(self, path: bytes, size: int) -> None:
        file, tick = self.files.get(path), self._tick()
        if file is not None:
            seen = replace(
                file.fingerprint, size=file.fingerprint.size + size, mtime_ns=FIRST_MTIME + tick, ctime_ns=tick
            )
            self.files[path] = replace(file, fingerprint=seen, changed_at=self.now)

    @rule(path=NAMES)
    def change_mode(self, path: bytes) -> None:
        file, tick = self.files.get(path), self._tick()
        if file is not None:
            seen = replace(file.fingerprint, ctime_ns=tick)
            self.files[path] = replace(file, fingerprint=seen, changed_at=self.now)

    @rule(path=NAMES, writers=st.integers(0, 2))
    def open_or_close(self, path: bytes, writers: int) -> None:
        file = self.files.get(path)
        if file is not None:
            if writers < file.writers:
                self.hints.append((path, False))
            self.files[path] = replace(file, writers=writers)

    @rule(path=NAMES)
    def remove(self, path: bytes) -> None:
        self.files.pop(path, None)

    @rule(path=NAMES)
    def mark(self, path: bytes) -> None:
        self.markers[path] = self._tick()

    # ---- looks

    @rule(wait=WAITS)
    def pass_time(self, wait: float) -> None:
        self.now += wait

    @precondition(lambda self: self.hints)
    @rule(data=st.data(), keep=st.booleans())
    def take_a_hint(self, data: st.DataObject, *, keep: bool) -> None:
        which = data.draw(st.integers(0, len(self.hints) - 1))
        path, renamed = self.hints[which] if keep else self.hints.pop(which)
        self._look(path, renamed=renamed)

    @precondition(lambda self: self.hints)
    @rule(data=st.data())
    def lose_a_hint(self, data: st.DataObject) -> None:
        self.hints.pop(data.draw(st.integers(0, len(self.hints) - 1)))

    @rule()
    def scan(self) -> None:
        for path in sorted(self.files):
            self._look(path, batch=self.now)

    @rule()
    def look_at_what_is_due(self) -> None:
        for path in self.settler.due(self.now):
            self._look(path)

    def _look(self, path: bytes, *, renamed: bool = False, batch: float | None = None) -> None:
        file = self.files.get(path)
        if file is None:
            self.settler.forget(path)
            return
        if renamed:
            self.vouched[path] = file.fingerprint
        settled = self.settler.saw(path, file.fingerprint, now=self.now, wall=0, renamed=renamed, batch=batch)
        if settled is not None:
            self._check(settled, file)
            self.released[path] = settled.fingerprint

    # ---- what must hold

    def _check(self, settled: Candidate, file: ModelFile) -> None:
        """Hold what was released against the truth, which the settler cannot see."""
        assert settled.fingerprint == file.fingerprint
        assert file.fingerprint.size
        quiet = self.now - file.changed_at >= self.settle
        closed = self.leases and not file.writers
        vouched = self.vouched.get(settled.path) == file.fingerprint and file.fingerprint.mtime_ns >= FIRST_MTIME
        by_name = file.fingerprint.mtime_ns >= FIRST_MTIME
        enough = {
            CompleteWhen.AUTO: (quiet and (closed or not self.leases)) or (vouched and closed),
            CompleteWhen.RENAMED: (quiet or by_name) and (closed or not self.leases),
            CompleteWhen.CLOSED: quiet and closed,
            CompleteWhen.STABLE: quiet,
            CompleteWhen.MARKER: self.markers.get(settled.path, -1) >= file.fingerprint.ctime_ns,
        }
        assert enough[self.when]

    @invariant()
    def every_candidate_has_a_next_look(self) -> None:
        if hasattr(self, "settler"):
            assert (self.settler.next_due() is not None) == bool(len(self.settler))

    def teardown(self) -> None:
        """Once all are closed and marked, one scan and the looks that it asks for release all that has content."""
        if not hasattr(self, "settler"):
            return
        self.leases = self.leases or self.when is CompleteWhen.CLOSED
        for path in self.files:
            self.mark(path)
        self.files = {path: replace(file, writers=0) for path, file in self.files.items()}
        self.released.clear()
        self.scan()
        until = self.now + self.settle + 120
        while (due := self.settler.next_due()) is not None and due < until:
            self.now = max(self.now, due)
            self.look_at_what_is_due()
        wanted = {path: file.fingerprint for path, file in self.files.items() if file.fingerprint.size}
        assert {path: self.released.get(path) for path in wanted} == wanted


TestSettler = SettlerMachine.TestCase
TestSettler.settings = settings(max_examples=6 * settings().max_examples)


# ---- scanner, settler and ledger, on a real directory ---------------------------------------------------------


class NoObserver:
    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:  # noqa: ARG002
        assert problem is None

    def settled(self, folder: str, count: int) -> None:
        pass

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:
        pass

    def backlog_held(self, folder: str, count: int) -> None:
        pass

    def unmapped(self, folder: Folder, directory: bytes, reason: str) -> None:
        pass

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:
        pass


SETTLE_SECONDS = 1.0
LONGEST_BETWEEN_LOOKS_SECONDS = 60.0  # at a file that is quiet, but open: so late one that is gone may be noticed
PATHS = st.sampled_from([b"a.csv", b"sub/deep/a.csv", b".a.csv"])
WANTED = (b"a.csv", b"sub/deep/a.csv", b"moved/deep/a.csv")


class IntakeMachine(RuleBasedStateMachine):
    """Real files and a real ledger; the clock and the events are the machine's.

    Every write gets an mtime of its own, for a look can tell versions apart by size and mtime only.
    """

    admitted = folder_module._ADMITTED
    turns_to_settle = 8

    def __init__(self) -> None:
        super().__init__()
        quietens_leases()
        folder_module._ADMITTED = self.admitted  # type: ignore[misc]
        self.top = Path(tempfile.mkdtemp(prefix="pmwatch-intake-"))
        self.root, self.outside, state = (self.top / name for name in ("drop", "outside", "state"))
        for directory in (self.root, self.outside, state):
            directory.mkdir()
        self.ledger = Ledger.open(str(state))
        self.ledger.resolve(TARGET, DESTINATION)
        self.now = 0.0
        self.ticks = 0
        self.open: dict[bytes, IO[bytes]] = {}
        self.hints: list[tuple[bytes, bool]] = []
        self.whole: set[tuple[bytes, int, int]] = set()  # (path, size, mtime) of versions that nobody had open
        self.intake = self._new_intake()

    def _new_intake(self) -> FolderIntake:
        return FolderIntake(
            make_folder(self.root, recursive=True, settle_seconds=SETTLE_SECONDS),
            watcher=QuietWatcher(),
            ledger=self.ledger,
            observer=NoObserver(),
            monotonic=lambda: self.now,
            wall=lambda: self.now,
        )

    # ---- writers

    def _full(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.root), path)

    def _write(self, file: IO[bytes], size: int) -> None:
        self.ticks += 1
        file.write(b"x" * size)
        file.flush()
        os.utime(file.fileno(), ns=(0, FIRST_MTIME + self.ticks))

    def _open(self, path: bytes, mode: str) -> IO[bytes]:
        os.makedirs(os.path.dirname(self._full(path)), exist_ok=True)
        return open(self._full(path), mode)

    def _note_whole(self) -> None:
        """Note every version that lies there and that nobody has open."""
        written = {os.fstat(file.fileno()).st_ino for file in self.open.values()}
        for path, seen in self._on_disk().items():
            if seen.inode not in written:
                self.whole.add((path, seen.size, seen.mtime_ns))

    def _on_disk(self) -> dict[bytes, Fingerprint]:
        found = {}
        for path in WANTED:
            with suppress(FileNotFoundError):
                found[path] = Fingerprint.of(os.stat(self._full(path)))
        return found

    @rule(path=PATHS, size=st.integers(0, 3))
    def create(self, path: bytes, size: int) -> None:
        if path not in self.open:
            with self._open(path, "wb") as file:
                self._write(file, size)
            self.hints.append((path, False))

    @rule(path=PATHS, size=st.integers(1, 3))
    def open_and_append(self, path: bytes, size: int) -> None:
        file = self.open.get(path) or self._open(path, "ab")
        self._write(file, size)
        self.open[path] = file

    @rule(path=PATHS)
    def close(self, path: bytes) -> None:
        if path in self.open:
            self.open.pop(path).close()
            self.hints.append((path, False))

    @rule(path=PATHS, size=st.integers(0, 3))
    def replace_by_rename(self, path: bytes, size: int) -> None:
        staged = self.outside / "staged"
        with staged.open("wb") as file:
            self._write(file, size)
        os.makedirs(os.path.dirname(self._full(path)), exist_ok=True)
        os.replace(staged, self._full(path))
        self.hints.append((path, True))

    @rule(source=PATHS, to=PATHS)
    def rename(self, source: bytes, to: bytes) -> None:
        if os.path.exists(self._full(source)):
            os.makedirs(os.path.dirname(self._full(to)), exist_ok=True)
            os.replace(self._full(source), self._full(to))
            self.hints.append((to, True))

    @rule(back=st.booleans())
    def rename_directory(self, *, back: bool) -> None:
        names = (b"moved", b"sub") if back else (b"sub", b"moved")
        source, to = (self._full(name) for name in names)
        if os.path.exists(source) and not os.path.exists(to):
            os.rename(source, to)
            self.intake.inbox.put_directory(names[1])

    @rule(path=PATHS)
    def move_out(self, path: bytes) -> None:
        """Take a file away, but keep it: it may come back as it was."""
        with suppress(FileNotFoundError):
            os.replace(self._full(path), self._away(path))

    @rule(path=PATHS, hint=st.booleans())
    def bring_back(self, path: bytes, *, hint: bool) -> None:
        if os.path.exists(self._away(path)):
            os.makedirs(os.path.dirname(self._full(path)), exist_ok=True)
            os.replace(self._away(path), self._full(path))
            if hint:
                self.hints.append((path, True))

    def _away(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.outside), path.replace(b"/", b"-"))

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o640]))
    def change_mode(self, path: bytes, mode: int) -> None:
        with suppress(FileNotFoundError):
            os.chmod(self._full(path), mode)

    # ---- events, scans, time

    @precondition(lambda self: self.hints)
    @rule(data=st.data(), keep=st.booleans())
    def hint(self, data: st.DataObject, *, keep: bool) -> None:
        which = data.draw(st.integers(0, len(self.hints) - 1))
        path, renamed = self.hints[which] if keep else self.hints.pop(which)
        self.intake.inbox.put(path, renamed=renamed)

    @rule()
    def lose_all_hints(self) -> None:
        self.hints.clear()

    @rule()
    def overflow(self) -> None:
        self.intake.inbox.rescan()

    @rule(wait=st.sampled_from([0.0, 0.1, 0.9, 1.0, 2.0, 10.0, 400.0]))
    def turn(self, wait: float) -> None:
        self.now += wait
        self._note_whole()
        self.intake.turn(longest_wait=0)
        self._check_versions()

    @rule()
    def scan_and_settle(self) -> None:
        self.intake.inbox.rescan()
        self.turn(0.0)
        self.turn(SETTLE_SECONDS)

    @rule()
    def restart(self) -> None:
        self.intake.close()
        self.intake = self._new_intake()

    # ---- delivery

    @rule(dispose=st.booleans(), gone=st.booleans())
    def deliver(self, *, dispose: bool, gone: bool) -> None:
        """Let the next delivery succeed, or vanish where its source is gone; its source stays, or is archived."""
        delivery = self.ledger.claim(now=self.now)
        if delivery is None:
            return
        if gone:
            self.move_out(delivery.path)
        seen = self._on_disk().get(delivery.path)
        if seen is None:
            self.ledger.end(delivery, State.VANISHED, reason="vanished", detail="", now=self.now)
            return
        same = seen.same_content_as(delivery.fingerprint)
        content = sha(f"{delivery.path!r} {delivery.fingerprint}")
        self.ledger.uploaded([Arrived(delivery, content, "", "", self.now, dispose)])
        if dispose:
            if same:
                os.replace(self._full(delivery.path), self._away(delivery.path))
            self.ledger.disposed([Disposed(delivery, b"", not same, self.now)])

    # ---- what must hold

    def teardown(self) -> None:
        """Once everybody has closed, one scan and the looks that it asks for bring all into the ledger."""
        try:
            self._close_all()
            self.intake.inbox.rescan()
            for _ in range(self.turns_to_settle):
                self.turn(SETTLE_SECONDS / 2)
            self._check_agreement()
            self.turn(LONGEST_BETWEEN_LOOKS_SECONDS)
            assert self.intake.idle
        finally:
            folder_module._ADMITTED = IntakeMachine.admitted  # type: ignore[misc]
            self.intake.close()
            self.ledger.close()
            shutil.rmtree(self.top)

    def _close_all(self) -> None:
        for path in list(self.open):
            self.close(path)
        self._note_whole()

    def _check_agreement(self) -> None:
        """Every file with content is in the ledger as it lies there."""
        on_disk = {path: seen for path, seen in self._on_disk().items() if seen.size}
        known = self.ledger.known("orders", list(on_disk))
        assert set(known) == set(on_disk)
        for path, seen in on_disk.items():
            row = known[path]
            assert (row.fingerprint.size, row.fingerprint.mtime_ns) == (seen.size, seen.mtime_ns)
            assert row.kept
            assert row.state is not State.VANISHED

    def _check_versions(self) -> None:
        """No row is of a file that does not belong, or of a version that somebody still had open."""
        rows = self.ledger.list(limit=10_000)
        entered = {(row.path, row.fingerprint.size, row.fingerprint.mtime_ns) for row in rows}
        assert entered <= self.whole


TestIntake = IntakeMachine.TestCase
TestIntake.settings = settings(max_examples=3 * settings().max_examples, stateful_step_count=40)


class NarrowIntakeMachine(IntakeMachine):
    """The same where a scan takes in one file, or two: the others have to come with the scans after it."""

    admitted = 1
    turns_to_settle = 24


TestNarrowIntake = NarrowIntakeMachine.TestCase
TestNarrowIntake.settings = settings(stateful_step_count=40)
