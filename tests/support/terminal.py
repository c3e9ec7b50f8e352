"""Runs a command on a terminal, as a person does."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

_TAKE_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"  # a CI may have it ignored
)
_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(
    words: Sequence[str], *, columns: int, env: Mapping[str, str], interrupt_at: bytes | None = None
) -> tuple[int, str]:
    """Return exit code and what was shown, without colours; Ctrl-C is pressed once `interrupt_at` is on the screen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    given = {key: value for key, value in env.items() if key not in {"COLUMNS", "NO_COLOR"}} | {"TERM": "xterm"}
    line = [sys.executable, "-c", _TAKE_TERMINAL, *words]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=given, start_new_session=True)
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        shown += more
        if interrupt_at is not None and interrupt_at in shown:
            os.write(ours, b"\x03")
            interrupt_at = None
    os.close(ours)
    return process.wait(), _CODES.sub(b"", shown).decode().replace("\r\n", "\n")
