"""Which files of a folder are wanted, and where each goes: ignore rules, filters and the path's placeholders."""

import difflib
import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pmwatch.model import READABLE_TYPES, Completeness, CompleteWhen, Folder, Target, display

UNFINISHED_NAMES: Final = (
    ".*",
    "~*",
    "*~",
    "*.tmp",
    "*.temp",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.swp",
    "*.lock",
    "lu*.tmp",
)
"""Names of files that somebody is still writing, or that only accompany one: ignored in every folder."""


MARKER: Final = "a marker, which is not uploaded itself"
UNMAPPED: Final = "unmapped"
PASSED_BY: Final = "a sub-directory, and the folder is not recursive"
_OWN: Final = "kept by pmwatch itself"
_UNFINISHED: Final = "unfinished name"
_EXCLUDED: Final = "excluded"
_NOT_INCLUDED: Final = "not included"
_UNSUPPORTED: Final = "unsupported type"


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the rules say of a path: its target, or the reason why it has none."""

    target: Target | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """What the rules say of a directory, for every file in it."""

    directory: str
    own: bool
    unfinished: bool
    mapped: Mapped


class Rules:
    """The rules of one folder, compiled once. Paths are bytes below the root."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._unfinished = _compile(UNFINISHED_NAMES)
        kinds = ("bpmn",) if folder.takes_models else READABLE_TYPES
        self._wanted = folder.include or tuple(f"*.{kind}" for kind in kinds)
        self._include = _compile(self._wanted)
        self._exclude = _compile(folder.exclude)
        self._markers = _compile(_marker_names(folder.completeness))
        self._own = tuple(os.path.relpath(own, folder.root) for own in folder.own_dirs if _is_below(own, folder.root))
        self._last = _Place("", own=False, unfinished=False, mapped=self._fill([]))

    def map(self, path: bytes) -> Mapped:
        """Return where a file goes, or why it does not: ignored name, unsupported type, excluded, unmapped."""
        text = os.fsdecode(path)
        directory, _, name = text.rpartition("/")
        place = self._place_of(directory)
        if place.own or path in self._own:
            return Mapped(None, _OWN)
        if self._markers.match(name) or name == self._folder.root_marker:
            return Mapped(None, MARKER)  # also one with an unfinished name, such as .orders.csv.ok
        if place.unfinished or self._unfinished.match(name):
            return Mapped(None, _UNFINISHED)
        if not _matches(self._include, text, name):
            return Mapped(None, _NOT_INCLUDED if self._folder.include else _UNSUPPORTED)
        if self._folder.exclude and _matches(self._exclude, text, name):
            return Mapped(None, _EXCLUDED)
        return place.mapped

    def inside(self, directory: bytes) -> Mapped:
        """Return where the files of a directory below the root go, or why none does; empty for the root itself."""
        place = self._place_of(os.fsdecode(directory))
        if place.own:
            return Mapped(None, _OWN)
        return Mapped(None, _UNFINISHED) if place.unfinished else place.mapped

    def _place_of(self, directory: str) -> "_Place":
        """Return what the rules say of a directory; the last one is remembered, for a scan asks file by file."""
        place = self._last
        if place.directory != directory:
            path = os.fsencode(directory)
            own = any(path == own or path.startswith(own + b"/") for own in self._own)
            parts = directory.split("/") if directory else []
            unfinished = any(self._unfinished.match(part) for part in parts)
            place = self._last = _Place(directory, own, unfinished, self._fill(parts))
        return place

    def explain(self, path: bytes) -> str:
        """Return the reason of `map` for people: with the pattern that hides the file, and the part that it matches.

        What is counted stays the text before the colon. Slow: patterns are compiled and tried one by one.
        """
        reason = self.map(path).reason
        text = os.fsdecode(path)
        if reason == _UNFINISHED:
            return f"{reason}: {_hiding(UNFINISHED_NAMES, text.split('/'))}"
        if reason == _EXCLUDED:
            return f"{reason}: {_hiding(self._folder.exclude, [os.path.basename(text), text])}"
        if reason in {_NOT_INCLUDED, _UNSUPPORTED}:
            return f"{reason}: it matches none of {_shown(', '.join(self._wanted))}"
        return reason

    def _fill(self, directories: list[str]) -> Mapped:
        """Read the placeholders' values off the directories."""
        levels, folder = self._folder.levels, self._folder
        if len(directories) < len(levels):
            return Mapped(None, f"{UNMAPPED}: not inside {'/'.join(levels)}")
        if len(directories) > len(levels) and not folder.recursive:
            return Mapped(None, "in a sub-directory, and the folder is not recursive")
        values = {level.strip("{}"): value for level, value in zip(levels, directories, strict=False)}
        tenant = values.get("tenant", folder.target.tenant)
        if tenant not in folder.tenants:
            return Mapped(None, f"{UNMAPPED}: there is no tenant {tenant!r}{_nearest(tenant, folder.tenants)}")
        if any("\udc80" <= character <= "\udcff" for value in values.values() for character in value):
            return Mapped(None, f"{UNMAPPED}: a directory name is not UTF-8")
        return Mapped(replace(folder.target, **values))

    def enters(self, path: bytes) -> bool:
        """Tell whether a scan or a watch goes into this directory below the root."""
        return not self._too_deep(path) and not self._hides(path)

    def passes_by(self, path: bytes) -> bool:
        """Tell whether this directory is not gone into for the one reason that the folder is not recursive."""
        return self._too_deep(path) and not self._hides(path)

    def _too_deep(self, directory: bytes) -> bool:
        return not self._folder.recursive and directory.count(b"/") + 1 > len(self._folder.levels)

    def _hides(self, directory: bytes) -> bool:
        if directory in self._own:
            return True
        return self._unfinished.match(os.fsdecode(os.path.basename(directory))) is not None

    @property
    def deep(self) -> bool:
        """Tell whether any sub-directory is looked into."""
        return self._folder.recursive or bool(self._folder.levels)


def _marker_names(completeness: Completeness) -> tuple[str, ...]:
    """Return globs of the names that mark others as complete."""
    names = [completeness.batch_marker, completeness.batch_manifest]
    if completeness.when is CompleteWhen.MARKER:
        fixed = re.split(r"\{(?:name|stem)\}", completeness.marker)
        names.append("*".join(glob.escape(part) for part in fixed))
    return tuple(name for name in names if name)


def _is_below(path: bytes, root: bytes) -> bool:
    return path.startswith(root.rstrip(b"/") + b"/")


def _compile(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile globs into one case-insensitive pattern; none match nothing."""
    if not patterns:
        return re.compile(r"(?!)")
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns), re.IGNORECASE)


def _hiding(patterns: Iterable[str], parts: Sequence[str]) -> str:
    """Say which pattern hides which part: the first pair that matches, for one does."""
    part, pattern = next((part, one) for part in parts for one in patterns if _compile((one,)).match(part))
    return _shown(f"{pattern} hides {part}")


def _nearest(tenant: str, tenants: Iterable[str]) -> str:
    folded = {name.casefold(): name for name in sorted(tenants)}
    close = difflib.get_close_matches(tenant.casefold(), folded, n=1)
    return f"; the nearest is {folded[close[0]]!r}" if close else ""


def _shown(text: str) -> str:
    return display(os.fsencode(text))


def _matches(pattern: re.Pattern[str], path: str, name: str) -> bool:
    return pattern.match(name) is not None or pattern.match(path) is not None
