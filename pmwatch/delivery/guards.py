"""Guards: what must be true of a file before it goes without a person's word."""

from collections.abc import Callable
from typing import Final

from pmwatch.delivery.body import Source
from pmwatch.errors import Refused
from pmwatch.formats import MAX_MODEL_BYTES, Broken, check, decode_model, read_model
from pmwatch.model import MAX_PUT_BYTES, Delivery, Empty, Folder, OnInvalid, Validate, format_size

_HINT: Final = "A corrected file in its place goes by itself; to send this one as it is: pmwatch release {id}"


def guard(
    delivery: Delivery,
    folder: Folder,
    source: Source,
    *,
    last_size: Callable[[], int | None],
    beat: Callable[[], None],
) -> None:
    """Raise Refused where the folder's guards or the file's format speak against it. Reads the file to check it.

    `last_size` is asked for the size of the folder's last file, only where that matters. What a person released
    is not asked about again.
    """
    guards, size = folder.guards, source.fingerprint.size
    if size > MAX_PUT_BYTES:
        raise Refused(
            f"{size} bytes are more than one upload takes (5 GiB)",
            reason="too_large",
            hint="Split the export into files below 5 GiB.",
            fail=True,
        )
    if delivery.released:
        return
    if not size:
        if guards.empty is Empty.FAIL:
            raise Refused("it is empty", reason="empty", hint=_hint(delivery), fail=True)
        if not delivery.target.process:
            return
    _guard_size(delivery, folder, size, last_size)
    if delivery.target.process:
        try:
            read_model(_content(source, beat))
        except Broken as broken:
            raise _refused(delivery, folder, "invalid", broken.sentence) from None
    if guards.validate is not Validate.OFF:
        finding = check(
            source.fileno(),
            delivery.path.rpartition(b"/")[2].decode("utf-8", "replace"),
            validate=guards.validate,
            require_columns=guards.require_columns,
            beat=beat,
        )
        if finding.ok is False:
            raise _refused(delivery, folder, "invalid", finding.sentence)


def model_text(source: Source, *, check: Callable[[], None]) -> str:
    """Return the BPMN model in a source as it goes into a request; `source` knows its hashes afterwards.

    Raises Refused where nothing could be sent: it is too large, or no text.
    """
    try:
        return decode_model(_content(source, check))
    except Broken as broken:
        raise Refused(broken.sentence, reason="invalid", hint="Export the model again as UTF-8.", fail=True) from None


def _content(source: Source, check: Callable[[], None]) -> bytes:
    if source.fingerprint.size > MAX_MODEL_BYTES:
        said = f"{format_size(source.fingerprint.size)} are more than a model may have"
        hint = f"A BPMN model of at most {format_size(MAX_MODEL_BYTES)} goes in one request."
        raise Refused(said, reason="too_large", hint=hint, fail=True)
    return b"".join(source.chunks(check=check))


def _guard_size(delivery: Delivery, folder: Folder, size: int, last_size: Callable[[], int | None]) -> None:
    guards = folder.guards
    if size < guards.min_size:
        said = f"{format_size(size)} are less than min_size ({format_size(guards.min_size)})"
        raise _refused(delivery, folder, "too_small", said)
    if size > guards.max_size:
        said = f"{format_size(size)} are more than max_size ({format_size(guards.max_size)})"
        raise _refused(delivery, folder, "too_large", said)
    last = last_size() if guards.shrink else None
    if last is not None and size < last * guards.shrink:
        said = f"{format_size(size)} are less than {guards.shrink:.0%} of the last file ({format_size(last)})"
        raise Refused(said, reason="shrunk", hint=_hint(delivery))


def guard_content(delivery: Delivery, sha256: str) -> None:
    """Raise Refused where the content is not what the manifest said, or not what went the first time."""
    expected = delivery.expected_sha256
    if not expected or sha256 == expected:
        return
    if delivery.resent:
        said = f"its SHA-256 is {sha256[:12]}…, and it was {expected[:12]}… when it went the first time"
        hint = "Somebody changed it since; nothing was sent. Restore it, or put the new version into the folder."
        raise Refused(said, reason="content_changed", hint=hint, fail=True)
    if not delivery.released:
        said = f"its SHA-256 is {sha256[:12]}…, and its manifest says {expected[:12]}…"
        raise Refused(said, reason="manifest_mismatch", hint=_hint(delivery))


def _refused(delivery: Delivery, folder: Folder, reason: str, said: str) -> Refused:
    return Refused(said, reason=reason, hint=_hint(delivery), fail=folder.guards.on_invalid is OnInvalid.FAIL)


def _hint(delivery: Delivery) -> str:
    return _HINT.format(id=delivery.id)
