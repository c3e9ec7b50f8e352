"""What the doctor says about writers. Files of another user: tests/deploy/test_deploy_container_run.py."""

from pathlib import Path

from pmwatch.doctor import Level, check_mapping, check_writers
from pmwatch.model import Target
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


def test_directories_that_lead_nowhere_are_listed_with_the_reason(tmp_path: Path) -> None:
    tree = make_folder(tmp_path, levels=("{tenant}", "{datatable}"), target=Target("", ""))
    assert [*check_mapping(tree)] == []
    for name in (
        "acme/Orders/good.csv",
        "acme/loose.csv",
        "acne/Orders/a.csv",
        "acne/Orders/b.csv",
        "acne/Orders/c.pdf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("id\n")
    [finding] = check_mapping(tree)
    assert finding.level is Level.WARNING
    assert finding.says.splitlines() == [
        "files in these directories are not uploaded:",
        f"1 in {tmp_path}/acme: not inside {{tenant}}/{{datatable}}",
        f"2 in {tmp_path}/acne/Orders: there is no tenant 'acne'; the nearest is 'acme'",
    ]
