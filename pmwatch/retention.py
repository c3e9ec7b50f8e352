"""What may go after a time: archived files, and rows of the ledger. Never a row whose file is still on disk."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from pmwatch.files import is_away, is_regular, look
from pmwatch.ledger import Ledger
from pmwatch.model import BY_HAND, Delivery, Fingerprint, Folder


def clear_archive(
    ledger: Ledger, folder: Folder, *, now: float, go_on: Callable[[], bool] = lambda: True
) -> tuple[int, int]:
    """Remove archived files that are older than the folder keeps them; return how many, and how many had changed.

    Only what pmwatch put there and is as it was. `go_on` is asked between files; False ends it early. Raises OSError.
    """
    removed, changed, after = 0, 0, None
    if not folder.archive_seconds:
        return 0, 0
    while go_on() and (found := ledger.archived_before(folder.name, now - folder.archive_seconds, after=after)):
        after = found[-1]
        gone = []
        for one in found:
            if not go_on():
                break
            if not one.location.startswith(folder.archive_dir + b"/"):
                continue
            if _remove(one, folder.archive_dir):
                gone.append(one)
            else:
                changed += 1
        ledger.removed_from_archive(gone)
        removed += len(gone)
    return removed, changed


def _remove(delivery: Delivery, archive: bytes) -> bool:
    """Remove an archived file and the directories that it leaves empty; tell whether it is gone."""
    directory, name = os.path.split(delivery.location)
    st = look(directory, name)
    if st is None and not os.path.isdir(archive):
        return False  # the archive itself is away
    if st is not None:
        if not is_regular(st) or not Fingerprint.of(st).same_content_as(delivery.fingerprint):
            return False
        os.unlink(delivery.location)
    with suppress(OSError):  # not empty
        while directory != archive and directory.startswith(archive + b"/"):
            os.rmdir(directory)
            directory = os.path.dirname(directory)
    return True


def forget(
    ledger: Ledger,
    folders: Mapping[str, Folder],
    *,
    before: float,
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Forget what ended before `before` (epoch seconds) and left no file behind; return how many.

    Without the last upload to each datatable.
    """
    forgotten, after, last = 0, 0, ledger.last_uploads()
    while go_on() and (found := ledger.ended_before(before, after_id=after)):
        after = found[-1].id
        gone = (one for one in found if not _may_be_on_disk(one, folders.get(one.folder)))
        forgotten += ledger.forget([one for one in gone if one.id not in last])
    return forgotten


def _may_be_on_disk(delivery: Delivery, folder: Folder | None) -> bool:
    """Tell whether a file of this delivery's path, or the one it became, is there, or may be when a mount is back."""
    if delivery.folder == BY_HAND:
        return False  # nobody looks there for files that are new
    if folder is None:
        return True  # nobody knows where it would be
    if delivery.location:
        directory, name = os.path.split(delivery.location)
        return look(directory, name) is not None or not os.path.isdir(folder.archive_dir)
    gone = look(folder.root, delivery.path) is None
    return not gone or is_away(folder.root, delivery.path, delivery.fingerprint.device, marker=folder.root_marker)
