"""Reading a file for its check: by position, in blocks, never more than a bounded part at once."""

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from pmwatch.errors import SourceUnreadable
from pmwatch.formats.finding import Broken

BLOCK: Final = 1 << 20
MOST_AT_ONCE: Final = 4 << 20
"""The most that anything reads in one piece; a zip directory of this size would have some 40,000 entries."""

_EXPANSION: Final = 250  # times; event logs shrink to a hundredth at most, deflate can do a thousandth
_EXPANSION_FREE: Final = 64 << 20

Blocks = Callable[[], Iterator[bytes]]
"""Starts reading anew from the first byte: one pass is the rule, a second one finds what to say."""


class Source:
    """A regular file; also the little that zipfile wants of one, with a position of its own."""

    def __init__(self, fd: int, beat: Callable[[], None]) -> None:
        self._fd = fd
        self._beat = beat
        self._position = 0
        try:
            self.size = os.fstat(fd).st_size
        except OSError as error:
            raise _unreadable(error) from None

    def read_at(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only at the end of the file, none from anywhere behind it."""
        self._beat()
        if offset >= self.size:  # a crafted one may be more than the system call takes
            return b""
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise _unreadable(error) from None

    def blocks(self) -> Iterator[bytes]:
        """Yield the file from its beginning."""
        offset = 0
        while block := self.read_at(offset, BLOCK):
            offset += len(block)
            yield block

    def unzipped_blocks(self) -> Iterator[bytes]:
        """Yield what a gzip file holds, all its members; raise Broken where it is torn, damaged or a bomb."""
        unpacked, pending = 0, bytearray()
        for piece in self._unzipped():
            unpacked += len(piece)
            pending += piece
            if unpacked > _EXPANSION_FREE + _EXPANSION * self.size:
                raise Broken(f"it unpacks to more than {_EXPANSION} times its size, as no event log does")
            if len(pending) >= BLOCK:
                self._beat()
                yield bytes(pending)
                pending.clear()
        if pending:
            yield bytes(pending)

    def _unzipped(self) -> Iterator[bytes]:
        member = None
        for block in self.blocks():
            waiting = block if member is not None else block.lstrip(b"\0")  # padding may follow a member
            while waiting:
                if member is None:
                    member = zlib.decompressobj(wbits=31)
                try:
                    yield member.decompress(waiting, BLOCK)
                except zlib.error:
                    raise Broken("it is damaged: its gzip stream or checksum is wrong") from None
                waiting = member.unconsumed_tail
                if member.eof:
                    waiting, member = member.unused_data.lstrip(b"\0"), None
        if member is not None:
            raise Broken("it is torn: the gzip stream does not reach its end")

    # ---- what zipfile asks for ----------------------------------------------------------------------------

    def seekable(self) -> bool:
        """Tell zipfile that it may jump."""
        return True

    def tell(self) -> int:
        """Return the position that `read` goes on from."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; the descriptor's own stays. Raises Broken for one before the file's beginning."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError("before the beginning")  # what zipfile expects of a file
        self._position = start + offset
        return self._position

    def read(self, count: int = -1, /) -> bytes:
        """Read on from the position, by default to the end. Raises Broken for more than MOST_AT_ONCE."""
        if count < 0:
            count = max(0, self.size - self._position)
        if count > MOST_AT_ONCE:
            raise Broken("its zip directory is larger than that of any workbook")
        data = self.read_at(self._position, count)
        self._position += len(data)
        return data


def _unreadable(error: OSError) -> SourceUnreadable:
    return SourceUnreadable(f"reading failed: {error.strerror}", hint="Check the disk or mount.")
