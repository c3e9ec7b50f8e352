"""pmwatch: a folder-watching upload daemon for ProcessMind."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmwatch.processmind import Client

__all__ = ["Client", "__version__"]

try:
    __version__ = version("pmwatch")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import `Client` only when somebody asks for it: `pmwatch --help` needs no HTTP client."""
    if name == "Client":
        from pmwatch.processmind import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
