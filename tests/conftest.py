"""What every test may use."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import pmwatch
from pmwatch.sandbox import SandboxServer
from support.s3servers import SeaweedFS, running_seaweedfs
from support.services import REQUIRE

SCALE = int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
settings.register_profile(
    "pmwatch", deadline=None, max_examples=50 * SCALE, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("pmwatch")


def pytest_sessionstart() -> None:
    """Where services are required, what is tested must be the installed package, not the source tree."""
    if REQUIRE:
        installed = Path(sysconfig.get_paths()["purelib"]).resolve()
        found = Path(pmwatch.__file__).resolve()
        if installed not in found.parents:
            pytest.exit(f"PMWATCH_REQUIRE_SERVICES=1, but pmwatch is imported from {found}, not from {installed}", 3)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxServer]:
    """A running local ProcessMind."""
    with SandboxServer(tmp_path / "sandbox") as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A running SeaweedFS, one for all tests that need a real S3 server."""
    with running_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """An empty drop folder."""
    path = tmp_path / "drop"
    path.mkdir()
    return path
