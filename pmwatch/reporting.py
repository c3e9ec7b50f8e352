"""What the layers below tell, put into words and numbers: one canonical log line an outcome, and the counters."""

import os
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from pmwatch.delivery.gates import Gate
from pmwatch.delivery.worker import Report
from pmwatch.errors import FolderDown
from pmwatch.intake.settle import Candidate
from pmwatch.metrics import Metrics
from pmwatch.model import Delivery, Folder, display, format_duration

_MOST_UNMAPPED: Final = 1000  # directories that are remembered as told of

_LOG_LINES: Final = {
    "uploaded": ("info", "uploaded"),
    "duplicate": ("info", "duplicate"),
    "unchanged": ("debug", "unchanged"),
    "disposed": ("debug", "disposed"),
    "dispose_failed": ("error", "source not disposed of"),
    "retry": ("warning", "upload will be tried again"),
    "gate": ("debug", "waiting for the other side"),
    "returned": ("debug", "returned to the queue"),
    "ledger_trouble": ("error", "ledger trouble"),
    "held": ("error", "held for a person"),
    "failed": ("error", "upload failed"),
    "vanished": ("warning", "source changed or gone before its upload"),
}


class Reporter:
    """Is told by intakes, uploaders and gates what happened; `wake` makes idle threads look for work again.

    `active` are the deliveries whose PUT is under way; `failed` counts what ended failed or held in this run.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        settled: Callable[[int], None],
        wake: Callable[[], None],
        on_report: Callable[[Report], None],
    ) -> None:
        self.active: dict[int, Delivery] = {}
        self.failed = 0
        self._unmapped: set[tuple[str, bytes]] = set()
        self._metrics = metrics
        self._settled = settled
        self._wake = wake
        self._on_report = on_report
        self._log = structlog.get_logger().bind()  # put together once, not at every line

    def put_started(self, delivery: Delivery) -> None:
        """Note that a PUT begins (from an uploader)."""
        self.active[delivery.id] = delivery
        if delivery.attempts == 1:
            latency = max(0.0, time.time() - delivery.settled_at)
            self._metrics.pickup_latency.labels(folder=delivery.folder).observe(latency)

    def reported(self, report: Report) -> None:
        """Count and log one outcome: one canonical line each."""
        delivery = report.delivery
        if report.what != "disposed":
            self.active.pop(delivery.id, None)
        self._count(report)
        level, event = _LOG_LINES[report.what]
        facts: dict[str, Any] = {
            "folder": delivery.folder,
            "path": delivery.display_path,
            "target": str(delivery.target),
        }
        facts |= {"size": delivery.fingerprint.size, "attempt": delivery.attempts}
        optional = {
            "reason": report.reason,
            "error": report.message if report.reason else "",
            "hint": report.hint,
            "sha256": report.sha256,
            "seconds": round(report.put_seconds, 3),
            "request_id": report.request_id,
            "s3_code": report.code,
            "etag_verified": report.etag_verified,
            "duplicate_of": report.duplicate_of,
            "location": display(report.location),
            "next_attempt_in": format_duration(report.not_before - time.time()) if report.not_before else "",
        }
        facts |= {key: value for key, value in optional.items() if value or value is False}
        if report.older_version:
            level, facts["hint"] = (
                "warning",
                (
                    "These bytes repeat an older version, and newer ones went in between. If the older content should "
                    f'come back: pmwatch resend {report.duplicate_of}; to have it always so, set dedup = "latest".'
                ),
            )
        getattr(self._log, level)(event, **facts)
        self._on_report(report)  # no wake: whoever finished a delivery looks for the next one itself

    def _count(self, report: Report) -> None:
        folder = report.delivery.folder
        if report.what == "uploaded":
            self._metrics.uploads.labels(folder=folder, outcome="uploaded").inc()
            self._metrics.upload_bytes.labels(folder=folder).inc(report.delivery.fingerprint.size)
            self._metrics.upload_duration.labels(folder=folder).observe(report.put_seconds)
        elif report.what == "duplicate":
            self._metrics.uploads.labels(folder=folder, outcome="duplicate").inc()
            self._metrics.duplicates.labels(folder=folder).inc()
        elif report.what in ("failed", "held"):
            self.failed += 1
            self._metrics.uploads.labels(folder=folder, outcome=report.what).inc()
        elif report.what in ("retry", "gate"):
            self._metrics.retries.labels(folder=folder, reason=report.reason).inc()

    def gate_changed(self, gate: Gate) -> None:
        """Log that a gate closed or opened."""
        if gate.is_open:
            self._log.info("gate opened", gate=gate.name)
        else:
            self._log.error("gate closed", gate=gate.name, reason=gate.reason, error=gate.message, hint=gate.hint)
        self._wake()

    def share_changed(self, tenant: str, uploads: int) -> None:
        """Log that a tenant gets fewer uploads at a time, or all of them again."""
        self._log.info("uploads at a time", tenant=tenant, now=uploads, why="429 and 503 halve them")

    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:
        """Log that a folder went down or came back (from its intake)."""
        if problem is None:
            self._log.info("folder up", folder=folder)
        else:
            self._log.error("folder down", folder=folder, error=problem.message, hint=problem.hint)

    def settled(self, folder: str, count: int) -> None:
        """Wake as many uploaders as there may be work for (from an intake)."""
        self._log.debug("settled", folder=folder, files=count)
        self._settled(count)

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:
        """Count a scan, and what only it found (from an intake)."""
        self._metrics.scan_duration.labels(folder=folder).observe(seconds)
        if missed:
            self._metrics.watch_missed.labels(folder=folder).inc(missed)
        self._log.debug("scanned", folder=folder, seconds=round(seconds, 3), new_files=files, missed=missed)

    def backlog_held(self, folder: str, count: int) -> None:
        """Count and log that old files wait for a person's word (from an intake)."""
        self.failed += count
        self._log.warning(
            "backlog held",
            folder=folder,
            files=count,
            hint=f"pmwatch backfill --folder {folder} sends them, pmwatch mark-seen --folder {folder} never will.",
        )

    def folder_removed(self, folder: str, files: int) -> None:
        """Log that files wait for a folder which is not in the configuration."""
        self._log.warning(
            "files of a removed folder are held",
            folder=folder,
            files=files,
            hint=f"Put the folder back into the configuration and they go by themselves, or give them up: "
            f"pmwatch discard --folder {folder}",
        )

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:
        """Log, once a file, that it is still not complete (from an intake)."""
        self._log.warning(
            "file never settles",
            folder=folder,
            path=display(candidate.path),
            for_=format_duration(seconds),
            waits_for=candidate.waits_for,
            hint="Is its writer stuck? pmwatch uploads it as soon as it is quiet and closed.",
        )

    def unmapped(self, folder: Folder, directory: bytes, reason: str) -> None:
        """Log, once a directory while there are not very many, that its files go nowhere (from an intake)."""
        known = (folder.name, directory)
        if known in self._unmapped or len(self._unmapped) >= _MOST_UNMAPPED:
            return
        self._unmapped.add(known)
        self._log.warning(
            "unmapped directory",
            folder=folder.name,
            directory=display(os.path.join(folder.root, directory).rstrip(b"/")),
            why=reason,
            hint="Its files are not uploaded: move them into a directory that the path names, or add the tenant.",
        )
        if len(self._unmapped) == _MOST_UNMAPPED:
            self._log.warning("unmapped directory", hint="There may be more; pmwatch doctor lists them.")
