"""What may go after a time: archived files and rows, never a row whose file is or may be on disk."""

import os
import time
from pathlib import Path

import pytest

from pmwatch.audit import audit
from pmwatch.cli.audit import judge_of
from pmwatch.ledger import Disposed, Ledger, StateLock
from pmwatch.model import AfterUpload, Fingerprint, Folder
from pmwatch.retention import clear_archive, forget
from support.folders import make_folder
from support.ledgers import current, opened, sent


def archived(ledger: Ledger, folder: Folder, name: str, *, now: float) -> tuple[int, Path]:
    """Let a file be uploaded and archived at `now`."""
    place = Path(os.fsdecode(folder.archive_dir)) / "2026/01/02" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(name)
    id_ = sent(ledger, name, name, Fingerprint.of(place.stat()), now=now, dispose=True)
    ledger.disposed([Disposed(current(ledger, id_), os.fsencode(place), kept=False, at=now)])
    return id_, place


def test_archived_files_go_when_their_time_is_over_with_the_directories_they_leave_empty(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "drop", name="orders", after_upload=AfterUpload.ARCHIVE, archive_seconds=100.0)
    with opened(tmp_path) as ledger:
        old, old_place = archived(ledger, folder, "old.csv", now=1000.0)
        _, new_place = archived(ledger, folder, "new.csv", now=1950.0)
        assert clear_archive(ledger, folder, now=2000.0) == (1, 0)
        assert (old_place.exists(), new_place.exists()) == (False, True)
        assert current(ledger, old).location == b""
        assert clear_archive(ledger, folder, now=2000.0) == (0, 0)
        assert clear_archive(ledger, folder, now=3000.0) == (1, 0)
        assert not new_place.parent.exists()
        assert Path(os.fsdecode(folder.archive_dir)).is_dir()


def test_an_archived_file_that_somebody_changed_or_moved_elsewhere_is_left(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "drop", name="orders", after_upload=AfterUpload.ARCHIVE, archive_seconds=100.0)
    with opened(tmp_path) as ledger:
        _, place = archived(ledger, folder, "a.csv", now=1000.0)
        place.write_text("something else")
        assert clear_archive(ledger, folder, now=2000.0) == (0, 1)
        assert place.exists()


def test_the_audit_counts_what_people_removed_from_the_archive_and_not_what_went_when_its_time_was_over(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "drop", name="orders", after_upload=AfterUpload.ARCHIVE, archive_seconds=100.0)
    with opened(tmp_path) as ledger:
        for number, now in enumerate((1000.0, 1950.0, 1960.0)):
            _, place = archived(ledger, folder, f"{number}.csv", now=now)
        assert clear_archive(ledger, folder, now=2000.0) == (1, 0)
        place.unlink()
        account = audit(folder, ledger)
        assert account.archive == {"moved by pmwatch": 1, "removed by others": 1}
        assert account.unaccounted == 0
        place.with_name("foreign.csv").touch()
        assert audit(folder, ledger).named == [str(place.with_name("foreign.csv"))]


def test_an_audit_beside_a_daemon_forgives_what_came_since_its_last_scan_and_nothing_older(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "drop", rescan_seconds=300.0)
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "a.csv").write_text("id\n")
    lock = StateLock(str(tmp_path))
    with opened(tmp_path) as ledger:
        account = audit(folder, ledger, unentered=judge_of(str(tmp_path), folder, now=time.time() + 3000))
        assert account.verdicts == {"not taken up yet (pmwatch is not running)": 1}
        lock.acquire()
        for later, verdicts in ((300, {"not taken up yet": 1}), (3000, {})):
            judge = judge_of(str(tmp_path), folder, now=time.time() + later)
            account = audit(folder, ledger, unentered=judge)
            assert (account.verdicts, account.unaccounted) == (verdicts, 0 if verdicts else 1)
        lock.release()


def test_without_archive_keep_nothing_is_ever_removed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "drop", name="orders", after_upload=AfterUpload.ARCHIVE)
    with opened(tmp_path) as ledger:
        _, place = archived(ledger, folder, "a.csv", now=1000.0)
        assert clear_archive(ledger, folder, now=9e9) == (0, 0)
        assert place.exists()


def test_a_stop_ends_the_clearing_between_two_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "drop", name="orders", after_upload=AfterUpload.ARCHIVE, archive_seconds=100.0)
    with opened(tmp_path) as ledger:
        for number in range(5):
            archived(ledger, folder, f"{number}.csv", now=1000.0)
        answers = iter([True, True, True, False])
        assert clear_archive(ledger, folder, now=2000.0, go_on=lambda: next(answers, False)) == (2, 0)
        assert clear_archive(ledger, folder, now=2000.0) == (3, 0)


@pytest.mark.parametrize("place", ["in the folder", "in the archive", "nowhere", "folder away", "folder unknown"])
def test_a_row_is_forgotten_only_when_its_file_is_surely_gone(tmp_path: Path, place: str) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    folder = make_folder(drop, name="orders", after_upload=AfterUpload.ARCHIVE)
    with opened(tmp_path) as ledger:
        id_, file = archived(ledger, folder, "a.csv", now=1000.0)
        sent(ledger, "last.csv", "last", now=1001.0)
        if place != "in the archive":
            ledger.removed_from_archive([current(ledger, id_)])
            file.unlink()
        if place == "in the folder":
            (drop / "a.csv").write_text("a")
        if place == "folder away":
            (drop / ".pmwatch").rename(tmp_path / "elsewhere")
            drop.rmdir()
        folders = {} if place == "folder unknown" else {"orders": folder}
        assert forget(ledger, folders, before=5000.0) == (1 if place == "nowhere" else 0)
        assert (ledger.get(id_) is None) is (place == "nowhere")


def test_an_empty_mount_point_forgets_nothing(tmp_path: Path) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    folder = make_folder(drop, name="orders")
    with opened(tmp_path) as ledger:
        sent(ledger, "a.csv", "a", Fingerprint(10, 1, 1, 1, device=-1), now=1000.0)  # of a device that is not there now
        sent(ledger, "last.csv", "last", now=1001.0)
        assert forget(ledger, {"orders": folder}, before=5000.0) == 0
        (drop / "something").touch()
        assert forget(ledger, {"orders": folder}, before=5000.0) == 1


def test_with_a_root_marker_it_alone_tells_whether_the_folder_is_there(tmp_path: Path) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "something").touch()
    folder = make_folder(drop, name="orders", root_marker=".mounted")
    with opened(tmp_path) as ledger:
        sent(ledger, "a.csv", "a", now=1000.0)
        sent(ledger, "last.csv", "last", now=1001.0)
        assert forget(ledger, {"orders": folder}, before=5000.0) == 0
        (drop / ".mounted").touch()
        assert forget(ledger, {"orders": folder}, before=5000.0) == 1
