"""One run of attempts after the other: claim, see what is needed, presign, PUT, verify, dispose.

A run is one delivery, or several small ones of one lane: what costs the same for one as for many (a commit, a
round trip) is done once for all of them, but they are PUT one after the other, in their order.

Each step raises one of pmwatch's errors; one place turns it into what the design says: back to the queue with
a time, a closed gate, held, failed or vanished. Nothing is logged here: `report` gets what happened.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from pmwatch.delivery.ahead import Ahead
from pmwatch.delivery.body import Source
from pmwatch.delivery.disposals import Disposals
from pmwatch.delivery.dispose import clear_quarantine, dispose_all, find_again, quarantine, source_of
from pmwatch.delivery.gates import Gates
from pmwatch.delivery.guards import guard, guard_content, model_text
from pmwatch.delivery.limits import Limits
from pmwatch.delivery.pace import Pace
from pmwatch.delivery.remote import LONGEST_VALID_SECONDS, Remote, api_filename
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.errors import (
    AlreadyThere,
    AnswerLost,
    ChecksumMismatch,
    Decision,
    DestinationUnknown,
    DisposeError,
    Interrupted,
    LedgerError,
    PmwatchError,
    Rejected,
    RemoteError,
    SourceAway,
    SourceChanged,
    SourceVanished,
    Throttled,
    UrlExpired,
)
from pmwatch.failpoints import reached
from pmwatch.files import is_away
from pmwatch.ledger import Arrived, Decided, Disposed, Ledger, StaleClaim, Verdict
from pmwatch.model import AfterUpload, Dedup, Delivery, Destination, Folder, Order, Outcome, State, Target
from pmwatch.processmind import Receipt, url_expiry, url_host

_URL_MARGIN_SECONDS: Final = 60.0
_LONG_UPLOAD_SECONDS: Final = 30.0
_RUN_FILES: Final = 32
_URLS_AT_A_TIME: Final = 4
_LONGEST_UNSAID_SECONDS: Final = 0.25  # how long an arrival may wait to share a commit with the next ones
_MOVING_WAIT_SECONDS: Final = 1.0
_WAIT_FOR_EQUAL_SECONDS: Final = 0.05
_EQUAL_BYTES_A_SECOND: Final = 100e6  # a fifth of how fast it is hashed, which each look at it does again
_LEDGER_RETRY_SECONDS: Final = 1.0
_MOST_SHARED: Final = 0.75  # of `give_up_after`: the age up to which trouble counts that other files have as well


_SEND: Final = Decided(Verdict.SEND)
SMALL_BYTES: Final = 1024 * 1024
"""Up to here a source is hashed before it is sent, for reading so little twice costs less than sending it twice."""


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


@dataclass(slots=True)
class _Attempt:
    """What an attempt has reached. `gate` is whose trouble an error would be: the tenant's or the storage host's."""

    delivery: Delivery
    folder: Folder
    url: str
    gate: str
    repeated: bool = False  # the URL is from an earlier attempt, whose bytes may have arrived, and still valid
    source: Source | None = None
    sha256: str = ""
    decided: Decided = _SEND

    @property
    def needs_url(self) -> bool:
        """Tell whether it goes to the storage, and by a new URL."""
        return self.decided.verdict is Verdict.SEND and not self.delivery.target.process and not self.repeated


@dataclass(frozen=True, slots=True)
class _Sent:
    attempt: _Attempt
    receipt: Receipt | None
    sha256: str
    seconds: float
    verified: bool | None
    at: float


class _Run:
    """Deliveries of one lane and tenant that were claimed together: `left` are those that still are this claim's."""

    def __init__(self, deliveries: list[Delivery]) -> None:
        self.tenant = deliveries[0].target.tenant
        self.left = {one.id: one for one in deliveries}
        self.attempts: list[_Attempt] = []
        self.sent: list[_Sent] = []

    def over(self, delivery: Delivery) -> None:
        """Say that a delivery's claim has ended."""
        self.left.pop(delivery.id, None)


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
        monotonic: Callable[[], float] = time.monotonic,
        share: int = 1,
        limits: Limits | None = None,
        pace: Pace | None = None,
        disposals: Disposals | None = None,
        target_of: Callable[[Folder, bytes], Target | None] = lambda folder, _: folder.target,
    ) -> None:
        self._ledger = ledger
        self._disposals = disposals or Disposals(monotonic=monotonic)
        self._target_of = target_of
        self._limits = limits or Limits()
        self._pace = pace or Pace()
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
        self._monotonic = monotonic
        self._share = share  # among how many threads what waits is divided

    # ---- what a thread calls ------------------------------------------------------------------------------

    def run_one(self) -> bool:
        """Work on one run of deliveries, or else on sources to dispose of; tell whether there was anything.

        Sending comes first, for the next file of a lane may go as soon as the one before it is safe.
        """
        if self._disposals.is_time:
            self.dispose_waiting()
        tenants = {target.tenant for folder in self._folders().values() for target in _tenants_of(folder)}
        shut, to_probe = self._gates.shut_for(sorted(tenants)), self._gates.to_probe(sorted(tenants))
        rounds = [([*shut, *to_probe], _RUN_FILES)]
        if to_probe:
            rounds.insert(0, (sorted(tenants.difference(to_probe)), 1))  # first, and alone

        def claim(full_tenants: Sequence[str], full_tables: Sequence[str]) -> list[Delivery]:
            runs = (
                self._ledger.claim_run(
                    now=self._now(),
                    without_tenants=(*without, *full_tenants),
                    full_tables=full_tables,
                    at_most=at_most,
                    small=SMALL_BYTES,
                    share=self._share,
                )
                for without, at_most in rounds
            )
            return next((run for run in runs if run), [])

        claimed = self._limits.claim(claim)
        if not claimed:
            return self.dispose_waiting() or self._dispose_one() or self._quarantine_one()
        reached("after_claim")
        run = _Run(claimed)
        try:
            if self._gates.enter(run.tenant):
                self._work(run)
            else:
                self._turn_back(run, "gate")
        finally:
            self._limits.ended(claimed[0])
        return True

    def resolve_names(
        self, targets: Iterable[Target], *, may_create: Callable[[Target], bool] = lambda _: False
    ) -> dict[Target, PmwatchError | None]:
        """Resolve names to ids; return how each target fared: None, or why it cannot be.

        What does not exist is created first where `may_create` says so.

        Absent is what was not tried or failed for its tenant, whose gate is closed. Must run in one thread only.
        """
        fared: dict[Target, PmwatchError | None] = {}
        for target in targets:
            if not self._gates.enter(target.tenant):
                continue
            try:
                self._limits.before_request(target.tenant, self._check)
                self._ledger.resolve(target, self._destination(target, may_create=may_create(target)))
                fared[target] = None
            except (DestinationUnknown, Rejected) as error:
                fared[target] = error
            except RemoteError as error:
                self._gates.failed(target.tenant, error, retry_after=error.retry_after)
                continue
            except LedgerError:
                self._gates.left(target.tenant)
                raise
            except Interrupted:
                self._gates.left(target.tenant)
                break
            except PmwatchError as error:
                self._gates.failed(target.tenant, error)
                continue
            self._gates.succeeded(target.tenant)
        return fared

    def _destination(self, target: Target, *, may_create: bool) -> Destination:
        try:
            return self._remote.resolve(target)
        except DestinationUnknown:
            if not may_create:
                raise
        self._remote.create(target)
        return self._remote.resolve(target)

    def _check(self) -> None:
        """Make a turn in the middle of long work. Raises Interrupted once the attempt is to be given up."""
        self._beat()
        if self._abort.is_set():
            raise Interrupted("pmwatch is shutting down")

    # ---- one run ------------------------------------------------------------------------------------------

    def _work(self, run: _Run) -> None:
        try:
            self._deliver(run)
            self._put_back(run, "interrupted" if self._abort.is_set() else "")
        except LedgerError as error:
            self._give_back_somehow(run, error)
        finally:
            for gate in {run.tenant, *(attempt.gate for attempt in run.attempts)}:
                self._gates.left(gate)

    def _deliver(self, run: _Run) -> None:
        """Bring a run as far as it goes; what is left of it then has to be put back."""
        with ExitStack() as sources:
            self._prepare(run, sources)
            self._decide(run)
            self._presign_all(run)
            for attempt in run.attempts:
                if attempt.decided.verdict is Verdict.SEND:
                    goes_on = self._attempt(run, attempt, self._send)
                else:
                    self._arrived(run)
                    goes_on = self._not_needed(run, attempt)
                if not goes_on:
                    break
            self._arrived(run)

    def _attempt(self, run: _Run, attempt: _Attempt, step: Callable[[_Run, _Attempt], None]) -> bool:
        """Take one step of an attempt; tell whether those behind it in the run may go on."""
        try:
            step(run, attempt)
        except LedgerError:
            raise
        except PmwatchError as error:
            self._arrived(run)  # those before it, before its own fate is told
            run.over(attempt.delivery)
            try:
                return self._failed(attempt, error)
            except LedgerError:
                run.left[attempt.delivery.id] = attempt.delivery
                raise
        return True

    def _prepare(self, run: _Run, sources: ExitStack) -> None:
        """Open each source, and hash the small ones: their content may have gone before."""
        for delivery in list(run.left.values()):
            folder = self._folders().get(delivery.folder)
            if folder is None or not self._may_begin(delivery, folder):
                self._not_begun(delivery, folder)
                run.over(delivery)  # only now: where the ledger could not be told, it is still to be given back
                continue
            attempt = _Attempt(delivery, folder, delivery.presigned_url, delivery.target.tenant)
            if not self._attempt(run, attempt, self._look):
                return
            if attempt.source is not None:
                sources.enter_context(attempt.source)
                run.attempts.append(attempt)

    def _may_begin(self, delivery: Delivery, folder: Folder) -> bool:
        """Tell whether a delivery goes where the configuration says now, and nobody moves its source."""
        return delivery.id not in self._disposals and self._wanted(delivery, folder) == delivery.target

    def _wanted(self, delivery: Delivery, folder: Folder) -> Target:
        return self._target_of(folder, delivery.path) or delivery.target

    def _not_begun(self, delivery: Delivery, folder: Folder | None) -> None:
        """Give back what cannot begin: the configuration changed since it was queued, or its source is being moved."""
        if folder is None:
            self._ledger.hold_without_folder(delivery)
            self._report(Report("returned", delivery, reason="folder_removed"))
        elif self._wanted(delivery, folder) != delivery.target:
            self._ledger.redirect(delivery, self._wanted(delivery, folder), folder.order)
            self._report(Report("returned", delivery, reason="redirected"))
        else:
            self._return(delivery, "being_moved", not_before=self._now() + _MOVING_WAIT_SECONDS)

    def _look(self, run: _Run, attempt: _Attempt) -> None:
        """See that the source is the version that settled, and hash it first where it pays."""
        delivery, folder = attempt.delivery, attempt.folder
        with ExitStack() as stack:
            source = stack.enter_context(Source(*source_of(delivery, folder)))
            _check_version(delivery, source)
            guard(delivery, folder, source, last_size=lambda: self._last_size(run, attempt), beat=self._check)
            if self._is_hashed_first(delivery, folder, source):
                attempt.sha256 = source.hash(check=self._check)
                guard_content(delivery, attempt.sha256)
            attempt.source = source
            stack.pop_all()  # from here on the run closes it

    def _last_size(self, run: _Run, attempt: _Attempt) -> int | None:
        """Return the size of the folder's file before this one: of this run, or of the ledger."""
        for before in reversed(run.attempts):
            if before.folder.name == attempt.folder.name and before.source is not None:
                return before.source.fingerprint.size
        return self._ledger.last_size(attempt.delivery)

    def _is_hashed_first(self, delivery: Delivery, folder: Folder, source: Source) -> bool:
        """Tell whether a source is read once before it is sent: where it pays, or where a manifest names its hash."""
        if delivery.expected_sha256:
            return True
        if folder.dedup is Dedup.OFF or delivery.resent:
            return False
        large = source.fingerprint.size > SMALL_BYTES
        return not (large and not delivery.previous_id and self._ledger.reserve_size(delivery))

    def _decide(self, run: _Run) -> None:
        """Ask the ledger what still has to go. A run ends where that depends on what it sends before."""
        asked = [one for one in run.attempts if one.sha256 and not one.delivery.resent]
        decided = self._ledger.decide([(one.delivery, one.sha256, one.folder.dedup) for one in asked]) if asked else []
        for attempt, answer in zip(asked, decided, strict=False):
            attempt.decided = answer
        if len(decided) < len(asked):
            del run.attempts[run.attempts.index(asked[len(decided)]) :]

    # ---- sending ------------------------------------------------------------------------------------------

    def _presign_all(self, run: _Run) -> None:
        """Get a URL for each delivery that has to go, and remember them all before the first byte goes."""
        ready: list[_Attempt] = []
        for attempt in run.attempts:
            attempt.repeated = self._is_valid(attempt.url)
        at_a_time = 1 if run.tenant in self._limits.slowed() else _URLS_AT_A_TIME
        wanting = [one for one in run.attempts if one.needs_url]
        urls = Ahead(wanting, self._ask_url, at_a_time=at_a_time, monotonic=self._monotonic)
        for attempt in run.attempts:
            if attempt.needs_url:
                if not self._attempt(run, attempt, lambda _, one: self._take_url(one, urls.next)):
                    break
                if attempt.delivery.id not in run.left:
                    continue
            ready.append(attempt)
        run.attempts = ready
        self._remember([one for one in ready if one.needs_url])

    def _take_url(self, attempt: _Attempt, ask: Callable[[], str]) -> None:
        attempt.url = ""
        attempt.url = ask()
        self._gates.got_through(attempt.delivery.target.tenant)

    def _remember(self, attempts: list[_Attempt]) -> None:
        asked = [(one.delivery, one.url, one.source.fingerprint) for one in attempts if one.source is not None]
        reached("after_presign")
        if asked:
            self._ledger.remember_urls(asked)

    def _is_valid(self, url: str) -> bool:
        """Tell whether a URL may still tell what became of an earlier PUT; at its very end too, for S3 says if not."""
        expiry = url_expiry(url) if url else None
        return expiry is not None and expiry > self._now()

    def _ask_url(self, attempt: _Attempt) -> str:
        """Return a URL that is valid for long enough. Any thread may ask."""
        self._check()
        assert attempt.source is not None
        seen, tenant = attempt.source.fingerprint, attempt.delivery.target.tenant
        self._limits.before_request(tenant, self._check)
        url = self._remote.presign(attempt.delivery, seen)
        if self._ends_too_early(url, seen.size):
            self._limits.before_request(tenant, self._check)
            url = self._remote.presign(attempt.delivery, seen, valid_seconds=LONGEST_VALID_SECONDS)
        return url

    def _ends_too_early(self, url: str, size: int) -> bool:
        """Tell whether a fresh URL would expire before an upload of `size` bytes has ended at the rate seen so far.

        S3 looks at the time when a request begins, but a lost answer can only be repeated while the URL is valid.
        """
        expected = self._pace.expected_seconds(size)
        expiry = url_expiry(url) if expected > _LONG_UPLOAD_SECONDS else None
        return expiry is not None and expiry - self._now() < expected + _URL_MARGIN_SECONDS

    def _send(self, run: _Run, attempt: _Attempt) -> None:
        """PUT one source; presign again, once, where its URL has expired."""
        if run.sent and self._now() - run.sent[0].at > _LONGEST_UNSAID_SECONDS:
            self._arrived(run)
        self._check()
        assert attempt.source is not None
        if attempt.delivery.target.process:
            sent = self._put_model(attempt, attempt.source)
            _verify(sent)
            run.sent.append(sent)
            return
        self._enter_storage(attempt)
        try:
            sent = self._put(attempt, attempt.source, only_if_absent=attempt.repeated)
        except UrlExpired:
            self._gates.succeeded(attempt.gate)  # the storage is well; trouble from here on is the API's again
            attempt.gate = attempt.delivery.target.tenant
            self._take_url(attempt, lambda: self._ask_url(attempt))
            self._remember([attempt])
            self._enter_storage(attempt)
            sent = self._put(attempt, attempt.source, only_if_absent=False)
        _verify(sent)  # a change after the last byte is the next version's business
        run.sent.append(sent)

    def _enter_storage(self, attempt: _Attempt) -> None:
        """Go through the storage host's gate as well, or turn back unharmed."""
        host = url_host(attempt.url)
        tenant = attempt.delivery.target.tenant
        self._gates.points_to(tenant, host)  # or what waits for a closed one would be claimed again
        if not self._gates.enter(host):
            raise _GateShut(f"waiting for {host}")
        attempt.gate = host

    def _put(self, attempt: _Attempt, source: Source, *, only_if_absent: bool) -> _Sent:
        started = self._monotonic()
        self._started(attempt.delivery)

        def open_body() -> Iterator[bytes]:
            return self._pace.paced(source.chunks(check=self._check), self._check)

        receipt = None
        verified = None
        try:
            receipt = self._remote.put(
                attempt.url,
                open_body,
                size=source.fingerprint.size,
                filename=api_filename(attempt.delivery.path),
                only_if_absent=only_if_absent,
            )
        except AlreadyThere:
            if not only_if_absent:
                raise
            source.hash(check=self._check)
        else:
            if source.fingerprint.size == 0:
                source.hash()
            verified = source.md5 == receipt.md5 if receipt.md5 else None
        reached("after_answer")
        self._gates.got_through(attempt.gate)
        self._limits.went_well(attempt.delivery.target.tenant)
        if receipt is not None:
            self._pace.saw(source.fingerprint.size, self._monotonic() - started)
        return _Sent(attempt, receipt, source.sha256, self._monotonic() - started, verified, self._now())

    def _put_model(self, attempt: _Attempt, source: Source) -> _Sent:
        """Give a process its BPMN model. A lost answer needs no more care than trying again: the model replaces."""
        delivery = attempt.delivery
        self._limits.before_request(delivery.target.tenant, self._check)
        text = model_text(source, check=self._check)
        started = self._monotonic()
        self._started(delivery)
        self._remote.put_model(delivery, text)
        reached("after_answer")
        self._gates.got_through(attempt.gate)
        self._limits.went_well(delivery.target.tenant)
        return _Sent(attempt, None, source.sha256, self._monotonic() - started, None, self._now())

    # ---- ends ---------------------------------------------------------------------------------------------

    def _arrived(self, run: _Run) -> None:
        """Enter into the ledger, in one commit, what the storage confirmed; then report and dispose."""
        if not run.sent:
            return
        sent, run.sent = run.sent, []
        arrived = [
            Arrived(
                one.attempt.delivery,
                sha256=one.sha256,
                etag=one.receipt.etag if one.receipt else "",
                detail=_detail(one),
                at=one.at,
                dispose=_moves(one.attempt.folder),
            )
            for one in sent
        ]
        self._ledger.uploaded(arrived)
        reached("after_commit")
        for one in sent:
            run.over(one.attempt.delivery)
            with suppress(OSError):  # the file has arrived; an old note about it harms nobody
                clear_quarantine(one.attempt.delivery, one.attempt.folder)
            self._report(
                Report(
                    "uploaded",
                    one.attempt.delivery,
                    message=_detail(one),
                    sha256=one.sha256,
                    put_seconds=one.seconds,
                    request_id=one.receipt.request_id if one.receipt else "",
                    etag_verified=one.verified,
                )
            )
        self._disposals.put([_uploaded(one) for one in sent if _moves(one.attempt.folder)])

    def _not_needed(self, run: _Run, attempt: _Attempt) -> bool:
        """End a delivery whose content went before, or wait for the equal one under way; tell whether to go on."""
        delivery, folder, decided = attempt.delivery, attempt.folder, attempt.decided
        if decided.verdict is Verdict.WAIT:
            wait = _WAIT_FOR_EQUAL_SECONDS + delivery.fingerprint.size / _EQUAL_BYTES_A_SECOND
            self._return(delivery, "equal_under_way", not_before=self._now() + wait)
        elif decided.verdict is Verdict.UNCHANGED:
            self._ledger.unchanged(delivery)
            self._report(Report("unchanged", delivery, sha256=attempt.sha256))
        else:
            now = self._now()
            self._ledger.duplicate(delivery, sha256=attempt.sha256, of=decided.of, now=now, dispose=_moves(folder))
            self._report(
                Report(
                    "duplicate",
                    delivery,
                    sha256=attempt.sha256,
                    duplicate_of=decided.of,
                    older_version=decided.older,
                )
            )
            if _moves(folder):
                told = replace(delivery, state=State.UPLOADED, outcome=Outcome.DUPLICATE, sha256=attempt.sha256)
                self._disposals.put([told])
        run.over(delivery)
        return decided.verdict is not Verdict.WAIT

    def dispose_waiting(self) -> bool:
        """Dispose of the sources that this process has uploaded and not disposed of; tell whether there were any."""
        mine = self._disposals.take()
        if mine:
            self._dispose(mine)
        return bool(mine)

    def _dispose_one(self) -> bool:
        """Dispose of a source that a crash, a restart or trouble with its directory has left; tell whether one was."""
        delivery = self._ledger.claim_disposal(now=self._now())
        if delivery is None:
            return False
        if self._disposals.begin(delivery.id):  # else a large copy outlives the ledger's lease
            self._dispose([delivery])
        return True

    def _dispose(self, mine: list[Delivery]) -> None:
        """Move or delete sources; those whose folder is gone, and with it its policy, stay: the upload is safe."""
        try:
            known = self._folders()
            there = [(one, known[one.folder]) for one in mine if one.folder in known]
            gone = [
                Disposed(one, one.location, kept=not one.location, at=self._now())
                for one in mine
                if one.folder not in known
            ]
            looks: list[Delivery] = []
            for (delivery, folder), end in zip(there, dispose_all(there, beat=self._beat), strict=True):
                if isinstance(end, DisposeError):
                    self._dispose_later(delivery, end)
                    continue
                location, stays = end
                newer = stays and _moves(folder)  # a newer version stands there: it is news, whatever its bytes
                gone.append(Disposed(delivery, location, kept=stays and not newer, at=self._now()))
                if newer:
                    looks.append(delivery)
            if gone:
                self._ledger.disposed(gone)
            for ended in gone:
                self._report(Report("disposed", ended.delivery, location=ended.location))
            for delivery in looks:
                self._look_again(delivery.folder, delivery.path)
        finally:
            self._disposals.over(delivery.id for delivery in mine)

    def _dispose_later(self, delivery: Delivery, error: DisposeError) -> None:
        not_before = self._now() + self._policy.wait(self._now() - delivery.uploaded_at)
        self._ledger.dispose_later(delivery, reason=error.reason, detail=error.message, not_before=not_before)
        self._report(_report_of("dispose_failed", delivery, error, not_before))

    # ---- trouble ------------------------------------------------------------------------------------------

    def _turn_back(self, run: _Run, reason: str) -> None:
        """Give back what is left of a run, unharmed, whatever the ledger's trouble."""
        try:
            self._put_back(run, reason)
        except LedgerError as error:
            self._give_back_somehow(run, error)

    def _put_back(self, run: _Run, reason: str) -> None:
        left = list(run.left.values())
        if not left:
            return
        self._ledger.put_back(left, reason=reason)
        run.left.clear()
        for delivery in left:
            self._report(Report("returned", delivery, reason=reason))

    def _return(self, delivery: Delivery, reason: str, *, not_before: float = 0.0, url: str | None = None) -> None:
        """Give a delivery back unharmed."""
        self._ledger.give_back(
            delivery,
            reason=reason,
            detail="",
            not_before=not_before or delivery.not_before,
            failed_at=self._failed_at(delivery) if not_before else delivery.first_failed_at,
            url=delivery.presigned_url if url is None else url,
        )
        self._report(Report("returned", delivery, reason=reason))

    def _give_back_somehow(self, run: _Run, error: LedgerError) -> None:
        """Keep trying to give a run back to a ledger that cannot be written: nobody else ever would.

        Its URLs are remembered, so that a PUT which had arrived is not sent a second time.
        """
        urls = {attempt.delivery.id: attempt.url for attempt in run.attempts}
        for delivery in run.left.values():
            self._report(_report_of("ledger_trouble", delivery, error, 0.0))
        for delivery in list(run.left.values()):
            while not self._abort.is_set():
                try:
                    self._return(delivery, error.reason, url=urls.get(delivery.id))
                except StaleClaim:
                    break
                except LedgerError:
                    self._beat()
                    self._abort.wait(_LEDGER_RETRY_SECONDS)
                    continue
                break

    def _failed(self, attempt: _Attempt, error: PmwatchError) -> bool:
        """Turn an error into the delivery's next state; tell whether those behind it in the run may go on."""
        delivery = attempt.delivery
        if isinstance(error, SourceVanished) and self._is_found_again(attempt):
            return False
        if isinstance(error, SourceVanished) and self._is_away(attempt):
            error = SourceAway(
                "its folder is not there, or what it lies on is not mounted", hint="Mount it; it goes on by itself."
            )
        if isinstance(error, _GateShut | Interrupted):
            self._return(delivery, error.reason, url=attempt.url)
            return False
        if isinstance(error, SourceVanished | SourceChanged):
            self._vanished(delivery, error)
        elif error.decision is Decision.GATE:
            self._close_gate(attempt, error)
            return False
        elif error.decision is Decision.RETRY:
            return self._retry(attempt, error)
        else:
            if error.decision is Decision.HOLD:
                self._end(delivery, State.HELD, error, blocks=attempt.folder.blocks)
            else:
                self._fail(delivery, attempt.folder, error)
            return not attempt.folder.blocks
        return True

    def _is_found_again(self, attempt: _Attempt) -> bool:
        """Tell whether a source was only where a move into quarantine, broken off by a crash, has left it."""
        delivery = attempt.delivery
        location = find_again(delivery, attempt.folder)
        if location is None:
            return False
        if location:
            self._ledger.moved(delivery, location)
        self._return(delivery, "interrupted")
        return True

    def _is_away(self, attempt: _Attempt) -> bool:
        """Tell whether a source that is not there may come back with its file system, for as long as that is tried."""
        delivery, now = attempt.delivery, self._now()
        if self._policy.given_up(now - (delivery.first_failed_at or now)):
            return False
        marker = "" if delivery.location else attempt.folder.root_marker
        return is_away(*source_of(delivery, attempt.folder), delivery.fingerprint.device, marker=marker)

    def _vanished(self, delivery: Delivery, error: PmwatchError) -> None:
        """The version that settled is gone; what stands there now, if anything, is looked at afresh."""
        if delivery.presigned_url and delivery.reason == AnswerLost.reason:
            error = AnswerLost(f"{error.message}, and whether it had arrived before is not known")
        self._end(delivery, State.VANISHED, error)
        self._look_again(delivery.folder, delivery.path)

    def _close_gate(self, attempt: _Attempt, error: PmwatchError) -> None:
        if isinstance(error, Throttled):
            self._limits.slow_down(attempt.delivery.target.tenant)
        self._gates.failed(attempt.gate, error, retry_after=getattr(error, "retry_after", None))
        self._ledger.give_back(
            attempt.delivery,
            reason=error.reason,
            detail=error.message,
            not_before=0.0,
            failed_at=0.0,
            url=attempt.url,
        )
        self._report(_report_of("gate", attempt.delivery, error, 0.0))

    def _failed_at(self, delivery: Delivery) -> float:
        """Return since when a file has trouble of its own (0: it has none), without the time when it was not tried.

        Behind a closed gate, and while pmwatch did not run, it was due and could not fail.
        """
        overdue = max(0.0, delivery.claimed_at - delivery.not_before) if delivery.not_before else 0.0
        return delivery.first_failed_at and delivery.first_failed_at + overdue

    def _retry(self, attempt: _Attempt, error: PmwatchError) -> bool:
        delivery, now = attempt.delivery, self._now()
        missing = isinstance(error, DestinationUnknown)  # says nothing about the file
        failed_at = self._failed_at(delivery) or (0.0 if missing else now)
        detail, longest = error.message, self._policy.give_up_after
        remote = error.of_file and isinstance(error, RemoteError)
        if remote and self._gates.fell(attempt.gate, delivery.id, quiet=longest / 2):
            failed_at = max(failed_at, now - longest * _MOST_SHARED)
            detail += f"; other files fail too, and none gets through to {attempt.gate}, so none is given up for it"
        if error.of_file and self._policy.given_up(now - failed_at):
            self._fail(delivery, attempt.folder, error)
            return not attempt.folder.blocks
        not_before = now + self._policy.wait(now - (failed_at or delivery.settled_at))
        url = "" if isinstance(error, UrlExpired | ChecksumMismatch) else attempt.url
        self._ledger.give_back(
            delivery,
            reason=error.reason,
            detail=detail,
            not_before=not_before,
            failed_at=failed_at,
            url=url,
        )
        if missing:  # it may have been deleted and made again, with other ids
            self._ledger.forget_destination(delivery.target)
        self._report(_report_of("retry", delivery, error, not_before))
        return attempt.folder.order is Order.NONE

    def _fail(self, delivery: Delivery, folder: Folder, error: PmwatchError) -> None:
        """End a delivery as failed and put its source into quarantine; what is broken off there is repeated."""
        self._disposals.begin(delivery.id)
        try:
            self._end(delivery, State.FAILED, error, blocks=folder.blocks)
            self._quarantine(delivery, folder, _error_facts(delivery, error, self._now()))
        finally:
            self._disposals.over([delivery.id])

    def _quarantine(self, delivery: Delivery, folder: Folder, facts: dict[str, Any]) -> None:
        try:
            location = quarantine(delivery, folder, facts=facts, beat=self._check)
        except Interrupted:
            return  # the next start goes on with it
        except DisposeError as trouble:
            now = self._now()
            again_at = now + self._policy.wait(now - delivery.claimed_at)
            self._ledger.moved(delivery, b"", again_at=again_at)
            self._report(_report_of("dispose_failed", delivery, trouble, again_at))
        else:
            self._ledger.moved(delivery, location)

    def _quarantine_one(self) -> bool:
        """Put a failed source aside whose move a crash, a stop or trouble with the directory has left undone."""
        delivery = self._ledger.claim_quarantine(now=self._now())
        if delivery is None:
            return False
        folder = self._folders().get(delivery.folder)
        if folder is not None and self._disposals.begin(delivery.id):
            try:
                error = PmwatchError(delivery.detail, reason=delivery.reason)
                self._quarantine(delivery, folder, _error_facts(delivery, error, delivery.finished_at))
            finally:
                self._disposals.over([delivery.id])
        return True

    def _end(self, delivery: Delivery, to: State, error: PmwatchError, *, blocks: bool = False) -> None:
        self._ledger.end(
            delivery,
            to,
            reason=error.reason,
            detail=error.message,
            now=self._now(),
            location=delivery.location,
            blocks=blocks,
            to_quarantine=to is State.FAILED,
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


def _uploaded(sent: _Sent) -> Delivery:
    """Return a delivery as the ledger has it once the storage has confirmed it."""
    source = sent.attempt.source
    assert source is not None
    return replace(
        sent.attempt.delivery,
        state=State.UPLOADED,
        outcome=Outcome.UPLOADED,
        fingerprint=source.fingerprint,
        sha256=sent.sha256,
        uploaded_at=sent.at,
    )


def _detail(sent: _Sent) -> str:
    if sent.attempt.delivery.target.process:
        return "the process has this model"
    if sent.receipt is None:
        return "an earlier attempt had arrived"
    return {None: "etag not comparable", True: "etag verified"}.get(sent.verified, "")


def _check_version(delivery: Delivery, source: Source) -> None:
    if not source.fingerprint.same_content_as(delivery.fingerprint):
        raise SourceChanged("the file changed since it had settled")


def _verify(sent: _Sent) -> None:
    """Raise unless what went is exactly the version that was opened, and the storage confirmed it."""
    if not sent.sha256:
        raise ChecksumMismatch("the storage confirmed the upload before it had all of it")
    if sent.attempt.sha256 and sent.sha256 != sent.attempt.sha256:
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
