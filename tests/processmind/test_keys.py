"""Key files: read when needed, again when replaced, and never half a key."""

import os
from pathlib import Path

import pytest

from pmwatch.errors import Decision, KeyUnavailable
from pmwatch.model import Tenant
from pmwatch.processmind.keys import KeyRing
from support.users import without_privileges


def ring(path: Path, *, seen: list[str] | None = None, from_systemd: bool = False) -> KeyRing:
    tenant = Tenant("acme", "tenant-1", api_key_file=str(path), from_systemd=from_systemd)
    return KeyRing([tenant], on_key=(seen if seen is not None else []).append)


def replace(path: Path, text: str) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.rename(path)


def test_a_key_that_was_given() -> None:
    seen: list[str] = []
    keys = KeyRing([Tenant("acme", "tenant-1", api_key="given")], on_key=seen.append)
    assert keys.key("acme") == "given"
    assert seen == ["given"]
    assert not keys.changed("acme")
    assert not keys.refresh("acme", refused="given")
    assert "SIGHUP" in keys.renewal_hint("acme")


def test_blanks_around_a_key_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("\n  secret-1 \r\n\n")
    seen: list[str] = []
    assert ring(path, seen=seen).key("acme") == "secret-1"
    assert "secret-1" in seen


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    keys = ring(path)
    assert keys.changed("acme")  # never read so far
    assert keys.key("acme") == "one"
    assert not keys.changed("acme")
    replace(path, "two")
    assert keys.changed("acme")
    assert keys.key("acme") == "two"
    assert not keys.changed("acme")


def test_kubernetes_swaps_a_link(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(name)
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "key").symlink_to("data/key")
    keys = ring(tmp_path / "key")
    assert keys.key("acme") == "one"
    (tmp_path / "fresh").symlink_to("two")
    (tmp_path / "fresh").rename(tmp_path / "data")
    assert keys.changed("acme")
    assert keys.key("acme") == "two"


def test_refresh_reads_whatever_the_times_say(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    keys = ring(path)
    assert keys.key("acme") == "one"
    before = path.stat()
    path.write_text("two")  # in place, as long as before, and with the old times
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keys.key("acme") == "one"
    assert keys.refresh("acme", refused="one")
    assert keys.key("acme") == "two"
    assert not keys.refresh("acme", refused="two")


def test_the_second_thread_whose_old_key_was_refused_also_learns_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    keys = ring(path)
    assert keys.key("acme") == "one"
    replace(path, "two")
    assert keys.refresh("acme", refused="one")
    assert keys.refresh("acme", refused="one")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"a\nb", "one line"),
        (b"schl\xc3\xbcssel", "one line"),
        (b"\xff", "one line"),
        (b"a\x00b", "one line"),
        (b"a\x1bb", "one line"),
    ],
)
def test_what_is_no_key(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    keys = ring(path)
    with pytest.raises(KeyUnavailable) as caught:
        keys.key("acme")
    assert not keys.changed("acme")  # or its gate would be tried without a pause
    assert why in caught.value.message
    assert str(path) in caught.value.hint
    assert caught.value.decision is Decision.GATE


def test_a_file_that_is_not_there_or_a_directory(tmp_path: Path) -> None:
    keys = ring(tmp_path / "none")
    with pytest.raises(KeyUnavailable) as caught:
        keys.key("acme")
    assert "No such file" in caught.value.message
    assert not keys.changed("acme")
    with pytest.raises(KeyUnavailable):
        ring(tmp_path).key("acme")


@pytest.mark.parametrize("from_systemd", [False, True])
def test_a_file_that_may_not_be_read(from_systemd: bool) -> None:  # noqa: FBT001
    with without_privileges() as directory:
        path = directory / "key"
        path.touch(mode=0)
        with pytest.raises(KeyUnavailable) as caught:
            ring(path, from_systemd=from_systemd).key("acme")
        said = "as root" if from_systemd else f"Give pmwatch's user (uid {os.geteuid()}) read access to {path}"
    assert said in caught.value.hint


def test_a_file_that_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    keys = ring(path)
    keys.key("acme")
    path.unlink()
    with pytest.raises(KeyUnavailable):
        keys.key("acme")
    path.write_text("one")
    assert keys.changed("acme")
    assert keys.key("acme") == "one"


def test_only_the_start_of_a_huge_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("x" * 1_000_000)
    assert len(ring(path).key("acme")) == 64 * 1024


def test_systemd_copies_credentials_at_start(tmp_path: Path) -> None:
    assert "restart" in ring(tmp_path / "key", from_systemd=True).renewal_hint("acme")


def test_the_key_is_in_no_repr() -> None:
    tenant = Tenant("acme", "tenant-1", api_key="canary")
    assert "canary" not in repr(tenant)
    assert "canary" not in repr(KeyRing([tenant]))
