"""What the doctor says about writers. Files of another user: tests/deploy/test_deploy_container_run.py."""

from pathlib import Path

from pmwatch.doctor import Level, check_writers
from support.folders import make_folder


def test_an_empty_folder_tells_nothing_about_its_writers(tmp_path: Path) -> None:
    assert [*check_writers(make_folder(tmp_path))] == []


def test_an_absent_folder_is_told_of_elsewhere(tmp_path: Path) -> None:
    assert [*check_writers(make_folder(tmp_path / "absent"))] == []


def test_writers_of_own_files_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    (tmp_path / ".b.csv.part").write_text("id\n")
    [finding] = check_writers(make_folder(tmp_path))
    assert finding.level is Level.OK
