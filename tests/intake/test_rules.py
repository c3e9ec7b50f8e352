"""Filters, ignored names and placeholders."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.intake.rules import Rules
from pmwatch.model import Target
from support.folders import make_folder

ROOT = Path("/srv/drop")


def reason(path: bytes, **changes: object) -> str:
    return Rules(make_folder(ROOT, **changes)).map(path).reason


@pytest.mark.parametrize(
    "name",
    [b".a.csv", b"~a.csv", b"a.csv~", b"a.csv.tmp", b"a.temp", b"a.csv.part", b"a.csv.partial", b"a.csv.filepart",
     b"a.csv.crdownload", b".a.csv.swp", b"a.lock", b".~lock.a.csv#", b"lu12ab.tmp", b".in.a.csv", b".a.csv.Xy12Zz"],
)  # fmt: skip
def test_unfinished_names_are_ignored(name: bytes) -> None:
    assert reason(name) == "unfinished name"


@pytest.mark.parametrize("name", [b"a.csv", b"A.CSV", b"b.tsv", b"c.txt", b"d.xls", b"e.xlsx", b"f.XlsB", b"g.xes"])
def test_what_processmind_reads_is_included_in_any_case(name: bytes) -> None:
    assert Rules(make_folder(ROOT)).map(name).target == Target("acme", "table-1")


def test_other_types_are_unsupported_and_own_filters_win() -> None:
    assert reason(b"a.pdf") == "unsupported type"
    assert reason(b"a.pdf", include=("*.pdf",)) == ""
    assert reason(b"a.csv", include=("*.pdf",)) == "not included"
    assert reason(b"test_a.csv", exclude=("test_*",)) == "excluded"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (b"a.csv.part", "unfinished name: *.part hides a.csv.part"),
        (b"LU12ab.TMP", "unfinished name: *.tmp hides LU12ab.TMP"),
        (b"in/.hidden/deep/a.csv", "unfinished name: .* hides .hidden"),
        (b"~old/a.csv~", "unfinished name: ~* hides ~old"),
        (b".a\n\xff.csv", "unfinished name: .* hides .a\\x0a\\xff.csv"),
        (b"deep/Test_a.csv", "excluded: test_* hides Test_a.csv"),
        (b"skip/it/a.csv", "excluded: skip/* hides skip/it/a.csv"),
        (b"a.pdf", "not included: it matches none of *.csv, *.xes"),
    ],
)
def test_what_hides_a_file_is_named_for_people_with_the_part_that_matches(path: bytes, told: str) -> None:
    rules = Rules(make_folder(ROOT, recursive=True, include=("*.csv", "*.xes"), exclude=("x*", "test_*", "skip/*")))
    assert rules.explain(path) == told
    assert rules.map(path).reason == told.partition(":")[0]


def test_an_unsupported_type_is_told_with_what_is_supported_and_any_other_reason_as_it_is() -> None:
    rules = Rules(make_folder(ROOT))
    assert rules.explain(b"a.pdf").startswith("unsupported type: it matches none of *.csv, ")
    assert rules.explain(b"deep/a.csv") == rules.map(b"deep/a.csv").reason
    assert rules.explain(b"a.csv") == ""


def test_sub_directories_need_recursive() -> None:
    assert "recursive" in reason(b"sub/a.csv")
    assert reason(b"sub/a.csv", recursive=True) == ""
    assert reason(b".hidden/a.csv", recursive=True) == "unfinished name"
    assert reason(b"skip/a.csv", recursive=True, exclude=("skip/*",)) == "excluded"


def test_pmwatch_never_looks_into_its_own_directories() -> None:
    folder = make_folder(ROOT, recursive=True, archive_dir=b"/srv/drop/sent", quarantine_dir=b"/srv/drop/bad")
    rules = Rules(folder)
    assert rules.map(b"sent/2026/a.csv").reason == "kept by pmwatch itself"
    assert not rules.enters(b"sent")
    assert not rules.enters(b".pmwatch")
    assert rules.enters(b"sender")
    assert rules.map(b"sender/a.csv").target is not None


def test_what_is_remembered_of_one_directory_is_not_said_of_another() -> None:
    rules = Rules(make_folder(ROOT, recursive=True, archive_dir=b"/srv/drop/sent"))
    told = {
        b"a.csv": "",
        b".x/a.csv": "unfinished name",
        b"x/a.csv": "",
        b"sent/a.csv": "kept by pmwatch itself",
        b"sent": "kept by pmwatch itself",
        b"x/sent/a.csv": "",
        b"x/.y/a.csv": "unfinished name",
    }
    for path in [*told, *reversed(told), *sorted(told)]:
        assert rules.map(path).reason == told[path], path


def test_placeholders_fill_the_target() -> None:
    rules = Rules(make_folder(ROOT, levels=("{tenant}", "{dataset}", "{datatable}"), target=Target("", "")))
    assert rules.map(b"acme/Sales/Orders/a.csv").target == Target("acme", "Orders", "Sales")
    assert rules.map(b"nobody/Sales/Orders/a.csv").reason == "unmapped: there is no tenant 'nobody'"
    assert rules.map(b"Acmee/Sales/Orders/a.csv").reason == (
        "unmapped: there is no tenant 'Acmee'; the nearest is 'acme'"
    )
    assert rules.map(b"acme/a.csv").reason.startswith("unmapped: not inside")
    assert "recursive" in rules.map(b"acme/Sales/Orders/deep/a.csv").reason
    assert rules.map(b"acme/Sales/\xff/a.csv").reason == "unmapped: a directory name is not UTF-8"
    assert rules.enters(b"acme/Sales/Orders")
    assert not rules.enters(b"acme/Sales/Orders/deep")


def test_a_folder_of_models_takes_models_of_the_process_that_it_or_its_path_names() -> None:
    rules = Rules(make_folder(ROOT, target=Target("acme", "", "", "Claims")))
    assert rules.map(b"claims.BPMN").target == Target("acme", "", "", "Claims")
    assert rules.map(b"orders.csv").reason == "unsupported type"
    rules = Rules(make_folder(ROOT, levels=("{process}",), target=Target("acme", "")))
    assert rules.map(b"Order to cash/o2c.bpmn").target == Target("acme", "", "", "Order to cash")


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name and not name.startswith(b"/")))
def test_any_bytes_get_a_target_or_a_reason(path: bytes) -> None:
    rules = Rules(make_folder(ROOT, recursive=True))
    mapped = rules.map(path)
    assert (mapped.target is None) == bool(mapped.reason)
    assert rules.explain(path).startswith(mapped.reason)
    assert rules.explain(path).isprintable()
    assert os.fsdecode(path) is not None
