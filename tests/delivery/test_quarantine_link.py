"""`quarantine = "link"`: a failed file stays in its place, and has a link and the reason aside."""

import json
import os
from pathlib import Path

import pytest

from pmwatch.delivery.dispose import clear_quarantine, quarantine
from pmwatch.model import Delivery, Fingerprint, Folder, Quarantine
from support.folders import make_folder
from support.ledgers import claimed, drop, opened

FACTS = {"reason": "invalid", "message": "torn"}


def failed(tmp_path: Path, folder: Folder, name: str = "sub/a.csv") -> tuple[Delivery, Path]:
    """Return a delivery of a real file, and the file."""
    source = Path(os.fsdecode(folder.root)) / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("torn")
    with opened(tmp_path / "state") as ledger:
        drop(ledger, name, Fingerprint.of(source.stat()))
        return claimed(ledger), source


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "state").mkdir()
    return make_folder(tmp_path / "drop", name="orders", recursive=True, quarantine=Quarantine.LINK)


def test_the_file_stays_with_a_link_and_its_reason_aside(tmp_path: Path, folder: Folder) -> None:
    delivery, source = failed(tmp_path, folder)
    assert quarantine(delivery, folder, facts=FACTS) == b""
    aside = Path(os.fsdecode(folder.quarantine_dir)) / "sub"
    assert source.read_text() == "torn"
    assert os.path.samefile(aside / "a.csv", source)
    assert json.loads((aside / "a.csv.error.json").read_text()) == FACTS
    assert sorted(path.name for path in aside.iterdir()) == ["a.csv", "a.csv.error.json"]


def test_failing_twice_leaves_one_link_and_the_last_reason(tmp_path: Path, folder: Folder) -> None:
    delivery, source = failed(tmp_path, folder)
    quarantine(delivery, folder, facts={"reason": "first"})
    quarantine(delivery, folder, facts=FACTS)
    aside = Path(os.fsdecode(folder.quarantine_dir)) / "sub"
    assert sorted(path.name for path in aside.iterdir()) == ["a.csv", "a.csv.error.json"]
    assert json.loads((aside / "a.csv.error.json").read_text()) == FACTS
    assert source.stat().st_nlink == 2


def test_once_it_has_arrived_link_and_reason_go_and_the_file_stays(tmp_path: Path, folder: Folder) -> None:
    delivery, source = failed(tmp_path, folder)
    quarantine(delivery, folder, facts=FACTS)
    clear_quarantine(delivery, folder)
    assert list((Path(os.fsdecode(folder.quarantine_dir)) / "sub").iterdir()) == []
    assert source.read_text() == "torn"
    clear_quarantine(delivery, folder)


def test_a_link_of_another_version_is_not_removed(tmp_path: Path, folder: Folder) -> None:
    delivery, _ = failed(tmp_path, folder)
    aside = Path(os.fsdecode(folder.quarantine_dir)) / "sub"
    aside.mkdir(parents=True)
    (aside / "a.csv").write_text("another one")
    clear_quarantine(delivery, folder)
    assert (aside / "a.csv").read_text() == "another one"


def test_what_is_no_longer_that_version_is_neither_linked_nor_blamed(tmp_path: Path, folder: Folder) -> None:
    delivery, source = failed(tmp_path, folder)
    source.write_text("a newer and longer version")
    assert quarantine(delivery, folder, facts=FACTS) == b""
    assert list(Path(os.fsdecode(folder.quarantine_dir)).rglob("*.json")) == []
