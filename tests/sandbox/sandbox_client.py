"""A plain client for the sandbox's tests: the real protocol, nothing of pmwatch's own client."""

import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import httpx

from pmwatch.sandbox import SandboxServer, TenantInfo

NOW = 1_800_000_000.0


class Clock:
    """A wall clock that only moves when a test moves it."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> float:
        return self.time


@dataclass
class SandboxClient:
    """Calls one sandbox as its first tenant, about its first datatable."""

    server: SandboxServer
    http: httpx.Client

    @property
    def tenant(self) -> TenantInfo:
        return self.server.tenants[0]

    @property
    def dataset_id(self) -> str:
        return self.tenant["datasets"][0]["id"]

    @property
    def datatable_id(self) -> str:
        return self.tenant["datasets"][0]["datatables"][0]["id"]

    def call(self, method: str, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        url = f"{self.server.base_url}/tenant/{self.tenant['id']}{path}"
        headers = {"x-api-key": self.tenant["api_key"] if key is None else key}
        return self.http.request(method, url, headers=headers, **options)

    def ask_presign(self, **params: Any) -> httpx.Response:
        query = {"datasetid": self.dataset_id, "filename": "orders.csv", "filesize": 3, "filelastmodified": 1, **params}
        return self.call("GET", f"/datatable/{self.datatable_id}/uploads/presignedurl", params=query)

    def presign(self, **params: Any) -> str:
        response = self.ask_presign(**params)
        assert response.status_code == 200, response.text
        url = response.json()["PreSignedUploadUrl"]
        assert isinstance(url, str)
        return url

    def put(self, url: str, body: bytes = b"a,b\n1,2\n", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.put(url, content=body, headers=named)

    def upload(self, body: bytes, **params: Any) -> str:
        """Upload and return the URL that was used."""
        url = self.presign(**params)
        response = self.put(url, body)
        assert response.status_code == 200, response.text
        return url

    def open_put(self, url: str, length: int, *headers: str) -> socket.socket:
        """Send only the head of a PUT; the caller sends the body and closes the socket."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        connection = socket.create_connection((parts.hostname, parts.port or 80), timeout=10)
        lines = (
            f"PUT {parts.path}?{parts.query} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"Content-Length: {length}",
            *headers,
        )
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        return connection


def read_all(connection: socket.socket) -> bytes:
    """Return what arrives until the other side closes."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Return what arrives up to and with `end`."""
    received = b""
    while end not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    return received


def s3_error(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of an S3 error answer, whose form is checked on the way."""
    document = ET.fromstring(response.content)
    assert document.tag == "Error"
    assert response.headers["content-type"] == "application/xml"
    assert document.findtext("RequestId") == response.headers["x-amz-request-id"]
    assert document.findtext("Message")
    return response.status_code, document.findtext("Code") or ""
