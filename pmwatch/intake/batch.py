"""Batches: files that only go together, after a marker beside them or as a manifest lists them.

State: the files that are complete by themselves and wait for the others, in memory only; a scan brings them back.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import translate
from typing import Final

from pmwatch.errors import SourceError
from pmwatch.files import look, open_regular, parent_directory
from pmwatch.intake.evidence import Answer, Evidence, batch_listed, batch_marked, shown_names
from pmwatch.intake.settle import Candidate
from pmwatch.model import Completeness, Fingerprint, display

_MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
_SHA256_LINE: Final = re.compile(rb"([0-9a-fA-F]{64})[ \t]+\*?(.+)")


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What a manifest lists: names in its directory, with their SHA-256 where it says so. `trouble`: it cannot be."""

    name: bytes
    sha256_of: dict[bytes, str]
    trouble: str = ""


class Batches:
    """Holds complete files back until their batch is whole. `no_writer` tells of a manifest that is being written."""

    def __init__(self, root: bytes, completeness: Completeness, no_writer: Callable[[bytes], Evidence]) -> None:
        self._root = root
        self._marker = completeness.batch_marker
        self._manifest = completeness.batch_manifest
        self._names = re.compile(translate(self._marker or self._manifest), re.IGNORECASE)  # as the rules know them
        self._no_writer = no_writer
        self._waiting: dict[bytes, Candidate] = {}

    @property
    def asked_for(self) -> bool:
        """Tell whether this folder has batches."""
        return bool(self._marker or self._manifest)

    def hold(self, candidate: Candidate) -> None:
        """Keep a complete file until its batch is whole."""
        what = self._marker or self._manifest
        self._waiting[candidate.path] = replace(candidate, waits_for=f"the {what} of its batch")

    def forget(self, path: bytes) -> None:
        """Drop a file: it changed, or is gone."""
        self._waiting.pop(path, None)

    def waiting(self) -> list[Candidate]:
        """Return what is held, with what each waits for."""
        return list(self._waiting.values())

    def candidate(self, path: bytes) -> Candidate | None:
        """Return one file that is held."""
        return self._waiting.get(path)

    def released(self, unsettled: Iterable[Candidate]) -> list[Candidate]:
        """Return the files whose batch is whole now, each batch by (mtime, name), and forget them.

        `unsettled` are the files that are not complete yet; a batch waits for them, too.
        """
        by_directory: dict[bytes, list[Candidate]] = defaultdict(list)
        for candidate in self._waiting.values():
            by_directory[os.path.dirname(candidate.path)].append(candidate)
        open_ones: dict[bytes, list[Candidate]] = defaultdict(list)
        for candidate in unsettled:
            open_ones[os.path.dirname(candidate.path)].append(candidate)
        found: dict[bytes, Candidate] = {}
        for directory, held in by_directory.items():
            for batch in self._whole(directory, held, open_ones[directory]):
                came = max(one.batch for one in batch)
                for one in batch:  # two manifests may list one file: the one that names its hash counts
                    if one.expected_sha256 or one.path not in found:
                        found[one.path] = replace(one, batch=came)
        for path in found:
            self.forget(path)
        return sorted(found.values(), key=lambda candidate: candidate.rank)

    def _whole(self, directory: bytes, held: list[Candidate], open_ones: list[Candidate]) -> list[list[Candidate]]:
        """Return the batches of a directory that are whole, and of which nothing has changed since."""
        found = self._marked(directory, held, open_ones) if self._marker else self._listed(directory, held)
        return [batch for batch in found if all(self._is_still_there(one) for one in batch)]

    def _is_still_there(self, candidate: Candidate) -> bool:
        """Tell whether a file is what it was; nobody looks at one that waits here unless an event or a scan asks."""
        st = look(self._root, candidate.path)
        if st is None:
            self.forget(candidate.path)
        elif Fingerprint.of(st) != candidate.fingerprint:
            self._wait([candidate], "another look: it changed while it waited for its batch")
        else:
            return True
        return False

    # ---- a marker -----------------------------------------------------------------------------------------

    def _marked(self, directory: bytes, held: list[Candidate], open_ones: list[Candidate]) -> list[list[Candidate]]:
        """Return what is not newer than the newest marker, once all of that is complete."""
        newest = max((st.st_ctime_ns for _, st in self._entries(directory)), default=None)
        whole = list[Candidate]()
        for one in held:
            evidence = batch_marked(self._marker, newest_ns=newest, ctime_ns=one.fingerprint.ctime_ns)
            if evidence.answer is Answer.YES:
                whole.append(one)
            else:
                self._wait([one], evidence.sentence)
        late = [
            one
            for one in open_ones
            if newest is not None and one.fingerprint.ctime_ns <= newest and one.fingerprint.size
        ]
        if late:
            self._wait(whole, f"others of its batch: {shown_names(one.path for one in late)}")
        return [whole] if whole and not late else []

    # ---- a manifest ---------------------------------------------------------------------------------------

    def _listed(self, directory: bytes, held: list[Candidate]) -> list[list[Candidate]]:
        """Return what each manifest lists, once all of that has come."""
        here = {os.path.basename(candidate.path): candidate for candidate in held}
        found: list[list[Candidate]] = []
        self._wait(held, f"the {self._manifest} of its batch")
        for name, _ in self._entries(directory):
            manifest = self._read(directory, name)
            evidence = batch_listed(name, listed=manifest.sha256_of, here=here)
            if manifest.trouble:
                self._wait(here.values(), manifest.trouble)
            elif evidence.answer is not Answer.YES:
                self._wait([here[one] for one in manifest.sha256_of if one in here], evidence.sentence)
            else:
                found.append([replace(here[one], expected_sha256=said) for one, said in manifest.sha256_of.items()])
        return found

    def _read(self, directory: bytes, name: bytes) -> _Manifest:
        path = os.path.join(directory, name)
        if self._no_writer(path).answer is Answer.NO:
            return _Manifest(name, {}, f"{display(name)}, which is still being written")
        try:
            fd = open_regular(self._root, path)
            with os.fdopen(fd, "rb") as file:
                content = file.read(_MAX_MANIFEST_BYTES + 1)
        except SourceError as error:
            return _Manifest(name, {}, f"a manifest that can be read: {error.message}")
        except OSError as error:
            return _Manifest(name, {}, f"a manifest that can be read: {error.strerror}")
        return _parse(name, content)

    # ---- both ---------------------------------------------------------------------------------------------

    def _wait(self, held: Iterable[Candidate], what: str) -> None:
        for candidate in held:
            self._waiting[candidate.path] = replace(candidate, waits_for=what)

    def _entries(self, directory: bytes) -> list[tuple[bytes, os.stat_result]]:
        """Return names and stats of the markers or manifests in a directory, in the order of their names."""
        try:
            with parent_directory(self._root, os.path.join(directory, b"x")) as (fd, _), os.scandir(fd) as entries:
                found = [
                    (os.fsencode(entry.name), entry.stat(follow_symlinks=False))
                    for entry in entries
                    if self._names.match(entry.name) and entry.is_file(follow_symlinks=False)
                ]
        except (SourceError, OSError):
            return []
        return sorted(found, key=lambda one: one[0])


def _parse(name: bytes, content: bytes) -> _Manifest:
    if len(content) > _MAX_MANIFEST_BYTES:
        return _Manifest(name, {}, f"a smaller {display(name)}: it has more than 16 MiB")
    listed: dict[bytes, str] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        match = _SHA256_LINE.fullmatch(text)
        sha256, one = (match[1].decode().lower(), match[2]) if match else ("", text)
        if b"/" in one or one in (b".", b"..") or b"\0" in one:
            return _Manifest(name, {}, f"a right {display(name)}: line {number} names no file beside it")
        listed[one] = sha256
    if not listed:
        return _Manifest(name, {}, f"content in {display(name)}: it lists nothing")
    return _Manifest(name, listed)
