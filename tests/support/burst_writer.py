"""Writes many small files as fast as it can, in the ways real writers do. A process of its own, so that four can race.

python -m support.burst_writer DIRECTORY PREFIX COUNT
"""

import os
import sys
from typing import Final

STAGING: Final = ".staging"
"""Below the directory, and ignored by its name: where a careful writer writes before it renames."""


def name_of(prefix: str, number: int) -> str:
    """Return the name of one file."""
    return f"{prefix}-{number:06d}.csv"


def content_of(name: str) -> bytes:
    """Return what a file holds; no two are alike, and the size tells a whole one from a torn one."""
    return f"case;activity\n{name};start\n".encode()


def write(directory: str, prefix: str, count: int) -> None:
    """Write `count` files in turns: renamed into place, in place in two pieces, and linked into place."""
    for number in range(count):
        name = name_of(prefix, number)
        path, staged = os.path.join(directory, name), os.path.join(directory, STAGING, name)
        content = content_of(name)
        way = number % 3
        with open(path if way == 1 else staged, "wb", buffering=0) as file:
            file.write(content[:5])
            file.write(content[5:])
        if way == 0:
            os.rename(staged, path)
        elif way == 2:
            os.link(staged, path)
            os.unlink(staged)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
