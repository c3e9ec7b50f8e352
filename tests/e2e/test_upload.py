"""`pmwatch upload`: files go now, once, and scripts can rely on what it says."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmwatch.sandbox import Fault, SandboxServer
from support.daemon import Daemon, folder_toml, stored, table_id

BPMN = b'<?xml version="1.0"?><definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL"/>'


def upload(sandbox: SandboxServer, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command without any configuration: key and address are in the environment."""
    key = sandbox.tenants[0]["api_key"]
    env = {**os.environ, "PMWATCH_API_KEY": key, "PMWATCH_API_BASE_URL": sandbox.base_url}
    line = [sys.executable, "-m", "pmwatch", "upload", *words]
    return subprocess.run(line, capture_output=True, check=False, env=env, input=stdin)


def target(sandbox: SandboxServer) -> str:
    return f"{sandbox.tenants[0]['id']}/{table_id(sandbox)}"


def test_several_files_and_standard_input_arrive_byte_identical(tmp_path: Path, sandbox: SandboxServer) -> None:
    files = {f"{number}.csv": os.urandom(number * 700_000) + b"\n" for number in range(5)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in files]
    done = upload(sandbox, *paths, "-", "--name", "piped.csv", "--to", target(sandbox), "--json", stdin=b"id\n1\n")
    assert done.returncode == 0, done.stderr
    assert stored(sandbox) == {**files, "piped.csv": b"id\n1\n"}
    told = json.loads(done.stdout)
    assert {one["outcome"] for one in told} == {"uploaded"}
    assert [one["sha256"] for one in told[:5]] == [hashlib.sha256(content).hexdigest() for content in files.values()]


def test_by_names_and_in_words(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "[bold]a.csv").write_text("id\n1\n")
    tenant = sandbox.tenants[0]
    names = f"{tenant['id']}/{tenant['datasets'][0]['name']}/Orders"
    done = upload(sandbox, str(tmp_path / "[bold]a.csv"), "--to", names)
    assert done.returncode == 0, done.stderr
    assert b"[bold]a.csv: uploaded (5 B)" in done.stdout


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="PUT", status=503, times=1),
        Fault(method="PUT", when="after", close=True, times=1),
        Fault(method="PUT", when="mid", times=1),
        Fault(method="GET", status=500, path_contains="presignedurl", times=1),
    ],
    ids=["503", "a lost answer", "cut in the middle", "500 of the API"],
)
def test_passing_trouble_is_tried_again_and_stores_one_object(
    tmp_path: Path, sandbox: SandboxServer, fault: Fault
) -> None:
    (tmp_path / "a.csv").write_bytes(b"x" * 300_000)
    sandbox.faults.add(fault)
    done = upload(sandbox, str(tmp_path / "a.csv"), "--to", target(sandbox))
    assert done.returncode == 0, done.stdout
    assert stored(sandbox) == {"a.csv": b"x" * 300_000}


def test_what_cannot_go_is_named_with_a_hint_and_the_rest_goes(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "good.csv").write_text("id\n1\n")
    os.mkfifo(tmp_path / "fifo.csv")
    missing, fifo, good = (str(tmp_path / name) for name in ("missing.csv", "fifo.csv", "good.csv"))
    done = upload(sandbox, missing, fifo, good, str(tmp_path), "--to", target(sandbox), "--json")
    assert done.returncode == 1
    told = {os.path.basename(one["path"]): one for one in json.loads(done.stdout)}
    assert told["good.csv"]["outcome"] == "uploaded"
    assert told["missing.csv"]["message"] == "missing.csv is gone"
    assert "named pipe" in told["fifo.csv"]["message"]
    assert "directory" in told[tmp_path.name]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.csv", "--to", "acme"], "TENANT/DATASET/DATATABLE"),
        (["-", "--to", "acme/x"], "needs a --name"),
        (["a.bpmn", "--to", "acme/x", "--process", "p"], "tenant alone"),
    ],
)
def test_wrong_usage_exits_2(sandbox: SandboxServer, words: list[str], said: str) -> None:
    done = upload(sandbox, *words)
    assert done.returncode == 2
    assert said in done.stderr.decode()


def test_an_unknown_datatable_names_what_there_is(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    done = upload(sandbox, str(tmp_path / "a.csv"), "--to", f"{sandbox.tenants[0]['id']}/Sales/Ordres")
    assert done.returncode == 1
    assert "Orders" in done.stderr.decode()


def test_a_model_goes_to_its_process_by_name(tmp_path: Path, sandbox: SandboxServer) -> None:
    from pmwatch import Client

    tenant = sandbox.tenants[0]
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        client.create_process(tenant["id"], "Order to cash")
        for encoding, content in (("utf-8", BPMN), ("utf-16", BPMN.decode().encode("utf-16"))):
            (tmp_path / "o2c.bpmn").write_bytes(content)
            done = upload(sandbox, str(tmp_path / "o2c.bpmn"), "--to", tenant["id"], "--process", "Order to cash")
            assert done.returncode == 0, (encoding, done.stdout)
        assert client.processes(tenant["id"])[0].designer_model_id
        (tmp_path / "o2c.bpmn").write_text("<html/>")
        wrong = upload(sandbox, str(tmp_path / "o2c.bpmn"), "--to", tenant["id"], "--process", "Order to cash")
        assert (wrong.returncode, b"it is no BPMN 2.0 model" in wrong.stdout) == (1, True)
        (tmp_path / "o2c.bpmn").write_bytes(BPMN)
        unknown = upload(sandbox, str(tmp_path / "o2c.bpmn"), "--to", tenant["id"], "--process", "Nothing")
        assert b"The tenant has: Order to cash." in unknown.stdout


def test_what_the_ledger_knows_as_uploaded_does_not_go_again_unless_forced(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    with Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox))) as daemon:
        daemon.start()
        (drop / "a.csv").write_text("id\n1\n")
        daemon.wait_done(1)
        again = tmp_path / "again.csv"
        again.write_text("id\n1\n")
        line = [sys.executable, "-m", "pmwatch", "upload", str(again), "--config", str(daemon.config)]
        line += ["--to", f"demo/{table_id(sandbox)}"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "duplicate" in done.stdout
        assert list(stored(sandbox)) == ["a.csv"]
        forced = subprocess.run([*line, "--force"], capture_output=True, text=True, check=False)
        assert "uploaded" in forced.stdout
        assert list(stored(sandbox)) == ["a.csv", "again.csv"]
