"""What a person can do about a delivery that does not go by itself: why that is, and the commands that work now."""

import json
import os
from typing import Final

from pmwatch.delivery.dispose import NOTE_SUFFIX, error_file, source_of
from pmwatch.errors import SourceError
from pmwatch.files import is_away, look, open_regular, why_unseen
from pmwatch.ledger import Ledger
from pmwatch.model import MAX_PUT_BYTES, AfterUpload, Delivery, Folder, State, display

__all__ = ["NOTE_SUFFIX", "advice", "is_gone"]

_LARGEST_NOTE_BYTES: Final = 64 * 1024
_LONGEST_ID: Final = 200
_CORRECT: Final = "A corrected file in its place goes by itself."
_HINTS: Final = {
    "backlog": "It lay there before pmwatch started: pmwatch backfill sends all such files, pmwatch mark-seen none.",
    "checksum_mismatch": "Something between here and the storage changes bytes.",
    "content_changed": "Restore it as it was when it first went, or put the new version into the folder.",
    "crash_loop": "pmwatch ended each time that it was sent: please report this with the log.",
    "destination_unknown": "Create the datatable, set create_missing = true for the folder, or move the file.",
    "empty": _CORRECT,
    "folder_away": "Mount what it lies on; it goes on by itself.",
    "invalid": _CORRECT,
    "manifest_mismatch": _CORRECT,
    "rebuilt": "Whether it has gone before is not known: look at the datatable first.",
    "rejected": "ProcessMind refuses it as it is: ask its support with {request}.",
    "restored": "Whether it has gone before is not known: look at the datatable first.",
    "shrunk": _CORRECT,
    "too_large": "Split the export, or raise max_size where that is the limit; one upload takes at most 5 GiB.",
    "too_small": _CORRECT,
    "unreadable": "Give pmwatch's user read access to the file and its directories, or check the disk.",
}
_AS_IT_IS: Final = ("empty", "invalid", "manifest_mismatch", "too_large", "too_small")
"""Reasons of failed files for which another try finds the same, and only a person's word helps."""


def advice(delivery: Delivery, folder: Folder | None, ledger: Ledger) -> list[str]:
    """Say what helps a delivery that waits, failed or is held; `folder` is None where it is no longer configured."""
    if delivery.state not in (State.HELD, State.FAILED):
        waits = delivery.state in (State.QUEUED, State.UPLOADED)
        return [hint for hint in (_hint(delivery, folder),) if hint and waits]
    give_up = f"pmwatch discard {delivery.id}"
    if folder is None:
        return [f"Bring folder {delivery.folder} back into the configuration; to drop it: {give_up}"]
    if is_gone(delivery, folder):
        return [f"It is no longer on disk, so it cannot go: put it back, or give it up: {give_up}"]
    said = [hint for hint in (_hint(delivery, folder),) if hint]
    if delivery.fingerprint.size > MAX_PUT_BYTES:
        return [*said, f"To drop it: {give_up}"]
    if delivery.state is State.FAILED and delivery.reason not in _AS_IT_IS:
        return [*said, f"Once the cause is gone: pmwatch retry {delivery.id}; to drop it: {give_up}"]
    return [*said, f"To send it as it is: {_release(delivery, ledger)}; to drop it: {give_up}"]


def _release(delivery: Delivery, ledger: Ledger) -> str:
    """Return the command that releases a delivery, as it is accepted now."""
    newer = ledger.overtaken(delivery.id)
    if newer is None:
        return f"pmwatch release {delivery.id}"
    return f"pmwatch release {delivery.id} --force ({newer.display_path} went meanwhile, so it would arrive after it)"


def is_gone(delivery: Delivery, folder: Folder) -> bool:
    """Tell whether a source is gone for certain: not merely out of sight, or on what is not mounted now.

    Nor on its way into quarantine, or where a crash has left it there, which the next attempt finds out.
    """
    if delivery.state is State.FAILED and delivery.not_before:
        return False
    root, path = source_of(delivery, folder)
    if look(root, path) is not None or why_unseen(root, path):
        return False
    return not is_away(root, path, delivery.fingerprint.device, marker="" if delivery.location else folder.root_marker)


def _hint(delivery: Delivery, folder: Folder | None) -> str:
    """Return what is known to help against a delivery's reason."""
    if delivery.reason == "dispose":
        return _dispose_hint(delivery, folder)
    if delivery.reason == "destination_unknown" and delivery.target.process:
        return "Create the process, or move the file."
    request = _request_id(delivery, folder) if folder is not None and delivery.reason == "rejected" else ""
    known = f"the request id {request}" if request else "the request id in the log"
    return _HINTS.get(delivery.reason, "").format(request=known)


def _dispose_hint(delivery: Delivery, folder: Folder | None) -> str:
    again = "It is tried again by itself."
    if not delivery.detail.endswith(("Permission denied", "Operation not permitted", "Read-only file system")):
        return again
    deleting = folder is None or folder.after_upload is AfterUpload.DELETE
    where = "its directory" if folder is None or deleting else f"its directory and {display(folder.archive_dir)}"
    return f"Give pmwatch's user write access to {where}. {again}"


def _request_id(delivery: Delivery, folder: Folder) -> str:
    """Return the request's id from the note in quarantine, where that can be read and is of this delivery."""
    note = error_file(delivery.location or os.path.join(folder.quarantine_dir, delivery.path))
    try:
        with open(open_regular(os.path.dirname(note), os.path.basename(note)), "rb") as file:
            facts = json.loads(file.read(_LARGEST_NOTE_BYTES))
    except (SourceError, OSError, ValueError, RecursionError):
        return ""
    if not isinstance(facts, dict) or facts.get("again") != f"pmwatch retry {delivery.id}":
        return ""
    said = str(facts.get("request_id") or "")[:_LONGEST_ID]
    return display(said.encode("utf-8", "surrogatepass"))
