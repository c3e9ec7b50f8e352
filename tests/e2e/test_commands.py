"""The commands as processes: what scripts and people rely on."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from pmwatch import Client, __version__
from pmwatch.cli import COMMANDS, load, main
from pmwatch.ledger import Action, ByHand, Ledger
from pmwatch.model import BY_HAND, Fingerprint, Outcome, State
from support.daemon import Daemon, folder_toml, wait_for
from support.ledgers import DESTINATION, TARGET, claimed, drop, look, sha

app = load()

ROOT = Path(__file__).resolve().parents[2]


def pmwatch(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = [sys.executable, "-m", "pmwatch", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "nonsense"], "127.0.0.1:9100"),
        (["--state", "/dev/null"], "--state /dev/null"),
        (["--env-file", "/nowhere/x"], "no such directory"),
        (["--ready-file", "/nowhere/x"], "no such directory"),
        (["--fault", "PUT abc"], "'abc' is no number"),
    ],
)
def test_a_sandbox_that_cannot_be_is_wrong_usage(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pmwatch", "sandbox", "--listen", "127.0.0.1:0", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_sandbox_writes_its_ready_file_serves_and_counts_objects(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    words = ["sandbox", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"), "--ready-file", str(ready)]
    process = subprocess.Popen([sys.executable, "-m", "pmwatch", *words], stdout=subprocess.DEVNULL)
    try:
        wait_for("the ready file", ready.exists)
        facts = json.loads(ready.read_text())
        assert ready.stat().st_mode & 0o777 == 0o600
        tenant = facts["tenants"][0]
        dataset = tenant["datasets"][0]
        assert set(tenant) == {"id", "name", "api_key", "datasets"}
        assert set(dataset["datatables"][0]) == {"id", "name"}
        with Client(tenant["api_key"], base_url=facts["base_url"]) as client:
            names = {table.display_name for table in client.datatables(tenant["id"])}
        assert names == {table["name"] for table in dataset["datatables"]}
        with urllib.request.urlopen(f"{facts['base_url']}/sandbox/objects") as answer:
            assert json.load(answer) == {"objects": []}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_sandbox_without_a_directory_of_its_own_leaves_nothing_behind(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    left = tmp_path / "tmp"
    left.mkdir()
    words = [sys.executable, "-m", "pmwatch", "sandbox", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(left)})
    try:
        wait_for("the ready file", ready.exists)
        assert len(list(left.iterdir())) == 1
        taken = json.loads(ready.read_text())["base_url"].removeprefix("http://")
        told = pmwatch("sandbox", "--listen", taken, env={"TMPDIR": str(left)})
        assert (told.returncode, "choose one with --listen" in told.stderr) == (1, True)
        assert len(list(left.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert list(left.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def test_the_demo_succeeds_and_shows_every_file() -> None:
    shown = pmwatch("demo", env={"COLUMNS": "120"})
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert len(re.findall(r"\buploaded\b.*\d s", shown.stdout)) == 4
    assert len(re.findall(r"\bduplicate\b.*\d s", shown.stdout)) == 1
    assert "byte-identical" in shown.stdout
    assert re.search(r"http://127\.0\.0\.1:\d+/metrics", shown.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_without_the_others(name: str) -> None:
    told = pmwatch(name, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert f"Usage: python -m pmwatch {name}" in told.stdout
    assert "[]" not in told.stdout, "brackets were taken for markup"


def test_every_command_has_a_sentence_of_help() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # it is a group
        assert command.help, name
        assert all(parameter.help for parameter in command.params if parameter.name != "help"), name


def command_lines(group: Any, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from command_lines(command, *words, name)


def test_help_speaks_of_values_and_not_of_python_s_types() -> None:
    lines = list(command_lines(typer.main.get_command(app)))
    assert ("api", "user", "add") in lines
    for words in lines:
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "120"}).stdout
        assert not re.search(r"<\w|[{}]", shown), shown


def test_the_sandbox_s_help_leads_to_its_pages() -> None:
    shown = " ".join(CliRunner().invoke(app, ["sandbox", "--help"], env={"COLUMNS": "200"}).stdout.split())
    for said in ("in a browser lists what arrived", "/sandbox/openapi.json", "may be repeated"):
        assert said in shown


def test_history_s_help_names_every_state_and_outcome() -> None:
    shown = CliRunner().invoke(app, ["history", "--help"], env={"COLUMNS": "200"}).stdout
    assert ", ".join(State) in shown
    assert ", ".join(Outcome) in shown


def test_version_is_that_of_the_package() -> None:
    assert pmwatch("version").stdout == f"pmwatch {__version__}\n"
    assert json.loads(pmwatch("version", "--json").stdout)["pmwatch"] == __version__


def test_a_missing_configuration_is_a_clear_error(tmp_path: Path) -> None:
    told = pmwatch("run", "--config", str(tmp_path / "absent.toml"))
    assert told.returncode == 78
    assert "absent.toml: cannot be read: No such file" in told.stderr
    assert "hint:" in told.stderr


def test_the_example_configuration_passes_the_check() -> None:
    assert pmwatch("check", "--config", str(ROOT / "config.example.toml")).returncode == 0


def test_an_unknown_option_exits_2() -> None:
    assert pmwatch("run", "--confg", "x").returncode == 2


def test_every_command_is_named_so_that_it_can_be_loaded_alone() -> None:
    assert sorted(typer.main.get_command(app).commands) == sorted(COMMANDS)  # type: ignore[attr-defined]  # it is a group


def test_the_ledger_is_not_loaded_by_what_does_not_need_it() -> None:
    script = "import sys; from pmwatch.cli import load; load(['check']); print('sqlalchemy' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_history_in_a_pipe_is_never_cut_and_knows_what_came_by_hand(tmp_path: Path) -> None:
    folder = folder_toml("orders", tmp_path / "drop", tenant="acme", datatable="table-1")
    daemon = Daemon(tmp_path, base_url="http://127.0.0.1:1", tenants={"acme": ("tenant-1", "k")}, folders=folder)
    daemon.write_config()
    daemon.state.mkdir()
    name, by_hand = f"{'a-very-long-name-' * 12}.csv", f"/home/ann/{'b' * 150}.csv"
    with Ledger.open(str(daemon.state)) as ledger:
        drop(ledger, name)
        one = ByHand(by_hand.encode(), look(), TARGET, DESTINATION, sha("A"))
        id_ = ledger.begin_by_hand(one, force=False, now=1.0).of
        ledger.uploaded_by_hand(id_, etag="", by=Action(2.0, "ann", "upload"))
    everything = daemon.command("history").stdout
    assert f" {name} " in everything
    assert f" {by_hand} " in everything
    only = daemon.command("history", "--folder", BY_HAND).stdout
    assert f" {by_hand} " in only
    assert name not in only
    assert f" {name} " in daemon.command("status").stdout
    wrong = daemon.command("history", "--folder", "oders")
    assert (wrong.returncode, "known folders: orders" in wrong.stderr) == (2, True)


def test_release_refuses_what_is_gone_and_why_tells_what_was_before(tmp_path: Path) -> None:
    root = tmp_path / "drop"
    folder = folder_toml("orders", root, tenant="acme", datatable="table-1")
    daemon = Daemon(tmp_path, base_url="http://127.0.0.1:1", tenants={"acme": ("tenant-1", "k")}, folders=folder)
    daemon.write_config()
    daemon.state.mkdir()
    root.mkdir()
    with Ledger.open(str(daemon.state)) as ledger:
        for version in (1, 2):
            (root / "a.csv").write_text("x" * version)
            drop(ledger, "a.csv", Fingerprint.of((root / "a.csv").stat()), held="invalid")
    assert "ago: superseded by a newer version, while held: invalid\n" in daemon.command("why", f"{root}/a.csv").stdout
    root.rename(tmp_path / "away")
    assert daemon.command("release", "2").returncode == 0, "a folder that is not there says nothing of its files"
    (tmp_path / "away").rename(root)
    with Ledger.open(str(daemon.state)) as ledger:
        ledger.resolve(TARGET, DESTINATION)
        ledger.end(claimed(ledger), State.HELD, reason="invalid", detail="", now=1000.0)
    (root / "a.csv").unlink()
    for command in ("release", "retry"):
        refused = daemon.command(command, "2")
        assert (refused.returncode, "2: it is no longer on disk" in refused.stdout) == (1, True)
    assert daemon.command("discard", "2").returncode == 0
    assert "ended as discarded" in daemon.command("why", f"{root}/a.csv").stdout


def test_every_ledger_that_a_command_opens_is_closed_whatever_happens() -> None:
    opened = []
    for path in sorted((ROOT / "pmwatch" / "cli").glob("*.py")):
        if path.name == "common.py":
            continue
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        entered: list[ast.AST] = [
            item.context_expr for node in nodes if isinstance(node, ast.With) for item in node.items
        ]
        entered += [node for node in nodes if _is_call(node, "enter_context")]
        safe = {id(one) for whole in entered for one in ast.walk(whole)}
        calls = [node for node in nodes if _is_call(node, "open_ledger") or _is_call(node, "Ledger.open")]
        opened += calls
        assert [path.name for node in calls if id(node) not in safe] == []
    assert len(opened) > 10


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name)
