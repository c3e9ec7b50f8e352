"""The scanner on real directories."""

import os
from pathlib import Path

import pytest

from pmwatch.errors import FolderDown
from pmwatch.intake.rules import Rules
from pmwatch.intake.scan import root_identity, scan
from support.folders import make_folder


def scanned(root: Path, **changes: object) -> tuple[set[bytes], dict[bytes, str]]:
    problems: dict[bytes, str] = {}
    rules = Rules(make_folder(root, **changes))
    found = {entry.path for entry in scan(os.fsencode(root), rules, problem=problems.__setitem__)}
    return found, problems


def test_it_finds_wanted_files_and_names_the_reason_for_all_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.pdf").write_text("x")
    (tmp_path / ".c.csv").write_text("x")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    found, problems = scanned(tmp_path)
    assert found == {b"a.csv"}
    assert problems == {
        b"b.pdf": "unsupported type",
        b".c.csv": "unfinished name",
        b"link.csv": "a symbolic link, not a regular file",
        b"pipe.csv": "a named pipe, not a regular file",
    }


def test_a_sub_directory_that_is_passed_by_is_named_unless_it_is_pmwatch_s_own_or_unfinished(tmp_path: Path) -> None:
    for name in ("2026", ".pmwatch", "part.tmp", "sent"):
        (tmp_path / name).mkdir()
    sent = os.fsencode(tmp_path / "sent")
    passed_by = {b"2026": "a sub-directory, and the folder is not recursive"}
    assert scanned(tmp_path, archive_dir=sent)[1] == passed_by
    assert scanned(tmp_path, archive_dir=sent, recursive=True)[1] == {}


def test_it_goes_200_directories_deep_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.csv").write_text("x")
    root = tmp_path / "root"
    directory = root
    for number in range(200):
        directory = directory / f"d{number}"
    directory.mkdir(parents=True)
    (directory / "deep.csv").write_text("x")
    (root / "link").symlink_to(outside)
    found, _ = scanned(root, recursive=True)
    assert {os.path.basename(path) for path in found} == {b"deep.csv"}
    assert scanned(root)[0] == set()


def test_names_of_any_bytes_come_back_as_they_are(tmp_path: Path) -> None:
    names = [b"\xff\xfe.csv", b"new\nline.csv", b"tab\t.csv", b"x" * 251 + b".csv", "größe.csv".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    assert scanned(tmp_path)[0] == set(names)


def test_a_missing_root_is_an_error_of_the_folder_not_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderDown, match="No such file"):
        scanned(tmp_path / "absent")
    with pytest.raises(FolderDown, match="No such file") as down:
        root_identity(os.fsencode(tmp_path / "absent"))
    assert "Create it" in down.value.hint


def test_a_file_in_place_of_the_root_is_an_error_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderDown, match="Not a directory"):
        root_identity(os.fsencode(tmp_path / "file"))


def test_a_replaced_root_has_another_identity(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    before = root_identity(os.fsencode(root))
    root.rename(tmp_path / "old")
    root.mkdir()
    assert root_identity(os.fsencode(root)) != before
