"""The alert rules, judged by the real promtool, and held against the metrics that pmwatch has."""

import re
import subprocess
from pathlib import Path

import pytest

from pmwatch.metrics import METRIC_NAMES
from support.services import require_tool

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
RULES = PROMETHEUS / "pmwatch.rules.yml"
RULE_TESTS = PROMETHEUS / "pmwatch.rules.test.yml"


def promtool(*arguments: str) -> None:
    """Run promtool, which must be content."""
    tool = require_tool("promtool", "the Debian package prometheus")
    result = subprocess.run(
        [tool, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=PROMETHEUS
    )
    assert result.returncode == 0, result.stdout + result.stderr


def alerts() -> dict[str, str]:
    """Return the text of every alert by its name."""
    parts = re.split(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.service("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", RULES.name),
        ("test", "rules", RULE_TESTS.name),
        ("check", "config", "scrape.example.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    promtool(*arguments)


def test_rules_use_only_metrics_that_exist() -> None:
    expressions = re.findall(r"^ +expr: (.*)$", RULES.read_text(), flags=re.MULTILINE)
    assert len(expressions) == len(alerts())
    used = {name for expression in expressions for name in re.findall(r"\bpmwatch_[a-z_]+", expression)}
    assert used
    assert used <= METRIC_NAMES


def test_words_for_people_name_only_metrics_that_exist() -> None:
    named = set(re.findall(r"\bpmwatch_[a-z_]+", RULES.read_text() + RULE_TESTS.read_text()))
    assert named <= METRIC_NAMES


def test_every_alert_has_a_severity_and_says_what_to_do() -> None:
    for name, text in alerts().items():
        assert re.search(r"severity: (critical|warning)$", text, re.MULTILINE), name
        for annotation in ("summary", "description", "runbook"):
            assert re.search(rf"^ +{annotation}: \S", text, re.MULTILINE), f"{name} has no {annotation}"


def test_every_alert_is_seen_firing_in_the_rule_tests() -> None:
    assert len(alerts()) == 11
    assert [name for name in alerts() if f'"{name}"' not in RULE_TESTS.read_text()] == []


def test_the_scrape_jobs_have_the_name_that_the_rules_look_for() -> None:
    (job,) = set(re.findall(r'up\{job="(\w+)"\}', RULES.read_text()))
    for example in sorted(PROMETHEUS.glob("scrape.*.yml")):
        assert re.findall(r"job_name: (\w+)", example.read_text()) == [job], example.name


def test_kubernetes_discovery_looks_for_the_port_that_the_sidecar_has() -> None:
    deployment = (PROMETHEUS.parent / "kubernetes" / "base" / "deployment.yaml").read_text()
    (port,) = re.findall(r"regex: (\S+)", (PROMETHEUS / "scrape.kubernetes.example.yml").read_text())
    assert f"- name: {port}\n" in deployment
