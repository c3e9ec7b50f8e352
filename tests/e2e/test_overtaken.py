"""A person frees a file that newer ones have overtaken: only with open eyes."""

import json
from pathlib import Path

import pytest

from pmwatch.ledger import Ledger
from pmwatch.model import State
from support.daemon import Daemon, folder_toml
from support.ledgers import DESTINATION, claimed, drop, look, sent
from support.ledgers import TARGET as WANTED


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    (tmp_path / "drop").mkdir()
    folders = folder_toml("orders", tmp_path / "drop", tenant=WANTED.tenant, datatable=WANTED.datatable)
    made = Daemon(tmp_path, base_url="http://127.0.0.1:9", tenants={"acme": ("tenant-1", "key")}, folders=folders)
    made.state.mkdir(mode=0o700)
    made.write_config()
    return made


@pytest.mark.parametrize("command", ["release", "retry"])
@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_what_newer_files_have_overtaken(daemon: Daemon, command: str, state: State) -> None:
    ledger = Ledger.open(str(daemon.state))
    ledger.resolve(WANTED, DESTINATION)
    id_ = drop(ledger, "old.csv", look(1))
    ledger.end(claimed(ledger), state, reason="shrunk", detail="", now=1.0)
    sent(ledger, "new.csv", "new", look(2))
    ledger.close()
    told = daemon.command(command, str(id_), "--json")
    free = command == "retry" and state is State.FAILED  # it failed, others went on: that is what on_failure says
    assert (told.returncode == 0) is free
    if not free:
        assert "new.csv" in json.loads(told.stdout)["refused"][str(id_)]
        assert daemon.command(command, str(id_), "--force").returncode == 0
    assert [one.state for one in daemon.deliveries() if one.id == id_] == [State.QUEUED]
