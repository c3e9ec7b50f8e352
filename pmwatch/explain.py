"""`why`: where a file is and what it waits for, in plain words. Answers from the ledger, and live where it can."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import quote

from pmwatch.errors import SourceError
from pmwatch.files import look, open_regular, why_unseen
from pmwatch.formats import check
from pmwatch.intake.evidence import marked, no_writer, renamed_into_place
from pmwatch.intake.rules import Rules
from pmwatch.intake.settle import TURN, Candidate
from pmwatch.ledger import Blocker, Ledger
from pmwatch.model import (
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
) -> Answer:
    """Explain one absolute path. `candidate_of` knows the settling files; None where pmwatch does not run.

    `trouble_of` knows what a target waits for on the other side: a closed gate, a name that does not exist. Where there
    is nothing of that name, it may be the printed form of one with other bytes.
    """
    known = _Known(tuple(folders), ledger, candidate_of, now, trouble_of)
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


def _explain(path: bytes, known: _Known) -> Answer:
    ledger, now = known.ledger, known.now
    found = next(
        ((folder, below) for folder in known.folders if (below := _below(folder.root, path)) is not None), None
    )
    if found is None:
        return Answer(path, "", "unwatched", ["No folder of the configuration contains it."])
    folder, below = found
    history = ledger.find(folder.name, below) if ledger is not None else []
    running = known.candidate_of is not None
    sentences = [] if running else ["pmwatch does not run with this configuration: not watched now."]
    candidate = known.candidate_of(folder.name, below) if known.candidate_of is not None else None
    verdict, said = _verdict(folder, below, history, candidate, now)
    if history and ledger is not None:
        said += _waits(history[0], ledger, now)
    if history and history[0].state is State.QUEUED:
        said += [trouble for trouble in (known.trouble_of(history[0].target),) if trouble]
    if history and history[0].state is State.UPLOADING and not running:
        said = ["It was being uploaded when pmwatch ended; it goes again at the next start."]
    return Answer(path, folder.name, verdict, sentences + said, [as_dict(delivery) for delivery in history])


def _below(root: bytes, path: bytes) -> bytes | None:
    path = os.path.normpath(path)
    prefix = root.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _verdict(  # noqa: PLR0911  one return for each verdict
    folder: Folder, below: bytes, history: list[Delivery], candidate: Candidate | None, now: float
) -> tuple[str, list[str]]:
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
        return str(newest.state), [_state_sentence(newest, now)]
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
    waits = "It has changed since the last look, when it waited for" if changed else "It waits for"
    said = [f"Seen {age} ago; {state}.", f"{waits} {candidate.waits_for}."]
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
    target = display(str(delivery.target).encode("utf-8", "surrogatepass"))
    age = format_duration(max(0.0, now - (delivery.finished_at or delivery.settled_at)))
    because = f" ({delivery.reason}: {delivery.detail})" if delivery.reason else ""
    sentences = {
        State.QUEUED: f"It is complete ({size}) and waits for its upload to {target}{because}.",
        State.UPLOADING: f"It is being uploaded to {target} ({size}), attempt {delivery.attempts}.",
        State.UPLOADED: f"It reached {target}; its source is still to be archived or deleted{because}.",
        State.DONE: f"It ended as {delivery.outcome} {age} ago ({size}, SHA-256 {delivery.sha256[:12] or 'unknown'}…).",
        State.HELD: f"It is held for a person{because}. {_HELD_HINTS.get(delivery.reason, '')}"
        f"To send it as it is: pmwatch release {delivery.id}; to drop it: pmwatch discard {delivery.id}",
        State.FAILED: f"It failed {age} ago{because}. Once the cause is gone: pmwatch retry {delivery.id}",
        State.VANISHED: f"The version that had settled was gone before its upload{because}.",
    }
    return sentences[delivery.state]


_HELD_HINTS: Final = {"backlog": "It lay there before pmwatch started: pmwatch backfill, or pmwatch mark-seen. "}


def _waits(delivery: Delivery, ledger: Ledger, now: float) -> list[str]:
    said = []
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
