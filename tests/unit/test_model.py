"""Durations, sizes, fingerprints and names for people."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.model import (
    PENDING,
    WAITING,
    Destination,
    Fingerprint,
    State,
    Target,
    Tenant,
    display,
    file_kind,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from support.folders import make_folder

DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


# ---- durations and sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("250ms", 0.25), ("1h30m", 5400), ("1h 30m", 5400), ("1.5m", 90), ("1w", 604800), ("0s", 0)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 seconds", "-5s", "5s!", "five s", "1h-5m", "5S", ".5s", "inf"])
def test_what_is_no_duration_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r'a duration is a number with a unit .* such as "5s"'):
        parse_duration(text)


@given(number=st.integers(0, 10**9), unit=st.sampled_from(sorted(DURATION_UNITS)))
def test_every_unit_of_a_duration_has_its_length(number: int, unit: str) -> None:
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * DURATION_UNITS[unit])


@given(st.integers(1, 10**6), st.sampled_from([(1, 60), (60, 60), (3600, 24), (86400, 10**6)]))
def test_a_duration_that_is_written_for_people_is_read_back_as_the_same(count: int, unit: tuple[int, int]) -> None:
    length, below = unit
    seconds = count % below * length
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.floats(min_value=1, max_value=10**9))
def test_a_duration_for_people_is_off_by_no_more_than_its_second_unit(seconds: float) -> None:
    text = format_duration(seconds)
    assert len(text.split()) <= 2
    smaller = next((length for unit, length in (("s", 1), ("m", 60), ("h", 3600)) if text.endswith(unit)), 86400)
    assert abs(parse_duration(text) - seconds) <= max(smaller, 60 if "m" in text else 1, 3600 if "h" in text else 1)


@given(st.floats(min_value=0, max_value=0.999))
def test_less_than_a_second_is_shown_in_milliseconds(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.0005)


def test_a_negative_duration_is_shown_as_nothing() -> None:
    assert format_duration(-3) == "0ms"


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * 2**20), ("5GB", 5 * 10**9), ("100B", 100), ("1.5 KiB", 1536), (" 0B ", 0)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "B", "5b", "5kB", "-5B", "5 bytes", "5PiB", "5iB", "1e3B"])
def test_what_is_no_size_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r'a size is a number with a unit .* such as "512MiB"'):
        parse_size(text)


@given(number=st.integers(min_value=0), unit=st.sampled_from(sorted(SIZE_UNITS)))
def test_every_unit_of_a_size_has_its_bytes_however_large_the_number_is(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * SIZE_UNITS[unit]


def test_a_size_with_more_digits_than_a_float_holds_is_read() -> None:
    assert parse_size("9" * 400 + "B") == int("9" * 400)


@given(st.integers(0, 2**50))
def test_a_size_for_people_is_off_by_no_more_than_what_it_leaves_out(size: int) -> None:
    text = format_size(size)
    unit = text.split()[1]
    assert abs(parse_size(text) - size) <= SIZE_UNITS[unit] * 0.06


# ---- names for people -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"orders.csv", "orders.csv"),
        ("Aufträge 日本.csv".encode(), "Aufträge 日本.csv"),
        (b"a\nb", r"a\x0ab"),
        (b"a\x1b[31mred", r"a\x1b[31mred"),
        (b"a\x7f\x00", r"a\x7f\x00"),
        (b"caf\xe9.csv", r"caf\xe9.csv"),
        ("a\u2028b".encode(), r"a\u2028b"),
        ("gpj.\u202efdp".encode(), r"gpj.\u202efdp"),
        ("\U000e0001".encode(), r"\ue0001"),
        (b"", ""),
    ],
)
def test_a_path_is_shown_so_that_it_does_nothing_to_a_terminal_or_a_log(path: bytes, shown: str) -> None:
    assert display(path) == shown


@given(st.binary(max_size=60))
def test_whatever_its_bytes_a_path_is_shown_in_one_printable_line_of_utf8(path: bytes) -> None:
    text = display(path)
    assert text.isprintable()
    assert text.encode("utf-8").decode("utf-8") == text


@given(st.text(max_size=40).filter(str.isprintable))
def test_a_name_that_can_be_printed_is_shown_as_it_is(name: str) -> None:
    assert display(name.encode("utf-8", "surrogateescape")) == name


# ---- fingerprints, kinds of files, small values ------------------------------------------------------------------


def test_a_fingerprint_is_what_stat_saw(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"12345")
    st_ = path.stat()
    look = Fingerprint.of(st_)
    assert (look.size, look.mtime_ns, look.ctime_ns) == (5, st_.st_mtime_ns, st_.st_ctime_ns)
    assert (look.inode, look.device) == (st_.st_ino, st_.st_dev)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"ctime_ns": 9}, True),
        ({"inode": 9}, True),
        ({"device": 9}, True),
        ({"size": 9}, False),
        ({"mtime_ns": 9}, False),
    ],
)
def test_only_size_and_mtime_tell_of_other_content(change: dict[str, int], same: bool) -> None:  # noqa: FBT001
    values = {"size": 1, "mtime_ns": 2, "ctime_ns": 3, "inode": 4, "device": 5}
    assert Fingerprint(**values).same_content_as(Fingerprint(**values | change)) is same


def test_every_kind_of_file_has_a_name_and_a_regular_one_needs_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "file").touch()
    kinds = {name: file_kind((tmp_path / name).lstat().st_mode) for name in ("fifo", "link", "file", ".")}
    assert kinds == {"fifo": "named pipe", "link": "symbolic link", "file": "", ".": "directory"}
    assert file_kind(Path("/dev/null").stat().st_mode) == "character device"
    assert file_kind(stat.S_IFBLK) == "block device"
    assert file_kind(stat.S_IFSOCK) == "socket"
    assert file_kind(0) == "unknown kind of file"


def test_a_target_is_shown_without_what_is_empty() -> None:
    assert str(Target("acme", "table", "set")) == "acme/set/table"
    assert str(Target("acme", "table")) == "acme/table"


def test_what_pmwatch_fills_itself_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, archive_dir=b"/archive")
    assert folder.own_dirs == (
        os.fsencode(tmp_path / ".pmwatch"),
        b"/archive",
        os.fsencode(tmp_path / ".pmwatch/quarantine"),
    )


def test_a_tenant_does_not_show_its_key() -> None:
    assert "sekret" not in repr(Tenant("acme", "1", api_key="sekret"))


def test_what_waits_is_pending_and_what_has_ended_is_not() -> None:
    assert set(WAITING) < set(PENDING)
    assert set(State) - set(PENDING) == {State.DONE, State.HELD, State.FAILED, State.VANISHED}


def test_values_can_be_keys() -> None:
    assert len({Target("a", "b"), Target("a", "b"), Destination("a", "b", "c"), Destination("a", "b", "c")}) == 2
