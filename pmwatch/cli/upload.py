"""`pmwatch upload`: files go now, once, without any folder."""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pmwatch.cli import app
from pmwatch.cli.api import Access, access_of
from pmwatch.cli.choosing import action
from pmwatch.cli.common import ConfigOption, JsonOption, console, http_of, print_json
from pmwatch.config import Settings, is_loopback
from pmwatch.delivery.body import Source
from pmwatch.delivery.remote import api_filename
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.errors import (
    AlreadyThere,
    AnswerLost,
    ChecksumMismatch,
    Decision,
    DestinationUnknown,
    ExitCode,
    LedgerError,
    PmwatchError,
    Refused,
    SourceVanished,
    UrlExpired,
)
from pmwatch.formats import MAX_MODEL_BYTES, Broken, read_model
from pmwatch.ledger import ByHand, Ledger, Verdict
from pmwatch.lock import is_held
from pmwatch.model import BY_HAND, READABLE_TYPES, Destination, Target, display, format_size
from pmwatch.processmind import Client, Storage, resolve

_TRIES: Final = 6
_POLICY: Final = RetryPolicy(first=0.5, longest=20.0)
_WAIT_FOR_EQUAL_SECONDS: Final = 0.2
_LONGEST_SLEEP_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class _Sent:
    """How one file fared: uploaded, duplicate, failed or interrupted, and why."""

    path: str
    outcome: str
    size: int = 0
    sha256: str = ""
    message: str = ""
    hint: str = ""


@app.command()
def upload(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="What to upload; - is standard input.")],
    *,
    to: Annotated[
        str,
        typer.Option("--to", metavar="TENANT/DATASET/DATATABLE", help="By names; or TENANT/DATATABLE-ID."),
    ],
    process: Annotated[
        str | None,
        typer.Option(
            "--process", metavar="ID|NAME", help="Give this process a BPMN model instead; --to is the tenant."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The name of what comes from standard input.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also what has gone there already, empty files, and files of any type.")
    ] = False,
    parallel: Annotated[
        int, typer.Option("--parallel", "-p", metavar="N", min=1, max=32, help="How many at a time.")
    ] = 4,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Upload files now, and wait until the storage has confirmed every byte. Exits 1 where one did not arrive.

    Several go at the same time, in no order. With a configuration whose ledger is on this machine, what has gone to the
    same place before does not go again, and what goes now is recorded, so that no folder sends it as well. The tenant
    is always named in --to, and PMWATCH_TENANT not asked: it is one of the configuration, or any by its id with the key
    in PMWATCH_API_KEY, and then without a ledger.

    Exit codes: 0 all arrived or had before, 1 one did not, 2 wrong usage, 78 wrong configuration, 130 interrupted.
    """
    tenant, _, datatable = to.partition("/")
    if not tenant or bool(datatable) is (process is not None):
        raise typer.BadParameter("--to is TENANT/DATASET/DATATABLE, or with --process the tenant alone")
    if "" in (*files, process):
        raise typer.BadParameter("FILE and --process may not be empty; is a variable of the shell unset?")
    _check_standard_input(files, name)
    with _names_the_tenant(tenant):
        access = access_of(config, tenant)
    with ExitStack() as stack:
        http = http_of(access.settings)
        stack.callback(http.close)
        client = Client(access.api_key, base_url=access.base_url, http=http)
        jobs = [_Job(name, _spooled(stack, name), "") if path == "-" else _job(path) for path in files]
        target = Target(tenant, datatable, process=process or "")
        with _names_the_tenant(tenant):
            destination = resolve(client, access.tenant_id, target)
        storage = Storage(http, allowed_hosts=_hosts(access), allow_loopback=_is_local(access))
        way = _Model(client, destination) if process else _Table(client, storage, destination)
        memory = _Memory(_ledger(stack, access.settings), target, destination)
        sent = _send_all(_Sender(way, memory, force=force), jobs, parallel=parallel, quiet=json)
        _tell(sent, as_json=json)
        if access.settings and access.settings.delivery.ask_rows_after and process is None:
            memory.tell_rows(client)
    if any(one.outcome == "interrupted" for one in sent):
        raise typer.Exit(130)  # 128 + SIGINT, as shells have it
    if any(one.outcome == "failed" for one in sent):
        raise typer.Exit(ExitCode.FAILURE)


@contextmanager
def _names_the_tenant(tenant: str) -> Iterator[None]:
    """Say what was taken as the tenant where there is none of that name: it may have been left out of --to."""
    try:
        yield
    except DestinationUnknown as error:
        if error.status is None and "no tenant" not in error.message:
            raise
        hint = f"{tenant!r} was taken as the tenant: write --to TENANT/DATASET/DATATABLE, or TENANT with --process."
        raise DestinationUnknown(error.message, hint=hint, status=error.status, request_id=error.request_id) from None


@dataclass(frozen=True, slots=True)
class _Job:
    """One file: how it is called, where it lies, and under which absolute path it is recorded (empty: by its name)."""

    name: str
    path: str
    recorded: str


def _job(path: str) -> _Job:
    return _Job(path, path, os.path.abspath(path))


def _check_standard_input(files: Sequence[str], name: str) -> None:
    if files.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be given once")
    if "-" in files and (not name or name in (".", "..") or os.path.basename(name) != name):
        raise typer.BadParameter("standard input needs a --name without directories, such as orders.csv")


def _spooled(stack: ExitStack, name: str) -> str:
    """Write standard input to a file: S3 must be told the length before the first byte."""
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pmwatch-upload-"))
    path = os.path.join(directory, name)
    with open(path, "xb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


class _Memory:
    """What has reached the destination or is on its way: by this command, and by the ledger where there is one."""

    def __init__(self, ledger: Ledger | None, target: Target, destination: Destination) -> None:
        self._ledger = ledger
        self._target = target
        self._destination = destination
        self._sent: set[str] = set()
        self._recorded = 0  # the delivery that was recorded last; 0: none
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}

    def turn(self, sha256: str) -> threading.Lock:
        """Return the lock under which content is asked for and sent: of two equal files the second waits."""
        with self._lock:
            return self._turns.setdefault(sha256, threading.Lock())

    def begin(self, job: _Job, source: Source, sha256: str, *, force: bool) -> int | None:
        """Reserve content that still has to go; return its delivery (0: no ledger), None where it is there already.

        Where equal content is on its way, wait for how that fares.
        """
        if sha256 in self._sent and not force:
            return None
        path = os.fsencode(job.recorded or job.name)
        sent = ByHand(path, source.fingerprint, self._target, self._destination, sha256)
        told = False
        while self._ledger is not None:
            decided = self._ledger.begin_by_hand(sent, force=force, now=time.time())
            if decided.verdict is not Verdict.WAIT:
                return decided.of if decided.verdict is Verdict.SEND else None
            _check_alive(self._ledger, decided.of)
            if not told:
                typer.echo(f"{job.name}: the same content is on its way; waiting for how it fares", err=True)
                told = True
            threading.Event().wait(_WAIT_FOR_EQUAL_SECONDS)
        return 0

    def note(self, id_: int, sha256: str, etag: str) -> str:
        """Record that content has arrived; return what is to be said about that."""
        self._sent.add(sha256)
        try:
            if self._ledger is not None:
                self._ledger.uploaded_by_hand(id_, etag=etag, by=action("upload", ""))
                self._recorded = id_
        except LedgerError as error:
            return f"not recorded in the ledger: {error.message}"
        return ""

    def tell_rows(self, client: Client) -> None:
        """Record how many rows the datatable has now, where the API tells; all files have arrived without that."""
        if self._ledger is None or not self._recorded:
            return
        with suppress(PmwatchError, KeyboardInterrupt):
            rows = client.datatable(self._destination.tenant_id, self._destination.datatable_id).row_count
            if rows is not None:
                self._ledger.tell_rows(self._recorded, rows)

    def drop(self, id_: int) -> None:
        """Say that content did not arrive. Where the ledger cannot be told, it finds out when this process ends."""
        if self._ledger is not None:
            with suppress(LedgerError):
                self._ledger.left_by_hand(id_)


def _check_alive(ledger: Ledger, id_: int) -> None:
    """Raise unless somebody works on a delivery that is under way: this is no daemon, which would recover it."""
    other = ledger.get(id_)
    if other is not None and other.folder != BY_HAND and not is_held(ledger.state_dir):
        raise Refused(
            f"the same content was on its way when pmwatch ended: {other.display_path} of folder {other.folder}",
            reason="equal_under_way",
            hint="Start pmwatch run, which finishes that; or send this as well with --force.",
        )


class _Table:
    """The way into a datatable."""

    def __init__(self, client: Client, storage: Storage, destination: Destination) -> None:
        self._client = client
        self._storage = storage
        self._destination = destination

    def check(self, job: _Job) -> None:
        """Refuse what ProcessMind would not read."""
        kind = os.path.splitext(job.name)[1].lower()
        if kind.removeprefix(".") not in READABLE_TYPES:
            raise Refused(
                f"ProcessMind does not read {f'{kind} files' if kind else 'files without an ending'}",
                reason="unsupported_type",
                hint=f"It reads {', '.join(READABLE_TYPES)}. A BPMN model goes with --process; --force sends any file.",
            )

    def send(self, path: bytes, source: Source, progress: Callable[[int], None]) -> str:
        """Send a file, with several tries; return the ETag, empty where nobody told it."""
        url, lost = "", False

        def body() -> Iterator[bytes]:
            progress(0)
            for chunk in source.chunks():
                yield chunk
                progress(source.bytes_read)

        def put(before: PmwatchError | None) -> str:
            nonlocal url, lost
            if not url or isinstance(before, UrlExpired | ChecksumMismatch):
                url, lost = self._presign(path, source), False
            lost = lost or isinstance(before, AnswerLost)
            name, size = api_filename(path), source.fingerprint.size
            try:
                receipt = self._storage.put(url, body, size=size, filename=name, only_if_absent=lost)
            except AlreadyThere:
                if not lost:
                    raise
                return ""
            if receipt.md5 and size and receipt.md5 != source.md5:
                raise ChecksumMismatch("the storage's ETag is not the MD5 of what was sent")
            return receipt.etag

        return _persistently(put)

    def _presign(self, path: bytes, source: Source) -> str:
        url = self._client.presigned_upload_url(
            self._destination.tenant_id,
            self._destination.datatable_id,
            dataset_id=self._destination.dataset_id,
            filename=api_filename(path),
            size=source.fingerprint.size,
            mtime_ms=source.fingerprint.mtime_ns // 1_000_000,
        )
        self._storage.check_url(url)
        return url


class _Model:
    """The way of a BPMN model into its process, which it replaces there: to try again harms nothing."""

    def __init__(self, client: Client, destination: Destination) -> None:
        self._client = client
        self._destination = destination

    def check(self, _: _Job) -> None:
        """Let any name pass: the content tells what it is."""

    def send(self, _: bytes, source: Source, progress: Callable[[int], None]) -> str:
        """Send a model that is well-formed, with several tries."""
        if source.fingerprint.size > MAX_MODEL_BYTES:
            raise Refused(f"a model has at most {format_size(MAX_MODEL_BYTES)}", reason="too_large")
        try:
            text = read_model(b"".join(source.chunks()))
        except Broken as broken:
            raise Refused(broken.sentence, reason="invalid") from None
        to = self._destination

        def put(_: PmwatchError | None) -> str:
            self._client.upload_bpmn(to.tenant_id, to.datatable_id, text)
            progress(source.fingerprint.size)
            return ""

        return _persistently(put)


def _persistently(step: Callable[[PmwatchError | None], str]) -> str:
    """Take a step until it succeeds, a few times where the trouble may pass; it is told how it failed before."""
    started = time.monotonic()
    before: PmwatchError | None = None
    for left in reversed(range(_TRIES)):
        try:
            return step(before)
        except PmwatchError as error:
            if error.decision not in (Decision.RETRY, Decision.GATE) or not left or error.reason == "key_rejected":
                raise
            before = error
        wait = getattr(before, "retry_after", None) or _POLICY.wait(time.monotonic() - started)
        threading.Event().wait(min(wait, _POLICY.longest))
    raise AssertionError("the last try returns or raises")


class _Sender:
    """Sends single files, each with its own tries."""

    def __init__(self, way: _Table | _Model, memory: _Memory, *, force: bool) -> None:
        self._way = way
        self._memory = memory
        self._force = force

    def send(self, job: _Job, progress: Callable[[int], None]) -> _Sent:
        """Upload one file; how it fared."""
        try:
            full = os.fsencode(os.path.abspath(job.path))
            with Source(os.path.dirname(full), os.path.basename(full)) as source:
                if not self._force:
                    self._way.check(job)
                    _check_size(source)
                sha256 = source.hash()
                with self._memory.turn(sha256):
                    return self._send(job, full, source, sha256, progress)
        except SourceVanished:
            return _Sent(job.name, "failed", message="there is no such file")
        except PmwatchError as error:
            return _Sent(job.name, "failed", message=error.sentence, hint=error.hint)

    def _send(self, job: _Job, full: bytes, source: Source, sha256: str, progress: Callable[[int], None]) -> _Sent:
        size = source.fingerprint.size
        id_ = self._memory.begin(job, source, sha256, force=self._force)
        if id_ is None:
            return _Sent(job.name, "duplicate", size, sha256, "it has gone there already; --force sends it again")
        try:
            etag = self._way.send(full, source, progress)
        except BaseException:
            self._memory.drop(id_)
            raise
        return _Sent(job.name, "uploaded", size, sha256, self._memory.note(id_, sha256, etag))


def _check_size(source: Source) -> None:
    if not source.fingerprint.size:
        raise Refused("it is empty", reason="empty", hint="Did its export fail? --force sends it all the same.")


def _hosts(access: Access) -> Sequence[str]:
    return access.settings.api.allowed_upload_hosts if access.settings else ()


def _is_local(access: Access) -> bool:
    return is_loopback(urlsplit(access.base_url).hostname or "")


def _ledger(stack: ExitStack, settings: Settings | None) -> Ledger | None:
    """Open the ledger of the configuration where there is one; say so where it cannot be used."""
    if settings is None:
        return None
    try:
        os.stat(os.path.join(settings.state.dir, "ledger.db"))
        return stack.enter_context(Ledger.open(settings.state.dir, older_too=False))
    except FileNotFoundError:
        return None
    except (OSError, LedgerError) as error:
        why = error.strerror if isinstance(error, OSError) else error.message
        sys.stderr.write(
            f"pmwatch: the ledger in {settings.state.dir} cannot be used ({why}): "
            "what has gone before is not known, and what goes now is not recorded\n"
        )
        return None


def _send_all(sender: _Sender, jobs: Sequence[_Job], *, parallel: int, quiet: bool) -> list[_Sent]:
    """Send several files at the same time, with a bar for each where somebody looks; Ctrl-C ends it at once."""
    out = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    futures: list[Future[_Sent]] = [Future() for _ in jobs]
    waiting = SimpleQueue[int]()
    for number in range(len(jobs)):
        waiting.put(number)
    with Progress(*columns, console=out, disable=quiet or not out.is_terminal) as bars:

        def send(job: _Job) -> _Sent:
            shown = display(os.fsencode(os.path.basename(job.path))).replace("[", "\\[")
            task = bars.add_task(shown, total=os.path.getsize(job.path) if os.path.isfile(job.path) else None)
            return sender.send(job, lambda done: bars.update(task, completed=done))

        for _ in range(min(parallel, len(jobs))):
            threading.Thread(target=_work, args=(waiting, jobs, futures, send), daemon=True).start()
        try:
            # A Ctrl-C just before a thread goes to sleep is heard when it wakes, so it sleeps for short times.
            while wait(futures, timeout=_LONGEST_SLEEP_SECONDS).not_done:
                pass
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            return [_so_far(job, future) for job, future in zip(jobs, futures, strict=True)]


def _work(
    waiting: "SimpleQueue[int]", jobs: Sequence[_Job], futures: Sequence[Future[_Sent]], send: Callable[[_Job], _Sent]
) -> None:
    """Take one file after the other. In a daemon thread, for a pool waits for its threads, whatever they wait for."""
    while True:
        try:
            number = waiting.get_nowait()
        except Empty:
            return
        try:
            futures[number].set_result(send(jobs[number]))
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits for the result
            futures[number].set_exception(error)


def _so_far(job: _Job, future: Future[_Sent]) -> _Sent:
    try:
        return future.result(timeout=0)
    except TimeoutError:
        return _Sent(job.name, "interrupted", message="it may have arrived if it was at its end")


def _tell(sent: Sequence[_Sent], *, as_json: bool) -> None:
    if as_json:
        shown: list[dict[str, Any]] = [
            {name: getattr(one, name) for name in ("path", "outcome", "size", "sha256", "message", "hint")}
            for one in sent
        ]
        print_json(shown)
        return
    out = console()
    for one in sent:
        size = f" ({format_size(one.size)})" if one.outcome == "uploaded" else ""
        why = f": {one.message}" if one.message else ""
        out.print(f"{display(os.fsencode(one.path))}: {one.outcome}{size}{why}", soft_wrap=True)
        if one.hint:
            out.print(f"  {one.hint}", soft_wrap=True)
