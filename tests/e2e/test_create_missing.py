"""`create_missing`: dataset and datatable come into being with the first file, and not before."""

from pathlib import Path

import pytest

from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, stored


def tables(sandbox: SandboxServer) -> set[str]:
    return {f"{d['name']}/{t['name']}" for d in sandbox.tenants[0]["datasets"] for t in d["datatables"]}


def test_the_datatable_is_created_with_the_first_file_in_a_dataset_that_is_there_or_new(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    there = sandbox.tenants[0]["datasets"][0]["name"]
    other = tmp_path / "other"
    other.mkdir()
    folders = folder_toml("old", drop, datatable=f"{there}/Brand new", create_missing="true")
    folders += folder_toml("new", other, datatable="New dataset/Brand new", create_missing="true")
    before = tables(sandbox)
    with Daemon.for_sandbox(tmp_path, sandbox, folders) as daemon:
        daemon.start()
        daemon.wait_event("destination will be created with its first file", count=2)
        assert daemon.events("destination unknown") == []
        assert tables(sandbox) == before, "nothing is created for no file"
        for directory in (drop, other):
            (directory / f"{directory.name}.csv").write_text(f"id\n{directory.name}\n")
        daemon.wait_done(2)
        assert tables(sandbox) - before == {f"{there}/Brand new", "New dataset/Brand new"}
        assert set(stored(sandbox)) == {"drop.csv", "other.csv"}


def test_one_run_creates_it_as_well(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    folder = folder_toml("orders", drop, datatable="New dataset/Brand new", create_missing="true")
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        (drop / "a.csv").write_text("id\n1\n")
        daemon.start("--once", wait=False)
        assert daemon.wait() == 0, daemon.log_text()
        assert set(stored(sandbox)) == {"a.csv"}


@pytest.mark.parametrize(("datatable", "create"), [("Nowhere/Orders", "false"), ("lonely-id", "true")])
def test_nothing_is_created_unasked_or_without_a_dataset_s_name(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, datatable: str, create: str
) -> None:
    before = tables(sandbox)
    folder = folder_toml("orders", drop, datatable=datatable, create_missing=create)
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        (drop / "a.csv").write_text("id\n1\n")
        daemon.start("--once", wait=False)
        assert daemon.wait() == 1
        assert daemon.events("destination unknown")
        assert tables(sandbox) == before
        assert [one.state for one in daemon.deliveries()] == ["queued"]
