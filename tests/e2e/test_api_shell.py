"""The README's section on driving ProcessMind from the shell: its lines work when pasted, and the shell completes."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from pmwatch import Client
from pmwatch.cli import main
from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, wait_for
from support.remotes import ScriptedServer, answer
from support.services import require_tool
from support.terminal import on_terminal

README = Path(__file__).resolve().parents[2] / "README.md"
SCRIPTS = Path(sys.executable).parent


def bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PMWATCH_")}


def test_the_lines_of_the_readme_work_when_pasted(tmp_path: Path) -> None:
    section = README.read_text().split("## Drive ProcessMind from the shell", 1)[1].split("\n## ", 1)[0]
    first, second = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    assert len(second.strip().splitlines()) == 5
    bash = require_tool("bash", "the Debian package bash")
    start = first.replace("pmwatch sandbox", "pmwatch sandbox --listen 127.0.0.1:0")
    script = f"set -euo pipefail\n{start}\ntrap 'kill $!' EXIT\n{second}"
    variables = bare_environment() | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [bash, "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("data-2", "ada@example.com", '"method": "DELETE"', "success: true"):
        assert word in done.stdout


def test_the_sandbox_s_variables_are_for_nobody_else(tmp_path: Path) -> None:
    variables = tmp_path / "sandbox.env"
    variables.write_text("old")
    words = ["sandbox", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "s"), "--env-file", str(variables)]
    process = subprocess.Popen([sys.executable, "-m", "pmwatch", *words], stdout=subprocess.DEVNULL)
    try:
        wait_for("the variables are there", lambda: "PMWATCH_TENANT=" in variables.read_text())
        assert variables.stat().st_mode & 0o777 == 0o600
        assert [one.name for one in tmp_path.iterdir() if one.name.startswith("sandbox.env.")] == []
    finally:
        process.terminate()
        process.wait()


def test_the_shell_completes_groups_verbs_and_tenants(tmp_path: Path, sandbox: SandboxServer) -> None:
    daemon = Daemon.for_sandbox(tmp_path, sandbox)
    daemon.folders = f'[[folders]]\nname = "a"\npath = "{tmp_path}/drop"\ntenant = "demo"\ndatatable = "x"\n'
    daemon.write_config()

    def complete(line: str) -> list[str]:
        variables = {
            "_PMWATCH_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
            "PMWATCH_CONFIG": str(daemon.config),
        }
        program = [str(SCRIPTS / "pmwatch")]
        done = subprocess.run(program, env=bare_environment() | variables, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert complete("pmwatch api da") == ["dataset", "datatable"]
    assert complete("pmwatch api process up") == ["update", "upload-bpmn"]
    assert complete("pmwatch api dataset list --tenant d") == ["demo"]
    assert complete("pmwatch api dataset list --tenant q") == []


def variables_for(sandbox: SandboxServer) -> dict[str, str]:
    tenant = sandbox.tenants[0]
    return bare_environment() | {
        "PMWATCH_API_KEY": tenant["api_key"],
        "PMWATCH_API_BASE_URL": sandbox.base_url,
        "PMWATCH_TENANT": tenant["id"],
    }


class Commands:
    """`pmwatch api` for the first tenant of a sandbox, in this process: starting one takes longer than all it does."""

    def __init__(self, sandbox: SandboxServer, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self._variables = variables_for(sandbox)
        self._patch = patch
        self._captured = captured

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        with self._patch.context() as patch:
            for name, value in (self._variables | more).items():
                patch.setenv(name, value) if value else patch.delenv(name, raising=False)
            patch.setattr("sys.argv", ["pmwatch", "api", *words])
            patch.setattr("sys.stdin", io.StringIO())
            with pytest.raises(SystemExit) as ended:
                main()
        told = self._captured.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), told.out, told.err)


@pytest.fixture
def api(sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(sandbox, monkeypatch, capsys)


@pytest.mark.parametrize(("columns", "hidden"), [(80, "datasetId"), (120, "")])
def test_a_table_fits_the_terminal_with_whole_ids(sandbox: SandboxServer, columns: int, hidden: str) -> None:
    line = [sys.executable, "-m", "pmwatch", "api", "datatable", "list"]
    code, shown = on_terminal(line, columns=columns, env=variables_for(sandbox))
    assert code == 0
    assert max(len(one) for one in shown.splitlines()) <= columns
    dataset = sandbox.tenants[0]["datasets"][0]
    assert all(f" {table['id']} " in shown for table in dataset["datatables"])
    assert (f"not shown: {hidden}" in shown) is bool(hidden)
    assert (f" {dataset['id']} " in shown) is not bool(hidden)


def test_a_pipe_gets_every_column_and_json_the_names_and_facts_of_the_api(
    sandbox: SandboxServer, api: Commands
) -> None:
    tenant = sandbox.tenants[0]
    dataset = tenant["datasets"][0]["id"]
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        client.add_user(tenant["id"], "a.rather.long.name@subsidiary.example.com", developer=True)
        process = client.create_process(tenant["id"], "Claims").id
        client.upload_bpmn(tenant["id"], process, '<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL"/>')
        client.create_mapping(
            tenant["id"], process, tenant["datasets"][0]["datatables"][0]["id"], display_name="M", color="data-7"
        )
    users = api("user", "list").stdout
    assert "isDeveloperInTenant" in users
    assert "a.rather.long.name@subsidiary.example.com" in users
    assert "data-7" in api("mapping", "list", process).stdout
    [listed] = json.loads(api("dataset", "list", "--json").stdout)
    assert listed.keys() == {"id", "displayName", "treeNodeType", "treeParentId", "createdAt", "datatableCount"}
    [first, *_] = json.loads(api("datatable", "list", "--json").stdout)
    assert first["datasetId"] == dataset
    shown = api("dataset", "get", dataset).stdout
    assert "{" not in shown, "the tables in a dataset are a table"
    assert "Deliveries" in shown
    deleted = api("dataset", "delete", dataset, "--yes").stdout
    assert deleted == "success: true\n"


def test_names_that_others_gave_do_nothing_to_a_terminal(sandbox: SandboxServer, api: Commands) -> None:
    tenant = sandbox.tenants[0]
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        process = client.create_process(tenant["id"], "a\x1b[2J\nb").id
    for words in (("process", "list"), ("process", "get", process)):
        shown = api(*words).stdout
        assert "a\\x1b[2J\\x0ab" in shown
        assert "\x1b" not in shown


def test_ids_are_offered_where_there_are_some_and_an_update_is_shown_with_what_stays(
    sandbox: SandboxServer, api: Commands
) -> None:
    tenant = sandbox.tenants[0]
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        user = client.add_user(tenant["id"], "ann@example.com", admin=True).id
    assert api("datatable", "upload-url", "x", "--ids").returncode == 2
    assert api("process", "upload-bpmn", "x", "y", "--ids").returncode == 2
    assert api("user", "list", "--ids").stdout == f"{user}\n"
    dry = json.loads(api("user", "update", user, "--developer", "--dry-run").stdout)
    assert (dry["method"], dry["body"]["isAdminInTenant"], dry["body"]["isDeveloperInTenant"]) == ("PUT", True, True)
    dry = json.loads(api("user", "add", "eve@example.com", "--user-id", "u-17", "--dry-run").stdout)
    assert dry["body"]["id"] == "u-17"
    assert "What is not given stays as it is." in api("user", "update", "-h").stdout


def test_what_is_missing_or_misspelt_is_said_with_a_hint(api: Commands, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none.toml")
    no_scheme = api("tenant", "get", PMWATCH_API_BASE_URL="api.processmind.com")
    assert "hint: Write it with its scheme" in no_scheme.stderr
    no_key = api("tenant", "get", PMWATCH_API_KEY="", PMWATCH_CONFIG=nowhere)
    assert (no_key.returncode, "set PMWATCH_API_KEY" in no_key.stderr) == (78, True)
    no_tenant = api("tenant", "get", PMWATCH_TENANT="")
    assert (no_tenant.returncode, "PMWATCH_TENANT" in no_tenant.stderr) == (2, True)
    unknown = api("process", "get", "../p")
    assert unknown.returncode == 1
    assert re.search(r"404: .* \(request id \w+\)\nhint: Check the ids", unknown.stderr)
    assert "Did you mean 'list'?" in api("user", "lst").stderr
    nameless = api("datatable", "upload-url", "x", "--size", "7", "--mtime-ms", "1")
    assert nameless.returncode == 2
    assert "--size and --mtime-ms say nothing without a file: name it with --filename" in " ".join(
        nameless.stderr.replace("│", " ").split()
    )
    stranger = api("tenant", "get", PMWATCH_API_KEY="wrong")
    assert "hint: The API key is wrong" in stranger.stderr


def test_an_error_tells_the_id_by_which_the_vendor_finds_the_request(api: Commands) -> None:
    refusal = answer(404, b'{"message": "Process not found"}', {"x-amzn-requestid": "r-17"})
    with ScriptedServer(refusal) as server:
        told = api("process", "get", "p", PMWATCH_API_BASE_URL=server.url)
    assert told.returncode == 1
    assert told.stderr == (
        "pmwatch: 127.0.0.1 answered 404: Process not found (request id r-17)\n"
        "hint: Check the ids, and the address of the API.\n"
    )


def test_the_connection_is_the_configuration_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    own = str(tmp_path / "own.pem")
    with SandboxServer(tmp_path / "sandbox", ssl_certfile=own, ssl_keyfile=own) as sandbox:
        daemon = Daemon.for_sandbox(tmp_path, sandbox)
        drop = tmp_path / "drop"
        drop.mkdir()
        daemon.folders = f'[[folders]]\nname = "a"\npath = "{drop}"\ntenant = "demo"\ndatatable = "Orders"\n'
        daemon.write_config()
        daemon.config.write_text(daemon.config.read_text().replace("[api]", f'[api]\nca_file = "{tmp_path}/ca.pem"'))
        (tmp_path / "plan.toml").write_text('[[datasets]]\nname = "New"\n')
        (tmp_path / "a.csv").write_text("id\n1\n")
        for words in (
            ("api", "dataset", "list"),
            ("apply", str(tmp_path / "plan.toml"), "--yes"),
            ("upload", str(tmp_path / "a.csv"), "--to", "demo/Orders"),
            ("doctor",),
        ):
            monkeypatch.setattr("sys.argv", ["pmwatch", *words, "--config", str(daemon.config)])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, words
        daemon.config.write_text(daemon.config.read_text().replace("ca.pem", "gone.pem"))
        monkeypatch.setattr("sys.argv", ["pmwatch", "api", "dataset", "list", "--config", str(daemon.config)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code, "ca_file" in capsys.readouterr().err) == (78, True)
