from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pmwatch.sandbox import SandboxServer
from sandbox.sandbox_client import Clock, SandboxClient


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[SandboxServer]:
    with SandboxServer(tmp_path / "state", now=clock) as running:
        yield running


@pytest.fixture
def client(server: SandboxServer, http: httpx.Client) -> SandboxClient:
    return SandboxClient(server, http)
