"""Real servers and tools that some tests need: found, or the test is skipped and says which package brings it."""

import os
import shutil
import socket
from typing import NoReturn

import pytest

REQUIRE = os.environ.get("PMWATCH_REQUIRE_SERVICES") == "1"


def missing(what: str, package: str) -> NoReturn:
    """Skip the test, or fail it where services are required (as in CI)."""
    message = f"{what} is not here; it comes with {package}"
    if REQUIRE:
        pytest.fail(message)
    pytest.skip(message)


def require_tool(name: str, package: str) -> str:
    """Return the path of the program `name`, which the Debian or Python `package` brings."""
    found = shutil.which(name)
    if found is None:
        missing(name, package)
    return found


def free_port() -> int:
    """Return a port of loopback that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
