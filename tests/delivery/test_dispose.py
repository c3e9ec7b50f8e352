"""What happens to a source after its upload, and above all what never happens to any other file."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.delivery import dispose as module
from pmwatch.delivery.dispose import dispose_all, quarantine, source_of
from pmwatch.errors import DisposeError
from pmwatch.model import AfterUpload, Delivery, Fingerprint, Folder, State, Target
from support.folders import make_folder

DAY = "2026/03/04"
UPLOADED_AT = 1772582400.0 + 3600  # 2026-03-04 01:00 UTC


def delivery_of(root: Path, path: str, **changes: object) -> Delivery:
    """Return the delivery of the file that stands at a path now, as uploaded."""
    file = root / path
    made = Delivery(
        id=1,
        folder="orders",
        path=os.fsencode(path),
        target=Target("acme", "table-1"),
        destination=None,
        state=State.UPLOADED,
        outcome="uploaded",
        reason="",
        detail="",
        fingerprint=Fingerprint.of(file.stat()),
        sha256=sha256(file.read_bytes()).hexdigest(),
        etag="",
        seq=1,
        attempts=1,
        recoveries=0,
        not_before=0.0,
        seen_at=1.0,
        settled_at=1.0,
        claimed_at=1.0,
        first_failed_at=0.0,
        uploaded_at=UPLOADED_AT,
        finished_at=0.0,
        presigned_url="",
        duplicate_of=0,
        previous_id=0,
        location=b"",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def dispose(delivery: Delivery, folder: Folder, *, beat: Callable[[], None] = lambda: None) -> tuple[bytes, bool]:
    """Dispose of one source; raise what prevented it."""
    (end,) = dispose_all([(delivery, folder)], beat=beat)
    if isinstance(end, DisposeError):
        raise end
    return end


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def archiving(drop: Path) -> Folder:
    return make_folder(drop, after_upload=AfterUpload.ARCHIVE)


def deleting(drop: Path) -> Folder:
    return make_folder(drop, after_upload=AfterUpload.DELETE)


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory on another file system than the test's own."""
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


# ---- the ordinary ways --------------------------------------------------------------------------------------


def test_keep_leaves_everything(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    assert dispose(delivery_of(drop, "a.csv"), make_folder(drop)) == (b"", True)
    assert tree(drop) == {"a.csv": b"one"}


def test_delete(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    (drop / "b.csv").write_bytes(b"two")
    assert dispose(delivery_of(drop, "a.csv"), deleting(drop)) == (b"", False)
    assert tree(drop) == {"b.csv": b"two"}


def test_archive_below_the_day_of_the_upload(drop: Path) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / "a.csv").write_bytes(b"one")
    location, kept = dispose(delivery_of(drop, "sub/a.csv"), archiving(drop))
    assert not kept
    assert os.fsdecode(location) == str(drop / ".pmwatch" / "archive" / DAY / "sub" / "a.csv")
    assert tree(drop) == {f".pmwatch/archive/{DAY}/sub/a.csv": b"one"}


def test_a_duplicate_is_archived_below_the_day_it_settled(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    dispose(delivery_of(drop, "a.csv", uploaded_at=0.0, settled_at=UPLOADED_AT), archiving(drop))
    assert list(tree(drop)) == [f".pmwatch/archive/{DAY}/a.csv"]


def test_equal_names_get_numbers(drop: Path) -> None:
    for number in range(4):
        (drop / "a.csv").write_bytes(b"%d" % number)
        dispose(delivery_of(drop, "a.csv"), archiving(drop))
    archive = drop / ".pmwatch" / "archive" / DAY
    assert tree(archive) == {"a.csv": b"0", "a.1.csv": b"1", "a.2.csv": b"2", "a.3.csv": b"3"}


def test_long_names_and_names_that_are_not_text(drop: Path) -> None:
    for name in (b"x" * 251 + b".csv", b"\xff\xfe \n.csv"):
        for _ in range(2):
            path = os.path.join(os.fsencode(drop), name)
            with open(path, "wb") as file:
                file.write(os.urandom(10))
            made = delivery_of(drop, os.fsdecode(name))
            location, _ = dispose(made, archiving(drop))
            assert os.path.exists(location)
    assert len(tree(drop)) == 4


def test_times_and_bytes_survive_another_file_system(drop: Path, other_disk: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 5)
    (drop / "a.csv").write_bytes(data)
    os.utime(drop / "a.csv", ns=(10**18, 10**18 + 7))
    folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))
    beats: list[int] = []
    location, kept = dispose(delivery_of(drop, "a.csv"), folder, beat=lambda: beats.append(1))
    assert (os.fsdecode(location), kept) == (str(other_disk / DAY / "a.csv"), False)
    assert tree(drop) == {}
    assert tree(other_disk) == {f"{DAY}/a.csv": data}
    assert os.stat(location).st_mtime_ns == 10**18 + 7
    assert len(beats) >= 6


# ---- repeated after a crash ---------------------------------------------------------------------------------


def test_archiving_again_after_a_crash_finds_what_was_moved(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    first = dispose(delivery, archiving(drop))
    assert dispose(delivery, archiving(drop)) == first
    assert len(tree(drop)) == 1


def test_archiving_again_while_a_newer_version_stands_there(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    location, _ = dispose(delivery, archiving(drop))
    (drop / "a.csv").write_bytes(b"newer")
    assert dispose(delivery, archiving(drop)) == (location, False)
    assert (drop / "a.csv").read_bytes() == b"newer"


def test_deleting_again(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    dispose(delivery, deleting(drop))
    assert dispose(delivery, deleting(drop)) == (b"", False)


@pytest.mark.parametrize("way", [archiving, deleting])
def test_a_crash_in_the_middle_is_taken_up(drop: Path, way: Callable[[Path], Folder]) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    hidden = drop / f".pmwatch-{delivery.fingerprint.inode}"
    (drop / "a.csv").rename(hidden)  # what a crash between the two steps leaves
    dispose(delivery, way(drop))
    assert not hidden.exists()
    assert list(tree(drop)) == ([f".pmwatch/archive/{DAY}/a.csv"] if way is archiving else [])


def test_a_crash_in_the_middle_with_a_newer_version_at_the_path(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    (drop / "a.csv").rename(drop / f".pmwatch-{delivery.fingerprint.inode}")
    (drop / "a.csv").write_bytes(b"newer")
    dispose(delivery, archiving(drop))
    assert tree(drop) == {"a.csv": b"newer", f".pmwatch/archive/{DAY}/a.csv": b"one"}


def test_a_crash_while_copying_leaves_the_source_to_be_copied_again(drop: Path, other_disk: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))
    (other_disk / DAY).mkdir(parents=True)
    (other_disk / DAY / ".pmwatch-copy-0").write_bytes(b"torn")
    location, _ = dispose(delivery_of(drop, "a.csv"), folder)
    assert Path(os.fsdecode(location)).read_bytes() == b"one"


# ---- any other file is left alone ---------------------------------------------------------------------------


def other_files(drop: Path) -> list[tuple[str, Callable[[], None]]]:
    path = drop / "a.csv"

    def rewritten() -> None:
        path.write_bytes(b"a newer version")

    def replaced() -> None:
        (drop / "fresh").write_bytes(b"a newer version")
        (drop / "fresh").rename(path)

    def same_size_and_time() -> None:
        # `rsync -t` or SFTP `put -p` of another file with the same length, made in the same second
        before = path.stat()
        (drop / "fresh").write_bytes(b"eno")
        os.utime(drop / "fresh", ns=(before.st_atime_ns, before.st_mtime_ns))
        (drop / "fresh").rename(path)

    def link() -> None:
        path.unlink()
        (drop / "real").write_bytes(b"one")
        path.symlink_to("real")

    def directory() -> None:
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(b"precious")

    def fifo() -> None:
        path.unlink()
        os.mkfifo(path)

    return [(one.__name__, one) for one in (rewritten, replaced, same_size_and_time, link, directory, fifo)]


@pytest.mark.parametrize("way", [archiving, deleting], ids=["archive", "delete"])
@pytest.mark.parametrize("number", range(6), ids=[name for name, _ in other_files(Path())])
def test_what_came_after_the_upload_stays(drop: Path, way: Callable[[Path], Folder], number: int) -> None:
    path = drop / "a.csv"
    path.write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    _, change = other_files(drop)[number]
    change()
    before, kind = tree(drop), path.lstat()
    assert dispose(delivery, way(drop)) == (b"", True)
    assert tree(drop) == before
    assert (path.lstat().st_ino, path.lstat().st_mode) == (kind.st_ino, kind.st_mode)


@pytest.mark.parametrize("way", [archiving, deleting], ids=["archive", "delete"])
@pytest.mark.parametrize("number", range(6), ids=[name for name, _ in other_files(Path())])
def test_what_comes_between_the_look_and_the_rename_stays(
    drop: Path, way: Callable[[Path], Folder], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop / "a.csv"
    path.write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    _, change = other_files(drop)[number]
    rename = os.rename
    seen: list[object] = []

    def late(*args: object, **options: object) -> None:
        if not seen:
            seen.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", rename)
                change()
            seen.append(path.lstat().st_mode)
            seen.append(str(sorted(tree(drop).items())))
        rename(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("pmwatch.delivery.dispose.os.rename", late)
    assert dispose(delivery, way(drop)) == (b"", True)
    assert path.lstat().st_mode == seen[1]
    assert str(sorted(tree(drop).items())) == seen[2]


def test_the_same_bytes_under_another_inode_are_the_version(drop: Path) -> None:
    path = drop / "a.csv"
    path.write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    (drop / "copy").write_bytes(b"one")
    os.utime(drop / "copy", ns=(delivery.fingerprint.mtime_ns, delivery.fingerprint.mtime_ns))
    (drop / "copy").rename(path)
    assert dispose(delivery, deleting(drop)) == (b"", False)
    assert tree(drop) == {}


@pytest.mark.parametrize("way", [archiving, deleting], ids=["archive", "delete"])
def test_a_source_that_is_gone(drop: Path, way: Callable[[Path], Folder]) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "sub/a.csv")
    (drop / "sub" / "a.csv").unlink()
    assert dispose(delivery, way(drop)) == (b"", False)
    (drop / "sub").rmdir()
    assert dispose(delivery, way(drop)) == (b"", False)


@pytest.mark.parametrize("way", [archiving, deleting], ids=["archive", "delete"])
def test_a_directory_that_became_a_link_is_not_followed(
    drop: Path, tmp_path: Path, way: Callable[[Path], Folder]
) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "sub/a.csv")
    (drop / "sub").rename(tmp_path / "elsewhere")
    (drop / "sub").symlink_to(tmp_path / "elsewhere")
    with suppress(DisposeError):
        dispose(delivery, way(drop))
    assert (tmp_path / "elsewhere" / "a.csv").read_bytes() == b"one"


def test_two_threads_never_take_the_same_archive_name(drop: Path, tmp_path: Path) -> None:
    # Folders may share an archive.
    archive = os.fsencode(tmp_path / "archive")
    drops = []
    for number in range(8):
        root = tmp_path / f"drop-{number}"
        root.mkdir()
        (root / "a.csv").write_bytes(b"%d" % number)
        drops.append(root)
    start = threading.Barrier(len(drops))

    def run(root: Path) -> None:
        folder = make_folder(root, after_upload=AfterUpload.ARCHIVE, archive_dir=archive)
        delivery = delivery_of(root, "a.csv")
        start.wait()
        dispose(delivery, folder)

    threads = [threading.Thread(target=run, args=(root,)) for root in drops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tree(tmp_path / "archive").values()) == [b"%d" % number for number in range(8)]


def test_two_threads_copying_do_not_mix(drop: Path, tmp_path: Path, other_disk: Path) -> None:
    contents = {f"{number}.csv": os.urandom(2 * 1024 * 1024) for number in range(6)}
    folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))
    for name, data in contents.items():
        (drop / name).write_bytes(data)
    start = threading.Barrier(len(contents))

    def run(name: str) -> None:
        delivery = delivery_of(drop, name)
        start.wait()
        dispose(delivery, folder)

    threads = [threading.Thread(target=run, args=(name,)) for name in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree(other_disk / DAY) == contents


# ---- many at a time -----------------------------------------------------------------------------------------


def drop_many(drop: Path, count: int) -> list[Delivery]:
    names = [f"{number}.csv" for number in range(count)]
    for name in names:
        (drop / name).write_bytes(name.encode())
    return [delivery_of(drop, name, id=number) for number, name in enumerate(names, start=1)]


def count_syncs(monkeypatch: pytest.MonkeyPatch, trouble: Callable[[int], bool] = lambda _: False) -> list[int]:
    """Note each sync; those that `trouble` chooses by their number, from 1, fail."""
    seen: list[int] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        seen.append(fd)
        if trouble(len(seen)):
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr("os.fsync", noting)
    return seen


@pytest.mark.parametrize(("way", "syncs"), [(archiving, 2), (deleting, 1)], ids=["archive", "delete"])
def test_many_sources_share_the_syncs_of_their_directories(
    drop: Path, way: Callable[[Path], Folder], syncs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = drop_many(drop, 20)
    seen = count_syncs(monkeypatch)
    ends = dispose_all([(delivery, way(drop)) for delivery in deliveries])
    assert len(seen) == syncs
    assert [end for end in ends if not isinstance(end, DisposeError) and end[1]] == []
    assert sorted(tree(drop).values()) == (sorted(one.path for one in deliveries) if way is archiving else [])


def test_nothing_loses_its_old_name_before_its_new_one_is_on_the_disk(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = drop_many(drop, 3)
    count_syncs(monkeypatch, trouble=lambda number: number == 1)
    ends = dispose_all([(delivery, archiving(drop)) for delivery in deliveries])
    assert all(isinstance(end, DisposeError) for end in ends)
    assert {name: data for name, data in tree(drop).items() if "/" not in name} == {
        f"{number}.csv": b"%d.csv" % number for number in range(3)
    }
    monkeypatch.undo()
    ends = dispose_all([(delivery, archiving(drop)) for delivery in deliveries])
    assert not any(isinstance(end, DisposeError) for end in ends)
    assert tree(drop) == {f".pmwatch/archive/{DAY}/{one.path.decode()}": one.path for one in deliveries}


def test_trouble_of_one_source_stops_no_other(drop: Path) -> None:
    one, bad, gone, last = drop_many(drop, 4)
    bad = replace(bad, path=b"x" * 300 + b"/a.csv")
    (drop / os.fsdecode(gone.path)).unlink()
    ends = dispose_all([(delivery, archiving(drop)) for delivery in (one, bad, gone, last)])
    assert [isinstance(end, DisposeError) for end in ends] == [False, True, False, False]
    assert ends[2] == (b"", False)
    assert sorted(tree(drop / ".pmwatch" / "archive" / DAY).values()) == [b"0.csv", b"3.csv"]


# ---- trouble ------------------------------------------------------------------------------------------------


def test_an_archive_that_cannot_be_made(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    (drop / ".pmwatch").write_bytes(b"a file stands in the way")
    with pytest.raises(DisposeError) as caught:
        dispose(delivery_of(drop, "a.csv"), archiving(drop))
    assert "a.csv is uploaded, but cannot be archived" in caught.value.message
    assert ".pmwatch/archive" in caught.value.hint
    assert (drop / "a.csv").read_bytes() == b"one"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_failed_move_gives_the_source_its_name_again(
    drop: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    (drop / "a.csv").write_bytes(b"one")
    folder = archiving(drop)
    if elsewhere:
        folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))
    link = os.link

    def full(source: bytes, target: bytes, **options: Any) -> None:
        if DAY.encode() in target and not (elsewhere and not os.path.basename(source).startswith(b".pmwatch-copy")):
            raise OSError(28, "No space left on device")
        link(source, target, **options)

    monkeypatch.setattr("pmwatch.delivery.dispose.os.link", full)
    with pytest.raises(DisposeError) as caught:
        dispose(delivery_of(drop, "a.csv"), folder)
    assert "No space left" in caught.value.message
    assert tree(drop) == {"a.csv": b"one"}
    assert tree(other_disk) == {}
    monkeypatch.undo()
    location, _ = dispose(delivery_of(drop, "a.csv"), folder)
    assert Path(os.fsdecode(location)).read_bytes() == b"one"


def test_a_copy_that_differs_is_no_archive(drop: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (drop / "a.csv").write_bytes(b"one")
    folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))
    monkeypatch.setattr(module, "_copy_bytes", lambda *_: sha256(b"other").digest())
    with pytest.raises(DisposeError):
        dispose(delivery_of(drop, "a.csv"), folder)
    assert tree(drop) == {"a.csv": b"one"}
    assert tree(other_disk) == {}


@pytest.mark.parametrize("way", [archiving, deleting], ids=["archive", "delete"])
def test_a_directory_above_that_cannot_be_opened_is_trouble_of_this_file_alone(
    drop: Path, way: Callable[[Path], Folder]
) -> None:
    (drop / "a.csv").write_bytes(b"one")
    too_long = b"x" * 300 + b"/a.csv"  # the one error of open() that not even root is spared
    with pytest.raises(DisposeError) as caught:
        dispose(replace(delivery_of(drop, "a.csv"), path=too_long), way(drop))
    assert "name too long" in caught.value.message
    with pytest.raises(DisposeError):
        quarantine(replace(delivery_of(drop, "a.csv"), path=too_long), make_folder(drop), facts={})


# ---- quarantine ---------------------------------------------------------------------------------------------


def test_quarantine_keeps_the_file_and_says_why(drop: Path) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / "a.csv").write_bytes(b"one")
    facts = {"reason": "rejected", "hint": "do this"}
    location = quarantine(delivery_of(drop, "sub/a.csv"), make_folder(drop), facts=facts)
    base = drop / ".pmwatch" / "quarantine" / "sub"
    assert os.fsdecode(location) == str(base / "a.csv")
    assert (base / "a.csv").read_bytes() == b"one"
    assert json.loads((base / "a.csv.error.json").read_text()) == facts
    assert (base / "a.csv.error.json").stat().st_mode & 0o077 == 0


def test_quarantine_of_what_lies_there_already(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    location = quarantine(delivery_of(drop, "a.csv"), make_folder(drop), facts={})
    (drop / "a.csv").write_bytes(b"another")
    moved = delivery_of(drop, "a.csv", location=location)
    assert quarantine(moved, make_folder(drop), facts={}) == location
    assert source_of(moved, make_folder(drop)) == (os.path.dirname(location), b"a.csv")
    assert (drop / "a.csv").read_bytes() == b"another"


def test_quarantine_leaves_a_newer_version(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    (drop / "a.csv").write_bytes(b"newer")
    assert quarantine(delivery, make_folder(drop), facts={}) == b""
    (drop / "a.csv").unlink()
    assert quarantine(delivery, make_folder(drop), facts={}) == b""
    assert tree(drop) == {}


def test_quarantine_that_cannot_be_made_leaves_the_file(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    (drop / ".pmwatch").write_bytes(b"in the way")
    with pytest.raises(DisposeError) as caught:
        quarantine(delivery_of(drop, "a.csv"), make_folder(drop), facts={})
    assert "quarantine" in caught.value.message
    assert (drop / "a.csv").read_bytes() == b"one"


def test_archive_from_quarantine(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    location = quarantine(delivery_of(drop, "a.csv"), make_folder(drop), facts={})
    moved = delivery_of(drop, os.path.relpath(os.fsdecode(location), drop))
    retried = replace(moved, path=b"a.csv", location=location)
    archived, kept = dispose(retried, archiving(drop))
    assert os.fsdecode(archived) == str(drop / ".pmwatch" / "archive" / DAY / "a.csv")
    assert not kept
    assert not os.path.exists(location)


# ---- whatever happens ---------------------------------------------------------------------------------------

STEPS = st.lists(st.sampled_from(["write", "replace", "remove", "dispose", "dispose last", "crash"]), max_size=12)


@given(STEPS, st.sampled_from([AfterUpload.ARCHIVE, AfterUpload.DELETE]))
def test_only_delivered_content_ever_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], after: AfterUpload
) -> None:
    drop = tmp_path_factory.mktemp("drop")
    folder = make_folder(drop, after_upload=after)
    path, number = drop / "a.csv", 0
    present: bytes | None = None
    delivered: list[Delivery] = []
    for step in steps:
        if step in {"write", "replace"}:
            number += 1
            present = b"version %d" % number
            if step == "write":
                path.write_bytes(present)
            else:
                (drop / "fresh").write_bytes(present)
                (drop / "fresh").rename(path)
            os.utime(path, ns=(number, number))
        elif step == "remove" and present is not None:
            path.unlink()
            present = None
        elif step == "crash" and present is not None:  # between the rename to a hidden name and what follows
            delivered.append(delivery_of(drop, "a.csv"))
            path.rename(drop / f".pmwatch-{path.stat().st_ino}")
            present = None
        elif step == "dispose" and present is not None:
            delivered.append(delivery_of(drop, "a.csv"))
            dispose(delivered[-1], folder)
            present = None
        elif step == "dispose last" and delivered:
            dispose(delivered[-1], folder)
        assert (path.read_bytes() if path.exists() else None) == present
    if after is AfterUpload.ARCHIVE and delivered:
        dispose(delivered[-1], folder)
        hashes = {sha256(data).hexdigest() for data in tree(drop).values()}
        assert delivered[-1].sha256 in hashes


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_system_without_hard_links_archives_as_well(
    drop: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    folder = archiving(drop)
    if elsewhere:
        folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))

    def refuse(source: bytes, _target: bytes, *, src_dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        crossing = elsewhere and src_dir_fd is not None
        raise OSError(*((18, "Invalid cross-device link") if crossing else (1, "Operation not permitted")))

    monkeypatch.setattr("pmwatch.delivery.dispose.os.link", refuse)
    for content in (b"one", b"two"):
        (drop / "a.csv").write_bytes(content)
        location, _ = dispose(delivery_of(drop, "a.csv"), folder)
        assert Path(os.fsdecode(location)).read_bytes() == content
    assert not (drop / "a.csv").exists()
    assert len([name for name in (tree(other_disk) if elsewhere else tree(drop)) if name.endswith(".csv")]) == 2


def test_a_crash_between_the_new_name_and_the_loss_of_the_old_one_leaves_one_file_in_the_end(drop: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    delivery = delivery_of(drop, "a.csv")
    location, _ = dispose(delivery, archiving(drop))
    archived = Path(os.fsdecode(location))
    os.link(archived, drop / f".pmwatch-{delivery.fingerprint.inode}")
    assert dispose(delivery, archiving(drop)) == (location, False)
    assert list(tree(drop)) == [str(archived.relative_to(drop))]


def test_what_a_crash_left_of_a_copy_is_replaced_by_the_next_one(drop: Path, other_disk: Path) -> None:
    (drop / "a.csv").write_bytes(b"one")
    folder = make_folder(drop, after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(other_disk))
    delivery = delivery_of(drop, "a.csv")
    place = other_disk / DAY
    place.mkdir(parents=True)
    (place / f".pmwatch-copy-{delivery.id}-{delivery.fingerprint.inode}").write_bytes(b"o")
    location, _ = dispose(delivery, folder)
    assert list(tree(other_disk)) == [str(Path(os.fsdecode(location)).relative_to(other_disk))]


def test_a_note_in_quarantine_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    note = tmp_path / "a.csv.error.json"
    note.write_text("an older one")
    with note.open() as reader:
        module._write_json(os.fsencode(note), {"reason": "rejected"})
        assert reader.read() == "an older one"  # who reads sees one or the other, never half of one
    assert json.loads(note.read_text()) == {"reason": "rejected"}
    assert os.listdir(tmp_path) == [note.name]
    assert note.stat().st_mode & 0o777 == 0o600
