"""Ledgers of older and newer versions, as they lie on people's disks."""

import sqlite3
from contextlib import closing
from pathlib import Path

from pmwatch.ledger import VERSION

DUMPS = Path(__file__).resolve().parents[1] / "ledger" / "versions"
OLDER = range(1, VERSION)


def lay(state_dir: Path, version: int) -> Path:
    """Lay the ledger of a version into a state directory, with a delivery in each state; return its file.

    A version that is not there yet is the newest one with another number.
    """
    state_dir.mkdir(mode=0o700, exist_ok=True)
    file = state_dir / "ledger.db"
    dump = (DUMPS / f"{min(version, VERSION)}.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(dump)
        connection.execute(f"PRAGMA user_version = {version}")
    file.chmod(0o600)
    return file


def content(directory: Path) -> dict[str, bytes]:
    """Return what the files of a directory hold, without what readers make: an empty WAL, and its index."""
    found = {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}
    return {name: held for name, held in found.items() if held}
