"""A stand-in for a Kubernetes API server: what kubectl needs to create, apply and look, and a memory.

It checks nothing. Objects are those of `SERVED`; a Deployment is rolled out at once.
"""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

SERVED: Final = {
    "v1": {
        "Namespace": "namespaces",
        "Secret": "secrets",
        "ConfigMap": "configmaps",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Service": "services",
    },
    "apps/v1": {"Deployment": "deployments"},
    "batch/v1": {"CronJob": "cronjobs"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
}
_PATH: Final = re.compile(
    r"/(?:api|apis)/(?P<version>v1|[\w.]+/v1)(?:/namespaces/(?P<space>[\w-]+)(?=/))?/(?P<plural>\w+)(?:/(?P<name>[\w.-]+))?"
)
_ROLLED_OUT: Final = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


class ApiServer:
    """Serves on loopback while it is entered; `objects` has what was created, by (namespace, kind, name)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="apiserver")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        """Write what KUBECONFIG names."""
        cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
        known = {"clusters": [cluster], "contexts": [context], "users": [{"name": "me", "user": {}}]}
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "here", **known}))

    def answer(self, method: str, target: str, body: Object) -> tuple[int, Object]:
        """Answer one request; with nothing where a change is waited for, for none comes."""
        url = urlsplit(target)
        if (told := _discovery(url.path)) is not None:
            return 200, told
        asked = _PATH.fullmatch(url.path)
        kinds = {plural: kind for kind, plural in SERVED.get(asked["version"], {}).items()} if asked else {}
        if asked is None or asked["plural"] not in kinds:
            return _status(404, "NotFound")
        space, kind = asked["space"] or "", kinds[asked["plural"]]
        if method == "POST":
            return self._create(space, kind, body)
        if "watch=true" in url.query:
            return 200, {}
        field = parse_qs(url.query).get("fieldSelector", [""])[0].removeprefix("metadata.name=")
        found = self._found(space, kind, asked["name"] or field)
        if asked["name"]:
            return (200, found[0]) if found else _status(404, "NotFound")
        about = {"apiVersion": asked["version"], "kind": f"{kind}List", "metadata": {"resourceVersion": "1"}}
        return 200, {**about, "items": found}

    def _create(self, space: str, kind: str, body: Object) -> tuple[int, Object]:
        key = (space, kind, body["metadata"]["name"])
        if key in self.objects:
            return _status(409, "AlreadyExists")
        if space and ("", "Namespace", space) not in self.objects:
            return _status(404, "NotFound")
        body["metadata"] |= {"namespace": space, "uid": "1", "generation": 1, "resourceVersion": "1"}
        self.objects[key] = {**body, "status": _ROLLED_OUT} if kind == "Deployment" else body
        return 201, self.objects[key]

    def _found(self, space: str, kind: str, name: str) -> list[Object]:
        wanted = (space, kind)
        return [one for (*where, own), one in self.objects.items() if tuple(where) == wanted and name in ("", own)]


def _discovery(path: str) -> Object | None:
    """Return what is served where, and that the server itself would check fields."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group(version) for version in SERVED if "/" in version]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":
        return {
            "paths": {_prefix(version)[1:]: {"serverRelativeURL": f"{path}{_prefix(version)}"} for version in SERVED}
        }
    for version in SERVED:
        if path == _prefix(version):
            listed = [_resource(kind, plural) for kind, plural in SERVED[version].items()]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}
        if path == f"/openapi/v3{_prefix(version)}":
            return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": _patches(version)}
    return None


def _prefix(version: str) -> str:
    return f"/{'apis' if '/' in version else 'api'}/{version}"


def _group(version: str) -> Object:
    known = {"groupVersion": version, "version": "v1"}
    return {"name": version.partition("/")[0], "versions": [known], "preferredVersion": known}


def _resource(kind: str, plural: str) -> Object:
    verbs = ["create", "get", "list", "patch", "watch"]
    namespaced = kind != "Namespace"
    return {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": verbs}


def _patches(version: str) -> Object:
    found = {}
    for kind, plural in SERVED[version].items():
        about = {"group": version.rpartition("/")[0], "version": "v1", "kind": kind}
        checks = [{"name": "fieldValidation", "in": "query"}]
        patch = {"parameters": checks, "x-kubernetes-group-version-kind": about}
        found[f"{_prefix(version)}/{plural}/{{name}}"] = {"patch": patch}
    return found


def _status(code: int, reason: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}


def _decoded(body: bytes) -> Object:
    """Return what a request carries: JSON, or the protobuf in which kubectl creates namespaces and secrets."""
    if not body.startswith(b"k8s\0"):
        return dict(json.loads(body or b"{}"))
    about, carried = _fields(body[4:])[1], _fields(_fields(body[4:])[2][0])
    kind = _fields(about[0])[2][0].decode()
    pairs = [_fields(pair) for pair in carried.get(2, [])] if kind == "Secret" else []
    data = {pair[1][0].decode(): base64.b64encode(pair[2][0]).decode() for pair in pairs}
    return {"kind": kind, "metadata": {"name": _fields(carried[1][0])[1][0].decode()}, "data": data}


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """Return the fields of a protobuf message that have a length, by number."""
    found: dict[int, list[bytes]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(message):
        field, wire = divmod(number(), 8)
        if wire == 2:
            length = number()
            found.setdefault(field, []).append(message[at : at + length])
            at += length
        else:
            number()
    return found


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            code, answer = server.answer(self.command, self.path, _decoded(body))
            text = json.dumps(answer).encode() if answer else b""
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
