"""`pmwatch demo`: sandbox, daemon and drop folders on this machine, watched live, and every byte checked."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pmwatch.cli import app
from pmwatch.cli.common import ask_daemon, console
from pmwatch.config import load
from pmwatch.errors import ExitCode, PmwatchError
from pmwatch.model import format_size
from pmwatch.sandbox import SandboxServer
from pmwatch.sandbox.eventlogs import csv_bytes, order_to_cash, xlsx_bytes
from pmwatch.threads import Mailbox

_LIMIT_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.1
_CONFIG: Final = """\
[api]
base_url = "{base_url}"
[state]
dir = "{root}/state"
[http]
listen = "127.0.0.1:0"
[defaults]
settle = "1s"
[[tenants]]
name = "demo"
id = "{tenant_id}"
api_key_file = "{root}/api-key"
[[folders]]
name = "order-to-cash"
path = "{root}/drop/{{datatable}}"
tenant = "demo"
dataset = "Order to cash"
"""


@dataclass(slots=True)
class _Drop:
    """One file of the demo: where it lands, how it is written, and what became of it."""

    name: str
    how: str
    content: bytes
    rows: int
    write: Callable[["_Drop", Path], None]
    duplicate_of: str = ""
    complete_at: float = 0.0
    delivery: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """What to show of its state."""
        if not self.delivery:
            return "being written" if not self.complete_at else "settling"
        return str(self.delivery["outcome"] or self.delivery["state"])

    @property
    def seconds(self) -> str:
        """The time from complete to uploaded (or recognised as a duplicate)."""
        ended = self.delivery.get("finished_at") if self.delivery else None
        return f"{max(0.0, ended - self.complete_at):.2f} s" if ended else ""


def _copied(drop: _Drop, path: Path) -> None:
    path.write_bytes(drop.content)


def _slowly(drop: _Drop, path: Path) -> None:
    """Write in eight pieces over three seconds, the file open all the while."""
    piece = len(drop.content) // 8 + 1
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(drop.content), piece):
            file.write(drop.content[start : start + piece])
            time.sleep(0.4)


def _renamed(drop: _Drop, path: Path) -> None:
    hidden = path.with_name(f".{path.name}.part")
    hidden.write_bytes(drop.content)
    hidden.rename(path)


def _drops() -> list[_Drop]:
    january, february = list(order_to_cash(2500, seed=1)), list(order_to_cash(1500, seed=2))
    invoices, deliveries = (
        list(order_to_cash(800, seed=3, prefix="INV")),
        list(order_to_cash(400, seed=4, prefix="DL")),
    )
    first = csv_bytes(iter(january))
    return [
        _Drop("Orders/orders-2026-01.csv", "written at once", first, len(january), _copied),
        _Drop("Orders/orders-2026-02.csv", "slow writer, 3 s", csv_bytes(iter(february)), len(february), _slowly),
        _Drop(
            "Invoices/invoices.csv",
            "temporary name, then renamed",
            csv_bytes(iter(invoices)),
            len(invoices),
            _renamed,
        ),
        _Drop(
            "Deliveries/deliveries.xlsx",
            "an XLSX workbook, renamed",
            xlsx_bytes(iter(deliveries)),
            len(deliveries),
            _renamed,
        ),
        _Drop(
            "Orders/orders-2026-01 (copy).csv",
            "the same bytes again",
            first,
            len(january),
            _copied,
            "orders-2026-01.csv",
        ),
    ]


@app.command()
def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running, to drop files by hand; Ctrl-C ends it.")
    ] = False,
) -> None:
    """See it work, in 20 seconds and without any account: a local ProcessMind, the daemon, and files that land.

    Exits 0 when every file arrived once and byte-identical.
    """
    out = console()
    with tempfile.TemporaryDirectory(prefix="pmwatch-demo-") as directory:
        root = Path(directory)
        with SandboxServer(root / "sandbox") as server, _daemon(root, server) as config:
            out.print(f"A local ProcessMind serves on {server.base_url}, pmwatch watches {root}/drop/{{datatable}}")
            drops = _drops()
            _write_and_watch(drops, root, config, out)
            wrong = _verify(drops, server)
            out.print(_table(drops, final=True))
            address = _metrics_address(config)
            for line in wrong:
                out.print(f"WRONG: {line}")
            if not wrong:
                out.print("Every file arrived once, byte-identical; the duplicate was recognised and not sent again.")
            if keep:
                _stay(out, root, server, address)
            else:
                out.print(f"Metrics were on {address}/metrics; keep it running with: pmwatch demo --keep")
    raise typer.Exit(ExitCode.FAILURE if wrong else ExitCode.OK)


@contextmanager
def _daemon(root: Path, server: SandboxServer) -> Iterator[Path]:
    """Run `pmwatch run` as a process of its own; yield its configuration once it is ready."""
    tenant = server.tenants[0]
    for table in tenant["datasets"][0]["datatables"]:
        (root / "drop" / table["name"]).mkdir(parents=True)
    (root / "api-key").write_text(tenant["api_key"])
    config = root / "config.toml"
    config.write_text(_CONFIG.format(base_url=server.base_url, root=root, tenant_id=tenant["id"]))
    with (root / "pmwatch.log").open("wb") as log:
        command = [sys.executable, "-m", "pmwatch", "run", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log, start_new_session=True)  # noqa: S603  our own program
        try:
            _wait_ready(config, process, root / "pmwatch.log")
            yield config
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(config: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    settings = load(str(config))
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = ask_daemon(settings.state.dir, "/api/v1/status")
        if found is not None and found["phase"] == "running":
            return
        time.sleep(_POLL_SECONDS)
    raise PmwatchError("the demo's daemon did not start", hint=log.read_text(errors="replace")[-2000:])


def _write_and_watch(drops: list[_Drop], root: Path, config: Path, out: Console) -> None:
    """Let the writers write, each in its thread, and follow the files until all have ended."""
    first = drops[0]
    writers = [threading.Thread(target=_write, args=(drop, root)) for drop in drops if not drop.duplicate_of]
    for writer in writers:
        writer.start()
    settings = load(str(config))
    deadline = time.monotonic() + _LIMIT_SECONDS - 4
    with Live(_table(drops), console=out, transient=True, refresh_per_second=8) as live:
        while time.monotonic() < deadline and not all(drop.delivery.get("finished_at") for drop in drops):
            found = ask_daemon(settings.state.dir, "/api/v1/status") or {"deliveries": []}
            by_path = {delivery["path"]: delivery for delivery in found["deliveries"]}
            for drop in drops:
                drop.delivery = by_path.get(drop.name, {})
                if drop.duplicate_of and not drop.complete_at and first.delivery.get("uploaded_at"):
                    _write(drop, root)
            live.update(_table(drops))
            time.sleep(_POLL_SECONDS)
    for writer in writers:
        writer.join()


def _write(drop: _Drop, root: Path) -> None:
    drop.write(drop, root / "drop" / drop.name)
    drop.complete_at = time.time()


def _table(drops: list[_Drop], *, final: bool = False) -> Table:
    """Show the files: while it runs how they are written, at the end what they are."""
    columns = (
        ("file", "rows", "size", "SHA-256", "state", "complete to uploaded") if final else ("file", "how", "state")
    )
    table = Table()
    for column in columns:
        right = column in ("rows", "size", "complete to uploaded")
        table.add_column(column, overflow="fold", justify="right" if right else "left", no_wrap=column != "file")
    for drop in drops:
        if final:
            digest = hashlib.sha256(drop.content).hexdigest()[:16] + "…"
            table.add_row(drop.name, f"{drop.rows:,}", format_size(len(drop.content)), digest, drop.state, drop.seconds)
        else:
            table.add_row(drop.name, drop.how, drop.state)
    return table


def _verify(drops: list[_Drop], server: SandboxServer) -> list[str]:
    """Compare what the storage holds with what was written: bytes, number of objects, number of PUTs."""
    wrong = []
    stored = {record.filename: record for record in server.objects()}
    for drop in drops:
        name = os.path.basename(drop.name)
        record = stored.pop(name, None)
        if drop.duplicate_of:
            if record is not None or drop.state != "duplicate":
                wrong.append(f"{drop.name} is a duplicate and ended as {drop.state}")
        elif record is None:
            wrong.append(f"{drop.name} did not arrive: {drop.state}")
        elif server.object_path(record).read_bytes() != drop.content:
            wrong.append(f"{drop.name} differs from what was written")
        elif record.put_count != 1:
            wrong.append(f"{drop.name} was sent {record.put_count} times")
    return wrong + [f"{name} arrived, and nobody wrote it" for name in stored]


def _metrics_address(config: Path) -> str:
    holder = json.loads((config.parent / "state" / "pmwatch.lock").read_text())
    return f"http://{holder['http']}"


def _stay(out: Console, root: Path, server: SandboxServer, address: str) -> None:
    """Wait for Ctrl-C."""
    out.print(f"Drop files into {root}/drop/Orders, …/Invoices or …/Deliveries.")
    out.print(f"Status page {address}/ · metrics {address}/metrics · what arrived {server.base_url}/")
    out.print("Ctrl-C ends the demo and removes its directory.")
    mailbox = Mailbox()
    mailbox.receive(signal.SIGINT, signal.SIGTERM)  # to the end: a second one must not break off the tidying up
    mailbox.take()
