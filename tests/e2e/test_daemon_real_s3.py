"""The daemon against a real S3 server: only the API in front of it is ours, the storage verifies by itself."""

import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from pmwatch.sandbox.eventlogs import csv_bytes, order_to_cash, xlsx_bytes
from support.daemon import Daemon, folder_toml
from support.s3servers import SeaweedFS


class Api(ThreadingHTTPServer):
    """As much of ProcessMind's API as an upload needs; its URLs point to the S3 server."""

    def __init__(self, s3: SeaweedFS) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.s3 = s3
        self.urls: list[str] = []
        self.expired_first = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def presign(self, filename: str) -> str:
        key = f"{uuid.uuid4()}/{quote(filename)}"
        at = time.time() - 7200 if len(self.urls) < self.expired_first else None
        self.urls.append(self.s3.signed_url(key, at=at, expires_seconds=3600))
        return self.urls[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.endswith("/presignedurl"):
            self._answer({"PreSignedUploadUrl": self.server.presign(parse_qs(parts.query)["filename"][0])})
        else:
            self._answer([{"id": "table-1", "displayName": "Orders", "datasetId": "set-1"}])

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def api(seaweedfs: SeaweedFS) -> Iterator[Api]:
    with Api(seaweedfs) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def daemon(tmp_path: Path, api: Api, drop: Path) -> Iterator[Daemon]:
    folder = folder_toml("orders", drop, datatable="table-1")
    with Daemon(tmp_path, base_url=api.base_url, tenants={"demo": ("t-1", "any-key")}, folders=folder) as daemon:
        yield daemon


def objects(api: Api) -> list[bytes]:
    """Return what the URLs that were handed out hold now."""
    found = (api.s3.stored(url) for url in api.urls)
    return [content for content in found if content is not None]


def test_uploads_verify_and_arrive_byte_identical(daemon: Daemon, api: Api, drop: Path) -> None:
    daemon.start()
    made = {
        "a.csv": csv_bytes(order_to_cash(500, seed=1)),
        "b ü.xlsx": xlsx_bytes(order_to_cash(200, seed=2)),
        "c.xes": b"<log/>" * 1000,
    }
    for name, content in made.items():
        (drop / name).write_bytes(content)
    done = daemon.wait_done(3)
    assert sorted(objects(api)) == sorted(made.values())
    assert {delivery.detail for delivery in done} == {"etag verified"}


def test_an_expired_url_is_replaced_within_the_same_attempt(daemon: Daemon, api: Api, drop: Path) -> None:
    api.expired_first = 1
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    assert daemon.wait_done(1)[0].attempts == 1
    assert len(api.urls) == 2
    assert objects(api) == [b"a,b\n1,1\n"]


def test_kill_9_during_a_large_upload_leaves_no_torn_object(daemon: Daemon, api: Api, drop: Path) -> None:
    content = csv_bytes(order_to_cash(2000, seed=3)) * 60
    (drop / ".big.csv").write_bytes(content)
    (drop / ".big.csv").rename(drop / "big.csv")
    # After some of the body: SeaweedFS, unlike S3, keeps an empty object where a PUT breaks right behind its head.
    daemon.start(wait=False, env={"PMWATCH_FAILPOINT": "mid_body:3"})
    assert daemon.wait(60) == -signal.SIGKILL
    assert [len(stored) for stored in objects(api) if stored != content] == [], len(content)
    daemon.start()
    daemon.wait_done(1)
    assert objects(api) == [content]
    assert len(daemon.deliveries()) == 1
