"""The server around it: start and stop, restarts, the control pages, TLS, and the blocking command."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from pmwatch.sandbox import Fault, RequestRecord, SandboxServer, TenantSeed, serve
from sandbox.sandbox_client import SandboxClient, read_until


def sandbox_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("pmwatch-sandbox", "asyncio"))}


def test_stop_leaves_nothing_behind(tmp_path: Path, http: httpx.Client) -> None:
    before = sandbox_threads()
    with SandboxServer(tmp_path) as server:
        assert [thread.name for thread in sandbox_threads() - before] == ["pmwatch-sandbox"]
        SandboxClient(server, http).upload(bytes(1_000_000))
        port = urlsplit(server.base_url).port
    assert sandbox_threads() <= before
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port or 0))
    server.stop()


def test_stop_does_not_wait_for_a_slow_client(client: SandboxClient) -> None:
    with client.open_put(client.presign(), 100, "Expect: 100-continue") as connection:
        read_until(connection, b"100 Continue\r\n\r\n")
        client.server.stop()
        assert connection.recv(1024) == b""


def test_stop_does_not_wait_for_a_delay(client: SandboxClient) -> None:
    client.server.faults.add(Fault(status=0, delay=3600))
    url = client.presign()
    answers: list[Exception | httpx.Response] = []

    def put() -> None:
        try:
            answers.append(client.put(url))
        except httpx.TransportError as error:
            answers.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    while client.server.faults.pending():
        os.sched_yield()
    client.server.stop()
    thread.join(timeout=10)
    assert [isinstance(answer, httpx.TransportError) for answer in answers] == [True]


def test_it_can_go_away_and_come_back_on_the_same_port(client: SandboxClient, http: httpx.Client) -> None:
    url = client.presign()
    base_url = client.server.base_url
    client.server.stop()
    with pytest.raises(httpx.ConnectError):
        http.get(base_url)
    client.server.start()
    client.server.start()
    assert client.server.base_url == base_url
    assert client.put(url).status_code == 200


def test_an_address_in_use(server: SandboxServer, tmp_path: Path) -> None:
    port = urlsplit(server.base_url).port or 0
    second = SandboxServer(tmp_path / "second", port=port)
    before = sandbox_threads()
    with pytest.raises((OSError, RuntimeError)):
        second.start()
    assert sandbox_threads() == before


def test_a_bad_certificate_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    server = SandboxServer(tmp_path / "state", ssl_certfile=tmp_path / "cert.pem")
    before = sandbox_threads()
    with pytest.raises(RuntimeError):
        server.start()
    assert sandbox_threads() == before


def test_the_state_survives(tmp_path: Path, http: httpx.Client) -> None:
    with SandboxServer(tmp_path) as server:
        first = SandboxClient(server, http)
        tenants = server.tenants
        first.upload(b"h\n1\n2\n")
        unused = first.presign()
        key = server.sandbox.rotate_key(server.tenants[0]["id"])
        port = urlsplit(server.base_url).port or 0
        stored = server.objects()
    with SandboxServer(tmp_path, port=port) as server:
        again = SandboxClient(server, http)
        assert server.objects() == stored
        assert again.tenant == {**tenants[0], "api_key": key}
        assert again.call("GET", f"/datatable/{again.datatable_id}").json()["rowCount"] == 2
        assert again.put(unused, b"h\n").status_code == 200
        assert [record.filename for record in server.objects()] == ["orders.csv", "orders.csv"]
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_a_torn_journal_costs_one_entry(tmp_path: Path, http: httpx.Client) -> None:
    with SandboxServer(tmp_path) as server:
        SandboxClient(server, http).upload(b"one")
    (tmp_path / "incoming" / "leftover").write_bytes(b"x")
    with (tmp_path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"put": {"tena')
    with SandboxServer(tmp_path) as server:
        SandboxClient(server, http).upload(b"two!")
    with SandboxServer(tmp_path) as server:
        assert [record.size for record in server.objects()] == [3, 4]
    assert list((tmp_path / "incoming").iterdir()) == []


def test_seeds(tmp_path: Path) -> None:
    seed = TenantSeed("acme", {"Sales": ("Orders",), "Empty": ()}, id="t-1", api_key="k-1")
    (tenant,) = SandboxServer(tmp_path, tenants=[seed]).tenants
    assert (tenant["id"], tenant["name"], tenant["api_key"]) == ("t-1", "acme", "k-1")
    assert [dataset["name"] for dataset in tenant["datasets"]] == ["Sales", "Empty"]
    assert [table["name"] for table in tenant["datasets"][0]["datatables"]] == ["Orders"]
    more = SandboxServer(tmp_path, tenants=[seed, TenantSeed("beta")]).tenants
    assert [other["name"] for other in more] == ["acme", "beta"]
    assert SandboxServer(tmp_path).tenants == more


def test_no_secret_is_shown_by_accident(server: SandboxServer) -> None:
    sandbox = server.sandbox
    shown = repr(
        (sandbox.credentials, sandbox.options, sandbox.tenant(server.tenants[0]["id"]), TenantSeed("x", api_key="k"))
    )
    assert sandbox.credentials.secret_key not in shown
    assert server.tenants[0]["api_key"] not in shown


def test_requests_are_counted(client: SandboxClient) -> None:
    client.put(client.presign() + "0")
    presign, put = client.server.requests()
    assert presign == RequestRecord("GET", presign.path, 200)
    assert presign.path.endswith("/uploads/presignedurl")
    assert (put.method, put.status) == ("PUT", 403)
    assert put.path.endswith("/orders.csv")


def test_control_pages(client: SandboxClient, http: httpx.Client) -> None:
    base_url = client.server.base_url
    assert http.get(f"{base_url}/sandbox/health").json() == {"status": "ok"}
    assert http.get(f"{base_url}/sandbox/objects").json() == {"objects": []}
    client.upload(b"h\n1\n")
    (shown,) = http.get(f"{base_url}/sandbox/objects").json()["objects"]
    (record,) = client.server.objects()
    assert shown == record.as_json()
    names = {"tenant_id", "datatable_id", "filename", "size", "sha256", "received_at", "put_count", "key"}
    assert names <= shown.keys()
    logged = http.get(f"{base_url}/sandbox/requests").json()["requests"]
    assert [entry["method"] for entry in logged] == ["GET", "PUT"]


def test_the_index_page_says_where_an_object_went(client: SandboxClient, http: httpx.Client) -> None:
    client.upload(b"h\n", filename="a.csv")
    assert "<td>a.csv</td><td>demo/Order to cash/Orders</td>" in http.get(client.server.base_url).text
    client.call("DELETE", f"/datasets/{client.dataset_id}")
    assert "<td>a.csv</td><td>(deleted)</td>" in http.get(client.server.base_url).text


def test_the_index_page_escapes_names(client: SandboxClient, http: httpx.Client) -> None:
    client.upload(b"h\n", filename="<script>alert(1)</script>\u202e.csv")
    page = http.get(client.server.base_url).text
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "\u202e" not in page


def test_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with (
        SandboxServer(tmp_path / "state", host="localhost", ssl_certfile=tmp_path / "server.pem") as server,
        httpx.Client(verify=context, trust_env=False) as http,
    ):
        client = SandboxClient(server, http)
        assert client.upload(bytes(2_000_000)).startswith(f"https://localhost:{urlsplit(server.base_url).port}/")
        server.faults.add(Fault(when="mid"))
        url = client.presign()
        with pytest.raises(httpx.TransportError):
            client.put(url, bytes(2_000_000))


SERVE = """
import sys
from pathlib import Path
from pmwatch.sandbox import serve
serve("127.0.0.1", 0, Path(sys.argv[1]), Path(sys.argv[2]), ["PUT 503 x1"],
      lambda server: print(server.base_url, flush=True), tenants=2)
assert not any(name.partition(".")[0] == "httpx" for name in sys.modules)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_until_a_signal(tmp_path: Path, http: httpx.Client, number: signal.Signals) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text("of an earlier run")
    command = [sys.executable, "-W", "error", "-c", SERVE, str(tmp_path / "state"), str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        document = json.loads(ready.read_text())
        assert ready.stat().st_mode & 0o777 == 0o600
        assert document["base_url"] == base_url
        assert [tenant["name"] for tenant in document["tenants"]] == ["demo", "demo-2"]
        assert document["tenants"][0]["datasets"][0]["datatables"][0].keys() == {"id", "name"}
        assert http.get(f"{base_url}/sandbox/faults").json()["faults"][0]["status"] == 503
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")


def test_a_state_directory_that_was_used_before_gets_no_more_tenants(tmp_path: Path) -> None:
    with SandboxServer(tmp_path / "state", tenants=[TenantSeed("demo")]) as server, server.sandbox.changing():
        server.sandbox.all_tenants()[0].name = "Acme"
    command = [sys.executable, "-W", "error", "-c", SERVE, str(tmp_path / "state"), str(tmp_path / "ready.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        document = json.loads((tmp_path / "ready.json").read_text())
        process.terminate()
    assert [tenant["name"] for tenant in document["tenants"]] == ["Acme"]


def test_serve_refuses_a_rule_that_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="METHOD STATUS"):
        serve("127.0.0.1", 0, tmp_path, None, ["nonsense"], lambda _server: None)


def test_stop_does_not_wait_for_idle_tls_connections(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with httpx.Client(verify=context, trust_env=False) as http:
        server = SandboxServer(tmp_path / "state", host="localhost", ssl_certfile=tmp_path / "server.pem")
        server.start()
        assert http.get(f"{server.base_url}/sandbox/health").status_code == 200
        server.stop()  # returns only when its thread has ended
        with pytest.raises(httpx.TransportError):
            http.get(f"{server.base_url}/sandbox/health")
