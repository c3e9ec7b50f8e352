"""`why`: where a file is and what it waits for, in plain words. Answers from the ledger, and live where it can."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import quote

from pmwatch.advice import NOTE_SUFFIX, advice
from pmwatch.errors import SourceError
from pmwatch.files import is_directory, look, open_regular, why_unseen
from pmwatch.formats import check
from pmwatch.intake.evidence import marked, no_writer, renamed_into_place
from pmwatch.intake.rules import Rules
from pmwatch.intake.settle import TURN, Candidate
from pmwatch.ledger import Blocker, Ledger
from pmwatch.model import (
    BY_HAND,
    CompleteWhen,
    Delivery,
    Empty,
    Fingerprint,
    Folder,
    Outcome,
    State,
    Target,
    Validate,
    display,
    file_kind,
    format_duration,
    format_size,
    parse_duration,
    undisplay,
)
from pmwatch.places import Place, place_of, spellings

CandidateOf = Callable[[str, bytes], Candidate | None]
"""Tells of a folder, by its name, and a path below its root which file is settling there."""

_MOST_LISTED: Final = 10_000
_LOOKED_INTO_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a path. `verdict` is one word, `sentences` are for people, `history` newest first."""

    path: bytes
    folder: str
    verdict: str
    sentences: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; `path_encoded` keeps every byte of a path, as `?path=` takes it."""
        return {
            "path": display(self.path),
            "path_encoded": quote(self.path),
            "folder": self.folder,
            "verdict": self.verdict,
            "sentences": self.sentences,
            "history": self.history,
        }


def why(
    path: bytes,
    *,
    folders: Iterable[Folder],
    ledger: Ledger | None,
    candidate_of: CandidateOf | None,
    now: float,
    trouble_of: Callable[[Target], str] = lambda _: "",
    unasked: str = "",
) -> Answer:
    """Explain one absolute path. `candidate_of` knows the settling files; None where pmwatch was not asked.

    `unasked` says why not, where it runs all the same. `trouble_of` knows what a target waits for on the other side: a
    closed gate, a name that does not exist. Where there is nothing of that name, it may be the printed form of one with
    other bytes.
    """
    known = _Known(tuple(folders), ledger, candidate_of, now, trouble_of, unasked)
    answer = _explain(path, known)
    meant = undisplay(path)
    if meant == path or answer.verdict not in _NOTHING:
        return answer
    other = _explain(meant, known)
    return answer if other.verdict in _NOTHING else other


_NOTHING: Final = ("absent", "unwatched")


@dataclass(frozen=True, slots=True)
class _Known:
    """What `why` may ask."""

    folders: tuple[Folder, ...]
    ledger: Ledger | None
    candidate_of: CandidateOf | None
    now: float
    trouble_of: Callable[[Target], str]
    unasked: str


def _explain(path: bytes, known: _Known) -> Answer:
    place = place_of(path, known.folders)
    if place is None:
        return _elsewhere(path, known)
    if place.is_own:
        return _kept(path, place, known)
    folder, below = place.folder, place.below
    if not below or is_directory(folder.root, below):
        return Answer(path, folder.name, "directory", [_directory_sentence(folder, below)])
    history = known.ledger.find(folder.name, below) if known.ledger is not None else []
    running = known.candidate_of is not None or bool(known.unasked)
    candidate = known.candidate_of(folder.name, below) if known.candidate_of is not None else None
    verdict, said = _verdict(place, history, candidate, known)
    if verdict == State.UPLOADING and not running:
        said = ["It was being uploaded when pmwatch ended; it goes again at the next start."]
    elif history:
        said += _waits(history[0], known)
    else:
        said += _by_hand(place.path, known)
    if known.candidate_of is None:
        not_running = "pmwatch does not run with this configuration: not watched now"
        said.insert(0, f"{known.unasked or not_running}.")
    return Answer(path, folder.name, verdict, said, [as_dict(delivery) for delivery in history])


def _directory_sentence(folder: Folder, below: bytes) -> str:
    """Say what becomes of files in a directory of a folder."""
    what = f"a directory of folder {folder.name}" if below else f"the directory that folder {folder.name} watches"
    mapped = Rules(folder).inside(below)
    if mapped.target is not None:
        return f"It is {what}: files in it go to {_shown(mapped.target)}."
    deeper = f"; they go by the directories {'/'.join(folder.levels)} below it" if folder.levels and not below else ""
    return f"It is {what}: files in it are not taken, {_printable(mapped.reason)}{deeper}."


def _kept(path: bytes, place: Place, known: _Known) -> Answer:
    """Tell of what lies in pmwatch's own directories: the delivery that it belongs to."""
    folder, where = place.folder, _own_name(place)
    note = place.path.removesuffix(NOTE_SUFFIX)
    found = known.ledger.locations([place.path, note]) if known.ledger is not None else {}
    delivery = found.get(place.path) or found.get(note) or _linked(place, known)
    if delivery is not None:
        is_note = place.path != delivery.location and path.endswith(NOTE_SUFFIX)
        said = f"It {'tells about' if is_note else 'is'} delivery {delivery.id}, {delivery.display_path}"
        return _story(path, delivery, known, f"{said} of folder {delivery.folder}, kept in {where} by pmwatch itself.")
    if not place.below or is_directory(place.directory, place.below):
        return Answer(path, folder.name, "directory", [f"It belongs to {where}, which only pmwatch itself fills."])
    if look(place.directory, place.below) is None:
        return Answer(path, folder.name, "absent", [f"It is not there, and the ledger knows of none in {where}."])
    return Answer(path, folder.name, "ignored", [f"It lies in {where}, and belongs to no file that the ledger knows."])


def _own_name(place: Place) -> str:
    kinds = {place.folder.archive_dir: "the archive", place.folder.quarantine_dir: "the quarantine"}
    kind = kinds.get(place.directory, "pmwatch's own directory")
    return f"{kind} of folder {place.folder.name}"


def _linked(place: Place, known: _Known) -> Delivery | None:
    """Return the failed delivery whose file stayed in its folder, and has only a link and a note in quarantine."""
    if known.ledger is None or place.directory != place.folder.quarantine_dir or not place.below:
        return None
    history = known.ledger.find(place.folder.name, place.below.removesuffix(NOTE_SUFFIX))
    return next((one for one in history if one.state is State.FAILED and not one.location), None)


def _elsewhere(path: bytes, known: _Known) -> Answer:
    """Tell of a path in no folder: sent by hand, or by a folder that was configured once."""
    outside = "No folder of the configuration contains it."
    for spelled in dict.fromkeys(spellings(path)) if known.ledger is not None else ():
        assert known.ledger is not None
        sent = known.ledger.find(BY_HAND, spelled)
        if sent:
            return _story(path, sent[0], known, f"{outside} It was sent with pmwatch upload.")
        moved = known.ledger.locations([spelled]).get(spelled)
        once = moved or _once_configured(spelled, known, known.ledger)
        if once is not None:
            was = f"It came by folder {once.folder}, which is no longer in the configuration."
            return _story(path, once, known, was)
    return Answer(path, "", "unwatched", [outside])


def _once_configured(path: bytes, known: _Known, ledger: Ledger) -> Delivery | None:
    """Return the newest delivery of a folder without an entry whose path this one ends with, if it is that file."""
    gone = {name for name, _ in ledger.counts()} - {folder.name for folder in known.folders} - {BY_HAND}
    st = look(os.path.dirname(path), os.path.basename(path))
    parts = path.split(b"/")
    for start in range(1, len(parts)) if gone else ():
        for name in sorted(gone):
            found = ledger.find(name, b"/".join(parts[start:]))
            if found and (st is None or found[0].fingerprint.same_content_as(Fingerprint.of(st))):
                return found[0]
    return None


def _story(path: bytes, delivery: Delivery, known: _Known, beginning: str) -> Answer:
    """Tell of one delivery, and of those of its path before it."""
    assert known.ledger is not None
    history = [one for one in known.ledger.find(delivery.folder, delivery.path) if one.id <= delivery.id]
    said = [beginning, _state_sentence(delivery, known.now), *_advice(delivery, known)]
    return Answer(path, delivery.folder, str(delivery.state), said, [as_dict(one) for one in history])


def _by_hand(path: bytes, known: _Known) -> list[str]:
    """Say when a file of a folder, which the folder has not sent, went by hand."""
    sent = known.ledger.find(BY_HAND, path) if known.ledger is not None else []
    return [f"It was sent with pmwatch upload. {_state_sentence(sent[0], known.now)}"] if sent else []


def _advice(delivery: Delivery, known: _Known) -> list[str]:
    folder = next((one for one in known.folders if one.name == delivery.folder), None)
    return advice(delivery, folder, known.ledger) if known.ledger is not None else []


def _verdict(  # noqa: PLR0911  one return for each verdict
    place: Place, history: list[Delivery], candidate: Candidate | None, known: _Known
) -> tuple[str, list[str]]:
    folder, below, now = place.folder, place.below, known.now
    st = look(folder.root, below)
    rules = Rules(folder)
    if candidate is not None:
        return _settling(folder, below, candidate, Fingerprint.of(st) if st else candidate.fingerprint, now)
    newest = history[0] if history else None
    unseen = why_unseen(folder.root, below) if st is None and newest is None else ""
    if unseen:
        return "unreadable", [f"Nobody can tell: {unseen}.", "Give pmwatch's user access to the directories above it."]
    if st is None and newest is None:
        return "absent", ["It is not there, and the ledger never saw it."]
    if newest is not None and (st is None or newest.fingerprint.same_content_as(Fingerprint.of(st))):
        return str(newest.state), [_state_sentence(newest, now), *_advice(newest, known)]
    if rules.map(below).target is None:
        return "ignored", [f"It is ignored: {rules.explain(below)}."]
    assert st is not None
    if file_kind(st.st_mode):
        return "ignored", [f"It is a {file_kind(st.st_mode)}, not a regular file."]
    if st.st_size == 0 and folder.guards.empty is Empty.SKIP:
        return "empty", ["It is empty; it waits for content."]
    said = ["It is not in the ledger in its present form; the next look takes it up."]
    return "new", said + _evidence(folder, below, Fingerprint.of(st), renamed=False)


def _settling(
    folder: Folder, below: bytes, candidate: Candidate, seen: Fingerprint, now: float
) -> tuple[str, list[str]]:
    """Speak of the file as it is now, which may be more than what pmwatch's last look saw."""
    if not seen.size and folder.guards.empty is Empty.SKIP:
        return "empty", ["It is empty; it waits for content."]
    age = format_duration(now - candidate.seen_at)
    state = "it is complete" if candidate.waits_for == TURN else "it may still be written"
    changed = seen != candidate.fingerprint
    waits = "It has changed since the last look, and the next one judges it anew." if changed else ""
    said = [f"Seen {age} ago; {state}.", waits or f"It waits for {candidate.waits_for}."]
    return "settling", said + _evidence(folder, below, seen, renamed=candidate.renamed and not changed)


def _evidence(folder: Folder, below: bytes, seen: Fingerprint, *, renamed: bool) -> list[str]:
    """Say what speaks for and against a file being complete, the strongest first."""
    found = []
    if folder.completeness.when is CompleteWhen.MARKER:
        found.append(marked(folder.root, below, folder.completeness.marker, ctime_ns=seen.ctime_ns))
    found.append(renamed_into_place(renamed=renamed, mtime_ns=seen.mtime_ns))
    found.append(no_writer(folder.root, below))
    return [f"Evidence: {one.answer}, {one.sentence}." for one in found] + _format_evidence(folder, below, seen.size)


def _format_evidence(folder: Folder, below: bytes, size: int) -> list[str]:
    """Say how the file ends, where looking takes no time; it only counts where the folder validates."""
    if not 0 < size <= _LOOKED_INTO_BYTES:
        return []
    try:
        fd = open_regular(folder.root, below)
        try:
            name = os.path.basename(below).decode("utf-8", "replace")
            finding = check(fd, name, validate=Validate.STRUCTURE)
        finally:
            os.close(fd)
    except SourceError as error:
        return [f"Evidence: unknown, {error.message}."]
    answer = {True: "yes", False: "no", None: "unknown"}[finding.ok]
    counts = "" if folder.guards.validate is not Validate.OFF else ' (it does not count: validate is "off")'
    return [f"Evidence: {answer}, {finding.sentence}{counts}."]


def _state_sentence(delivery: Delivery, now: float) -> str:
    size = format_size(delivery.fingerprint.size)
    target = _shown(delivery.target)
    age = format_duration(max(0.0, now - (delivery.finished_at or delivery.settled_at)))
    because = f" ({': '.join(part for part in (delivery.reason, delivery.detail) if part)})" if delivery.reason else ""
    sentences = {
        State.QUEUED: f"It is complete ({size}) and waits for its upload to {target}{because}.",
        State.UPLOADING: f"It is being uploaded to {target} ({size}), attempt {delivery.attempts}.",
        State.UPLOADED: f"It reached {target}; its source is still to be archived or deleted{because}.",
        State.DONE: f"It ended as {delivery.outcome} {age} ago ({size}, SHA-256 {delivery.sha256[:12] or 'unknown'}…).",
        State.HELD: f"It is held for a person{because}.",
        State.FAILED: f"It failed {age} ago{because}.",
        State.VANISHED: f"The version that had settled was gone before its upload{because}.",
    }
    return sentences[delivery.state]


def _shown(target: Target) -> str:
    return _printable(str(target))


def _printable(text: str) -> str:
    return display(text.encode("utf-8", "surrogateescape"))


def _waits(delivery: Delivery, known: _Known) -> list[str]:
    said, ledger, now = list[str](), known.ledger, known.now
    assert ledger is not None
    if delivery.state is State.QUEUED and delivery.not_before > now:
        said.append(f"The next attempt is due in {format_duration(delivery.not_before - now)}.")
    if delivery.state is State.QUEUED and delivery.destination is None:
        said.append("Its datatable's name is not resolved to an id yet.")
    blocker = ledger.blocker(delivery) if delivery.state is State.QUEUED else None
    if blocker is not None:
        said.append(f"An earlier file goes first: {blocker.display_path} of folder {blocker.folder} ({blocker.state}).")
        said += [freeing(blocker)] if blocker.first_failed_at or blocker.finished_at else []
    if delivery.state is State.DONE and delivery.duplicate_of:
        first = ledger.get(delivery.duplicate_of)
        if first is not None:
            said.append(f"The same content went before as {first.display_path} of folder {first.folder}.")
    if delivery.location:
        said.append(f"It lies in {display(delivery.location)} now.")
    if delivery.state is State.QUEUED:
        said += [trouble for trouble in (known.trouble_of(delivery.target),) if trouble]
    return said


_HISTORY_KEYS: Final = ("folder", "state", "outcome", "since", "limit")


def history(ledger: Ledger, asked: Mapping[str, str], *, now: float) -> dict[str, Any]:
    """Answer `pmwatch history`: deliveries by folder, state, outcome and age, newest first, and what people did.

    `asked` holds texts, as a query string does: `since` is a duration such as `"2h"`. Raises ValueError with
    what is allowed.
    """
    unknown = set(asked) - set(_HISTORY_KEYS)
    if unknown:
        raise ValueError(f"{min(unknown)}: unknown; known are {', '.join(_HISTORY_KEYS)}")
    state, outcome, limit = asked.get("state"), asked.get("outcome"), asked.get("limit", "50")
    for key, value, allowed in (("state", state, State), ("outcome", outcome, Outcome)):
        if value and value not in list(allowed):
            raise ValueError(f"{key}: {value!r} is none of {', '.join(allowed)}")
    if not limit.isdecimal() or not 1 <= int(limit) <= _MOST_LISTED:
        raise ValueError(f"limit: {limit!r} is no number from 1 to {_MOST_LISTED}")
    since = now - parse_duration(asked["since"]) if asked.get("since") else 0.0
    found = ledger.history(
        folder=asked.get("folder"),
        states=(State(state),) if state else (),
        outcome=outcome,
        since=since,
        limit=int(limit),
    )
    done = [asdict(one) for one in ledger.actions(limit=int(limit)) if one.at >= since]
    return {"deliveries": [as_dict(one) for one in found], "actions": done}


def freeing(delivery: Delivery) -> str:
    """Return what a person can do about a delivery behind which others wait."""
    if delivery.state in (State.HELD, State.FAILED):
        id_ = delivery.id
        return (
            f"pmwatch retry {id_} tries it again, pmwatch release {id_} sends it as it is, pmwatch discard {id_} gives "
            "it up; each lets the others go."
        )
    return f"It is tried again by itself; pmwatch discard {delivery.id} gives it up and lets the others go."


def blocker_as_dict(blocker: Blocker) -> dict[str, Any]:
    """Return a delivery behind which others wait for JSON: how many wait, since when, and what a person can do."""
    one = blocker.delivery
    return {
        "id": one.id,
        "folder": one.folder,
        "path": one.display_path,
        "state": str(one.state),
        "reason": one.reason,
        "detail": one.detail,
        "waiting": sum(blocker.waiting.values()),
        "since": one.first_failed_at or one.finished_at,
        "hint": freeing(one),
    }


def needing_a_person(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the newest failed and held deliveries for JSON: they may be far behind what came since."""
    return [as_dict(delivery) for delivery in ledger.list(states=(State.FAILED, State.HELD), limit=20)]


def as_dict(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery for JSON; the presigned URL is a secret and stays out."""
    return {
        "id": delivery.id,
        "folder": delivery.folder,
        "path": delivery.display_path,
        "target": str(delivery.target),
        "state": str(delivery.state),
        "outcome": delivery.outcome,
        "reason": delivery.reason,
        "detail": delivery.detail,
        "size": delivery.fingerprint.size,
        "sha256": delivery.sha256,
        "etag": delivery.etag,
        "row_count": delivery.row_count,
        "attempts": delivery.attempts,
        "seen_at": delivery.seen_at,
        "settled_at": delivery.settled_at,
        "uploaded_at": delivery.uploaded_at,
        "finished_at": delivery.finished_at,
        "not_before": delivery.not_before,
        "duplicate_of": delivery.duplicate_of,
        "resent": delivery.resent,
        "location": display(delivery.location),
    }
