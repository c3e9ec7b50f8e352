"""The configuration: every refusal in plain words, all at once; flags > environment > TOML > defaults."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmwatch import config
from pmwatch.config import Settings, is_loopback, load, split_listen, state_dir_of
from pmwatch.errors import ConfigError, ExitCode
from pmwatch.model import AfterUpload, Dedup, Order, Target

SCALE = int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
CANARY = "sk-canary-0123456789"
TENANT = '[[tenants]]\nname = "acme"\nid = "t-1"\napi_key_file = "/run/secrets/acme"\n'
FOLDER = '[[folders]]\nname = "orders"\npath = "/srv/drop/orders"\ntenant = "acme"\ndatatable = "table-1"\n'

Read = Callable[..., Settings]
Problems = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PMWATCH_") and name != "CREDENTIALS_DIRECTORY"
    }
    monkeypatch.setattr(os, "environ", kept)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Load a configuration from its text; keyword arguments go to `load`."""

    def read_text(text: str, **kwargs: Any) -> Settings:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load(str(path), **kwargs)

    return read_text


@pytest.fixture
def problems(read: Read) -> Problems:
    """Load a wrong configuration from its text, and return what is said about it."""

    def problems_of(text: str, **kwargs: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, **kwargs)
        assert str(caught.value) == "\n".join(caught.value.problems)
        return caught.value.problems

    return problems_of


def folder(name: str, path: str | Path, more: str = "") -> str:
    return f'[[folders]]\nname = "{name}"\npath = "{path}"\ntenant = "acme"\ndatatable = "t"\n{more}\n'


# ---- what is right -----------------------------------------------------------------------------------------


def test_the_smallest_configuration_has_every_default(read: Read) -> None:
    settings_ = read(TENANT + FOLDER)
    assert settings_.api.base_url == "https://api.processmind.com"
    assert settings_.state.dir == "/var/lib/pmwatch"
    assert settings_.listen == ("127.0.0.1", 9108)
    (one,) = settings_.folders
    assert (one.settle_seconds, one.rescan_seconds) == (5.0, 300.0)
    assert (one.dedup, one.order, one.after_upload) == (Dedup.CONTENT, Order.ARRIVAL, AfterUpload.KEEP)
    assert one.archive_dir == b"/srv/drop/orders/.pmwatch/archive"
    assert one.quarantine_dir == b"/srv/drop/orders/.pmwatch/quarantine"
    assert one.tenants == frozenset({"acme"})


def test_a_folder_takes_what_it_does_not_say_from_the_defaults(read: Read) -> None:
    text = '[defaults]\nsettle = "1m"\norder = "none"\n' + TENANT + FOLDER + 'settle = "250ms"\n'
    (one,) = read(text).folders
    assert (one.settle_seconds, one.order) == (0.25, Order.NONE)


def test_placeholders_become_levels_below_the_root(read: Read) -> None:
    text = TENANT + '[[folders]]\nname = "all"\npath = "/srv/drop/{tenant}/{dataset}/{datatable}/"\n'
    (one,) = read(text).folders
    assert (one.root, one.levels) == (b"/srv/drop", ("{tenant}", "{dataset}", "{datatable}"))


@pytest.mark.parametrize(("path", "process"), [("/srv/models", "Claims"), ("/srv/models/{process}", "")])
def test_a_folder_of_models_names_a_process_and_sends_an_older_one_that_comes_back(
    read: Read, path: str, process: str
) -> None:
    lines = f'[[folders]]\nname = "models"\npath = "{path}"\ntenant = "acme"\n'
    lines += f'process = "{process}"\n' if process else ""
    (one,) = read(TENANT + lines).folders
    assert (one.target, one.takes_models, one.dedup) == (Target("acme", "", "", process), True, Dedup.LATEST)
    (told,) = read(TENANT + lines + 'dedup = "content"\n').folders
    assert told.dedup is Dedup.CONTENT


def test_http_is_off_when_it_says_so(read: Read) -> None:
    assert read('[http]\nlisten = "off"\n' + TENANT + FOLDER).listen is None


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:9108", ("::1", 9108)), (":0", ("127.0.0.1", 0))],
)
def test_an_address_to_listen_on_is_split(text: str, parsed: tuple[str, int]) -> None:
    assert split_listen(text) == parsed


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "api.localhost"])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "localhost.example.com", "127.0.0.1.example.com", ""])
def test_other_machines_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_folders_that_only_lie_near_each_other_are_fine(read: Read, tmp_path: Path) -> None:
    text = TENANT + folder("a", tmp_path / "drop") + folder("b", tmp_path / "drop2", "recursive = true")
    text += folder("c", tmp_path / "drop" / "inner")  # the outer one is not recursive
    assert [one.name for one in read(text).folders] == ["a", "b", "c"]


# ---- one refusal each: where, key, value, what is allowed, and the nearest that exists -----------------------

LISTEN_FORM = 'write HOST:PORT, such as "127.0.0.1:9108", or "off"'
REFUSALS = {
    "an unknown section": (
        "[htpp]\n" + TENANT + FOLDER,
        'htpp: unknown section; did you mean "http"?',
    ),
    "an unknown key that is close to one": (
        '[api]\nbase_ulr = "x"\n' + TENANT + FOLDER,
        'api: base_ulr: unknown key; did you mean "base_url"?',
    ),
    "an unknown key of a folder": (
        TENANT + FOLDER + 'setle = "5s"\n',
        "folders[1] 'orders': setle: unknown key; did you mean \"settle\"?",
    ),
    "a key that belongs to a folder, in the defaults": (
        '[defaults]\narchive_dir = "/srv/a"\n' + TENANT + FOLDER,
        "defaults: archive_dir: it is for one folder only; it belongs into a [[folders]] entry",
    ),
    "an unknown key of the defaults that is like no other": (
        "[defaults]\nxyzzy = 1\n" + TENANT + FOLDER,
        (
            "defaults: xyzzy: unknown key; known keys: include, exclude, recursive, complete_when, marker, "
            "batch, settle, watch, poll_interval, root_marker, rescan_interval, dedup, order, on_failure, supersede, "
            "validate, require_columns, on_invalid, min_size, max_size, empty, shrink_guard, "
            "backlog, max_backlog, after_upload, archive_keep, create_missing, quarantine"
        ),
    ),
    "a text where a number is needed": (
        '[delivery]\nmax_parallel = "many"\n' + TENANT + FOLDER,
        "delivery: max_parallel: 'many': input should be a valid integer, unable to parse string as an integer",
    ),
    "a number that is too large": (
        "[delivery]\nmax_parallel = 65\n" + TENANT + FOLDER,
        "delivery: max_parallel: 65: input should be less than or equal to 64",
    ),
    "a text where a list is needed": (
        TENANT + FOLDER + 'include = "*.csv"\n',
        "folders[1] 'orders': include: '*.csv': input should be a valid tuple",
    ),
    "a choice that does not exist": (
        TENANT + FOLDER + 'after_upload = "archiv"\n',
        (
            "folders[1] 'orders': after_upload: 'archiv': input should be 'keep', 'archive' or 'delete'; "
            'did you mean "archive"?'
        ),
    ),
    "a duration that is a number": (
        TENANT + FOLDER + "settle = 5\n",
        "folders[1] 'orders': settle: 5: a duration needs a unit: write \"5s\" for seconds",
    ),
    "a duration without a unit": (
        TENANT + FOLDER + 'settle = "5"\n',
        (
            "folders[1] 'orders': settle: '5': a duration is a number with a unit ms, s, m, h, d or w, such as "
            '"5s" or "1h30m"'
        ),
    ),
    "a duration that no thread can wait for": (
        TENANT + FOLDER + 'rescan_interval = "9999999d"\n',
        (
            "folders[1] 'orders': rescan_interval: '9999999d': at most \"36500d\", which is a hundred years; "
            "threads cannot wait longer"
        ),
    ),
    "a name that would not do as a label": (
        TENANT + FOLDER.replace("orders", "new orders", 1),
        (
            "folders[1] 'new orders': name: 'new orders': allowed are letters, digits, '.', '_' and '-', at most 63, "
            "beginning with a letter or digit"
        ),
    ),
    "a key that is required": (
        TENANT + FOLDER.replace('path = "/srv/drop/orders"\n', ""),
        "folders[1] 'orders': path: missing; it is required",
    ),
    "no folder at all": (
        TENANT,
        "folders: there is none; add a [[folders]] entry with name, path, tenant, datatable",
    ),
    "a single table where one for each is needed": (
        TENANT + FOLDER.replace("[[folders]]", "[folders]"),
        "folders: write one [[folders]] table for each",
    ),
    "a section that is no table": (
        'http = "127.0.0.1:9108"\n' + TENANT + FOLDER,
        "http: '127.0.0.1:9108' is not a table; write [http]",
    ),
    "defaults that are no table": (
        "defaults = 5\n" + TENANT + FOLDER,
        "defaults: 5 is not a table; write [defaults]",
    ),
    "a folder that is no table": (
        'folders = ["/srv/drop"]\n' + TENANT,
        "folders[1]: '/srv/drop' is not a table; write [[folders]]",
    ),
    "a folder name that is taken": (
        TENANT + FOLDER + FOLDER.replace("/srv/drop/orders", "/srv/drop/other"),
        "folders[2] 'orders': name 'orders' is already used by folders[1]",
    ),
    "a tenant name that is taken": (
        TENANT + TENANT + FOLDER,
        "tenants[2] 'acme': name 'acme' is already used by tenants[1]",
    ),
    "a tenant that does not exist, with the nearest": (
        TENANT + FOLDER.replace('"acme"', '"acne"'),
        "folders[1] 'orders': tenant: 'acne' is not a [[tenants]] entry; did you mean \"acme\"?",
    ),
    "a tenant that is like none, with all there are": (
        TENANT + FOLDER.replace('"acme"', '"zzz"'),
        "folders[1] 'orders': tenant: 'zzz' is not a [[tenants]] entry; known tenants: acme",
    ),
    "a relative path": (
        TENANT + FOLDER.replace("/srv/drop/orders", "drop/orders"),
        "folders[1] 'orders': path: 'drop/orders' is not absolute; write the whole path from /",
    ),
    "a relative state directory": (
        '[state]\ndir = "state"\n' + TENANT + FOLDER,
        "state: dir: 'state' is not absolute; write the whole path from /",
    ),
    "a relative key file": (
        TENANT.replace("/run/secrets/acme", "acme.key") + FOLDER,
        "tenants[1] 'acme': api_key_file: 'acme.key' is not absolute; write the whole path from /",
    ),
    "a relative certificate file": (
        '[api]\nca_file = "ca.pem"\n' + TENANT + FOLDER,
        "api: ca_file: 'ca.pem' is not absolute; write the whole path from /",
    ),
    "a key of a folder as a section": (
        'settle = "5s"\n' + TENANT + FOLDER,
        "settle: unknown section; it belongs into [defaults] or a [[folders]] entry",
    ),
    "a relative archive": (
        TENANT + FOLDER + 'archive_dir = "done"\n',
        "folders[1] 'orders': archive_dir: 'done' is not absolute; write the whole path from /",
    ),
    "a path with a NUL": (
        TENANT + FOLDER.replace("/srv/drop/orders", "/srv/\\u0000"),
        "folders[1] 'orders': path: '/srv/\\x00': a path cannot hold a NUL character",
    ),
    "a tenant both given and in the path": (
        TENANT + FOLDER.replace("/srv/drop/orders", "/srv/drop/{tenant}"),
        "folders[1] 'orders': tenant: 'acme' is given, and the path has {tenant} as well; remove one",
    ),
    "a datatable both given and in the path": (
        TENANT + FOLDER.replace("/srv/drop/orders", "/srv/drop/{datatable}"),
        "folders[1] 'orders': datatable: 'table-1' is given, and the path has {datatable} as well; remove one",
    ),
    "a tenant neither given nor in the path": (
        TENANT + FOLDER.replace('tenant = "acme"\n', ""),
        "folders[1] 'orders': tenant: missing; name a [[tenants]] entry, or put {tenant} into the path",
    ),
    "a datatable neither given nor in the path": (
        TENANT + FOLDER.replace('datatable = "table-1"\n', ""),
        (
            "folders[1] 'orders': datatable: missing; "
            'give an id, a name "Dataset/Table", or put {datatable} into the path; '
            "or for BPMN models name their process"
        ),
    ),
    "a process and a datatable": (
        TENANT + FOLDER + 'process = "Claims"\n',
        (
            "folders[1] 'orders': process: given together with datatable; "
            "a folder takes event logs or BPMN models, not both"
        ),
    ),
    "a process in the path and a dataset": (
        TENANT
        + FOLDER.replace('datatable = "table-1"', 'dataset = "Sales"').replace("/srv/drop/orders", "/srv/m/{process}"),
        (
            "folders[1] 'orders': process: given together with dataset; "
            "a folder takes event logs or BPMN models, not both"
        ),
    ),
    "a placeholder that does not exist": (
        TENANT + FOLDER.replace("/srv/drop/orders", "/srv/drop/{customer}"),
        (
            "folders[1] 'orders': path: '{customer}' after a placeholder; "
            "each level there is one of {tenant}, {dataset}, {datatable}, {process}"
        ),
    ),
    "a directory after a placeholder": (
        TENANT + FOLDER.replace("/srv/drop/orders", "/srv/drop/{dataset}/in"),
        (
            "folders[1] 'orders': path: 'in' after a placeholder; each level there is one of {tenant}, {dataset}, "
            "{datatable}, {process}"
        ),
    ),
    "a placeholder twice": (
        TENANT + FOLDER.replace("/srv/drop/orders", "/srv/drop/{dataset}/{dataset}"),
        "folders[1] 'orders': path: '/srv/drop/{dataset}/{dataset}' has a placeholder twice",
    ),
    "both ways to give an API key": (
        TENANT + f'api_key = "{CANARY}"\n' + FOLDER,
        "tenants[1] 'acme': give api_key or api_key_file, not both",
    ),
    "no way to get an API key": (
        TENANT.replace('api_key_file = "/run/secrets/acme"\n', "") + FOLDER,
        "tenants[1] 'acme': no API key; give api_key_file, api_key, or a systemd credential pmwatch-acme",
    ),
    "an empty API key": (
        TENANT.replace('api_key_file = "/run/secrets/acme"', 'api_key = " "') + FOLDER,
        "tenants[1] 'acme': no API key; give api_key_file, api_key, or a systemd credential pmwatch-acme",
    ),
    "an API key that no header can carry": (
        TENANT.replace('api_key_file = "/run/secrets/acme"', 'api_key = "one\\ntwo"') + FOLDER,
        "tenants[1] 'acme': api_key: the value is not one line of plain text",
    ),
    "plain http to another machine": (
        '[api]\nbase_url = "http://api.example.com"\n' + TENANT + FOLDER,
        "api: base_url: 'http://api.example.com': http would show the API key to the network; use https",
    ),
    "an API that is no URL": (
        '[api]\nbase_url = "api.example.com"\n' + TENANT + FOLDER,
        "api: base_url: 'api.example.com' is not a URL; write \"https://api.processmind.com\"",
    ),
    "an API with brackets that hold no address": (
        '[api]\nbase_url = "https://[::1"\n' + TENANT + FOLDER,
        "api: base_url: 'https://[::1' is not a URL; write \"https://api.processmind.com\"",
    ),
    "an API with a port that is none": (
        '[api]\nbase_url = "https://example.com:99999"\n' + TENANT + FOLDER,
        "api: base_url: 'https://example.com:99999' is not a URL; write \"https://api.processmind.com\"",
    ),
    "an API URL with more than a place": (
        '[api]\nbase_url = "https://example.com/?key=1"\n' + TENANT + FOLDER,
        "api: base_url: write only scheme, host, port and path",
    ),
    "an address without a port": (
        '[http]\nlisten = "localhost"\n' + TENANT + FOLDER,
        f"http: listen: 'localhost': {LISTEN_FORM}",
    ),
    "an address with a port that is too large": (
        '[http]\nlisten = "localhost:65536"\n' + TENANT + FOLDER,
        f"http: listen: 'localhost:65536': {LISTEN_FORM}",
    ),
    "an address with digits that are none": (
        '[http]\nlisten = "localhost:²"\n' + TENANT + FOLDER,
        f"http: listen: 'localhost:²': {LISTEN_FORM}",
    ),
    "the state inside a watched folder": (
        '[state]\ndir = "/srv/drop/orders/state"\n' + TENANT + FOLDER,
        "state: dir: '/srv/drop/orders/state' lies inside the watched folder 'orders'; put it elsewhere",
    ),
    "the watched folder as its own archive": (
        TENANT + FOLDER + 'archive_dir = "/srv/drop/orders/"\n',
        "folders 'orders': archive_dir: it is the watched directory itself",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_refuses(case: str, problems: Problems) -> None:
    text, expected = REFUSALS[case]
    assert problems(text) == [expected]


def test_all_problems_are_listed_at_once(problems: Problems) -> None:
    text = (
        'log = "debug"\n[api]\nbase_url = "http://example.com"\n[http]\nlisten = "x"\n'
        "[delivery]\nretry_first = 1\n[nope]\n"
        + TENANT
        + FOLDER.replace("acme", "nobody")
        + FOLDER.replace("table-1", "")
    )
    found = problems(text)
    assert len(found) == 9
    for start in (
        "nope: ",
        "log: ",
        "delivery: retry_first: ",
        "folders[1] 'orders': tenant: ",
        "folders[2] 'orders': name ",
        "folders[2] 'orders': datatable: ",
        "api: base_url: ",
        "http: listen: ",
        "folders 'orders': path: ",
    ):
        assert any(problem.startswith(start) for problem in found), start


def test_a_typo_does_not_hide_that_the_name_is_taken_or_that_the_path_overlaps(problems: Problems) -> None:
    found = problems(TENANT + FOLDER + FOLDER + "settle = 5\nsurprise = 1\n")
    assert len(found) == 4
    assert any("settle: 5" in problem for problem in found)
    assert any("surprise: unknown key" in problem for problem in found)
    assert any("'orders' is already used" in problem for problem in found)
    assert any("overlaps" in problem for problem in found)


def test_a_wrong_default_is_reported_once_and_not_for_every_folder(problems: Problems) -> None:
    text = "[defaults]\nsettle = 5\n" + TENANT + FOLDER + folder("second", "/srv/second")
    assert [problem.split(":")[0] for problem in problems(text)] == ["defaults"]


def test_a_tenant_with_a_mistake_is_still_known_to_its_folders(problems: Problems) -> None:
    found = problems(TENANT.replace('id = "t-1"', "id = 1") + FOLDER)
    assert [problem.partition(":")[0] for problem in found] == ["tenants[1] 'acme'"]


# ---- entries against each other ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("drop", "drop", ""),
        ("drop", "drop/./inner/..", ""),
        ("drop", "drop/inner/deep", "recursive = true"),
    ],
)
def test_overlapping_folders_are_refused(
    first: str, second: str, options: str, problems: Problems, tmp_path: Path
) -> None:
    for one, other in ((0, 1), (1, 0)):
        tables = [folder("a", tmp_path / first, options), folder("b", f"{tmp_path}/{second}")]
        found = problems(TENANT + tables[one] + tables[other])
        assert len(found) == 1
        assert "overlaps with folder" in found[0]
        assert found[0].endswith("a file must belong to one folder only")


def test_a_folder_inside_a_tree_of_placeholders_is_refused(problems: Problems, tmp_path: Path) -> None:
    tree = f'[[folders]]\nname = "tree"\npath = "{tmp_path}/{{tenant}}/{{datatable}}"\n'
    found = problems(TENANT + tree + folder("inner", tmp_path / "acme" / "orders"))
    assert [("'inner'" in problem, "'tree'" in problem) for problem in found] == [(True, True)]


def test_the_same_folder_through_a_symbolic_link_is_refused(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = problems(TENANT + folder("a", tmp_path / "real") + folder("b", tmp_path / "link"))
    assert len(found) == 1
    assert f"{str(tmp_path / 'link')!r} overlaps with folder 'a'" in found[0]


@pytest.mark.parametrize("key", ["archive_dir", "quarantine_dir"])
def test_an_archive_inside_another_watched_folder_is_refused(key: str, problems: Problems, tmp_path: Path) -> None:
    place = tmp_path / "b" / "from-a"
    found = problems(TENANT + folder("a", tmp_path / "a", f'{key} = "{place}"') + folder("b", tmp_path / "b"))
    assert found == [
        f"folders 'a': {key}: {str(place)!r} lies inside the watched folder 'b'; its files would be uploaded again"
    ]


def test_an_archive_inside_another_watched_folder_is_found_through_a_link(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "b")
    text = folder("a", tmp_path / "a", f'archive_dir = "{tmp_path}/elsewhere/done"') + folder("b", tmp_path / "b")
    assert len(problems(TENANT + text)) == 1


def test_the_state_inside_a_watched_folder_is_found_through_a_link(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "drop")
    found = problems(f'[state]\ndir = "{tmp_path}/state"\n' + TENANT + folder("a", tmp_path / "drop"))
    assert len(found) == 1
    assert found[0].startswith("state: dir: ")


# ---- API keys --------------------------------------------------------------------------------------------------


def test_without_a_key_of_its_own_a_tenant_uses_the_systemd_credential(
    read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tenant,) = read(TENANT.replace('api_key_file = "/run/secrets/acme"\n', "") + FOLDER).tenants
    assert (tenant.api_key, tenant.api_key_file, tenant.from_systemd) == ("", str(tmp_path / "pmwatch-acme"), True)


def test_outside_the_service_the_credential_s_source_is_read(
    read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # so that `pmwatch why` and `pmwatch check` of an operator do not ask for what only the service gets
    monkeypatch.setattr("pmwatch.config.CREDENTIALS", str(tmp_path))
    keyless = TENANT.replace('api_key_file = "/run/secrets/acme"\n', "") + FOLDER
    (tenant,) = read(keyless).tenants
    assert (tenant.api_key, tenant.api_key_file, tenant.from_systemd) == ("", str(tmp_path / "acme"), True)
    monkeypatch.setattr("pmwatch.config.CREDENTIALS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no API key"):
        read(keyless)


def test_a_key_file_wins_over_the_systemd_credential(
    read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tenant,) = read(TENANT + FOLDER).tenants
    assert (tenant.api_key_file, tenant.from_systemd) == ("/run/secrets/acme", False)


def test_a_key_in_the_file_is_read_and_never_shown_by_the_settings(read: Read) -> None:
    settings_ = read(TENANT.replace('api_key_file = "/run/secrets/acme"', f'api_key = " {CANARY} "') + FOLDER)
    assert settings_.tenants[0].api_key == CANARY
    assert CANARY not in repr(settings_)


@pytest.mark.parametrize(
    "text",
    [
        f'[[tenants]]\nname = "acme"\nid = 5\napi_key = "{CANARY}"\napi_key_file = 6\nsurprise = "{CANARY}"\n',
        f'[[tenants]]\nname = "acme"\nid = "t"\napi_key = ["{CANARY}"]\n',
        f'[[tenants]]\nname = "acme"\nid = "t"\napi_key = {{ key = "{CANARY}" }}\n',
        f'[[tenants]]\nname = "acme"\nid = "t"\napi_key = "{CANARY}\\u0000"\n',
        f'[[tenants]]\nname = "acme"\nid = "t"\napi_kye = "{CANARY}"\n',
        f'[tenants]\nname = "acme"\nid = "t"\napi_key = "{CANARY}"\n',
        f'tenants = ["{CANARY}"]\n',
        f'tenants = "{CANARY}"\n',
        f'api_key = "{CANARY}"\n',
        f'[api]\napi_key = "{CANARY}"\n',
        f'[[tenants]]\nname = "acme"\napi_key = "{CANARY}\n',
    ],
)
def test_no_message_holds_an_api_key(text: str, problems: Problems) -> None:
    found = problems(text)
    assert found
    assert CANARY not in "\n".join(found)


# ---- the file ------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_toml_is_named_with_line_and_column(problems: Problems, tmp_path: Path) -> None:
    (said,) = problems("[api\n")
    assert said.startswith(f"{tmp_path / 'config.toml'}: not valid TOML: ")
    assert "line 1, column 5" in said


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ('[folders]\nname = "a"\n[folders]', "[folders]", "[[folders]], in double brackets"),
        ('[folders]\nname = "a"\n[[folders]]', "[[folders]]", "[[folders]], in double brackets"),
        ("[api]\n[api]", "[api]", "[api] is there twice"),
        ('[[folders]]\nname = "a"\nname = "b"', 'name = "b"', "name is there twice in this table"),
        ("after_upload = archive", "after_upload = archive", 'in quotes: after_upload = "…"'),
        ("recursive = True", "recursive = True", "small letters"),
        ('path = "c:\\drop"', 'path = "c:\\drop"', "single quotes"),
        ("what is this", "", "KEY = VALUE"),
        (f"api_key = {CANARY}", "", 'in quotes: api_key = "…"'),
        (f'name = "a", api_key = "{CANARY}"', "", "KEY = VALUE"),
        (f"{CANARY} =", "", ""),
    ],
)
def test_a_mistake_in_the_toml_is_shown_with_its_line_and_what_to_do(
    tmp_path: Path, text: str, line: str, hint: str
) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "config.toml"))
    (said,) = caught.value.problems
    assert said.rpartition(")")[2].removeprefix(": ") == line
    assert hint in caught.value.hint
    assert CANARY not in said


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "x = " + "9" * 5_000, 'x = "\ud800"'])
def test_a_file_on_which_the_parser_itself_stumbles_is_not_valid_toml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert "not valid TOML" in str(caught.value)


def test_a_file_that_is_absent_is_named_and_the_hint_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "none.toml"))
    assert caught.value.problems == [f"{tmp_path}/none.toml: cannot be read: No such file or directory"]
    assert "--config FILE" in caught.value.hint


def test_a_file_with_the_byte_order_mark_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(TENANT + FOLDER, encoding="utf-8-sig", newline="\r\n")
    assert load(str(path)).folders[0].name == "orders"


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(str(path))


def test_a_configuration_error_ends_with_the_code_after_which_systemd_does_not_restart() -> None:
    assert ExitCode.CONFIG == os.EX_CONFIG


# ---- where a value comes from ----------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_the_default(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TENANT + FOLDER
    assert read(text).log.level == "info"
    text = '[log]\nlevel = "warning"\nformat = "json"\n' + text
    assert read(text).log.level == "warning"
    monkeypatch.setenv("PMWATCH_LOG_LEVEL", "error")
    assert read(text).log.level == "error"
    settings_ = read(text, flags={"log": {"level": "debug"}})
    assert (settings_.log.level, settings_.log.format) == ("debug", "json")


@pytest.mark.parametrize(
    ("variable", "value", "get", "expected"),
    [
        ("PMWATCH_API_BASE_URL", "https://eu.example.com", lambda s: s.api.base_url, "https://eu.example.com"),
        ("PMWATCH_STATE_DIR", "/state", lambda s: s.state.dir, "/state"),
        ("PMWATCH_HTTP_LISTEN", "off", lambda s: s.listen, None),
        ("PMWATCH_LOG_FORMAT", "json", lambda s: s.log.format, "json"),
        ("PMWATCH_DELIVERY_MAX_PARALLEL", "7", lambda s: s.delivery.max_parallel, 7),
        ("PMWATCH_DELIVERY_GIVE_UP_AFTER", "2h", lambda s: s.delivery.give_up_after, 7200.0),
        ("PMWATCH_DEFAULTS_SETTLE", "1m30s", lambda s: s.folders[0].settle_seconds, 90.0),
        ("PMWATCH_DEFAULTS_RECURSIVE", "true", lambda s: s.folders[0].recursive, True),
    ],
)
def test_the_environment_sets_single_values(
    variable: str, value: str, get: Callable[[Settings], object], expected: object, read: Read
) -> None:
    os.environ[variable] = value  # taken back by _bare_environment
    assert get(read(TENANT + FOLDER)) == expected


def test_the_environment_does_not_replace_the_rest_of_a_section(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMWATCH_DELIVERY_MAX_PARALLEL", "7")
    delivery = read('[delivery]\nretry_first = "2s"\nmax_parallel = 3\n' + TENANT + FOLDER).delivery
    assert (delivery.retry_first, delivery.max_parallel) == (2.0, 7)


def test_the_key_for_the_commands_without_a_configuration_is_no_mistake(
    read: Read, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMWATCH_API_KEY", CANARY)
    monkeypatch.setenv("PMWATCH_TENANT", "tenant-1")
    monkeypatch.setenv("PMWATCH_API_TIMEOUT", "7s")
    assert read(TENANT + FOLDER).api.timeout == 7.0
    assert "api: key: unknown key" in problems('[api]\nkey = "x"\n' + TENANT + FOLDER)[0]


def test_a_folder_wins_over_a_default_from_the_environment(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMWATCH_DEFAULTS_SETTLE", "1m")
    assert read(TENANT + FOLDER + 'settle = "2s"\n').folders[0].settle_seconds == 2.0


def test_an_empty_variable_counts_as_unset(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMWATCH_STATE_DIR", "")
    assert read(TENANT + FOLDER).state.dir == "/var/lib/pmwatch"


def test_variables_of_ours_that_are_no_setting_are_left_alone(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMWATCH_CONFIG", "/etc/pmwatch/config.toml")
    monkeypatch.setenv("PMWATCH_TEST_SCALE", "1")
    assert read(TENANT + FOLDER).folders[0].name == "orders"


def test_a_wrong_value_from_the_environment_is_refused_like_one_from_the_file(
    problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMWATCH_DELIVERY_MAX_PARALLEL", "many")
    (said,) = problems(TENANT + FOLDER)
    assert said.startswith("delivery: max_parallel: 'many': ")
    assert said.endswith(" (from PMWATCH_DELIVERY_MAX_PARALLEL in the environment)")


def test_only_what_the_environment_sets_is_said_to_come_from_there(
    problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMWATCH_API_BASE_URL", "http://example.com")
    monkeypatch.setenv("PMWATCH_LOG_FORMAT", "")
    said = problems('[log]\nformat = "x"\n' + TENANT + FOLDER)
    assert [line.endswith("(from PMWATCH_API_BASE_URL in the environment)") for line in said] == [False, True]
    with pytest.raises(ConfigError) as caught:
        load(None, flags={"api": {"base_url": "http://example.org"}})
    assert "in the environment" not in str(caught.value), "a flag wins"


def test_an_unknown_key_from_the_environment_is_refused(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMWATCH_DEFAULTS_SETLE", "1s")
    assert problems(TENANT + FOLDER) == [
        'defaults: setle: unknown key; did you mean "settle"? (from PMWATCH_DEFAULTS_SETLE in the environment)'
    ]


def test_a_section_in_a_variable_that_is_not_json_is_refused(
    problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMWATCH_API", CANARY)
    (said,) = problems(TENANT + FOLDER)
    assert said.startswith("environment: PMWATCH_API cannot be read")
    assert CANARY not in said


def test_without_a_file_environment_and_flags_are_all_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, flags={"state": {"dir": "/state"}})
    assert caught.value.problems == [
        "folders: there is none; add a [[folders]] entry with name, path, tenant, datatable"
    ]


# ---- whatever stands in the file ---------------------------------------------------------------------------------

KEYS = sorted(
    {*config.SECTIONS, "name", "id", "path", "tenant", "datatable", "dir", "listen", "base_url", "api_key", "settle"}
    | {"include", "archive_dir", "model_config", "toml", "self", "cls", "_env_file", "allowed_hosts", "max_parallel"}
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["/a", "/a/{tenant}", "/a/b", "a", "5s", "off", "[::1]:1", "http://[", "\0", "/\0", "{tenant}/x"]),
)
SCALARS = st.one_of(TEXTS, st.integers(), st.floats(), st.booleans(), st.dates(), st.datetimes(), st.times())
TABLES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), inner, max_size=4),
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), TABLES, max_size=5)


@pytest.fixture(scope="module")
def module_monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


def load_document(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Load what a TOML file would have been parsed to; return the problems."""
    asked: list[str | None] = []

    def parsed(path: str | None) -> dict[str, Any]:
        asked.append(path)
        return document

    monkeypatch.setattr(config, "_read_toml", parsed)
    try:
        load("config.toml")
    except ConfigError as error:
        return error.problems
    finally:
        assert asked == ["config.toml"]
    return []


@settings(max_examples=150 * SCALE, deadline=None)
@given(document=DOCUMENTS)
def test_nothing_but_a_configuration_error_ever_comes_out(
    document: dict[str, Any], module_monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(isinstance(problem, str) and problem for problem in load_document(document, module_monkeypatch))


ENTRIES = st.fixed_dictionaries(
    {
        "state": st.fixed_dictionaries({"dir": TEXTS}),
        "api": st.fixed_dictionaries({"base_url": TEXTS}),
        "http": st.fixed_dictionaries({"listen": TEXTS}),
        "tenants": st.dictionaries(st.sampled_from([*config.TenantEntry.keys(), "x"]), TABLES, max_size=4).map(
            lambda entry: [{"name": "acme", "id": "1", "api_key_file": "/k"}, entry]
        ),
        "folders": st.dictionaries(st.sampled_from([*config.FolderEntry.keys(), "x"]), TABLES, max_size=8).map(
            lambda entry: [{"name": "a", "path": "/a", "tenant": "acme", "datatable": "t"}, entry]
        ),
    }
)


@settings(max_examples=80 * SCALE, deadline=None)
@given(document=ENTRIES)
def test_whatever_the_values_of_known_keys_are_only_a_configuration_error_comes_out(
    document: dict[str, Any], module_monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(isinstance(problem, str) and problem for problem in load_document(document, module_monkeypatch))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[state]\nkeep = "1d"\ndir = "/srv/state"\n[api]\n"', "/srv/state"),
        ("[state]\ndir = '/srv/state' # here\n= 3\n", "/srv/state"),
        ('state.dir = "/srv/state"\nnonsense = 3\n', "/srv/state"),
        ('[[folders]]\ndir = "/no"\n[state]\n[api]\ndir = "/no"\n= 3', "/var/lib/pmwatch"),
        ("[state]\ndir = 5\n", "/var/lib/pmwatch"),
        ("state = 5\n", "/var/lib/pmwatch"),
        ("", "/var/lib/pmwatch"),
    ],
)
def test_a_wrong_file_may_still_name_its_state_directory(
    text: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PMWATCH_STATE_DIR", raising=False)
    (tmp_path / "config.toml").write_text(text)
    assert state_dir_of(str(tmp_path / "config.toml")) == named
    assert state_dir_of(str(tmp_path / "absent.toml")) == "/var/lib/pmwatch"
    monkeypatch.setenv("PMWATCH_STATE_DIR", "/srv/other")
    assert state_dir_of(str(tmp_path / "config.toml")) == "/srv/other"
