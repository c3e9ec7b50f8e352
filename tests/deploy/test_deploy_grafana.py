"""The dashboard: every expression is PromQL, of metrics that pmwatch has, and no panel lies upon another."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pmwatch.metrics import METRIC_NAMES
from support.services import require_tool

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "pmwatch.json"
_SUFFIXES = re.compile(r"_(?:bucket|sum|count)$")


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    assert isinstance(found, list)
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.mark.service("promtool")
def test_every_expression_is_promql(tmp_path: Path) -> None:
    plain = [one.replace("$__rate_interval", "5m").replace("$folder", ".*") for one in expressions()]
    rules = [{"record": f"test:expression:{number}", "expr": one} for number, one in enumerate(plain)]
    path = tmp_path / "rules.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    tool = require_tool("promtool", "the Debian package prometheus")
    done = subprocess.run([tool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(plain)} rules found" in done.stdout


def test_it_shows_only_metrics_that_exist_and_nearly_all_of_them() -> None:
    shown = {_SUFFIXES.sub("", name) for one in expressions() for name in re.findall(r"pmwatch_[a-z_]+", one)}
    assert shown <= METRIC_NAMES
    assert METRIC_NAMES - shown == {"pmwatch_build_info", "pmwatch_duplicates_total", "pmwatch_inotify_watches"}


def test_panels_have_a_title_a_reason_a_unit_and_a_place_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_it_asks_for_the_data_source_and_the_folders() -> None:
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    assert [one["name"] for one in variables] == ["datasource", "folder"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())
