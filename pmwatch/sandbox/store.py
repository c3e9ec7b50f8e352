"""The objects on disk, and the journal that says what each of them is.

    STATE/objects/NAME       the bytes of one key, complete
    STATE/incoming/NAME      a body on its way; whatever a crash left there is deleted at the next start
    STATE/journal.jsonl      a line per presigned key and per successful PUT, in order

Nothing is synced to the disk: an object store that loses power is not what the sandbox is for.
"""

import dataclasses
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pmwatch.sandbox.s3errors import StorageError

_COUNTED_SUFFIXES = (".csv", ".tsv", ".txt")
_MAX_NAME_IN_KEY = 100
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; `status` is 0 where the connection ended before an answer."""

    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key was presigned for. `filename` is empty when the call named no file (its older form)."""

    key: str
    tenant_id: str
    datatable_id: str
    filename: str


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """A stored object; after a second PUT to its key it describes the last one. `received_at` is ISO-8601 in UTC."""

    tenant_id: str
    datatable_id: str
    filename: str
    size: int
    sha256: str
    received_at: str
    put_count: int
    key: str
    etag: str

    def as_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return dataclasses.asdict(self)


class Upload:
    """A body on its way in: `write` and `update_md5` each see every block once, in order.

    The two may run in two threads at the same time, because they share nothing: MD5 alone takes as long as
    all the rest together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._lock = threading.Lock()  # a cancelled request closes the file while a thread still writes
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, block: bytes) -> None:
        """Append a block to the file; it counts in the size and the SHA-256."""
        with self._lock:
            view = memoryview(block)
            while view:
                view = view[os.write(self._descriptor, view) :]
        self._sha256.update(block)
        self.size += len(block)

    def update_md5(self, block: bytes) -> None:
        """Count a block in the MD5."""
        self._md5.update(block)

    @property
    def md5(self) -> bytes:
        """The digest of what came so far."""
        return self._md5.digest()

    @property
    def sha256(self) -> str:
        """The digest of what came so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def finish(self) -> None:
        """Close the file; the upload is then ready for `ObjectStore.commit`."""
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Forget the body. Harmless after a commit, which moved the file away."""
        if self._descriptor >= 0:
            self.finish()
        self.path.unlink(missing_ok=True)


class Journal:
    """An append-only file of JSON lines. A torn last line, from a crash, is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in order."""
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry with one write."""
        if self._descriptor < 0:
            self._open()
        os.write(self._descriptor, json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # or the next entry would become part of a torn one


class ObjectStore:
    """All keys and objects of a state directory. Safe to use from any thread."""

    def __init__(self, directory: Path, *, now: Callable[[], float]) -> None:
        self._now = now
        self._objects = directory / "objects"
        self._incoming = directory / "incoming"
        self._lock = threading.Lock()
        self._grants: dict[str, Grant] = {}
        self._records: dict[str, ObjectRecord] = {}
        self._counting = threading.Lock()
        self._uncounted: dict[str, set[str]] = {}
        self._rows: dict[str, dict[str, int]] = {}
        self._journal = Journal(directory / "journal.jsonl")
        self._prepare_directories()
        self._replay()

    def grant(self, tenant_id: str, datatable_id: str, filename: str) -> str:
        """Return a new key for an upload to a datatable; it ends in the name, made safe for a URL."""
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", filename)[-_MAX_NAME_IN_KEY:] or "upload"
        key = f"{tenant_id}/{datatable_id}/{uuid.uuid4()}/{safe}"
        grant = Grant(key, tenant_id, datatable_id, filename)
        with self._lock:
            self._journal.append({"grant": dataclasses.asdict(grant)})
            self._grants[key] = grant
        return key

    def exists(self, key: str) -> bool:
        """Tell whether the key holds an object."""
        with self._lock:
            return key in self._records

    def begin(self) -> Upload:
        """Start to receive a body."""
        return Upload(self._incoming / uuid.uuid4().hex)

    def commit(self, key: str, upload: Upload, *, only_if_absent: bool) -> ObjectRecord:
        """Make a finished body the object of `key`, at once or not at all; the last of two PUTs wins.

        With `only_if_absent`, StorageError PreconditionFailed where the key already holds an object.
        """
        with self._lock:
            if only_if_absent and key in self._records:
                raise precondition_failed()
            os.replace(upload.path, self._path(key))
            record = self._describe(key, upload)
            self._journal.append({"put": record.as_json()})
            self._remember(record)
        return record

    def records(self) -> list[ObjectRecord]:
        """Return what is stored, in the order of first arrival."""
        with self._lock:
            return list(self._records.values())

    def path(self, record: ObjectRecord) -> Path:
        """Return the file that holds the bytes of the object."""
        return self._path(record.key)

    def row_count(self, datatable_id: str) -> int:
        """Return the data lines of all csv, tsv and txt files that were stored for the datatable.

        Files are read when somebody asks, each version once: counting while a body comes in would slow it down.
        """
        with self._counting:
            with self._lock:
                uncounted = [self._records[key] for key in self._uncounted.pop(datatable_id, ())]
            for record in uncounted:
                self._rows.setdefault(datatable_id, {})[record.key] = count_data_lines(self.path(record))
            return sum(self._rows.get(datatable_id, {}).values())

    def close(self) -> None:
        """Close the journal. The store stays usable."""
        with self._lock:
            self._journal.close()

    def _prepare_directories(self) -> None:
        self._objects.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()

    def _replay(self) -> None:
        for entry in self._journal.read():
            if "grant" in entry:
                grant = Grant(**entry["grant"])
                self._grants[grant.key] = grant
            elif "put" in entry:
                self._remember(ObjectRecord(**entry["put"]))

    def _remember(self, record: ObjectRecord) -> None:
        self._records[record.key] = record
        if record.filename.lower().endswith(_COUNTED_SUFFIXES):
            self._uncounted.setdefault(record.datatable_id, set()).add(record.key)

    def _describe(self, key: str, upload: Upload) -> ObjectRecord:
        grant = self._grants.get(key) or Grant(key, "", "", "")  # somebody with the secret made the key up
        before = self._records.get(key)
        return ObjectRecord(
            tenant_id=grant.tenant_id,
            datatable_id=grant.datatable_id,
            filename=grant.filename,
            size=upload.size,
            sha256=upload.sha256,
            received_at=datetime.fromtimestamp(self._now(), UTC).isoformat(),
            put_count=before.put_count + 1 if before else 1,
            key=key,
            etag=upload.md5.hex(),
        )

    def _path(self, key: str) -> Path:
        return self._objects / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def count_data_lines(path: Path) -> int:
    """Return the lines below the header line; a last line without a line end counts."""
    lines = 0
    last = b"\n"
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    return max(0, lines + (last != b"\n") - 1)


def precondition_failed() -> StorageError:
    """Return S3's refusal of `If-None-Match: *` for a key that holds an object."""
    return StorageError(
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        {"Condition": "If-None-Match"},
    )
