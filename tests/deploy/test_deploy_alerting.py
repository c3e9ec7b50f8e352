"""A real Prometheus and Alertmanager with the shipped rules: an alert of a real pmwatch fires, and is resolved."""

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, wait_for
from support.services import free_port, require_tool

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
_SECONDS = 60.0
Told = queue.Queue[dict[str, Any]]


@contextmanager
def receiver() -> Iterator[tuple[str, Told]]:
    """Serve as the one who hears of alerts: yield its address, and what it was told."""
    told: Told = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="receiver")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/alerts", told
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running(words: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out, subprocess.Popen(words, stdout=out, stderr=out) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def monitoring(directory: Path, pmwatch: str) -> Iterator[Told]:
    """Run both with the shipped rules, every second, on the metrics of `pmwatch` (host and port)."""
    prometheus = require_tool("prometheus", "the Debian package prometheus")
    manager = require_tool("prometheus-alertmanager", "the Debian package prometheus-alertmanager")
    of_manager, of_prometheus = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with receiver() as (url, told):
        (directory / "alertmanager.yml").write_text(
            "route: {receiver: test, group_by: [alertname, folder], group_wait: 0s, group_interval: 1s}\n"
            f'receivers: [{{name: test, webhook_configs: [{{url: "{url}"}}]}}]\n'
        )
        (directory / "prometheus.yml").write_text(
            f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{PROMETHEUS}/pmwatch.rules.yml]\n"
            f'alerting: {{alertmanagers: [{{static_configs: [{{targets: ["{of_manager}"]}}]}}]}}\n'
            f'scrape_configs: [{{job_name: pmwatch, static_configs: [{{targets: ["{pmwatch}"]}}]}}]\n'
        )
        words = [manager, f"--config.file={directory}/alertmanager.yml", f"--storage.path={directory}/am"]
        words += [f"--web.listen-address={of_manager}", "--cluster.listen-address="]
        more = [prometheus, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb"]
        more += [f"--web.listen-address={of_prometheus}"]
        with running(words, directory / "alertmanager.log"), running(more, directory / "prometheus.log"):
            yield told


def next_alert(told: Told, directory: Path) -> tuple[str, dict[str, Any]]:
    """Return status and content of the next alert that somebody would hear of."""
    try:
        [alert] = told.get(timeout=_SECONDS)["alerts"]
    except queue.Empty:
        logs = [(directory / f"{name}.log").read_text()[-2000:] for name in ("prometheus", "alertmanager")]
        raise AssertionError("\n".join(["nobody was told", *logs])) from None
    return alert["status"], alert


@pytest.mark.service("prometheus")
def test_a_held_file_fires_and_its_end_resolves(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    table = sandbox.tenants[0]["datasets"][0]["datatables"][0]["id"]
    folder = folder_toml("orders", drop, datatable=table, min_size='"1KiB"')
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        daemon.start()
        (drop / "small.csv").write_text("id\n1\n")
        wait_for("it is held", lambda: [str(one.state) for one in daemon.deliveries()] == ["held"])
        with monitoring(tmp_path, daemon.address.removeprefix("http://").rstrip("/")) as told:
            status, alert = next_alert(told, tmp_path)
            assert (status, alert["labels"]["alertname"]) == ("firing", "PmwatchFailedFiles")
            assert alert["labels"]["folder"] == "orders"
            assert "until a person decides" in alert["annotations"]["description"]
            assert daemon.command("discard", "--all").returncode == 0
            status, alert = next_alert(told, tmp_path)
            assert (status, alert["labels"]["alertname"]) == ("resolved", "PmwatchFailedFiles")


@pytest.mark.service("amtool")
def test_the_example_of_the_alertmanager_is_accepted() -> None:
    tool = require_tool("amtool", "the Debian package prometheus-alertmanager")
    words = [tool, "check-config", str(PROMETHEUS / "alertmanager.example.yml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
