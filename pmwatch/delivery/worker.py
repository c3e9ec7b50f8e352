"""One attempt after the other: claim a delivery, see that it is needed, presign, PUT, verify, dispose.

Each step raises one of pmwatch's errors; one place turns it into what the design says: back to the queue with
a time, a closed gate, held, failed or vanished. Nothing is logged here: `report` gets what happened.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pmwatch.delivery.body import Source
from pmwatch.delivery.dispose import dispose, quarantine, source_of
from pmwatch.delivery.gates import Gates
from pmwatch.delivery.remote import Remote, api_filename
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.errors import (
    AlreadyThere,
    ChecksumMismatch,
    Decision,
    DestinationUnknown,
    DisposeError,
    Interrupted,
    LedgerError,
    PmwatchError,
    Rejected,
    RemoteError,
    SourceChanged,
    SourceVanished,
    UrlExpired,
)
from pmwatch.ledger import Decided, Ledger, StaleClaim, Verdict
from pmwatch.model import MAX_PUT_BYTES, AfterUpload, Dedup, Delivery, Folder, State, Target
from pmwatch.processmind import Receipt, url_expiry, url_host

_URL_MARGIN_SECONDS: Final = 60.0
_HASH_FIRST_BYTES: Final = 1024 * 1024  # reading so little twice costs less than sending it twice
_WAIT_FOR_EQUAL_SECONDS: Final = 0.05
_LEDGER_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to a delivery.

    `what` is uploaded, duplicate, unchanged, retry, gate, held, failed, vanished,
    returned, disposed or dispose_failed; `put_seconds` is the time of the PUT alone.
    """

    what: str
    delivery: Delivery
    reason: str = ""
    message: str = ""
    hint: str = ""
    sha256: str = ""
    put_seconds: float = 0.0
    request_id: str = ""
    code: str = ""
    not_before: float = 0.0
    duplicate_of: int = 0
    older_version: bool = False
    etag_verified: bool | None = None
    location: bytes = b""


@dataclass(frozen=True, slots=True)
class _Sent:
    receipt: Receipt | None
    sha256: str
    seconds: float
    verified: bool | None


@dataclass(slots=True)
class _Progress:
    """What an attempt has reached; the error handler needs it."""

    url: str = ""
    gate: str = ""


class Uploader:
    """Works on deliveries until told to stop. Many threads may run one `Uploader`; what must last is in the ledger."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        remote: Remote,
        gates: Gates,
        folders: Callable[[], Mapping[str, Folder]],
        policy: RetryPolicy,
        report: Callable[[Report], None],
        look_again: Callable[[str, bytes], None],
        started: Callable[[Delivery], None] = lambda _: None,
        abort: threading.Event,
        beat: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._remote = remote
        self._gates = gates
        self._folders = folders
        self._policy = policy
        self._report = report
        self._look_again = look_again
        self._started = started
        self._abort = abort
        self._beat = beat
        self._now = now
        self._lock = threading.Lock()
        self._disposing: set[int] = set()

    # ---- what a thread calls ------------------------------------------------------------------------------

    def run_one(self) -> bool:
        """Work on one delivery, if any may go now; tell whether there was one."""
        tenants = {target.tenant for folder in self._folders().values() for target in _tenants_of(folder)}
        delivery = self._ledger.claim(now=self._now(), without_tenants=self._gates.shut_for(sorted(tenants)))
        if delivery is None:
            return self._dispose_one()
        if not self._gates.enter(delivery.target.tenant):
            self._return(delivery, "gate")
            return True
        self._attempt(delivery)
        return True

    def resolve_names(self, targets: Iterable[Target]) -> dict[Target, PmwatchError | None]:
        """Resolve names to ids; return how each target fared: None, or why it cannot be.

        Absent is what was not tried or failed for its tenant, whose gate is closed. Must run in one thread only.
        """
        fared: dict[Target, PmwatchError | None] = {}
        for target in targets:
            if not self._gates.enter(target.tenant):
                continue
            try:
                self._ledger.resolve(target, self._remote.resolve(target))
                fared[target] = None
            except (DestinationUnknown, Rejected) as error:
                fared[target] = error
            except RemoteError as error:
                self._gates.failed(target.tenant, error, retry_after=error.retry_after)
                continue
            except LedgerError:
                self._gates.left(target.tenant)
                raise
            except PmwatchError as error:
                self._gates.failed(target.tenant, error)
                continue
            self._gates.succeeded(target.tenant)
        return fared

    def _check(self) -> None:
        """Make a turn in the middle of long work. Raises Interrupted once the attempt is to be given up."""
        self._beat()
        if self._abort.is_set():
            raise Interrupted("pmwatch is shutting down")

    # ---- one attempt --------------------------------------------------------------------------------------

    def _attempt(self, delivery: Delivery) -> None:
        folder = self._folders().get(delivery.folder)
        progress = _Progress(url=delivery.presigned_url, gate=delivery.target.tenant)
        if folder is None:
            self._gates.left(progress.gate)
            self._return(delivery, "folder_removed")
            return
        try:
            self._deliver(delivery, folder, progress)
        except StaleClaim:
            raise
        except LedgerError as error:
            self._give_back_somehow(delivery, error, progress)
        except PmwatchError as error:
            try:
                self._failed(delivery, folder, error, progress)
            except LedgerError as trouble:
                self._give_back_somehow(delivery, trouble, progress)
        finally:
            self._gates.left(delivery.target.tenant)
            if progress.gate != delivery.target.tenant:
                self._gates.left(progress.gate)

    def _deliver(self, delivery: Delivery, folder: Folder, progress: _Progress) -> None:
        with Source(*source_of(delivery, folder)) as source:
            _check_version(delivery, source)
            decided, sha256 = self._decide(delivery, folder, source)
            if decided.verdict is Verdict.SEND:
                sent = self._send(delivery, source, progress)
                _verify(sent, expected=sha256)  # a change after the last byte is the next version's business
                self._uploaded(delivery, folder, sent)
                return
        self._not_needed(delivery, folder, decided, sha256)

    def _decide(self, delivery: Delivery, folder: Folder, source: Source) -> tuple[Decided, str]:
        """Hash first where this content may have gone before; else send at once and hash on the way."""
        if folder.dedup is Dedup.OFF:
            return Decided(Verdict.SEND), ""
        large = source.fingerprint.size > _HASH_FIRST_BYTES
        if large and not delivery.previous_id and self._ledger.reserve_size(delivery):
            return Decided(Verdict.SEND), ""
        sha256 = source.hash(check=self._check)
        return self._ledger.decide(delivery, sha256, folder.dedup), sha256

    def _send(self, delivery: Delivery, source: Source, progress: _Progress) -> _Sent:
        """PUT, to the remembered URL where there is one; presign again, once, where it has expired."""
        repeated = self._is_usable(progress.url)
        if not repeated:
            self._presign(delivery, source, progress)
        self._enter_storage(delivery, progress)
        try:
            return self._put(delivery, source, progress, only_if_absent=repeated)
        except UrlExpired:
            self._gates.succeeded(progress.gate)  # the storage is well; trouble from here on is the API's again
            progress.gate = delivery.target.tenant
            self._presign(delivery, source, progress)
        self._enter_storage(delivery, progress)
        return self._put(delivery, source, progress, only_if_absent=False)

    def _is_usable(self, url: str) -> bool:
        expiry = url_expiry(url) if url else None
        return expiry is not None and expiry - _URL_MARGIN_SECONDS > self._now()

    def _presign(self, delivery: Delivery, source: Source, progress: _Progress) -> None:
        if source.fingerprint.size > MAX_PUT_BYTES:
            raise Rejected(
                f"{source.fingerprint.size} bytes are more than one upload takes (5 GiB)",
                hint="Split the export into files below 5 GiB.",
                reason="too_large",
            )
        progress.url = ""
        progress.url = self._remote.presign(delivery, source.fingerprint)
        self._gates.succeeded(delivery.target.tenant)
        self._ledger.remember_url(delivery, progress.url, source.fingerprint)

    def _enter_storage(self, delivery: Delivery, progress: _Progress) -> None:
        """Go through the storage host's gate as well, or turn back unharmed."""
        host = url_host(progress.url)
        self._gates.points_to(delivery.target.tenant, host)  # or what waits for a closed one would be claimed again
        if not self._gates.enter(host):
            raise _GateShut(f"waiting for {host}")
        progress.gate = host

    def _put(self, delivery: Delivery, source: Source, progress: _Progress, *, only_if_absent: bool) -> _Sent:
        started = time.monotonic()
        self._started(delivery)

        def open_body() -> Iterator[bytes]:
            return source.chunks(check=self._check)

        try:
            receipt = self._remote.put(
                progress.url,
                open_body,
                size=source.fingerprint.size,
                filename=api_filename(delivery.path),
                only_if_absent=only_if_absent,
            )
        except AlreadyThere:
            if not only_if_absent:
                raise
            self._gates.succeeded(progress.gate)
            return _Sent(None, source.hash(check=self._check), time.monotonic() - started, None)
        self._gates.succeeded(progress.gate)
        if source.fingerprint.size == 0:
            source.hash()
        verified = source.md5 == receipt.md5 if receipt.md5 else None
        return _Sent(receipt, source.sha256, time.monotonic() - started, verified)

    # ---- ends ---------------------------------------------------------------------------------------------

    def _uploaded(self, delivery: Delivery, folder: Folder, sent: _Sent) -> None:
        detail = {None: "etag not comparable", True: "etag verified"}.get(sent.verified, "")
        if sent.receipt is None:
            detail = "an earlier attempt had arrived"
        self._ledger.uploaded(
            delivery,
            sha256=sent.sha256,
            etag=sent.receipt.etag if sent.receipt else "",
            detail=detail,
            now=self._now(),
            dispose=_moves(folder),
        )
        self._report(
            Report(
                "uploaded",
                delivery,
                message=detail,
                sha256=sent.sha256,
                put_seconds=sent.seconds,
                request_id=sent.receipt.request_id if sent.receipt else "",
                etag_verified=sent.verified,
            )
        )
        self._dispose_after(delivery, folder)

    def _not_needed(self, delivery: Delivery, folder: Folder, decided: Decided, sha256: str) -> None:
        """End a delivery whose content went before, or wait for the equal one that is under way."""
        if decided.verdict is Verdict.WAIT:
            not_before = self._now() + _WAIT_FOR_EQUAL_SECONDS
            self._return(delivery, "equal_under_way", not_before=not_before)
        elif decided.verdict is Verdict.UNCHANGED:
            self._ledger.unchanged(delivery)
            self._report(Report("unchanged", delivery, sha256=sha256))
        else:
            self._ledger.duplicate(delivery, sha256=sha256, of=decided.of, now=self._now(), dispose=_moves(folder))
            self._report(
                Report("duplicate", delivery, sha256=sha256, duplicate_of=decided.of, older_version=decided.older)
            )
            self._dispose_after(delivery, folder)

    def _dispose_after(self, delivery: Delivery, folder: Folder) -> None:
        if not _moves(folder):
            return
        uploaded = self._ledger.get(delivery.id)
        if uploaded is not None:
            self._dispose(uploaded, folder)

    def _dispose_one(self) -> bool:
        delivery = self._ledger.claim_disposal(now=self._now())
        if delivery is None:
            return False
        folder = self._folders().get(delivery.folder)
        if folder is None:  # its policy is gone: leave the file, the upload is safe
            self._ledger.disposed(delivery, location=delivery.location, kept=True, now=self._now())
        else:
            self._dispose(delivery, folder)
        return True

    def _dispose(self, delivery: Delivery, folder: Folder) -> None:
        """Dispose of a source, unless another thread still is at it: a large copy outlives the ledger's lease."""
        with self._lock:
            if delivery.id in self._disposing:
                return
            self._disposing.add(delivery.id)
        try:
            self._dispose_alone(delivery, folder)
        finally:
            with self._lock:
                self._disposing.discard(delivery.id)

    def _dispose_alone(self, delivery: Delivery, folder: Folder) -> None:
        try:
            location, kept = dispose(delivery, folder, beat=self._beat)
        except DisposeError as error:
            not_before = self._now() + self._policy.wait(self._now() - delivery.uploaded_at)
            self._ledger.dispose_later(delivery, reason=error.reason, detail=error.message, not_before=not_before)
            self._report(_report_of("dispose_failed", delivery, error, not_before))
            return
        stays = _moves(folder) and kept  # a newer version stands there: it is news, whatever its bytes
        self._ledger.disposed(delivery, location=location, kept=kept and not stays, now=self._now())
        self._report(Report("disposed", delivery, location=location))
        if stays:
            self._look_again(delivery.folder, delivery.path)

    # ---- trouble ------------------------------------------------------------------------------------------

    def _return(self, delivery: Delivery, reason: str, *, not_before: float = 0.0, url: str | None = None) -> None:
        """Give a delivery back unharmed."""
        self._ledger.give_back(
            delivery,
            reason=reason,
            detail="",
            not_before=not_before,
            failed_at=delivery.first_failed_at,
            url=delivery.presigned_url if url is None else url,
        )
        self._report(Report("returned", delivery, reason=reason))

    def _give_back_somehow(self, delivery: Delivery, error: LedgerError, progress: _Progress) -> None:
        """Keep trying to give a delivery back to a ledger that cannot be written: nobody else ever would.

        Its URL is remembered, so that a PUT which had arrived is not sent a second time.
        """
        self._report(_report_of("ledger_trouble", delivery, error, 0.0))
        while not self._abort.wait(_LEDGER_RETRY_SECONDS):
            self._beat()
            try:
                self._return(delivery, error.reason, url=progress.url)
            except StaleClaim:
                return
            except LedgerError:
                continue
            return

    def _failed(self, delivery: Delivery, folder: Folder, error: PmwatchError, progress: _Progress) -> None:
        """Turn an error into the delivery's next state."""
        if isinstance(error, _GateShut | Interrupted):
            self._return(delivery, error.reason, url=progress.url)
        elif isinstance(error, SourceVanished | SourceChanged):
            self._vanished(delivery, error)
        elif error.decision is Decision.GATE:
            self._close_gate(delivery, error, progress)
        elif error.decision is Decision.RETRY:
            self._retry(delivery, folder, error, progress)
        elif error.decision is Decision.HOLD:
            self._end(delivery, State.HELD, error)
        else:
            self._fail(delivery, folder, error)

    def _vanished(self, delivery: Delivery, error: PmwatchError) -> None:
        """The version that settled is gone; what stands there now, if anything, is looked at afresh."""
        self._end(delivery, State.VANISHED, error)
        self._look_again(delivery.folder, delivery.path)

    def _close_gate(self, delivery: Delivery, error: PmwatchError, progress: _Progress) -> None:
        self._gates.failed(progress.gate, error, retry_after=getattr(error, "retry_after", None))
        self._ledger.give_back(
            delivery,
            reason=error.reason,
            detail=error.message,
            not_before=0.0,
            failed_at=delivery.first_failed_at,
            url=progress.url,
        )
        self._report(_report_of("gate", delivery, error, 0.0))

    def _retry(self, delivery: Delivery, folder: Folder, error: PmwatchError, progress: _Progress) -> None:
        now = self._now()
        failed_at = delivery.first_failed_at or now
        if error.of_file and self._policy.given_up(now - failed_at):
            self._fail(delivery, folder, error)
            return
        not_before = now + self._policy.wait(now - failed_at)
        url = "" if isinstance(error, UrlExpired | ChecksumMismatch) else progress.url
        self._ledger.give_back(
            delivery,
            reason=error.reason,
            detail=error.message,
            not_before=not_before,
            failed_at=failed_at,
            url=url,
        )
        self._report(_report_of("retry", delivery, error, not_before))

    def _fail(self, delivery: Delivery, folder: Folder, error: PmwatchError) -> None:
        self._end(delivery, State.FAILED, error)
        try:
            location = quarantine(delivery, folder, facts=_error_facts(delivery, error, self._now()), beat=self._beat)
        except DisposeError as trouble:
            self._report(_report_of("dispose_failed", delivery, trouble, 0.0))
            return
        if location:
            self._ledger.moved(delivery, location)

    def _end(self, delivery: Delivery, to: State, error: PmwatchError) -> None:
        self._ledger.end(
            delivery,
            to,
            reason=error.reason,
            detail=error.message,
            now=self._now(),
            location=delivery.location,
        )
        self._report(_report_of(str(to), delivery, error, 0.0))


class _GateShut(PmwatchError):
    """The storage host's gate is closed; the delivery turns back unharmed."""

    reason = "gate"
    decision = Decision.RETRY
    of_file = False


def _tenants_of(folder: Folder) -> list[Target]:
    if folder.target.tenant:
        return [folder.target]
    return [Target(name, "") for name in folder.tenants]


def _moves(folder: Folder) -> bool:
    return folder.after_upload is not AfterUpload.KEEP


def _check_version(delivery: Delivery, source: Source) -> None:
    if not source.fingerprint.same_content_as(delivery.fingerprint):
        raise SourceChanged("the file changed since it had settled")


def _verify(sent: _Sent, *, expected: str) -> None:
    """Raise unless what went is exactly the version that was opened, and the storage confirmed it."""
    if not sent.sha256:
        raise ChecksumMismatch("the storage confirmed the upload before it had all of it")
    if expected and sent.sha256 != expected:
        raise SourceChanged("the file changed while it was sent")
    if sent.verified is False:
        raise ChecksumMismatch(
            "the storage's ETag is not the MD5 of what was sent",
            hint="Something between here and there changes bytes.",
        )


def _report_of(what: str, delivery: Delivery, error: PmwatchError, not_before: float) -> Report:
    remote = error if isinstance(error, RemoteError) else None
    return Report(
        what,
        delivery,
        reason=error.reason,
        message=error.message,
        hint=error.hint,
        not_before=not_before,
        request_id=remote.request_id if remote else "",
        code=remote.code if remote else "",
    )


def _error_facts(delivery: Delivery, error: PmwatchError, now: float) -> dict[str, Any]:
    """Return what stands in `NAME.error.json`: for people, without any secret."""
    remote = error if isinstance(error, RemoteError) else None
    return {
        "file": delivery.display_path,
        "folder": delivery.folder,
        "target": str(delivery.target),
        "reason": error.reason,
        "message": error.message,
        "hint": error.hint,
        "s3_code": remote.code if remote else "",
        "request_id": remote.request_id if remote else "",
        "attempts": delivery.attempts,
        "size": delivery.fingerprint.size,
        "settled_at": _iso(delivery.settled_at),
        "failed_at": _iso(now),
        "again": f"pmwatch retry {delivery.id}",
    }


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
