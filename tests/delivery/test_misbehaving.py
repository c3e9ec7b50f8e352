"""Servers that misbehave: for each way what pmwatch does, in the end every good file once, and no secret anywhere.

API and storage are scripted servers on real sockets; ledger, worker, gates, reporter and HTTP are the real ones, and
time passes only where a test lets it. Every row is played with canaries for secrets, which are looked for everywhere.
"""

import hashlib
import io
import json
import logging
import os
import ssl
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest
import structlog
import trustme

from pmwatch import log
from pmwatch.delivery.gates import Gates
from pmwatch.delivery.remote import ProcessMindRemote
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.delivery.worker import Report, Uploader
from pmwatch.explain import as_dict, history, why
from pmwatch.ledger import Ledger
from pmwatch.metrics import Metrics
from pmwatch.model import Destination, Fingerprint, Order, Settled, State, Target, Tenant
from pmwatch.processmind import Http, Storage
from pmwatch.processmind.http import Timeouts
from pmwatch.processmind.keys import KeyRing
from pmwatch.reporting import Reporter
from support.folders import make_folder
from support.remotes import Clock, Script, ScriptedServer, answer, xml_error

API_KEY = "canary-api-key-7f3a91"
SIGNATURE = "canary5161747572656c6f6f6b73"
TOKEN = "canary-session-token-IQoJb3JpZ2lu"
CREDENTIAL = "canaryAKIAEXAMPLE"
CANARIES = (API_KEY, SIGNATURE, TOKEN)
TARGET = Target("acme", "table-1")
DESTINATION = Destination("tenant-1", "dataset-1", "table-1")
CONTENT = b"case,activity\n" + b"1,a\n" * 20_000
ETAG = {"ETag": f'"{hashlib.md5(CONTENT).hexdigest()}"'}
STORED = answer(200, headers=ETAG)
ARRIVED = answer(412, xml_error("PreconditionFailed", "At least one of the pre-conditions you specified did not hold"))
HANG = Script(read_body=0, hold=True)
HANG_AFTER_BODY = Script(hold=True)
NOTHING = Script(read_body=0)
HEAD_IN_DROPS = Script(b"HTTP/1.1 200 OK\r\nX-Slow: ", drip=b"x")


def error(status: int, code: str = "", message: str = "", **headers: str) -> bytes:
    """Return an answer of S3 with its XML error; its message shows the URL's secrets, as S3's own messages may."""
    said = f"{message} X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={TOKEN}"
    return answer(status, xml_error(code, said) if code else b"", {"Server": "AmazonS3", **headers})


@dataclass(frozen=True)
class Row:
    """What a server does at first and from then on, and what pmwatch makes of the first.

    `first` is what the first attempt is told as: `uploaded`, `retry`, `gate`, `held` or `failed`, for a `reason`.
    `waits` are the seconds after which it is tried again, where the other side said so.
    """

    scripts: Sequence[Script | bytes]
    first: str
    reason: str = ""
    then: bytes = STORED
    waits: float = 0.0
    puts: int = 2  # that the storage is asked for in all


def again(location: str) -> bytes:
    return answer(307, headers={"Location": location})


OTHER_REGION = {"Location": "https://bucket.s3.eu-west-1.amazonaws.com/x"}
LONG_HEADER = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000
STORAGE = {
    "301": Row([answer(301, headers=OTHER_REGION)], "gate", "server_fault"),
    "307 to another path": Row([again("/elsewhere")], "uploaded"),
    "307 to a host that is not allowed": Row([again("https://evil.test/x")], "gate", "bad_url"),
    "307 to the inside": Row([again("http://169.254.169.254/latest/meta-data")], "gate", "bad_url"),
    "307 without end": Row([again("/round")] * 3, "gate", "server_fault", puts=4),
    "400": Row([error(400, "InvalidArgument")], "failed", "rejected"),
    "400 of garbage": Row([answer(400, b"\xff\xfe<Error><Code>")], "failed", "rejected"),
    "401": Row([answer(401, b"who are you?")], "gate", "server_fault"),
    "403 of a proxy": Row([answer(403, b"<html>blocked</html>")], "gate", "server_fault"),
    "403 expired": Row([error(403, "AccessDenied", "Request has expired")], "uploaded"),
    "400 expired token": Row([error(400, "ExpiredToken")], "uploaded"),
    "403 skewed": Row([error(403, "RequestTimeTooSkewed")], "gate", "server_fault"),
    "403 signature": Row([error(403, "SignatureDoesNotMatch")], "failed", "rejected"),
    "403 denied": Row([error(403, "AccessDenied")], "gate", "server_fault"),
    "403 of an unknown key": Row([error(403, "InvalidAccessKeyId")], "gate", "server_fault"),
    "404": Row([error(404, "NoSuchBucket")], "gate", "server_fault"),
    "404 of something else": Row([error(404, "NoSuchUpload")], "failed", "rejected"),
    "409": Row([error(409, "OperationAborted")], "retry", "remote"),
    "411": Row([error(411, "MissingContentLength")], "failed", "rejected"),
    "413": Row([error(413, "EntityTooLarge")], "failed", "rejected"),
    "413 in the middle of the body": Row([Script(error(413, "EntityTooLarge"), read_body=1000)], "failed", "rejected"),
    "429": Row([answer(429)], "gate", "throttled"),
    "429 with Retry-After": Row([error(429, "SlowDown", **{"Retry-After": "17"})], "gate", "throttled", waits=17.0),
    "500": Row([error(500, "InternalError")], "gate", "server_fault"),
    "500 without a word": Row([answer(500)], "gate", "server_fault"),
    "502": Row([answer(502, b"<html>bad gateway</html>")], "gate", "server_fault"),
    "503 SlowDown": Row([error(503, "SlowDown")], "gate", "throttled"),
    "503 with Retry-After": Row([error(503, "SlowDown", **{"Retry-After": "60"})], "gate", "throttled", waits=60.0),
    "an unknown code": Row([error(418, "TeapotsOnly")], "failed", "rejected"),
    "closed before the body": Row([NOTHING], "retry", "answer_lost"),
    "closed in the middle of the body": Row([Script(read_body=len(CONTENT) // 2)], "retry", "answer_lost"),
    "closed after the body": Row([Script()], "retry", "answer_lost", then=ARRIVED),
    "half an answer": Row([Script(STORED[:40])], "retry", "answer_lost", then=ARRIVED),
    "garbage": Row([Script(b"\x00\x01 not HTTP at all \xff\r\n\r\n")], "retry", "answer_lost", then=ARRIVED),
    "an endless header": Row([Script(LONG_HEADER)], "retry", "answer_lost", then=ARRIVED),
    "a hang before the body": Row([HANG], "retry", "answer_lost"),
    "a hang after the body": Row([HANG_AFTER_BODY], "retry", "answer_lost", then=ARRIVED),
    "a head in drops without end": Row([HEAD_IN_DROPS], "retry", "answer_lost", then=ARRIVED),
    "a wrong ETag": Row([answer(200, headers={"ETag": '"' + "0" * 32 + '"'})], "retry", "checksum_mismatch"),
    "an ETag that is no MD5": Row([answer(200, headers={"ETag": '"abc-2"'})], "uploaded", puts=1),
    "202, which is not stored": Row([answer(202)], "gate", "server_fault"),
}
API = {
    "an empty answer": Row([answer(200)], "gate", "bad_answer"),
    "no JSON": Row([answer(200, b"<html>login</html>")], "gate", "bad_answer"),
    "JSON of another shape": Row([answer(200, b"[1, 2]")], "gate", "bad_answer"),
    "no URL in it": Row([answer(200, b'{"PreSignedUploadUrl": null}')], "gate", "bad_answer"),
    "a URL to the inside": Row(
        [answer(200, b'{"PreSignedUploadUrl": "http://169.254.169.254/latest/"}')], "gate", "bad_url"
    ),
    "a URL of a file": Row([answer(200, b'{"PreSignedUploadUrl": "file:///etc/passwd"}')], "gate", "bad_url"),
    "a URL that is none": Row([answer(200, b'{"PreSignedUploadUrl": "https://[::"}')], "gate", "bad_url"),
    "400": Row([answer(400, b'{"message": "bad filename"}')], "failed", "rejected"),
    "401": Row([answer(401, b'{"message": "no"}')] * 2, "gate", "key_rejected"),
    "403": Row([answer(403, b'{"message": "no"}')] * 2, "gate", "key_rejected"),
    "404": Row([answer(404, b'{"message": "no such datatable"}')], "retry", "destination_unknown"),
    "429": Row([answer(429, headers={"Retry-After": "9"})], "gate", "throttled", waits=9.0),
    "500": Row([answer(500)], "gate", "server_fault"),
    "503": Row([answer(503)], "gate", "throttled"),
    "closed without an answer": Row([NOTHING], "gate", "unreachable"),
    "garbage": Row([Script(b"\x16\x03\x01 hello")], "gate", "unreachable"),
    "a hang": Row([HANG], "gate", "unreachable"),
    "a head in drops without end": Row([HEAD_IN_DROPS], "gate", "unreachable"),
}


@dataclass
class World:
    """One file of one folder, two scripted servers, and all of the uploader between them."""

    base: Path
    stack: ExitStack
    clock: Clock = field(default_factory=lambda: Clock(float(int(time.time()))))
    reports: list[Report] = field(default_factory=list)
    logged: io.StringIO = field(default_factory=io.StringIO)
    storage_url: str = ""
    ca_file: str = ""

    def __post_init__(self) -> None:
        self.api = self.stack.enter_context(ScriptedServer(answer(500)))
        self.storage = self.stack.enter_context(ScriptedServer(STORED))
        log.configure(level="debug", style="json", stream=self.logged)
        (self.base / "state").mkdir()
        (self.base / "drop").mkdir()
        self.ledger = Ledger.open(str(self.base / "state"))
        self.stack.callback(self.ledger.close)
        key_file = self.base / "key"
        key_file.write_text(API_KEY)
        self.tenants = {"acme": Tenant("acme", "tenant-1", api_key_file=str(key_file))}
        self.folder = make_folder(self.base / "drop")
        self.metrics = Metrics(version="test")
        self.reporter = Reporter(self.metrics, settled=lambda _: None, wake=lambda: None, on_report=self.reports.append)
        self.policy = RetryPolicy(first=1.0, longest=60.0, give_up_after=1e6)
        self.gates = Gates(self.policy, now=self.clock, monotonic=self.clock, changed=self.reporter.gate_changed)

    def start(self) -> None:
        """Make the uploader, and let the file settle."""
        self.http = Http(timeouts=Timeouts(2.0, 0.4, 0.4), ca_file=self.ca_file)
        self.stack.callback(self.http.close)
        keys = KeyRing(self.tenants.values(), on_key=log.register_secret)
        hosts = ["*.invalid", "127.0.0.1"]
        storage = Storage(self.http, allowed_hosts=hosts, allow_loopback=True)
        remote = ProcessMindRemote(
            http=self.http, storage=storage, base_url=self.api.url, tenants=self.tenants, keys=keys
        )
        self.ledger.resolve(TARGET, DESTINATION)
        self.uploader = Uploader(
            ledger=self.ledger,
            remote=remote,
            gates=self.gates,
            folders=lambda: {"orders": self.folder},
            policy=self.policy,
            report=self.reporter.reported,
            look_again=lambda _folder, _path: None,
            abort=threading.Event(),
            now=self.clock,
            monotonic=self.clock,
        )
        source = self.base / "drop" / "a.csv"
        source.write_bytes(CONTENT)
        at = self.clock()
        look = Fingerprint.of(source.stat())
        self.ledger.enqueue([Settled("orders", b"a.csv", look, TARGET, Order.ARRIVAL, at, at)])

    def presigned(self) -> bytes:
        """Return the API's answer: a URL to the storage with secrets in it."""
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.clock()))
        url = f"{self.storage_url or self.storage.url}/key?X-Amz-Date={date}&X-Amz-Expires=604800"
        url += f"&X-Amz-Credential={CREDENTIAL}&X-Amz-Security-Token={TOKEN}&X-Amz-Signature={SIGNATURE}"
        return answer(200, json.dumps({"PreSignedUploadUrl": url}).encode())

    def state(self) -> State:
        [delivery] = self.ledger.list()
        return delivery.state

    def bring_home(self) -> None:
        """Let time pass, and people do their part, until the file has arrived."""
        for _ in range(10):
            [delivery] = self.ledger.list()
            if delivery.state is State.DONE:
                return
            if delivery.state in {State.FAILED, State.HELD}:
                self.ledger.requeue([delivery.id])
            for target in self.ledger.unresolved():  # after a 404 its ids are asked for again
                self.ledger.resolve(target, DESTINATION)
            self.clock.advance(120.0)
            self.uploader.run_one()
        pytest.fail(f"it never arrived: {self.reports}")

    def complete_puts(self) -> int:
        return sum(one.method == "PUT" and one.body == CONTENT for one in self.storage.requests)

    def everything_shown(self) -> str:
        """Return all that people, scripts and files beside it get to see, in one text."""
        [delivery] = self.ledger.list()
        quarantined = (self.base / "drop" / ".pmwatch").rglob("*.json")
        shown = [
            self.logged.getvalue(),
            self.metrics.render().decode(),
            repr(self.reports),
            repr(list(self.gates.all())),
            json.dumps(as_dict(delivery)),
            json.dumps(history(self.ledger, {}, now=self.clock())),
            json.dumps(
                why(
                    os.fsencode(self.base / "drop" / "a.csv"),
                    folders=[self.folder],
                    ledger=self.ledger,
                    candidate_of=None,
                    now=self.clock(),
                ).as_dict()
            ),
            *(path.read_text() for path in quarantined),
        ]
        return "\n".join(shown)

    def check_secrets(self) -> None:
        """See that secrets are nowhere but in the one column of the ledger that is for them, which is private."""
        shown = self.everything_shown()
        assert [secret for secret in CANARIES if secret in shown] == []
        for path in (self.base / "state").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        [delivery] = self.ledger.list()
        columns = {name: getattr(delivery, name) for name in delivery.__slots__ if name != "presigned_url"}
        assert [secret for secret in CANARIES if secret in repr(columns)] == []
        assert not (delivery.presigned_url and delivery.state is not State.QUEUED)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    with ExitStack() as stack:
        yield World(tmp_path, stack)
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def play(world: World, row: Row) -> None:
    """Take the first attempt, see what it was told as, then bring the file home; look for secrets all along."""
    world.start()
    world.uploader.run_one()
    told = [(one.what, one.reason) for one in world.reports if one.what != "returned"]
    assert told[-1] == (row.first, row.reason)
    world.check_secrets()
    if row.waits:
        assert world.gates.seconds_to_opening() == pytest.approx(row.waits)
    if row.first == "failed":
        assert world.state() is State.FAILED
        assert list((world.base / "drop").rglob("a.csv.error.json")) != []
    world.bring_home()
    world.check_secrets()
    [delivery] = world.ledger.list()
    assert (delivery.outcome, delivery.sha256) == ("uploaded", hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize("name", STORAGE)
def test_a_storage_that_misbehaves(world: World, name: str) -> None:
    row = STORAGE[name]
    world.api.script(world.presigned())
    world.storage.script(*row.scripts, row.then)
    play(world, row)
    if row.puts:
        assert len(world.storage.requests) == row.puts
    last = world.storage.requests[-1]
    assert last.headers.get("if-none-match", "") in {"", "*"}
    if row.then is ARRIVED:
        assert last.headers["if-none-match"] == "*", "a lost answer is never repeated blindly"
        assert {urlsplit(one.target).path for one in world.storage.requests} == {"/key"}
    else:
        assert last.body == CONTENT or name == "an ETag that is no MD5"


@pytest.mark.parametrize("name", API)
def test_an_api_that_misbehaves(world: World, name: str) -> None:
    row = API[name]
    world.api.script(*row.scripts, world.presigned())
    play(world, row)
    assert world.complete_puts() == 1
    assert len(world.storage.requests) == 1, "nothing was sent anywhere before there was a good URL"


def expired_server(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    past = datetime.now(tz=UTC) - timedelta(days=1)
    authority.issue_cert("127.0.0.1", not_after=past).configure_cert(context)
    return context


def wrongly_named_server(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("somebody.else.test").configure_cert(context)
    return context


def unknown_server(_authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("made", [expired_server, wrongly_named_server, unknown_server])
def test_a_storage_whose_certificate_is_not_good_gets_no_byte(world: World, made: object) -> None:
    authority = trustme.CA()
    world.ca_file = str(world.base / "ca.pem")
    authority.cert_pem.write_to_path(world.ca_file)
    bad = world.stack.enter_context(ScriptedServer(STORED, tls=made(authority)))  # type: ignore[operator]
    world.storage_url = bad.url
    world.api.script(world.presigned())
    world.start()
    world.uploader.run_one()
    [gate] = [gate for gate in world.gates.all() if not gate.is_open]
    assert gate.reason == "tls"
    assert "certificate" in gate.message
    assert bad.requests == []
    world.check_secrets()


def test_a_name_that_nobody_knows_closes_its_gate(world: World) -> None:
    world.storage_url = "https://storage.invalid"
    world.api.script(world.presigned())
    world.start()
    world.uploader.run_one()
    [gate] = [gate for gate in world.gates.all() if not gate.is_open]
    assert (gate.name, gate.reason) == ("storage.invalid", "unreachable")
    assert world.state() is State.QUEUED
    world.check_secrets()


def test_an_answer_that_comes_one_byte_at_a_time_is_read_in_the_end(world: World) -> None:
    world.api.script(world.presigned())
    dripping = world.stack.enter_context(Dripping())
    world.storage_url = dripping.url
    world.start()
    world.uploader.run_one()
    assert world.state() is State.DONE
    world.check_secrets()


class Dripping(ScriptedServer):
    """Sends its answer byte by byte."""

    def _converse(self, plain: object) -> None:
        super()._converse(_Drip(plain))  # type: ignore[arg-type]

    def __init__(self) -> None:
        super().__init__(STORED)


class _Drip:
    """A socket that sends one byte at a time."""

    def __init__(self, plain: object) -> None:
        self._plain = plain

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._plain.close()  # type: ignore[attr-defined]

    def recv(self, count: int) -> bytes:
        found: bytes = self._plain.recv(count)  # type: ignore[attr-defined]
        return found

    def sendall(self, data: bytes) -> None:
        pause = threading.Event()
        for byte in data:
            self._plain.sendall(bytes([byte]))  # type: ignore[attr-defined]
            pause.wait(0.005)
