"""A folder written by strangers: nothing in it blocks, crashes or leads out of it, and everything has its reason."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from pmwatch.intake import scan
from pmwatch.intake.watch import Watcher
from pmwatch.model import Target, display
from support.intakes import DiskIntake
from support.users import without_privileges

SECRET = b"id\nsecret\n"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the folder, with a file that nobody asked to be uploaded."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret.csv").write_bytes(SECRET)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskIntake]:
    disk = DiskIntake(tmp_path, recursive=True)
    yield disk
    disk.close()


@contextmanager
def watched(disk: DiskIntake) -> Iterator[DiskIntake]:
    """Let the kernel's own events come; the clock stays the test's."""
    watcher = Watcher()
    disk.watcher = watcher
    try:
        disk.restart().turn(longest_wait=0.0)
        yield disk
    finally:
        disk.intake.close()
        watcher.close()


def until(disk: DiskIntake, probe: Callable[[], bool]) -> None:
    """Make turns, each of which waits for events, until `probe` holds."""
    for _ in range(100):
        if probe():
            return
        disk.intake.turn(longest_wait=0.1)
    raise AssertionError(disk.entered())


def make(disk: DiskIntake, name: bytes, data: bytes = b"id\n1\n") -> None:
    path = os.path.join(os.fsencode(disk.drop), name)
    with open(path, "wb") as file:
        file.write(data)


# ---- what is no regular file --------------------------------------------------------------------------------------


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        old = os.getcwd()
        os.chdir(path.parent)  # a socket's address holds some 100 bytes only
        try:
            listener.bind(path.name)
        finally:
            os.chdir(old)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("making a device needs CAP_MKNOD")


SPECIAL: dict[str, Callable[[Path, Path], object]] = {
    "symbolic link to a file inside": lambda path, _: path.symlink_to("good.csv"),
    "symbolic link to a file outside": lambda path, outside: path.symlink_to(outside / "secret.csv"),
    "symbolic link to the password file": lambda path, _: path.symlink_to("/etc/passwd"),
    "symbolic link to a directory inside": lambda path, _: path.symlink_to("."),
    "symbolic link to a directory outside": lambda path, outside: path.symlink_to(outside),
    "symbolic link to nothing": lambda path, _: path.symlink_to("nothing"),
    "symbolic link to itself": lambda path, _: path.symlink_to(path.name),
    "named pipe": lambda path, _: os.mkfifo(path),
    "socket": lambda path, _: a_socket(path),
    "character device": lambda path, _: a_device(path),
}


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("is_hinted", [False, True])
def test_what_is_no_regular_file_stays_where_it_is_and_says_so(
    disk: DiskIntake, outside: Path, what: str, *, is_hinted: bool
) -> None:
    disk.write("good.csv")
    SPECIAL[what](disk.drop / "bad.csv", outside)
    if is_hinted:
        disk.hint("bad.csv", renamed=True)
    disk.settle()
    kind = what.partition(" to ")[0]
    assert disk.entered() == ["good.csv"]
    assert disk.intake.status().ignored == {f"a {kind}, not a regular file": 1}
    answer = disk.why("bad.csv")
    assert (answer.verdict, answer.sentences) == ("ignored", [f"It is a {kind}, not a regular file."])


def test_no_link_leads_out_of_the_folder(disk: DiskIntake, outside: Path) -> None:
    (disk.drop / "door").symlink_to(outside)
    (disk.drop / "back").symlink_to("..")
    (disk.drop / "round").symlink_to(".")
    for name in ("door/secret.csv", "back/outside/secret.csv", "../outside/secret.csv", "round/door/secret.csv"):
        disk.hint(name, renamed=True)
    disk.intake.inbox.put_directory(b"door")
    disk.intake.inbox.put_directory(b"back/outside")
    disk.settle()
    assert disk.entered() == []
    assert disk.intake.status().ignored == {"unsupported type": 3}
    assert disk.why("door/secret.csv").verdict == "absent"
    assert disk.why("../outside/secret.csv").verdict == "unwatched"


def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(disk: DiskIntake, outside: Path) -> None:
    disk.write("sub/secret.csv")
    disk.write("plain.csv")
    disk.turn()
    assert len(disk.intake.unsettled()) == 2
    (disk.drop / "sub").rename(disk.drop / ".gone")
    (disk.drop / "sub").symlink_to(outside)
    (disk.drop / "plain.csv").unlink()
    (disk.drop / "plain.csv").symlink_to(outside / "secret.csv")
    disk.settle()
    assert disk.entered() == []
    assert disk.intake.unsettled() == []
    assert disk.why("plain.csv").sentences == ["It is a symbolic link, not a regular file."]


def test_a_directory_with_the_name_of_a_file_is_a_directory(disk: DiskIntake) -> None:
    disk.write("orders.csv/inner.csv")
    disk.hint("orders.csv", renamed=True)
    disk.settle()
    assert disk.entered() == ["orders.csv/inner.csv"]
    assert disk.why("orders.csv").sentences == ["It is a directory of folder orders: files in it go to acme/table-1."]


def test_a_hard_link_is_a_regular_file_and_is_taken_wherever_its_other_names_are(
    disk: DiskIntake, outside: Path
) -> None:
    """Nothing tells it from the file itself. Whoever makes one could read the file (fs.protected_hardlinks)."""
    os.link(outside / "secret.csv", disk.drop / "linked.csv")
    disk.settle()
    assert disk.entered() == ["linked.csv"]


# ---- names --------------------------------------------------------------------------------------------------------

TAKEN = [
    b"new\nline.csv",
    b"tab\tand\rreturn.csv",
    b"\x1b[31mred\x1b]0;title\x07.csv",
    b"delete\x7f.csv",
    b"\x01.csv",
    b"<script>alert(1)<!--.csv",
    b"\"quoted\" 'twice' `thrice`.csv",
    b"$(reboot);&&|.csv",
    b"--help.csv",
    b"-.csv",
    b" .csv",
    b"*.csv",
    b"[a-z]?.csv",
    b"{tenant}.csv",
    b"back\\slash.csv",
    b"%2e%2e%2fpercent%00.csv",
    b"C:\\orders.csv",
    b"a..csv",
    b"con.csv",
    b"ORDERS.CSV",
    b"\xff\xfe.csv",
    b"cut\xe2\x82.csv",
    "größe €\U0001f600.csv".encode(),
    "\u202evsc.exe\u200b\u2028.csv".encode(),  # written backwards, with a space of no width and a line separator
    b"x" * 251 + b".csv",
    b"\xfe" * 251 + b".csv",
]
UNFINISHED = {  # each with the pattern that hides it
    b"...csv": ".*",
    b"..x.csv": ".*",
    b".\n.csv": ".*",
    b"~.csv": "~*",
    b".csv": ".*",
    b"a.csv~": "*~",
    b"a.csv.part": "*.part",
}


def test_a_file_of_any_name_is_taken_and_explained_in_one_printable_line(disk: DiskIntake) -> None:
    for name in TAKEN:
        make(disk, name)
    disk.settle()
    assert {one.path for one in disk.deliveries()} == set(TAKEN)
    for name in TAKEN:
        answer = disk.why(os.fsdecode(name))
        assert answer.verdict == "queued", name
        shown = answer.as_dict()
        assert shown["path"] == display(os.fsencode(disk.drop) + b"/" + name)
        assert unquote_to_bytes(shown["path_encoded"]) == os.fsencode(disk.drop) + b"/" + name
        assert all(line.isprintable() for line in [shown["path"], *answer.sentences]), name
        assert [one["path"] for one in answer.history] == [display(name)]


@pytest.mark.parametrize("name", [b"bad\xff.csv", b"\n.csv", "\u202ea.csv".encode()])
def test_a_name_as_it_is_printed_is_understood(disk: DiskIntake, name: bytes) -> None:
    make(disk, name)
    disk.settle()
    answer = disk.why(display(name))
    assert (answer.verdict, answer.path) == ("queued", os.fsencode(disk.drop) + b"/" + name)
    make(disk, display(name).encode())
    assert disk.why(display(name)).verdict == "new", "a file that has this very name is the one that is meant"
    assert disk.why("no\\x00thing.csv").verdict == "absent"


def test_a_name_that_says_unfinished_is_ignored_however_odd_it_is(disk: DiskIntake) -> None:
    for name in UNFINISHED:
        make(disk, name)
    disk.settle()
    assert disk.entered() == []
    assert disk.intake.status().ignored == {"unfinished name": len(UNFINISHED)}
    for name, pattern in UNFINISHED.items():
        told = f"It is ignored: unfinished name: {pattern} hides {display(name)}."
        assert disk.why(os.fsdecode(name)).sentences == [told], name


def test_events_about_any_name_are_hints_like_others(disk: DiskIntake, outside: Path) -> None:
    with watched(disk):
        for name in [*TAKEN, *UNFINISHED]:
            make(disk, b".part", name)
            os.rename(os.fsencode(disk.drop) + b"/.part", os.path.join(os.fsencode(disk.drop), name))
        (disk.drop / "door.csv").symlink_to(outside / "secret.csv")
        os.mkfifo(disk.drop / "pipe.csv")
        until(disk, lambda: len(disk.deliveries()) == len(TAKEN))
        disk.write("last.csv")
        until(disk, lambda: disk.intake.candidate(b"last.csv") is not None)
        assert {one.path for one in disk.deliveries()} == set(TAKEN)


def test_directories_of_any_name_are_gone_into_and_name_a_target_in_printable_words(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path, levels=("{tenant}", "{datatable}"), target=Target("", ""), recursive=True)
    names = [b"acme/<b>Orders", b"acme/new\nline", b"acme/\xff", b"\xff/Orders", b"no\nsuch/Orders", b"acme/..x"]
    for name in names:
        os.makedirs(os.path.join(os.fsencode(disk.drop), name))
        make(disk, name + b"/a.csv")
    disk.settle()
    assert {one.path for one in disk.deliveries()} == {b"acme/<b>Orders/a.csv", b"acme/new\nline/a.csv"}
    assert disk.intake.status().ignored == {"unmapped": 3}
    assert {directory for directory, _ in disk.told.unmapped_directories} == {names[2], names[3], names[4]}
    answers = [disk.why(os.fsdecode(name) + "/a.csv") for name in names]
    assert [answer.verdict for answer in answers] == ["queued", "queued", *["ignored"] * 4]
    assert [line for answer in answers for line in answer.sentences if not line.isprintable()] == []
    disk.close()


# ---- depth and length ---------------------------------------------------------------------------------------------


@contextmanager
def nested(root: Path, name: str, depth: int) -> Iterator[int]:
    """Make directories in each other, and yield a descriptor of the innermost; their path may be of any length."""
    fd = os.open(root, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            inner = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def write_at(directory: int, name: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=directory)
    os.write(fd, b"id\n1\n")
    os.close(fd)


@pytest.mark.parametrize(("name", "depth"), [("d", 200), ("d" * 200, 40)])  # the second path is longer than PATH_MAX
def test_a_file_two_hundred_directories_deep_is_taken_and_explained(disk: DiskIntake, name: str, depth: int) -> None:
    with nested(disk.drop, name, depth) as innermost:
        write_at(innermost, "deep.csv")
    with watched(disk):
        disk.settle()
        path = "/".join([name] * depth) + "/deep.csv"
        assert disk.entered() == [path]
        assert disk.why(path).verdict == "queued"


def test_a_folder_that_is_not_recursive_does_not_go_down(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path, recursive=False)
    with nested(disk.drop, "d" * 200, 40) as innermost:
        write_at(innermost, "deep.csv")
    disk.write("sub/a.csv")
    disk.write("b.csv")
    disk.settle()
    assert disk.entered() == ["b.csv"]
    sentence = "It is ignored: in a sub-directory, and the folder is not recursive."
    assert disk.why("sub/a.csv").sentences == [sentence]
    disk.close()


def test_directories_that_appear_in_each_other_are_scanned_once(
    disk: DiskIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.turn()
    disk.write("d/" * 20 + "a.csv")
    for depth in range(1, 21):
        disk.intake.inbox.put_directory(b"/".join([b"d"] * depth))
    opened: list[bytes] = []
    real = scan._open_directory

    def counted(root: bytes, directory: bytes) -> int:
        opened.append(directory)
        return real(root, directory)

    monkeypatch.setattr(scan, "_open_directory", counted)
    disk.turn()
    assert len(opened) <= 21


def test_a_scan_of_directories_alone_is_heard_to_go_on(disk: DiskIntake) -> None:
    beats: list[int] = []
    for number in range(2000):
        (disk.drop / f"d{number}").mkdir()
    disk.intake._beat = lambda: beats.append(1)
    disk.turn()
    assert len(beats) >= 2


# ---- permissions --------------------------------------------------------------------------------------------------


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that belongs to a user without privileges, as whom the test goes on."""
    with without_privileges() as directory:
        yield directory


def test_an_unreadable_file_holds_up_no_other_and_is_taken_as_the_version_that_lies_there(base: Path) -> None:
    """Whether it can be read is found out when it is sent: the delivery tries again until it can."""
    disk = DiskIntake(base, recursive=True)
    disk.write("closed.csv").chmod(0)
    disk.write("open.csv")
    disk.turn()
    answer = disk.why("closed.csv")
    assert answer.verdict == "settling"
    assert any("may not be read" in line for line in answer.sentences)
    disk.settle()
    assert sorted(disk.entered()) == ["closed.csv", "open.csv"]
    (disk.drop / "closed.csv").chmod(0o644)
    disk.scan()
    disk.settle()
    assert sorted(disk.entered()) == ["closed.csv", "open.csv"], "a new mode is no new version"
    disk.close()


def test_the_files_of_an_unreadable_directory_are_taken_once_it_can_be_read(base: Path) -> None:
    disk = DiskIntake(base, recursive=True)
    disk.write("closed/a.csv")
    disk.write("b.csv")
    (disk.drop / "closed").chmod(0)
    disk.settle()
    assert disk.entered() == ["b.csv"]
    assert disk.intake.status().ignored == {"a directory that cannot be read": 1}
    (disk.drop / "closed").chmod(0o755)
    disk.scan()
    disk.settle()
    assert disk.entered() == ["b.csv", "closed/a.csv"]
    assert disk.intake.status().ignored == {}
    disk.close()


def test_nobody_says_of_a_file_in_an_unreadable_directory_that_it_is_not_there(base: Path) -> None:
    disk = DiskIntake(base, recursive=True)
    disk.write("closed/a.csv")
    (disk.drop / "closed").chmod(0)
    answer = disk.why("closed/a.csv")
    (disk.drop / "closed").chmod(0o755)
    disk.close()
    assert answer.verdict == "unreadable"
    assert "may not be read" in " ".join(answer.sentences)
