"""Which directory of which folder a path lies in: the watched one, or one that pmwatch itself fills."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pmwatch.model import Folder


@dataclass(frozen=True, slots=True)
class Place:
    """A path below a directory of a folder; `below` is empty for the directory itself."""

    folder: Folder
    directory: bytes
    below: bytes

    @property
    def path(self) -> bytes:
        """The absolute path, as the configuration spells its directory."""
        return os.path.join(self.directory, self.below) if self.below else self.directory

    @property
    def is_own(self) -> bool:
        """Tell whether it is pmwatch's own directory and not the watched one."""
        return self.directory != self.folder.root


def spellings(path: bytes) -> Iterator[bytes]:
    """Yield an absolute path as it is written, and then with the links in its directories followed."""
    path = os.path.normpath(path)
    yield path
    yield os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def place_of(path: bytes, folders: Iterable[Folder]) -> Place | None:
    """Return the innermost place of an absolute path; links are followed only where there is none as it is written."""
    known = tuple(folders)
    written, followed = spellings(path)
    return (
        _innermost(written, known, lambda one: one)
        or _innermost(followed, known, os.path.realpath)
        or _innermost(os.path.realpath(path), known, os.path.realpath)
    )


def _innermost(path: bytes, folders: Iterable[Folder], spelled: Callable[[bytes], bytes]) -> Place | None:
    found = (
        (len(spelled(directory)), Place(folder, directory, below))
        for folder in folders
        for directory in dict.fromkeys((folder.root, *folder.own_dirs))
        if (below := _below(spelled(directory), path)) is not None
    )
    return max(found, key=lambda one: one[0], default=(0, None))[1]


def _below(directory: bytes, path: bytes) -> bytes | None:
    """Return a path as it is below a directory; None where it is not."""
    if path == directory:
        return b""
    prefix = directory.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None
