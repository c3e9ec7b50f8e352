"""The doctor: what on this machine would keep pmwatch from working well, and what to do about it."""

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pmwatch.errors import FolderDown, KeyRejected, KeyUnavailable, LedgerError, PmwatchError
from pmwatch.filesystems import NETWORK_FILE_SYSTEMS, file_system_type
from pmwatch.intake.evidence import Answer, no_writer
from pmwatch.intake.rules import UNMAPPED, Rules
from pmwatch.intake.scan import root_identity, scan
from pmwatch.ledger import VERSION, Ledger
from pmwatch.model import AfterUpload, Folder, Tenant, display, format_size
from pmwatch.processmind import Client, Http, resolve
from pmwatch.processmind.keys import KeyRing

_LOW_BYTES = 1024**3
_SKEW_SECONDS = 300
_FILES_ASKED = 100
_MOST_UNMAPPED = 20


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the doctor looked at."""

    level: Level
    what: str
    says: str
    hint: str = ""


def check_folder(folder: Folder) -> Iterator[Finding]:
    """Look at one folder: readable, watchable, writable where its policy needs that."""
    what = f"folder {folder.name}"
    try:
        root_identity(folder.root)
    except FolderDown as problem:
        yield Finding(Level.ERROR, what, problem.message, problem.hint)
        return
    kind = file_system_type(folder.root)
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse"):
        hint = "It is scanned every rescan_interval; make that short, or ask writers for temporary names."
        yield Finding(Level.WARNING, what, f"on {kind} the kernel reports no changes made elsewhere", hint)
    if folder.after_upload is not AfterUpload.KEEP and not os.access(folder.root, os.W_OK):
        yield Finding(
            Level.ERROR,
            what,
            f'after_upload = "{folder.after_upload}" needs write access to {display(folder.root)}',
            "Give pmwatch's user (by its group) write permission on the directory.",
        )
    yield from check_writers(folder)
    yield from check_mapping(folder)
    free = shutil.disk_usage(folder.root).free
    level = Level.WARNING if free < _LOW_BYTES else Level.OK
    yield Finding(level, what, f"{display(folder.root)} ({kind or 'unknown'}), {format_size(free)} free")


def check_writers(folder: Folder) -> Iterator[Finding]:
    """Ask for the first files whether a writer of them could be seen. SIGIO must be ignored (`quietens_leases`)."""
    what = f"folder {folder.name}"
    try:
        found = [*itertools.islice(scan(folder.root, Rules(folder), problem=lambda _path, _why: None), _FILES_ASKED)]
    except FolderDown:
        return  # it was there a moment ago, and was looked at
    asked = [(one.path, no_writer(folder.root, one.path)) for one in found]
    unknown = [(path, evidence.sentence) for path, evidence in asked if evidence.answer is Answer.UNKNOWN]
    if unknown:
        path, sentence = unknown[0]
        says = f"for {len(unknown)} of {len(asked)} files it is unknown whether they are still open: {display(path)}: "
        hint = "Let pmwatch run as the writers' user or with CAP_LEASE, or ask writers for temporary names."
        yield Finding(Level.WARNING, what, says + sentence, hint)
    elif asked:
        yield Finding(Level.OK, what, "a file that is still open for writing is seen as such")


def check_mapping(folder: Folder) -> Iterator[Finding]:
    """List directories whose files lead to no destination."""
    if not folder.levels:
        return
    files, why = Counter[bytes](), dict[bytes, str]()

    def problem(path: bytes, reason: str) -> None:
        if reason.startswith(UNMAPPED):
            directory = path.rpartition(b"/")[0]
            files[directory] += 1
            why[directory] = reason.removeprefix(f"{UNMAPPED}: ")

    try:
        for _ in scan(folder.root, Rules(folder), problem=problem):
            pass
    except FolderDown:
        return  # as above
    if files:
        lines = [
            f"{n} in {display(os.path.join(folder.root, directory).rstrip(b'/'))}: {why[directory]}"
            for directory, n in sorted(files.items())[:_MOST_UNMAPPED]
        ]
        more = [f"and {len(files) - len(lines)} more directories"] if len(files) > len(lines) else []
        says = "files in these directories are not uploaded:\n" + "\n".join([*lines, *more])
        hint = f"Move them into {'/'.join(folder.levels)} below {display(folder.root)}, or add the tenant."
        yield Finding(Level.WARNING, f"folder {folder.name}", says, hint)


def check_state(state_dir: str) -> Finding:
    """Look at the state directory."""
    existing = state_dir
    while not os.path.exists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    kind = file_system_type(os.fsencode(existing))
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(Level.ERROR, "state", f"{state_dir} is on {kind}", "Put [state] dir on a local disk.")
    if not os.access(existing, os.W_OK):
        return Finding(Level.ERROR, "state", f"{existing} cannot be written", "Make pmwatch's user its owner.")
    return Finding(Level.OK, "state", f"{state_dir} ({kind}), {format_size(shutil.disk_usage(existing).free)} free")


def check_ledger(state_dir: str) -> Iterator[Finding]:
    """Look at the ledger, where there is one: whether this version of pmwatch can go on with it."""
    if not os.path.exists(os.path.join(state_dir, "ledger.db")):
        return
    try:
        ledger = Ledger.open(state_dir, read_only=True, older_too=True)
    except LedgerError as error:
        yield Finding(Level.ERROR, "ledger", error.message, error.hint)
        return
    ledger.close()
    if ledger.version_found == VERSION:
        yield Finding(Level.OK, "ledger", f"version {VERSION}")
        return
    says = f"version {ledger.version_found}; it becomes version {VERSION} when pmwatch run starts"
    hint = "An older pmwatch cannot read it then: make a copy first with pmwatch ledger backup FILE."
    yield Finding(Level.WARNING, "ledger", says, hint)


def check_tenant(tenant: Tenant, *, keys: KeyRing, http: Http, base_url: str) -> Finding:
    """Ask the API for the tenant with its key."""
    what = f"tenant {tenant.name}"
    try:
        found = Client(keys.key(tenant.name), base_url=base_url, http=http, retries=False).tenant(tenant.id)
    except KeyUnavailable as error:
        return Finding(Level.ERROR, what, error.sentence, error.hint)
    except KeyRejected as error:
        return Finding(Level.ERROR, what, error.sentence, f"{error.hint} {keys.renewal_hint(tenant.name)}")
    except PmwatchError as error:
        return Finding(Level.ERROR, what, error.sentence, error.hint)
    if abs(http.clock_skew_seconds) > _SKEW_SECONDS:
        hint = "Storage refuses signatures more than 15 minutes off; check NTP."
        return Finding(Level.WARNING, what, f"its clock differs by {http.clock_skew_seconds:.0f} s", hint)
    return Finding(Level.OK, what, f"the API accepts the key ({found.display_name or tenant.id})")


def check_target(folder: Folder, tenant: Tenant, *, keys: KeyRing, http: Http, base_url: str) -> Finding:
    """Resolve the datatable that a folder names."""
    what = f"folder {folder.name}"
    try:
        found = resolve(
            Client(keys.key(tenant.name), base_url=base_url, http=http, retries=False), tenant.id, folder.target
        )
    except PmwatchError as error:
        return Finding(Level.ERROR, what, error.sentence, error.hint)
    kind = "process" if folder.target.process else "datatable"
    return Finding(Level.OK, what, f"{folder.target} is {kind} {found.datatable_id}")


def check_inotify(folders: Sequence[Folder]) -> Iterator[Finding]:
    """Compare the directories to watch with the kernel's limit."""
    try:
        with open("/proc/sys/fs/inotify/max_user_watches", encoding="ascii") as file:
            limit = int(file.read())
    except (OSError, ValueError):
        yield Finding(Level.WARNING, "inotify", "this kernel has no inotify", "Folders are scanned instead.")
        return
    needed = sum(1 for folder in folders for _ in _directories(folder))
    level = Level.WARNING if needed > limit * 0.8 else Level.OK
    hint = f"Raise it: sysctl fs.inotify.max_user_watches={max(needed * 2, limit)}" if level is not Level.OK else ""
    yield Finding(level, "inotify", f"{needed} directories to watch, the limit is {limit}", hint)


def _directories(folder: Folder) -> Iterator[bytes]:
    yield folder.root
    if folder.recursive or folder.levels:
        for directory, names, _ in os.walk(folder.root):
            yield from (os.path.join(directory, name) for name in names)
