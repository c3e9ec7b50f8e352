"""The audit: every file on disk has exactly one verdict or state, and this proves it."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pmwatch.files import look
from pmwatch.intake.rules import Rules
from pmwatch.ledger import Ledger
from pmwatch.model import Empty, Fingerprint, Folder, display, file_kind

_CHUNK = 500
_MOST_NAMED = 20


@dataclass(slots=True)
class Account:
    """The files of one folder, counted by state and by verdict, and what pmwatch moved to archive and quarantine.

    `unaccounted` files have no state and no verdict, and `named` are the first few of them. What was archived and is
    not there any more is counted with the archive: it was uploaded, and people may clear an archive.
    """

    folder: str
    states: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    archive: Counter[str] = field(default_factory=Counter)
    unaccounted: int = 0
    named: list[str] = field(default_factory=list)

    def name(self, path: str) -> None:
        """Count a file that has no account, and name it while there are few."""
        self.unaccounted += 1
        if len(self.named) < _MOST_NAMED:
            self.named.append(path)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "folder": self.folder,
            "states": dict(self.states),
            "verdicts": dict(self.verdicts),
            "archive": dict(self.archive),
            "unaccounted": self.unaccounted,
            "named": self.named,
        }


Unentered = Callable[[bytes, Fingerprint], str]


def audit(folder: Folder, ledger: Ledger, *, unentered: Unentered = lambda _path, _seen: "") -> Account:
    """Walk a folder and account for every file in it.

    `unentered` returns the verdict on one that the ledger does not know as it is now: the running intake may have it in
    hand. Without one it is unaccounted.
    """
    account, rules = Account(folder.name), Rules(folder)
    chunk: list[tuple[bytes, Fingerprint]] = []
    for path in files_of(folder):
        verdict = _verdict(folder, rules, path)
        if isinstance(verdict, str):
            account.verdicts[verdict] += 1
            continue
        chunk.append((path, verdict))
        if len(chunk) >= _CHUNK:
            _account(account, chunk, ledger, unentered)
            chunk.clear()
    _account(account, chunk, ledger, unentered)
    _account_for_archive(account, folder, ledger)
    return account


def _account_for_archive(account: Account, folder: Folder, ledger: Ledger) -> None:
    """Compare what pmwatch has moved with what the ledger says: by path, both ways."""
    for root in (folder.archive_dir, folder.quarantine_dir):
        moved = _moved(root)
        while chunk := list(islice(moved, _CHUNK)):
            known = ledger.locations(chunk)
            account.archive["moved by pmwatch"] += len(known)
            for path in chunk:
                if path not in known and not os.path.exists(path + b".error.json"):  # a link that says of what
                    account.name(display(path))
    gone = sum(not os.path.lexists(location) for location in ledger.archived(folder.name))
    account.archive.update({"removed by others": gone} if gone else {})


def _moved(root: bytes) -> Iterator[bytes]:
    for directory, _, names in os.walk(root):
        for name in names:
            if not name.endswith(b".error.json") and not name.startswith(b".pmwatch-"):
                yield os.path.join(directory, name)


def files_of(folder: Folder) -> Iterator[bytes]:
    """Yield every file below the root whatever it is, except what pmwatch itself keeps there."""
    own = set(folder.own_dirs)
    for directory, names, files in os.walk(folder.root):
        names[:] = [name for name in names if os.path.join(directory, name) not in own]
        for name in files:
            yield os.path.relpath(os.path.join(directory, name), folder.root)


def _verdict(folder: Folder, rules: Rules, path: bytes) -> str | Fingerprint:
    mapped = rules.map(path)
    if mapped.target is None:
        return mapped.reason.split(":")[0]
    st = look(folder.root, path)
    if st is None:
        return "gone meanwhile"
    if file_kind(st.st_mode):
        return f"a {file_kind(st.st_mode)}"
    waits = st.st_size == 0 and folder.guards.empty is Empty.SKIP
    return "empty" if waits else Fingerprint.of(st)


def _account(
    account: Account,
    files: list[tuple[bytes, Fingerprint]],
    ledger: Ledger,
    unentered: Unentered,
) -> None:
    known = ledger.known(account.folder, [path for path, _ in files])
    for path, seen in files:
        entry = known.get(path)
        if entry is not None and not entry.is_news(seen):
            account.states[str(entry.state)] += 1
        elif verdict := unentered(path, seen):
            account.verdicts[verdict] += 1
        else:
            account.name(display(path))
