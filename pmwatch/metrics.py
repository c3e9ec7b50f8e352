"""The metrics: one registry a service, names and labels as the README lists them. Labels never hold a file name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_DURATION_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
_LATENCY_BUCKETS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 3600)


@dataclass(frozen=True, slots=True)
class GaugeSpec:
    """A gauge whose values are asked for at each scrape."""

    name: str
    help: str
    labels: tuple[str, ...]


ASKED_GAUGES: Final = (
    GaugeSpec("pmwatch_deliveries", "Deliveries in the ledger, by folder and state.", ("folder", "state")),
    GaugeSpec(
        "pmwatch_oldest_pending_seconds",
        "Age of the oldest delivery that is not uploaded yet, since it settled; 0 when there is none.",
        ("folder",),
    ),
    GaugeSpec("pmwatch_blocked_files", "Files waiting behind an earlier one that is being retried.", ("folder",)),
    GaugeSpec("pmwatch_settling_files", "Files seen that may still be written.", ("folder",)),
    GaugeSpec(
        "pmwatch_ignored_files",
        "Files that the last scan left alone, by reason; unmapped: their directory leads to no datatable.",
        ("folder", "reason"),
    ),
    GaugeSpec("pmwatch_oldest_unsettled_seconds", "How long the oldest of these has been settling.", ("folder",)),
    GaugeSpec(
        "pmwatch_last_success_timestamp_seconds",
        "When a file last reached its datatable (epoch seconds).",
        ("folder",),
    ),
    GaugeSpec("pmwatch_gate_open", "1 while deliveries flow, 0 while they wait for this tenant or host.", ("gate",)),
    GaugeSpec("pmwatch_watch_up", "1 while the folder is watched and readable.", ("folder",)),
    GaugeSpec("pmwatch_inotify_watches", "Directories watched through inotify.", ()),
    GaugeSpec(
        "pmwatch_unaccounted_files",
        "Files on disk without a verdict or a state, as of the last audit.",
        ("folder",),
    ),
    GaugeSpec("pmwatch_free_bytes", "Free bytes where pmwatch writes.", ("place",)),
    GaugeSpec("pmwatch_clock_skew_seconds", "The remote end's clock minus ours, by its last Date header.", ()),
)

Samples = Mapping[tuple[str, ...], float]


class Metrics:
    """All that pmwatch counts. Gauges are read from `ask` at scrape time, so that they are never stale."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry()
        folder = ("folder",)
        self.uploads = Counter(
            "pmwatch_uploads_total", "Deliveries that ended.", ("folder", "outcome"), registry=self.registry
        )
        self.upload_bytes = Counter(
            "pmwatch_upload_bytes_total", "Bytes the storage confirmed.", folder, registry=self.registry
        )
        self.upload_duration = Histogram(
            "pmwatch_upload_duration_seconds",
            "From the start of the PUT to its confirmation.",
            folder,
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self.pickup_latency = Histogram(
            "pmwatch_pickup_latency_seconds",
            "From a file's being settled to the start of its PUT.",
            folder,
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.retries = Counter(
            "pmwatch_retries_total",
            "Attempts that will be repeated, by reason.",
            ("folder", "reason"),
            registry=self.registry,
        )
        self.duplicates = Counter(
            "pmwatch_duplicates_total", "Files whose content had gone before.", folder, registry=self.registry
        )
        self.watch_missed = Counter(
            "pmwatch_watch_missed_total", "Files that only a scan found.", folder, registry=self.registry
        )
        self.scan_duration = Histogram(
            "pmwatch_scan_duration_seconds",
            "One full scan of a folder.",
            folder,
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        build = Gauge("pmwatch_build_info", "Always 1; the version is the label.", ("version",), registry=self.registry)
        build.labels(version=version).set(1)

    def start_folder(self, folder: str) -> None:
        """Create the series of a folder, so that its counters start at 0 and rates see the first event."""
        for counter in (self.upload_bytes, self.duplicates, self.watch_missed):
            counter.labels(folder=folder)
        for outcome in ("uploaded", "duplicate", "failed"):
            self.uploads.labels(folder=folder, outcome=outcome)

    def ask(self, answers: Callable[[], Mapping[str, Samples]]) -> None:
        """Let each scrape call `answers`, which returns, by gauge name, its samples by label values."""
        self.registry.register(_AskedGauges(answers))

    def render(self) -> bytes:
        """Return the Prometheus text exposition."""
        return generate_latest(self.registry)


class _AskedGauges(Collector):
    def __init__(self, answers: Callable[[], Mapping[str, Samples]]) -> None:
        self._answers = answers

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(spec.name, spec.help, labels=spec.labels) for spec in ASKED_GAUGES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        answers = self._answers()
        for spec in ASKED_GAUGES:
            family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
            for labels, value in answers.get(spec.name, {}).items():
                family.add_metric(labels, value)
            yield family


METRIC_NAMES: Final = frozenset(spec.name for spec in ASKED_GAUGES) | {
    "pmwatch_uploads_total",
    "pmwatch_upload_bytes_total",
    "pmwatch_upload_duration_seconds",
    "pmwatch_pickup_latency_seconds",
    "pmwatch_retries_total",
    "pmwatch_duplicates_total",
    "pmwatch_watch_missed_total",
    "pmwatch_scan_duration_seconds",
    "pmwatch_build_info",
}
"""Every metric there is; the alert rules may use no other."""
