"""Uploads a file: a presigned URL for the four query parameters, and a PUT without a key.

Then a process, its BPMN model, a mapping of it to the datatable, and a user. Prints the answers, one a line.
"""

import http.client
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

BASE, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
TENANT, DATASET, DATATABLE = (os.environ[name] for name in ("TENANT_ID", "DATASET_ID", "DATATABLE_ID"))
FILE, MODEL = Path(os.environ["FILE"]), Path(os.environ["MODEL"])


def request(method: str, url: str, headers: dict[str, str], body: str | bytes | None = None) -> bytes:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc)
    connection.request(method, f"{parts.path}?{parts.query}".rstrip("?"), body, headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {parts.path}: {answer.status} {text!r}")
    return text


def call(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"x-api-key": KEY} | ({"Content-Type": "application/json"} if body else {})
    return json.loads(request(method, f"{BASE}/tenant/{TENANT}{path}", headers, json.dumps(body) if body else None))


query = {
    "datasetid": DATASET,
    "filename": FILE.name,
    "filesize": FILE.stat().st_size,
    "filelastmodified": int(FILE.stat().st_mtime * 1000),
}
presigned = call("GET", f"/datatable/{DATATABLE}/uploads/presignedurl?{urlencode(query)}")
request("PUT", presigned["PreSignedUploadUrl"], {}, FILE.read_bytes())

process = call("POST", "/processes", {"displayName": "Order to cash", "treeParentId": None, "treeNodeType": "Process"})
mapping = {"dataTableId": DATATABLE, "displayName": "Orders", "color": {"id": "data-1"}, "showByDefault": True}
user = {"email": "ada@example.com", "firstName": "Ada", "lastName": "Lovelace"}
flags = {"isActiveInTenant": True, "isAdminInTenant": False, "isDeveloperInTenant": False}
for answer in (
    process,
    call("PUT", f"/processes/{process['id']}/bpmn", {"bpmnXml": MODEL.read_text(encoding="utf-8")}),
    call("POST", f"/processes/{process['id']}/mappings", mapping),
    call("POST", "/users", user | flags),
):
    print(json.dumps(answer))
