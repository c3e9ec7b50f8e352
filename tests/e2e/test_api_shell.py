"""The README's section on driving ProcessMind from the shell: its lines work when pasted, and the shell completes."""

import os
import re
import subprocess
import sys
from pathlib import Path

from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, wait_for
from support.services import require_tool

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
