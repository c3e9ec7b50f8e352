"""A source that is not there because what it lies on is not mounted: it waits; one that is gone does not."""

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from delivery.test_worker import GIVE_UP_SECONDS, World
from pmwatch.files import is_away
from pmwatch.model import Order, State
from support.services import missing


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def pretend_other_device(world: World, id_: int) -> None:
    """Let the ledger believe that a source lay on another file system than the one that is there now."""
    with closing(sqlite3.connect(world.base / "state" / "ledger.db")) as connection:
        connection.execute("UPDATE deliveries SET device = device + 1000 WHERE id = ?", (id_,))
        connection.commit()


def unmount(world: World) -> None:
    world.drop.rename(world.drop.with_name("away"))


def mount(world: World) -> None:
    world.drop.with_name("away").rename(world.drop)


def test_a_source_whose_root_is_gone_waits_and_goes_when_it_is_back(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    unmount(world)
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason) == (State.QUEUED, "folder_away")
    assert delivery.not_before > world.clock()
    assert delivery.first_failed_at == world.clock()
    assert world.looked == []
    report = world.reports[-1]
    assert (report.what, report.reason) == ("retry", "folder_away")
    assert report.hint == "Mount it; it goes on by itself."
    mount(world)
    world.clock.advance(120)
    world.run()
    assert world.get(id_).state is State.DONE
    assert world.stored() == [b"id\n1\n"]


def test_a_source_on_another_device_than_the_one_that_is_there_waits(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    (world.drop / "a.csv").unlink()
    pretend_other_device(world, id_)
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "folder_away")


def test_a_source_that_is_gone_from_a_file_system_that_is_there_has_vanished(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    (world.drop / "a.csv").unlink()
    world.run()
    assert world.get(id_).state is State.VANISHED
    assert world.looked == [("orders", b"a.csv")]


@pytest.mark.parametrize("other_device", [False, True])
def test_what_stays_away_has_vanished_once_it_is_given_up(world: World, other_device: bool) -> None:  # noqa: FBT001
    id_ = world.settle("a.csv", b"id\n1\n")
    if other_device:
        (world.drop / "a.csv").unlink()
        pretend_other_device(world, id_)
    else:
        unmount(world)
    world.run()
    world.try_for(GIVE_UP_SECONDS - 1)
    assert world.get(id_).state is State.QUEUED
    world.try_for(GIVE_UP_SECONDS / 10)
    assert world.get(id_).state is State.VANISHED
    assert not list(world.base.rglob("*.error.json"))


def test_those_behind_it_wait_in_an_ordered_lane(world: World) -> None:
    first, second = (world.settle(f"{number}.csv", b"%d" % number) for number in range(2))
    unmount(world)
    world.run()
    assert [world.get(id_).attempts for id_ in (first, second)] == [1, 0]
    mount(world)
    world.clock.advance(120)
    world.run()
    assert [world.get(id_).state for id_ in (first, second)] == [State.DONE] * 2
    assert world.stored() == [b"0", b"1"]


def test_without_an_order_each_is_tried(world: World) -> None:
    world.folder(order=Order.NONE)
    ids = [world.settle(f"{number}.csv", b"%d" % number) for number in range(3)]
    unmount(world)
    world.run()
    assert {(world.get(id_).state, world.get(id_).reason) for id_ in ids} == {(State.QUEUED, "folder_away")}


def test_another_folder_goes_on(world: World) -> None:
    world.folder("other", world.folders["orders"].target, order=Order.NONE)
    away = world.settle("a.csv", b"1")
    there = world.settle("b.csv", b"2", "other")
    unmount(world)
    world.run()
    assert world.get(away).state is State.QUEUED
    assert world.get(there).state is State.DONE


def test_a_renumbered_file_system_that_is_there_lets_what_is_gone_from_it_block_nobody(world: World) -> None:
    gone, there = (world.settle(f"{number}.csv", b"%d" % number) for number in range(2))
    (world.drop / "0.csv").unlink()
    for id_ in (gone, there):
        pretend_other_device(world, id_)  # as after a reboot
    world.run()
    assert [world.get(id_).state for id_ in (gone, there)] == [State.VANISHED, State.DONE]
    assert world.stored() == [b"1"]


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mount a new tmpfs on a directory, each with a number that no other had in this test."""
    done: list[Path] = []

    def mount_tmpfs(on: Path) -> None:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", on], capture_output=True, check=False).returncode:
            missing("mount", "the Debian package mount, for root with the right to mount")
        done.append(on)

    yield mount_tmpfs
    for path in reversed(done):
        subprocess.run(["umount", path], capture_output=True, check=False)


def test_a_real_mount_that_goes_and_comes_back_under_another_number(
    world: World, tmp_path: Path, mounts: Callable[[Path], None]
) -> None:
    mounts(world.drop)
    before = world.drop.stat().st_dev
    id_ = world.settle("a.csv", b"id\n1\n")
    subprocess.run(["umount", world.drop], check=True)
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "folder_away")
    (tmp_path / "takes the old number").mkdir()
    mounts(tmp_path / "takes the old number")
    mounts(world.drop)
    assert world.drop.stat().st_dev != before
    world.clock.advance(120)
    world.run()
    assert world.get(id_).state is State.VANISHED


def test_is_away(tmp_path: Path) -> None:
    root, here = os.fsencode(tmp_path), tmp_path.stat().st_dev
    assert is_away(os.fsencode(tmp_path / "absent"), b"a.csv", here)
    assert not is_away(root, b"a.csv", here)
    assert is_away(root, b"a.csv", here + 1), "an empty directory that nothing is mounted on"
    assert is_away(root, b"absent/a.csv", here + 1), "its mount point may be gone with it"
    (tmp_path / "sub").mkdir()
    assert not is_away(root, b"a.csv", here + 1)
    assert is_away(root, b"sub/a.csv", here + 1)
    assert is_away(root, b"sub/deeper/a.csv", here + 1)
    assert is_away(root, b"a.csv", here, marker=".mounted")
    (tmp_path / ".mounted").touch()
    assert not is_away(root, b"sub/a.csv", here + 1, marker=".mounted")
    proc = os.stat("/proc").st_dev
    assert not is_away(b"/", b"proc/absent", proc), "that is mounted below, and the file is not there"
