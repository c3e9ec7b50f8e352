"""The bytes of one attempt: read once, counted and hashed on the way, and proven to be one version of the file."""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from pmwatch.errors import SourceChanged, SourceUnreadable
from pmwatch.failpoints import reached
from pmwatch.files import open_regular, stat_of
from pmwatch.model import Fingerprint

CHUNK_BYTES: Final = 1024 * 1024
_INLINE_BYTES: Final = 4 * CHUNK_BYTES  # below this a thread costs more than it saves
_QUEUED_CHUNKS: Final = 8

Check = Callable[[], None]


def no_check() -> None:
    """Let an attempt run to its end."""


class Source:
    """One opened version of a file. Closed by `with`; every body read from it starts at its first byte."""

    def __init__(self, root: bytes, path: bytes) -> None:
        self._fd = open_regular(root, path)
        try:
            opened = stat_of(self._fd)
        except SourceUnreadable:
            os.close(self._fd)
            raise
        self.fingerprint = Fingerprint.of(opened)
        self._links = opened.st_nlink
        self.sha256 = ""
        self.md5 = ""
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """Return the open descriptor, for who reads at positions of its own."""
        return self._fd

    def chunks(self, *, check: Check = no_check) -> Iterator[bytes]:
        """Yield the whole file in chunks of 1 MiB; afterwards `sha256`, `md5` and `bytes_read` tell what went.

        Raises SourceChanged where it is no longer the version that was opened, SourceUnreadable on a read
        error, and whatever `check` raises, which is called before each chunk.
        """
        self.sha256 = self.md5 = ""
        self.bytes_read = 0
        size = self.fingerprint.size
        with _Hashes(threaded=size > _INLINE_BYTES) as hashes:
            while self.bytes_read < size:
                check()
                chunk = self._read(min(CHUNK_BYTES, size - self.bytes_read))
                hashes.update(chunk)
                self.bytes_read += len(chunk)
                if self.bytes_read == size:
                    self.verify()  # before the last bytes go: a torn body must never be complete
                yield chunk
                reached("mid_body" if self.bytes_read < size else "after_last_byte")
            self.sha256, self.md5 = hashes.digests()

    def hash(self, *, check: Check = no_check) -> str:
        """Read the whole file and return its SHA-256 in hex."""
        for _ in self.chunks(check=check):
            pass
        return self.sha256

    def verify(self) -> None:
        """Raise SourceChanged unless the opened file still is what it was when it was opened, or SourceUnreadable.

        Its name may have been replaced or linked meanwhile, which changes its ctime but not its bytes.
        """
        now = stat_of(self._fd)
        same_ctime = now.st_ctime_ns == self.fingerprint.ctime_ns or now.st_nlink != self._links
        if not (same_ctime and Fingerprint.of(now).same_content_as(self.fingerprint)):
            raise SourceChanged("the file changed while it was read")

    def _read(self, count: int) -> bytes:
        try:
            chunk = os.pread(self._fd, count, self.bytes_read)
        except OSError as error:
            raise SourceUnreadable(f"reading failed: {error.strerror}", hint="Check the disk or mount.") from None
        if not chunk:
            raise SourceChanged("the file became shorter while it was read")
        return chunk


class _Hashes:
    """SHA-256 and MD5 of a stream, each in a thread of its own where the stream is long."""

    def __init__(self, *, threaded: bool) -> None:
        plain = (hashlib.sha256(), hashlib.md5(usedforsecurity=False))  # MD5 only ever meets S3's ETag
        self._hashes: tuple[Any, ...] = tuple(_ThreadedHash(one) for one in plain) if threaded else plain

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for one in self._hashes:
            if isinstance(one, _ThreadedHash):
                one.close()

    def update(self, chunk: bytes) -> None:
        for one in self._hashes:
            one.update(chunk)

    def digests(self) -> tuple[str, ...]:
        return tuple(one.hexdigest() for one in self._hashes)


class _ThreadedHash:
    """A hash that is computed beside the sending; hashlib releases the GIL. The queue's bound keeps memory flat."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_QUEUED_CHUNKS)
        self._thread = threading.Thread(target=self._run, name=f"hash-{plain.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._plain.update(chunk)

    def update(self, chunk: bytes) -> None:
        self._chunks.put(chunk)

    def close(self) -> None:
        if self._thread.is_alive():
            self._chunks.put(None)
            self._thread.join()

    def hexdigest(self) -> str:
        self.close()
        digest: str = self._plain.hexdigest()
        return digest
