"""sd_notify(3): tell systemd READY, STOPPING, STATUS and WATCHDOG. Nothing happens outside systemd."""

import os
import socket
from typing import Final

CREDENTIALS: Final = "/etc/pmwatch/credentials"
"""Where an operator keeps the API keys that the unit's LoadCredential hands to the service, one file a tenant."""


def is_listening() -> bool:
    """Tell whether systemd asked for notifications: `$NOTIFY_SOCKET` is a path, or an abstract name after `@`."""
    return os.environ.get("NOTIFY_SOCKET", "")[:1] in ("/", "@")


def notify(**fields: str | int) -> bool:
    """Send one datagram such as `notify(READY=1, STATUS="watching 3 folders")`; False where nobody listens.

    Source: sd_notify(3), "Standalone Implementations". A leading `@` in `$NOTIFY_SOCKET` is an abstract socket.
    """
    if not is_listening():
        return False
    address = os.environ["NOTIFY_SOCKET"]
    message = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
            sender.sendall(message.encode("utf-8", "replace"))
        except OSError:
            return False
    return True


def watchdog_interval_seconds() -> float | None:
    """Return how often WATCHDOG=1 is due (half of what systemd asks for), or None where it does not ask."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isdigit() and int(text) > 0 else None
