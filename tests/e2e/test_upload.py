"""`pmwatch upload`: files go now, once, and scripts can rely on what it says."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmwatch.ledger import Action, ByHand, Ledger, StateLock, Verdict
from pmwatch.model import Dedup, Delivery, Destination, Fingerprint, Target
from pmwatch.retention import forget
from pmwatch.sandbox import Fault, SandboxServer
from support.daemon import Daemon, folder_toml, stored, table_id, wait_for
from support.ledgers import claimed, settled, succeed
from support.terminal import on_terminal

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


def test_equal_files_of_one_command_go_once_and_standard_input_goes_by_its_name(
    tmp_path: Path, sandbox: SandboxServer
) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(b"x" * 2_000_000)
    words = [
        str(tmp_path / "a.csv"),
        str(tmp_path / "b.csv"),
        "-",
        "--name",
        "c.csv",
        "--to",
        target(sandbox),
        "--json",
    ]
    told = json.loads(upload(sandbox, *words, stdin=b"id\n").stdout)
    assert sorted(one["outcome"] for one in told[:2]) == ["duplicate", "uploaded"]
    assert (told[2]["path"], told[2]["outcome"]) == ("c.csv", "uploaded")
    assert len(stored(sandbox)) == 2
    assert upload(sandbox, *words, "--force", stdin=b"id\n").returncode == 0
    assert len(sandbox.objects()) == 5


def test_a_file_that_nobody_reads_goes_only_by_force(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "o2c.bpmn").write_bytes(BPMN)
    refused = upload(sandbox, str(tmp_path / "o2c.bpmn"), "--to", target(sandbox))
    assert refused.returncode == 1
    assert b"does not read .bpmn files" in refused.stdout
    assert b"--process" in refused.stdout
    assert upload(sandbox, str(tmp_path / "o2c.bpmn"), "--to", target(sandbox), "--force").returncode == 0


def person(sandbox: SandboxServer, *words: str, interrupt_at: bytes | None = None) -> tuple[int, str]:
    env = {**os.environ, "PMWATCH_API_KEY": sandbox.tenants[0]["api_key"], "PMWATCH_API_BASE_URL": sandbox.base_url}
    line = [sys.executable, "-m", "pmwatch", "upload", *words, "--to", target(sandbox)]
    return on_terminal(line, columns=100, env=env, interrupt_at=interrupt_at)


def test_a_person_sees_bytes_rate_and_time_left(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "a.csv").write_bytes(os.urandom(30_000_000))
    code, shown = person(sandbox, str(tmp_path / "a.csv"))
    assert code == 0
    assert re.search(r"a\.csv ━+ 30\.0/30\.0 MB +[\d.]+ MB/s 0:00:00", shown)
    assert "a.csv: uploaded (28.6 MiB)" in shown


def test_ctrl_c_ends_it_at_once_and_tells_what_had_arrived(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")
    (tmp_path / "b.csv").write_bytes(b"x" * 5_000_000)
    sandbox.faults.add("PUT 0 delay=40 path=b.csv")
    began = time.monotonic()
    code, shown = person(
        sandbox, str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--parallel", "1", interrupt_at=b"b.csv"
    )
    assert time.monotonic() - began < 30
    assert code == 130
    assert "a.csv: uploaded" in shown
    assert "b.csv: interrupted" in shown
    assert "Traceback" not in shown


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
    assert told["missing.csv"]["message"] == "there is no such file"
    assert "named pipe" in told["fifo.csv"]["message"]
    assert "directory" in told[tmp_path.name]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.csv", "--to", "acme"], "TENANT/DATASET/DATATABLE"),
        (["-", "--to", "acme/x"], "needs a --name"),
        (["-", "--name", "/", "--to", "acme/x"], "without directories"),
        (["-", "--name", "../a.csv", "--to", "acme/x"], "without directories"),
        (["-", "-", "--name", "a.csv", "--to", "acme/x"], "once"),
        (["a.bpmn", "--to", "acme/x", "--process", "p"], "tenant alone"),
        (["a.bpmn", "--to", "acme", "--process", ""], "may not be empty"),
        (["", "--to", "acme/x"], "may not be empty"),
        (["a.csv", "--to", "/x/y"], "TENANT/DATASET/DATATABLE"),
    ],
)
def test_wrong_usage_exits_2(sandbox: SandboxServer, words: list[str], said: str) -> None:
    done = upload(sandbox, *words)
    assert done.returncode == 2
    assert said in done.stderr.decode()


def test_an_empty_file_goes_only_by_force(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "empty.csv").touch()
    words = (str(tmp_path / "empty.csv"), "--to", target(sandbox))
    refused = upload(sandbox, *words)
    assert (refused.returncode, b"it is empty" in refused.stdout) == (1, True)
    assert upload(sandbox, *words, "--force").returncode == 0


def test_a_forgotten_tenant_is_told(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    done = upload(sandbox, str(tmp_path / "a.csv"), "--to", "Order to cash/Orders")
    assert done.returncode == 1
    assert "'Order to cash' was taken as the tenant: write --to TENANT/DATASET/DATATABLE" in done.stderr.decode()


def test_an_unknown_datatable_names_what_there_is(tmp_path: Path, sandbox: SandboxServer) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    done = upload(sandbox, str(tmp_path / "a.csv"), "--to", f"{sandbox.tenants[0]['id']}/Sales/Ordres")
    assert done.returncode == 1
    assert "Orders" in done.stderr.decode()
    assert "was taken as the tenant" not in done.stderr.decode()


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
        assert b"The tenant has: Order to cash." in unknown.stderr


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


def test_what_was_uploaded_by_hand_is_known_from_then_on(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    with Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox))) as daemon:
        daemon.start()
        (tmp_path / "first.csv").write_text("id\n1\n")
        line = ["upload", str(tmp_path / "first.csv"), "--to", f"demo/{table_id(sandbox)}"]
        assert "uploaded" in daemon.command(*line).stdout
        assert "duplicate" in daemon.command(*line).stdout
        (drop / "dropped.csv").write_text("id\n1\n")
        daemon.wait_done(2)
        told = json.loads(daemon.command("history", "--json").stdout)
        assert [(one["folder"], one["outcome"]) for one in told["deliveries"]] == [
            ("orders", "duplicate"),
            ("(upload)", "uploaded"),
        ]
        assert told["deliveries"][1]["path"] == str(tmp_path / "first.csv")
        assert [(one["command"], one["deliveries"]) for one in told["actions"]] == [("upload", "1")]
        assert daemon.command("audit").returncode == 0
        assert "it came by pmwatch upload" in daemon.command("resend", "1", "--yes").stdout
        assert daemon.stop() == 0
        assert list(stored(sandbox)) == ["first.csv"]
        ledger = Ledger.open(str(daemon.state))
        assert ledger.counts()["(upload)", "done"] == 1
        assert forget(ledger, {}, before=time.time() + 60) == 0, "the last upload to a datatable is kept"
        ledger.close()
        assert "uploaded" in daemon.command(*line, "--force").stdout
        ledger = Ledger.open(str(daemon.state))
        assert forget(ledger, {}, before=time.time() + 60) == 1
        assert ledger.counts()["(upload)", "done"] == 1
        ledger.close()


CONTENT = b"id\n1\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def destination(sandbox: SandboxServer) -> Destination:
    tenant = sandbox.tenants[0]
    return Destination(tenant["id"], tenant["datasets"][0]["id"], table_id(sandbox))


def not_running(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> Daemon:
    """Return a daemon that has a configuration and a state directory, and lay a file to upload beside them."""
    daemon = Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox)))
    daemon.write_config()
    daemon.state.mkdir()
    (tmp_path / "a.csv").write_bytes(CONTENT)
    return daemon


def under_way(ledger: Ledger, sandbox: SandboxServer, drop: Path) -> Delivery:
    """Let a folder's file be on its way, as far as the ledger knows."""
    (drop / "dropped.csv").write_bytes(CONTENT)
    target = Target("demo", table_id(sandbox))
    ledger.resolve(target, destination(sandbox))
    look = Fingerprint.of((drop / "dropped.csv").stat())
    ledger.enqueue([settled("dropped.csv", look, target=target)])
    delivery = claimed(ledger)
    assert ledger.decide([(delivery, SHA256, Dedup.CONTENT)])[0].verdict is Verdict.SEND
    return delivery


def test_what_a_folder_is_sending_is_waited_for_and_does_not_go_again(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    daemon = not_running(tmp_path, sandbox, drop)
    lock = StateLock(str(daemon.state))
    lock.acquire()
    with Ledger.open(str(daemon.state)) as ledger:
        delivery = under_way(ledger, sandbox, drop)
        line = [sys.executable, "-m", "pmwatch", "upload", str(tmp_path / "a.csv"), "--config", str(daemon.config)]
        line += ["--to", f"demo/{table_id(sandbox)}"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as upload:
            assert upload.stderr is not None
            assert "the same content is on its way" in upload.stderr.readline()
            succeed(ledger, delivery, CONTENT.decode())
            told, _ = upload.communicate(timeout=60)
        assert upload.returncode == 0
        assert "a.csv: duplicate" in told
        assert stored(sandbox) == {}
    lock.release()


def test_what_a_daemon_that_died_was_sending_is_left_to_it_unless_forced(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    daemon = not_running(tmp_path, sandbox, drop)
    with Ledger.open(str(daemon.state)) as ledger:
        under_way(ledger, sandbox, drop)
    words = ["upload", str(tmp_path / "a.csv"), "--to", f"demo/{table_id(sandbox)}"]
    done = daemon.command(*words)
    assert done.returncode == 1
    assert "was on its way when pmwatch ended: dropped.csv of folder orders" in done.stdout
    assert "--force" in done.stdout
    assert daemon.command(*words, "--force").returncode == 0
    assert list(stored(sandbox)) == ["a.csv"]


def test_a_folder_waits_for_what_is_being_uploaded_by_hand(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    with Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox))) as daemon:
        daemon.start()
        with Ledger.open(str(daemon.state)) as ledger:
            look = Fingerprint(len(CONTENT), 1, 1, 1, 1)
            target = Target("demo", table_id(sandbox))
            one = ByHand(b"/home/ann/a.csv", look, target, destination(sandbox), SHA256)
            by_hand = ledger.begin_by_hand(one, force=False, now=time.time())
            (drop / "dropped.csv").write_bytes(CONTENT)
            wait_for("the folder's file waits", lambda: [d for d in daemon.deliveries() if d.reason])
            assert stored(sandbox) == {}
            ledger.uploaded_by_hand(by_hand.of, etag="", by=Action(time.time(), "ann", "upload"))
        [_, dropped] = daemon.wait_done(2)
        assert (dropped.outcome, dropped.duplicate_of) == ("duplicate", by_hand.of)
        assert stored(sandbox) == {}
        assert daemon.stop() == 0


def test_what_was_killed_in_the_middle_does_not_keep_a_folder_from_sending_it(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    daemon = Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox)))
    with daemon.start():
        assert daemon.stop() == 0  # there is a ledger now
    content = os.urandom(3_000_000)
    (tmp_path / "a.csv").write_bytes(content)
    line = [sys.executable, "-m", "pmwatch", "upload", str(tmp_path / "a.csv"), "--config", str(daemon.config)]
    line += ["--to", f"demo/{table_id(sandbox)}"]
    # read once for its hash (two passes in the middle), then for the body
    died = subprocess.run(line, capture_output=True, check=False, env={**os.environ, "PMWATCH_FAILPOINT": "mid_body:4"})
    assert died.returncode == -9, died.stderr
    assert [(one.folder, str(one.state)) for one in daemon.deliveries()] == [("(upload)", "uploading")]
    (drop / "dropped.csv").write_bytes(content)
    with daemon.start():
        daemon.wait_done(1)
        assert stored(sandbox) == {"dropped.csv": content}
        assert [one.folder for one in daemon.deliveries()] == ["orders"]
        assert daemon.stop() == 0


def test_a_model_is_recorded_and_goes_once_like_any_file(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    from pmwatch import Client

    tenant = sandbox.tenants[0]
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        process = client.create_process(tenant["id"], "Order to cash")
        folder = folder_toml("models", drop, process='"Order to cash"')
        with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
            daemon.start()
            (tmp_path / "o2c.bpmn").write_bytes(BPMN)
            words = ["upload", str(tmp_path / "o2c.bpmn"), "--to", "demo", "--process", "Order to cash"]
            assert "o2c.bpmn: uploaded" in daemon.command(*words).stdout
            assert "o2c.bpmn: duplicate" in daemon.command(*words).stdout
            (drop / "dropped.bpmn").write_bytes(BPMN)
            daemon.wait_done(2)
            told = json.loads(daemon.command("history", "--json").stdout)
            assert [(one["folder"], one["outcome"], one["target"]) for one in told["deliveries"]] == [
                ("models", "duplicate", "demo/process:Order to cash"),
                ("(upload)", "uploaded", "demo/process:Order to cash"),
            ]
            assert client.process(tenant["id"], process.id).designer_model_id
            assert "uploaded" in daemon.command(*words, "--force").stdout
            assert len([one for one in sandbox.requests() if one.path.endswith("/bpmn")]) == 2
            assert daemon.stop() == 0


def test_a_ledger_that_cannot_be_used_is_told_and_stops_nobody(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    daemon = Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox)))
    daemon.write_config()
    (daemon.state / "ledger.db").mkdir(parents=True)
    (tmp_path / "a.csv").write_text("id\n1\n")
    done = daemon.command("upload", str(tmp_path / "a.csv"), "--to", f"demo/{table_id(sandbox)}")
    assert done.returncode == 0, done.stderr
    assert "what goes now is not recorded" in done.stderr
    assert list(stored(sandbox)) == ["a.csv"]


def test_the_rows_of_the_datatable_are_recorded(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    (tmp_path / "new.csv").write_text("id\n1\n2\n3\n")
    to = f"demo/{table_id(sandbox)}"
    folder = folder_toml("orders", drop, datatable=table_id(sandbox))
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        daemon.start()
        daemon.command("upload", str(tmp_path / "new.csv"), "--to", to)
        assert [(one.folder, one.row_count) for one in daemon.deliveries()] == [("(upload)", 3)]
