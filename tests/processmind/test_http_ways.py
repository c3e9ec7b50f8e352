"""Through a proxy, and with a client certificate: real sockets."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from pmwatch.errors import RemoteError
from pmwatch.processmind import Http
from pmwatch.processmind.http import Timeouts
from support.remotes import ScriptedServer, answer

TIMEOUT = Timeouts(5, 5, 5)


class ConnectProxy:
    """A proxy that tunnels every CONNECT to one port on this machine, and notes what it was asked."""

    def __init__(self, port: int) -> None:
        self.asked: list[bytes] = []
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://ann:s3cretword@127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.asked.append(client.recv(65536))
            server = socket.create_connection(("127.0.0.1", self._port))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        target.close()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def https(authority: trustme.CA, *, wants_client: bool = False) -> Iterator[ScriptedServer]:
    """Serve `api.example.test` over TLS, to those who show a certificate of the authority where asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.example.test", "127.0.0.1").configure_cert(context)
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    with ScriptedServer(answer(200, b"{}"), answer(200, b"{}"), tls=context) as server:
        yield server


def get(http: Http, url: str) -> int:
    request = http.build("GET", url, headers={}, timeout=TIMEOUT.for_api())
    return http.send(request).status_code


def ca_file(authority: trustme.CA, directory: Path) -> str:
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def port_of(server: ScriptedServer) -> int:
    return int(server.url.rpartition(":")[2].strip("/"))


def test_requests_go_through_the_proxy_and_this_machine_is_asked_directly(
    authority: trustme.CA, tmp_path: Path
) -> None:
    with https(authority) as server:
        proxy = ConnectProxy(port_of(server))
        http = Http(timeouts=TIMEOUT, ca_file=ca_file(authority, tmp_path), proxy=proxy.url)
        try:
            assert get(http, "https://api.example.test/a") == 200, "a name that only the proxy can reach"
            assert proxy.asked[0].startswith(b"CONNECT api.example.test:443 ")
            assert b"Proxy-Authorization: Basic " in proxy.asked[0]
            assert get(http, f"https://127.0.0.1:{port_of(server)}/b") == 200
            assert len(proxy.asked) == 1
        finally:
            http.close()
            proxy.close()


def test_a_proxy_that_is_not_there_is_told_without_its_password(authority: trustme.CA, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    http = Http(timeouts=TIMEOUT, ca_file=ca_file(authority, tmp_path), proxy=f"http://ann:s3cretword@127.0.0.1:{port}")
    with pytest.raises(RemoteError) as caught:
        get(http, "https://api.example.test/a")
    http.close()
    assert "s3cretword" not in f"{caught.value!r} {caught.value.hint}"
    assert caught.value.reason == "unreachable"


@pytest.mark.parametrize("together", [True, False])
def test_a_client_certificate_is_shown_to_who_asks_for_one(
    authority: trustme.CA, tmp_path: Path, *, together: bool
) -> None:
    own = authority.issue_cert("pmwatch.example.test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    if together:
        own.private_key_and_cert_chain_pem.write_to_path(str(cert))
    else:
        own.cert_chain_pems[0].write_to_path(str(cert))
        own.private_key_pem.write_to_path(str(key))
    with https(authority, wants_client=True) as server:
        http = Http(
            timeouts=TIMEOUT,
            ca_file=ca_file(authority, tmp_path),
            client_cert=(str(cert), "" if together else str(key)),
        )
        try:
            assert get(http, f"https://127.0.0.1:{port_of(server)}/") == 200
        finally:
            http.close()


def test_without_its_certificate_it_is_an_error_of_the_connection(authority: trustme.CA, tmp_path: Path) -> None:
    with https(authority, wants_client=True) as server:
        http = Http(timeouts=TIMEOUT, ca_file=ca_file(authority, tmp_path))
        with pytest.raises(RemoteError):
            get(http, f"https://127.0.0.1:{port_of(server)}/")
        http.close()
