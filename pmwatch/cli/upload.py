"""`pmwatch upload`: files go now, once, without any folder."""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pmwatch.cli import app
from pmwatch.cli.api import Access, access_of, read_bpmn
from pmwatch.cli.common import ConfigOption, JsonOption, console, print_json
from pmwatch.config import Settings, is_loopback
from pmwatch.delivery.body import Source
from pmwatch.delivery.remote import api_filename
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.errors import (
    AlreadyThere,
    AnswerLost,
    ChecksumMismatch,
    Decision,
    ExitCode,
    PmwatchError,
    UrlExpired,
)
from pmwatch.ledger import Ledger
from pmwatch.model import Destination, Target, display, format_size
from pmwatch.processmind import Client, Http, Storage, resolve

_TRIES: Final = 6
_POLICY: Final = RetryPolicy(first=0.5, longest=20.0)


@dataclass(frozen=True, slots=True)
class _Sent:
    """How one file fared: uploaded, duplicate or failed, and why."""

    path: str
    outcome: str
    size: int = 0
    sha256: str = ""
    message: str = ""
    hint: str = ""


@app.command()
def upload(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="What to upload; - is standard input.")],
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
    name: Annotated[str, typer.Option("--name", help="The name of what comes from standard input.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also what the ledger says has gone there already.")] = False,
    parallel: Annotated[int, typer.Option("--parallel", "-p", min=1, max=32, help="How many at a time.")] = 4,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Upload files now, and wait until the storage has confirmed every byte. Exits 1 where one did not arrive.

    Several go at the same time, in no order. What the ledger knows as uploaded to the same datatable does not go again.
    The tenant is one of the configuration, or any by its id with the key in PMWATCH_API_KEY.
    """
    tenant, _, datatable = to.partition("/")
    if bool(datatable) is (process is not None):
        raise typer.BadParameter("--to is TENANT/DATASET/DATATABLE, or with --process the tenant alone")
    if "-" in files and not name:
        raise typer.BadParameter("standard input needs a --name, such as orders.csv")
    access = access_of(config, tenant)
    with ExitStack() as stack:
        http = Http(ca_file=access.settings.api.ca_file if access.settings else "")
        stack.callback(http.close)
        client = Client(access.api_key, base_url=access.base_url, http=http)
        if process is not None:
            sent = [_send_model(client, access.tenant_id, path, process) for path in files]
        else:
            paths = [_spooled(stack, name) if path == "-" else path for path in files]
            sender = _sender(stack, client, http, access, Target(tenant, datatable), force=force)
            sent = _send_all(sender, paths, parallel=parallel, quiet=json)
    _tell(sent, as_json=json)
    if any(one.outcome == "failed" for one in sent):
        raise typer.Exit(ExitCode.FAILURE)


def _spooled(stack: ExitStack, name: str) -> str:
    """Write standard input to a file: S3 must be told the length before the first byte."""
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pmwatch-upload-"))
    path = os.path.join(directory, os.path.basename(name))
    with open(path, "xb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


class _Sender:
    """Sends single files to one datatable, each with its own tries."""

    def __init__(
        self, client: Client, storage: Storage, destination: Destination, known: Callable[[str], bool]
    ) -> None:
        self._client = client
        self._storage = storage
        self._destination = destination
        self._known = known

    def send(self, path: str, progress: Callable[[int], None]) -> _Sent:
        """Upload one file; how it fared."""
        try:
            full = os.fsencode(os.path.abspath(path))
            with Source(os.path.dirname(full), os.path.basename(full)) as source:
                size = source.fingerprint.size
                sha256 = source.hash()
                if self._known(sha256):
                    return _Sent(path, "duplicate", size, sha256, "it has gone there already; --force sends it again")
                self._put(full, source, progress)
                return _Sent(path, "uploaded", size, sha256)
        except PmwatchError as error:
            return _Sent(path, "failed", message=error.message, hint=error.hint)

    def _put(self, path: bytes, source: Source, progress: Callable[[int], None]) -> None:
        url, lost, started = "", False, time.monotonic()

        def body() -> Iterator[bytes]:
            progress(0)
            for chunk in source.chunks():
                yield chunk
                progress(source.bytes_read)

        for left in reversed(range(_TRIES)):
            try:
                url = url or self._presign(path, source)
                name, size = api_filename(path), source.fingerprint.size
                receipt = self._storage.put(url, body, size=size, filename=name, only_if_absent=lost)
                if receipt.md5 and size and receipt.md5 != source.md5:
                    raise ChecksumMismatch("the storage's ETag is not the MD5 of what was sent")
            except AlreadyThere:
                if not lost:
                    raise
            except PmwatchError as error:
                if error.decision not in (Decision.RETRY, Decision.GATE) or not left or error.reason == "key_rejected":
                    raise
                lost = isinstance(error, AnswerLost)
                url = "" if isinstance(error, UrlExpired | ChecksumMismatch) else url
                wait = getattr(error, "retry_after", None) or _POLICY.wait(time.monotonic() - started)
                threading.Event().wait(min(wait, _POLICY.longest))
                continue
            return

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


def _sender(stack: ExitStack, client: Client, http: Http, access: Access, target: Target, *, force: bool) -> _Sender:
    hosts = access.settings.api.allowed_upload_hosts if access.settings else ()
    local = is_loopback(urlsplit(access.base_url).hostname or "")
    destination = resolve(client, access.tenant_id, target)
    known = (lambda _: False) if force else _known(stack, access.settings, destination)
    return _Sender(client, Storage(http, allowed_hosts=hosts, allow_loopback=local), destination, known)


def _known(stack: ExitStack, settings: Settings | None, destination: Destination) -> Callable[[str], bool]:
    """Return what tells whether the ledger has content as uploaded to a datatable; without a ledger nothing is."""
    if settings is None or not os.path.exists(os.path.join(settings.state.dir, "ledger.db")):
        return lambda _: False
    ledger = Ledger.open(settings.state.dir, read_only=True)
    stack.callback(ledger.close)
    return lambda sha256: ledger.has_uploaded(destination, sha256)


def _send_all(sender: _Sender, paths: Sequence[str], *, parallel: int, quiet: bool) -> list[_Sent]:
    """Send several files at the same time, with a bar for each where somebody looks."""
    out = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=out, disable=quiet or not out.is_terminal) as bars,
        ThreadPoolExecutor(parallel) as threads,
    ):

        def send(path: str) -> _Sent:
            shown = display(os.fsencode(os.path.basename(path))).replace("[", "\\[")
            task = bars.add_task(shown, total=os.path.getsize(path) if os.path.isfile(path) else None)
            return sender.send(path, lambda done: bars.update(task, completed=done))

        return list(threads.map(send, paths))


def _send_model(client: Client, tenant_id: str, path: str, process: str) -> _Sent:
    """Give a process, by id or name, the BPMN model in a file."""
    try:
        text = read_bpmn(path)
        found = resolve(client, tenant_id, Target(tenant_id, "", "", process))
        client.upload_bpmn(tenant_id, found.datatable_id, text)
    except typer.BadParameter as wrong:
        return _Sent(path, "failed", message=wrong.message.removeprefix(f"{path}: "))
    except PmwatchError as error:
        return _Sent(path, "failed", message=error.message, hint=error.hint)
    return _Sent(path, "uploaded", len(text))


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
