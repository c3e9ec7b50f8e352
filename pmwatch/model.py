"""The words of pmwatch as values: fingerprints, destinations, states, deliveries, durations and sizes."""

import os
import re
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Final

MAX_PUT_BYTES: Final = 5 * 1024**3
"""The most that one PUT to S3 takes: 5 GiB (S3 user guide, "Uploading objects")."""

READABLE_TYPES: Final = ("csv", "tsv", "txt", "xls", "xlsx", "xlsb", "xes")
"""File types that ProcessMind reads (its page "Supported data formats")."""


class State(StrEnum):
    """Where a delivery is. `done` carries an `Outcome`."""

    QUEUED = "queued"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    DONE = "done"
    HELD = "held"
    FAILED = "failed"
    VANISHED = "vanished"


WAITING: Final = (State.QUEUED, State.UPLOADING)
"""States in which a delivery still has to reach its datatable; later files of an ordered lane wait for these."""

PENDING: Final = (State.QUEUED, State.UPLOADING, State.UPLOADED)
"""States in which pmwatch itself still has something to do."""


class Outcome(StrEnum):
    """How a delivery ended."""

    UPLOADED = "uploaded"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    DISCARDED = "discarded"


class Dedup(StrEnum):
    """Which equal content goes again: `content` none, `latest` all but the last version, `off` all."""

    CONTENT = "content"
    LATEST = "latest"
    OFF = "off"


class AfterUpload(StrEnum):
    """What happens to the source after success."""

    KEEP = "keep"
    ARCHIVE = "archive"
    DELETE = "delete"


class Order(StrEnum):
    """In which order the files of a datatable go; `none`: they do not wait for each other."""

    ARRIVAL = "arrival"
    NAME = "name"
    MTIME = "mtime"
    NONE = "none"


class CompleteWhen(StrEnum):
    """Which evidence makes a file complete."""

    AUTO = "auto"
    RENAMED = "renamed"
    CLOSED = "closed"
    STABLE = "stable"
    MARKER = "marker"


class WatchMode(StrEnum):
    """How a folder notices new files between its scans."""

    AUTO = "auto"
    INOTIFY = "inotify"
    POLL = "poll"


class Validate(StrEnum):
    """How much of a file's format is checked before it goes. `header` is `structure` and the header row as well."""

    OFF = "off"
    STRUCTURE = "structure"
    HEADER = "header"


class OnInvalid(StrEnum):
    """What becomes of a file that a guard or its format refuses."""

    HOLD = "hold"
    FAIL = "fail"


class Quarantine(StrEnum):
    """What becomes of a failed file: moved aside, or left where it is with a link beside its error aside."""

    MOVE = "move"
    LINK = "link"


class Empty(StrEnum):
    """What becomes of a file without a byte."""

    SKIP = "skip"
    FAIL = "fail"
    UPLOAD = "upload"


class Backlog(StrEnum):
    """Whether many old files that lie there at the start go, or wait for a person's word."""

    SEND = "send"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One look at one path. A changed one means "look again", not "new version"."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, st: os.stat_result) -> "Fingerprint":
        """Return the fingerprint that a stat call saw."""
        return cls(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev)

    def same_content_as(self, other: "Fingerprint") -> bool:
        """Tell whether size and mtime agree; chown, hard link and remount change only the rest."""
        return self.size == other.size and self.mtime_ns == other.mtime_ns


@dataclass(frozen=True, slots=True)
class Target:
    """Where a file should go, as the configuration words it; names are not yet resolved to ids.

    `datatable` is an id, or `Dataset/Table` by name; `dataset` is an id or a name, or empty. Where `process` is
    given, also an id or a name, the file is a BPMN model of that process, and the other two are empty.
    """

    tenant: str
    datatable: str
    dataset: str = ""
    process: str = ""

    def __str__(self) -> str:
        """Return `tenant/dataset/datatable`, without what is empty, or `tenant/process:NAME`."""
        process = f"process:{self.process}" if self.process else ""
        return "/".join(part for part in (self.tenant, self.dataset, self.datatable, process) if part)


@dataclass(frozen=True, slots=True)
class Destination:
    """A target after its names were resolved through the API: ids only.

    For a BPMN model `datatable_id` is the id of its process, and `dataset_id` is empty.
    """

    tenant_id: str
    dataset_id: str
    datatable_id: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A file that is complete, on its way from intake to the ledger. Times are epoch seconds."""

    folder: str
    path: bytes
    fingerprint: Fingerprint
    target: Target
    order: Order
    seen_at: float
    settled_at: float
    supersedes: bool = False  # older files of the folder that still wait for the same datatable need not go
    held: str = ""  # the reason why a person has to release it first
    expected_sha256: str = ""  # what a manifest says


BY_HAND: Final = "(upload)"
"""The folder of what `pmwatch upload` sent; no configured one can have this name. Its paths are absolute."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One version of one file on its way to one destination: a row of the ledger.

    `path` is relative to the folder's root; `location`, where not empty, is the absolute path to which
    pmwatch itself moved the source. Times are epoch seconds, 0.0 meaning "not yet".
    """

    id: int
    folder: str
    path: bytes
    target: Target
    destination: Destination | None
    state: State
    outcome: str
    reason: str
    detail: str
    fingerprint: Fingerprint
    sha256: str
    etag: str
    seq: int
    attempts: int
    recoveries: int
    not_before: float
    seen_at: float
    settled_at: float
    claimed_at: float
    first_failed_at: float
    uploaded_at: float
    finished_at: float
    presigned_url: str = field(repr=False)  # a secret until it expires
    duplicate_of: int
    previous_id: int
    location: bytes
    released: bool = False  # a person said that it shall go, whatever the guards say
    expected_sha256: str = ""  # what a manifest said
    resent: bool = False  # a person asked for this repetition of `duplicate_of`: it goes past dedup
    row_count: int | None = None  # the datatable's rows as the API last told them after this upload

    @property
    def display_path(self) -> str:
        """The path for people: any byte survives, control characters are escaped."""
        return display(self.path)


_ESCAPED: Final = re.compile(rb"\\x((?!00)[0-9a-f]{2})|\\u((?!d[89a-f])[0-9a-f]{4})")


def display(path: bytes) -> str:
    r"""Return a path for people and logs: UTF-8 where it is, `\xNN` for other bytes and for control characters.

    >>> display(b"a\nb\xff.csv")
    'a\\x0ab\\xff.csv'
    """
    text = path.decode("utf-8", "surrogateescape")
    return "".join(_display_character(character) for character in text)


def undisplay(text: bytes) -> bytes:
    r"""Return the path that `display` shows so; the same where nothing in it is escaped.

    >>> undisplay(b"a\\x0ab\\xff.csv")
    b'a\nb\xff.csv'
    """
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]) if found[1] else chr(int(found[2], 16)).encode(), text)


def _display_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how surrogateescape shows a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{ord(character):02x}" if character <= "\xff" else f"\\u{ord(character):04x}"


def file_kind(mode: int) -> str:
    """Return what a non-regular file is, in plain words, or an empty string for a regular one."""
    if stat.S_ISREG(mode):
        return ""
    kinds = (
        (stat.S_ISLNK, "symbolic link"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "character device"),
        (stat.S_ISBLK, "block device"),
    )
    return next((name for test, name in kinds if test(mode)), "unknown kind of file")


_SLOWEST_RATE: Final = 1024
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS: Final = {"B": 1} | {
    prefix + suffix: base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as `"5s"`, `"10m"`, `"1h30m"` or `"250ms"`.

    Raises ValueError with what is allowed.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", text.replace(" ", ""))
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        raise ValueError('a duration is a number with a unit ms, s, m, h, d or w, such as "5s" or "1h30m"')
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def parse_size(text: str) -> int:
    """Return the bytes in a size such as `"512MiB"`, `"5GB"` or `"100B"`. Raises ValueError with what is allowed."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", text.strip())
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError('a size is a number with a unit B, KiB, MiB, GiB, TiB (or KB …), such as "512MiB"')
    return int(Fraction(match[1]) * _SIZE_UNITS[match[2]])


def parse_rate(text: str) -> float:
    """Return the bytes per second in `"20MiB/s"`, 0.0 for `"unlimited"`. Raises ValueError with what is allowed."""
    if text == "unlimited":
        return 0.0
    size, separator, unit = text.strip().rpartition("/")
    if not separator or unit != "s":
        raise ValueError('a bandwidth is a size for each second, such as "20MiB/s", or "unlimited"')
    rate = parse_size(size)
    if rate < _SLOWEST_RATE:
        raise ValueError('at least "1KiB/s"; to send nothing for a while, stop pmwatch')
    return float(rate)


def sentences(*parts: str) -> str:
    """Return texts as sentences, each with one full stop; those that are empty are left out."""
    return " ".join(part.rstrip(".") + "." for part in parts if part)


def format_duration(seconds: float) -> str:
    """Return a duration for people, in at most two units: `"1h 5m"`, `"5s"`, `"250ms"`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    left, parts = round(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def format_size(size: float) -> str:
    """Return a size for people: `"12 B"`, `"3.4 MiB"`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A ProcessMind tenant and where its API key comes from: given, or in a file that may be replaced any time."""

    name: str
    id: str
    api_key: str = field(default="", repr=False)
    api_key_file: str = ""
    from_systemd: bool = False
    requests_per_second: float = 0.0  # of the API; 0 is unlimited


@dataclass(frozen=True, slots=True)
class Completeness:
    """What makes the files of a folder complete. Empty texts: not asked for.

    `marker` is the name of a file's own marker, made of `{name}` or `{stem}`; `batch_marker` and
    `batch_manifest` are globs of the files that complete a batch.
    """

    when: CompleteWhen = CompleteWhen.AUTO
    marker: str = "{name}.done"
    batch_marker: str = ""
    batch_manifest: str = ""


@dataclass(frozen=True, slots=True)
class Guards:
    """What a file must be like to go without a person's word. Sizes are bytes; 0 or empty: not asked for.

    `shrink` is the part of the last file's size below which the next one is held.
    """

    min_size: int = 0
    max_size: int = MAX_PUT_BYTES
    empty: Empty = Empty.SKIP
    shrink: float = 0.0
    validate: Validate = Validate.OFF
    require_columns: tuple[str, ...] = ()
    on_invalid: OnInvalid = OnInvalid.HOLD
    backlog: Backlog = Backlog.SEND
    max_backlog: int = 1000


@dataclass(frozen=True, slots=True)
class Folder:
    """One watched folder with its filters, its destination and its policies, in plain values.

    `levels` names the directory levels below `root` that the path's placeholders stand for: for
    `/srv/drop/{tenant}/{datatable}` the root is `/srv/drop` and the levels are `("{tenant}", "{datatable}")`.
    Empty `include` means the types that ProcessMind reads, or `*.bpmn` where they are models. Times are seconds.
    """

    name: str
    root: bytes
    levels: tuple[str, ...]
    target: Target
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    recursive: bool
    settle_seconds: float
    rescan_seconds: float
    dedup: Dedup
    order: Order
    after_upload: AfterUpload
    archive_dir: bytes
    quarantine_dir: bytes
    tenants: frozenset[str]
    completeness: Completeness = Completeness()
    guards: Guards = Guards()
    watch: WatchMode = WatchMode.AUTO
    poll_seconds: float = 10.0
    root_marker: str = ""
    blocks: bool = False  # whether those behind a failed or held file wait for a person
    supersede: bool = False  # whether only the newest file matters
    create_missing: bool = False  # whether dataset and datatable are created with the first file
    archive_seconds: float = 0.0  # how long archived files are kept; 0 for ever
    quarantine: Quarantine = Quarantine.MOVE

    @property
    def takes_models(self) -> bool:
        """Tell whether the folder's files are BPMN models of processes."""
        return bool(self.target.process) or "{process}" in self.levels

    @property
    def own_dirs(self) -> tuple[bytes, ...]:
        """Directories that pmwatch itself fills and therefore never looks into."""
        return (os.path.join(self.root, b".pmwatch"), self.archive_dir, self.quarantine_dir)
