"""A new ledger in place of a damaged or lost one: what the archive, quarantine and the folders themselves tell.

Only on an operator's word, and it sends nothing: what lies in a folder is held, for nobody knows any more whether it
has gone. The damaged file is set aside, never removed.
"""

import calendar
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pmwatch.audit import files_of
from pmwatch.errors import LedgerError
from pmwatch.files import give_to_owner, is_regular, look, open_regular, sync_directory
from pmwatch.intake.rules import Rules
from pmwatch.ledger import Action, Found, Ledger
from pmwatch.model import Empty, Fingerprint, Folder, Quarantine, Settled, Target, display

REBUILT: Final = "rebuilt"
_LEDGER_FILES: Final = ("ledger.db", "ledger.db-wal", "ledger.db-shm")
_REFUSED: Final = b"No ledger: a rebuild did not come to its end. Run pmwatch ledger rebuild again.\n" * 10
_CHUNK_BYTES: Final = 1024 * 1024
_BATCH: Final = 200
_DAY_SECONDS: Final = 86400
_DATED: Final = re.compile(rb"(\d{4})/(\d\d)/(\d\d)/(.+)", re.DOTALL)
_MOST_JSON_BYTES: Final = 65536

Progress = Callable[[str, str], None]


@dataclass(slots=True)
class Rebuilt:
    """What the new ledger holds, in files: from the archive, from quarantine, held in folders, held of the backup."""

    archived: int = 0
    quarantined: int = 0
    held: int = 0
    restored: int = 0
    set_aside: str = ""


def rebuild(
    state_dir: str,
    folders: Sequence[Folder],
    *,
    backup: str | None,
    by: Action,
    progress: Progress = lambda _folder, _path: None,
) -> Rebuilt:
    """Make a new ledger, from a backup where there is one, and put it in place of the old one.

    The caller holds the state directory's lock. Until the new one is whole the old one stays where it is, and should
    anything end this early, the next start does not begin with an empty one.
    `progress` is told of each file that is read: the folder's name and the path for people. Raises LedgerError.
    """
    building = os.path.join(state_dir, "rebuild")
    shutil.rmtree(building, ignore_errors=True)
    os.mkdir(building, 0o700)
    result = Rebuilt()
    try:
        if backup is not None:
            shutil.copyfile(backup, os.path.join(building, _LEDGER_FILES[0]))
        with Ledger.open(building) as ledger:
            ledger.check()
            ledger.drop_left_by_hand()
            result.restored = ledger.hold_unsure() if backup is not None else 0
            for folder in folders:
                result.archived += _record(ledger, _archived(folder, progress))
                result.quarantined += _record(ledger, _quarantined(folder, progress))
                result.held += _hold(ledger, folder, by.at)
            ledger.note(by)
        result.set_aside = _swap(building, state_dir, by.at)
    except OSError as error:
        raise LedgerError(f"{error.filename or state_dir}: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return result


def _swap(building: str, state_dir: str, at: float) -> str:
    """Put the new ledger in place; return what the old one is called now, empty where there was none.

    At each moment there is a ledger: the old one, the new one, or one that no pmwatch starts with. That is needed where
    the old one left a WAL, which SQLite would take for the new one's.
    """
    made, path = (os.path.join(directory, _LEDGER_FILES[0]) for directory in (building, state_dir))
    give_to_owner(made, state_dir)
    refused = os.path.join(building, "refused")
    with open(refused, "wb") as file:
        file.write(_REFUSED)
        os.fsync(file.fileno())
    give_to_owner(refused, state_dir)
    aside = "" if _is_refused(path) else _set_aside(state_dir, at)
    rest = [path + suffix for suffix in ("-wal", "-shm") if os.path.lexists(path + suffix)]
    if rest:
        os.rename(refused, path)
        sync_directory(os.fsencode(state_dir))
        for name in rest:
            os.unlink(name)
    os.rename(made, path)
    sync_directory(os.fsencode(state_dir))
    return aside


def _is_refused(path: str) -> bool:
    """Tell whether a rebuild that set the old ledger aside did not come to its end."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read(len(_REFUSED) + 1) == _REFUSED
    return False


def _set_aside(state_dir: str, at: float) -> str:
    """Give the old ledger a second name, after what belongs to it; return that, empty where there was none."""
    suffix = time.strftime("damaged-%Y%m%dT%H%M%SZ", time.gmtime(at))
    found = ""
    for name in reversed(_LEDGER_FILES):
        old = os.path.join(state_dir, name)
        found = os.path.join(state_dir, name.replace("ledger.db", f"ledger.db.{suffix}", 1))
        if os.path.lexists(old):
            os.link(old, found)
    return found if os.path.lexists(found) else ""


def _record(ledger: Ledger, found: Iterator[Found]) -> int:
    total, batch = 0, []
    for one in found:
        batch.append(one)
        if len(batch) >= _BATCH:
            total += ledger.record(batch)
            batch = []
    return total + ledger.record(batch)


def _archived(folder: Folder, progress: Progress) -> Iterator[Found]:
    """Yield what lies in the archive, in the order of its days: each was uploaded, whatever else is not known."""
    rules = Rules(folder)
    for at, below, path in sorted(_dated(folder.archive_dir)):
        location = os.path.join(folder.archive_dir, below)
        progress(folder.name, display(path))
        fd = open_regular(folder.archive_dir, below)
        try:
            look_at, sha256 = Fingerprint.of(os.fstat(fd)), _sha256(fd)
        finally:
            os.close(fd)
        target = _target(folder, rules, path)
        if target is not None:
            yield Found(folder.name, path, location, look_at, target, folder.order, at, sha256, REBUILT)


def _dated(archive: bytes) -> Iterator[tuple[float, bytes, bytes]]:
    """Yield when each file was archived (epoch seconds), its path below the archive, and that which it had before."""
    for below in _walk(archive):
        match = _DATED.fullmatch(below)
        if match is None:
            continue  # not put there by pmwatch
        day = calendar.timegm((int(match[1]), int(match[2]), int(match[3]), 0, 0, 0))
        moved_at = os.lstat(os.path.join(archive, below)).st_ctime  # unless the archive itself was copied since
        yield moved_at if day <= moved_at < day + _DAY_SECONDS else float(day), below, match[4]


def _quarantined(folder: Folder, progress: Progress) -> Iterator[Found]:
    """Yield what lies in quarantine, each with the reason that stands beside it."""
    rules = Rules(folder)
    for below in sorted(_walk(folder.quarantine_dir)):
        if below.endswith(b".error.json"):
            continue
        progress(folder.name, display(below))
        st = look(folder.quarantine_dir, below)
        target = _target(folder, rules, below)
        if st is None or not is_regular(st) or target is None:
            continue
        if folder.quarantine is Quarantine.LINK and look(folder.root, below) is not None:
            continue  # a link: the file itself is held with all that lie in the folder
        location = os.path.join(folder.quarantine_dir, below)
        reason, detail = _reason(location)
        look_at = Fingerprint.of(st)
        yield Found(
            folder.name, below, location, look_at, target, folder.order, st.st_mtime, reason=reason, detail=detail
        )


def _reason(location: bytes) -> tuple[str, str]:
    try:
        with open(location + b".error.json", "rb") as file:
            facts = json.loads(file.read(_MOST_JSON_BYTES))
        return str(facts["reason"])[:100], str(facts["message"])[:500]
    except (OSError, ValueError, KeyError, TypeError):
        return REBUILT, "in quarantine; why is not known"


def _hold(ledger: Ledger, folder: Folder, now: float) -> int:
    """Hold every file in the folder that the ledger does not know."""
    rules, batch, total = Rules(folder), [], 0
    for path in files_of(folder):
        target, st = rules.map(path).target, look(folder.root, path)
        waits = st is None or not is_regular(st) or (st.st_size == 0 and folder.guards.empty is Empty.SKIP)
        if target is None or st is None or waits:
            continue
        batch.append(Settled(folder.name, path, Fingerprint.of(st), target, folder.order, now, now, held=REBUILT))
        if len(batch) >= _BATCH:
            total += len(ledger.enqueue(batch))
            batch = []
    return total + len(ledger.enqueue(batch))


def _target(folder: Folder, rules: Rules, path: bytes) -> Target | None:
    """Return where a file of this path goes; what the rules ignore by now went to the folder's own target."""
    return rules.map(path).target or (folder.target if not folder.levels else None)


def _walk(root: bytes) -> Iterator[bytes]:
    """Yield the regular files below a directory of ours, without what a crash left of a copy."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if not name.startswith(b".pmwatch-") and is_regular(os.lstat(path)):
                yield os.path.relpath(path, root)


def _sha256(fd: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(fd, _CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
