"""kill -9 at random moments while files keep landing: counted by the storage, not by pmwatch."""

import hashlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, table_id

KILLS = 6 * int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
SIZES = (10, 4_000, 200_000, 3_000_000)


def land_files(drop: Path, chance: random.Random, expected: dict[str, str], seconds: float) -> None:
    """Rename new files into place for a while; remember their hashes by name."""
    pace, end = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < end:
        name, content = f"{len(expected):05}.csv", chance.randbytes(chance.choice(SIZES))
        (drop / f".{name}").write_bytes(content)
        (drop / f".{name}").rename(drop / name)
        expected[name] = hashlib.sha256(content).hexdigest()
        pace.wait(chance.uniform(0, 0.08))


@pytest.mark.parametrize(("policy", "order"), [("archive", "arrival"), ("delete", "arrival"), ("keep", "none")])
def test_after_many_kills_every_file_is_there_once_whole_and_in_order(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, policy: str, order: str
) -> None:
    chance = random.Random(f"{policy}{order}")
    expected: dict[str, str] = {}
    folder = folder_toml("orders", drop, datatable=table_id(sandbox), after_upload=f'"{policy}"', order=f'"{order}"')
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        daemon.defaults = 'settle = "100ms"\nrescan_interval = "1s"'
        for _ in range(KILLS):
            daemon.start(wait=False)
            land_files(drop, chance, expected, chance.uniform(0.3, 1.8))
            daemon.kill()
        daemon.start()
        done = daemon.wait_done(len(expected))
        objects = sandbox.objects()
        assert {record.filename: record.sha256 for record in objects} == expected
        assert [record.filename for record in objects if record.put_count != 1] == []
        assert len(objects) == len(expected) == len(daemon.deliveries())
        if order == "arrival":
            assert [record.filename for record in objects] == sorted(expected)
        places = {os.fsdecode(delivery.location) for delivery in done if delivery.location}
        assert daemon.stop() == 0
    left = {path.name for path in drop.iterdir() if path.is_file()}
    assert left == (set(expected) if policy == "keep" else set())
    assert len(places) == (len(expected) if policy == "archive" else 0)
    assert all(Path(place).is_file() for place in places)
