"""The metrics: the names that exist, the labels that are allowed, and gauges that are asked at each scrape."""

from collections.abc import Mapping

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pmwatch.metrics import ASKED_GAUGES, METRIC_NAMES, Metrics, Samples

ALLOWED_LABELS = {"folder", "tenant", "state", "outcome", "reason", "gate", "place", "version", "le"}


def every_gauge() -> Mapping[str, Samples]:
    return {spec.name: {tuple(f"a-{label}" for label in spec.labels): 1.0} for spec in ASKED_GAUGES}


@pytest.fixture
def metrics() -> Metrics:
    """All metrics, with at least one sample each."""
    metrics = Metrics(version="1.2.3")
    metrics.ask(every_gauge)
    metrics.start_folder("orders")
    for histogram in (metrics.upload_duration, metrics.pickup_latency, metrics.scan_duration):
        histogram.labels(folder="orders").observe(0.2)
    metrics.retries.labels(folder="orders", reason="throttled").inc()
    return metrics


def families(metrics: Metrics) -> list[Metric]:
    return list(text_string_to_metric_families(metrics.render().decode()))


def name_of(family: Metric) -> str:
    """Return the name as people write it in queries: counters with their suffix."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def created(family: Metric) -> bool:
    return family.name.endswith("_created")


def test_what_is_rendered_is_exactly_what_is_named(metrics: Metrics) -> None:
    assert {name_of(family) for family in families(metrics) if not created(family)} == METRIC_NAMES


def test_every_metric_says_what_it_is_and_has_a_sample(metrics: Metrics) -> None:
    for family in families(metrics):
        assert family.documentation, family.name
        assert family.samples, family.name


def test_labels_are_only_those_that_cannot_grow_without_bound(metrics: Metrics) -> None:
    used = {label for family in families(metrics) for sample in family.samples for label in sample.labels}
    assert used <= ALLOWED_LABELS


def test_counters_of_a_folder_begin_at_zero_so_that_a_rate_sees_the_first_event() -> None:
    metrics = Metrics(version="1")
    metrics.start_folder("orders")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families(metrics)
        if family.type == "counter" and not created(family)
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert found == {
        ("pmwatch_upload_bytes_total", "orders"): 0.0,
        ("pmwatch_duplicates_total", "orders"): 0.0,
        ("pmwatch_watch_missed_total", "orders"): 0.0,
        ("pmwatch_uploads_total", "orders", "uploaded"): 0.0,
        ("pmwatch_uploads_total", "duplicate", "orders"): 0.0,
        ("pmwatch_uploads_total", "failed", "orders"): 0.0,
    }


def test_gauges_are_asked_at_each_scrape() -> None:
    metrics = Metrics(version="1")
    depth = [3.0]
    metrics.ask(lambda: {"pmwatch_deliveries": {("orders", "queued"): depth[0]}})
    assert b'pmwatch_deliveries{folder="orders",state="queued"} 3.0' in metrics.render()
    depth[0] = 4.0
    assert b'pmwatch_deliveries{folder="orders",state="queued"} 4.0' in metrics.render()


def test_asking_begins_with_the_scrape_and_not_before() -> None:
    metrics = Metrics(version="1")
    asked: list[int] = []

    def answers() -> Mapping[str, Samples]:
        asked.append(1)
        return {}

    metrics.ask(answers)
    assert asked == []
    metrics.render()
    assert asked == [1]


def test_a_gauge_without_an_answer_has_its_name_but_no_sample() -> None:
    metrics = Metrics(version="1")
    metrics.ask(dict)
    text = metrics.render().decode()
    assert "# TYPE pmwatch_free_bytes gauge" in text
    assert "pmwatch_free_bytes{" not in text


def test_the_version_is_a_label_of_a_metric_that_is_always_one() -> None:
    assert b'pmwatch_build_info{version="1.2.3"} 1.0' in Metrics(version="1.2.3").render()


def test_a_folder_name_with_quotes_cannot_break_out_of_its_label() -> None:
    metrics = Metrics(version="1")
    metrics.start_folder('a"} 1\nevil 2')
    names = {family.name for family in families(metrics)}
    assert "evil" not in names


def test_two_services_in_one_process_count_apart() -> None:
    one, other = Metrics(version="1"), Metrics(version="1")
    one.duplicates.labels(folder="orders").inc()
    assert b'pmwatch_duplicates_total{folder="orders"}' not in other.render()
