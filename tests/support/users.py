"""Another user, for tests of what may not be read."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def without_privileges() -> Iterator[Path]:
    """Yield a directory that belongs to a user without privileges, as whom the test goes on."""
    with tempfile.TemporaryDirectory(prefix="pmwatch-") as name:
        if os.geteuid():
            yield Path(name)
            return
        nobody = pwd.getpwnam("nobody").pw_uid
        os.chown(name, nobody, -1)
        try:
            os.seteuid(nobody)
        except PermissionError:
            pytest.skip("becoming another user needs CAP_SETUID")
        try:
            yield Path(name)
        finally:
            os.seteuid(0)
