"""Failpoints: named places at which a test lets the process die as if by kill -9, to see what a restart makes of it.

`PMWATCH_FAILPOINT=NAME` arms one, `NAME:3` from its third time on. Unarmed, a place costs one comparison.
"""

import itertools
import os
import signal
from typing import Final

NAMES: Final = (
    "after_claim",
    "after_presign",
    "mid_body",
    "after_last_byte",
    "after_answer",
    "after_commit",
    "between_copy_and_unlink",
    "during_archive_rename",
    "during_recovery",
)

_armed, _, _times = os.environ.get("PMWATCH_FAILPOINT", "").partition(":")
_passes = itertools.count(1)


def reached(name: str) -> None:
    """Die here, if this place is the armed one and its time has come."""
    if name == _armed and next(_passes) >= int(_times or "1"):
        os.kill(os.getpid(), signal.SIGKILL)
