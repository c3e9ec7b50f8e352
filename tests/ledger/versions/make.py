"""Writes N.sql: a ledger as the pmwatch that is imported leaves it, with a delivery in each state.

    python tests/ledger/versions/make.py tests/ledger/versions

Run it with the last pmwatch that still writes version N, before N + 1 comes: 1.sql is of 0.1.0. A file that is
here is never written again, for it stands for what lies on people's disks.
"""

import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from pmwatch.ledger import Arrived, Disposed, Ledger
from pmwatch.ledger.schema import VERSION
from pmwatch.model import Delivery, Destination, Fingerprint, Order, Settled, State, Target

TARGET = Target("acme", "Orders", "Order to cash")
UNRESOLVED = Target("acme", "Invoices", "Order to cash")
DESTINATION = Destination("tenant-1", "dataset-1", "table-1")
URL = "https://bucket.s3.amazonaws.com/key?X-Amz-Signature=0123456789abcdef"


class Maker:
    """Fills a ledger by its own methods, file after file; each second of its clock is one file."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.now = 1_700_000_000.0

    def settle(self, path: bytes, *, target: Target = TARGET, order: Order = Order.NONE) -> int:
        """Enter a file; return its delivery's id."""
        self.now += 1
        look = Fingerprint(1000 + int(self.now) % 1000, int(self.now) * 10**9, int(self.now) * 10**9 + 1, 7, 64768)
        [id_] = self.ledger.enqueue([Settled("orders", path, look, target, order, self.now - 5, self.now)])
        return id_

    def claim(self, path: bytes) -> Delivery:
        """Enter a file and claim it, for nothing else may go."""
        id_ = self.settle(path)
        found = self.ledger.claim(now=self.now)
        assert found is not None
        assert found.id == id_
        return found

    def send(self, path: bytes, content: str, *, dispose: bool = False) -> Delivery:
        """Let a file reach its datatable."""
        found = self.claim(path)
        self.ledger.uploaded([Arrived(found, content * 64, f"etag-{content}", "", self.now, dispose)])
        return found

    def fill(self) -> None:
        """Leave a delivery in each state, with what belongs to it."""
        ledger = self.ledger
        ledger.resolve(TARGET, DESTINATION)
        kept = self.send(b"kept.csv", "a")
        self.send(b"kept.csv", "b")
        gone = self.send(b"sub/archived \xff.csv", "c", dispose=True)
        ledger.disposed([Disposed(gone, b"/srv/drop/orders/.pmwatch/archive/2023/11/14/archived.csv", False, self.now)])
        ledger.duplicate(self.claim(b"same.csv"), sha256="a" * 64, of=kept.id, now=self.now, dispose=False)
        ledger.end(self.claim(b"held.csv"), State.HELD, reason="crash_loop", detail="5 times", now=self.now)
        failed = self.claim(b"failed.csv")
        ledger.end(failed, State.FAILED, reason="rejected", detail="400", now=self.now)
        ledger.moved(failed, b"/srv/drop/orders/.pmwatch/quarantine/failed.csv")
        ledger.end(self.claim(b"vanished.csv"), State.VANISHED, reason="vanished", detail="", now=self.now)
        again = self.claim(b"again.csv")
        ledger.end(again, State.FAILED, reason="rejected", detail="", now=self.now)
        self.send(b"to be archived.csv", "d", dispose=True)
        lost = self.claim(b"lost answer.csv")
        ledger.remember_urls([(lost, URL, lost.fingerprint)])
        trouble = {"reason": "answer_lost", "detail": "no answer", "not_before": self.now + 60}
        ledger.give_back(lost, failed_at=self.now, url=URL, **trouble)  # type: ignore[arg-type]
        under_way = self.claim(b"under way.csv")
        ledger.remember_urls([(under_way, URL, under_way.fingerprint)])
        if VERSION > 1:
            self.fill_2(again.id)
        else:
            ledger.requeue([again.id])
        for name in (b"first.csv", b"second.csv"):
            self.settle(name, order=Order.ARRIVAL)
        self.settle(b"unresolved.csv", target=UNRESOLVED, order=Order.ARRIVAL)

    def fill_2(self, failed: int) -> None:
        """Add what version 2 brought: people's actions, repetitions, blockers, models, rows."""
        from pmwatch.ledger import Action

        ledger, by = self.ledger, Action(self.now, "ann", "retry", "because")
        sent = self.send(b"counted.csv", "e")
        ledger.tell_rows(sent.id, 4711)
        ledger.resend([sent.id], order_of=lambda _: Order.NONE, by=Action(self.now, "ann", "resend", "emptied"))
        ledger.requeue([failed], by=by)
        blocks = self.settle(b"unwanted.csv")
        ledger.discard([blocks], now=self.now, by=Action(self.now, "bob", "discard"))
        self.settle(b"model.bpmn", target=Target("acme", "", "", "Order to cash"))


def make() -> str:
    """Return the SQL of a ledger of the version that this pmwatch writes."""
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger.open(directory)
        Maker(ledger).fill()
        ledger.close()
        with closing(sqlite3.connect(Path(directory) / "ledger.db")) as file:
            return "\n".join([*file.iterdump(), f"PRAGMA user_version = {VERSION};", ""])


if __name__ == "__main__":
    made = make()
    with (Path(sys.argv[1]) / f"{VERSION}.sql").open("x", encoding="utf-8") as out:
        out.write(made)
