"""The API client: one method for each operation, errors as pmwatch's tree.

Source of paths, fields and answers: ProcessMind's "API calls" and "API reference: data".
"""

import json
import time
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import quote, urlencode

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from pmwatch.errors import (
    AnswerLost,
    DestinationUnknown,
    KeyRejected,
    PmwatchError,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
)
from pmwatch.processmind.http import Http, http_date
from pmwatch.processmind.models import Dataset, Datatable, TenantInfo

DEFAULT_BASE_URL: Final = "https://api.processmind.com"
_T = TypeVar("_T")
_LONGEST_MESSAGE: Final = 300
_LONGEST_WAIT_SECONDS: Final = 3600.0


class Client:
    """ProcessMind's API with one key.

    >>> client = Client("my-api-key")                                     # doctest: +SKIP
    >>> [table.display_name for table in client.datatables("tenant-123")]  # doctest: +SKIP
    """

    def __init__(self, api_key: str, *, base_url: str = DEFAULT_BASE_URL, http: Http | None = None) -> None:
        self._key = api_key
        self._base = base_url.rstrip("/")
        self._own_http = http is None
        self._http = http or Http()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, where they are this client's own."""
        if self._own_http:
            self._http.close()

    def tenant(self, tenant_id: str) -> TenantInfo:
        """Return a tenant (`getTenant`)."""
        return self._get(TenantInfo, "tenant", tenant_id)

    def datasets(self, tenant_id: str) -> list[Dataset]:
        """Return the datasets of a tenant (`getDatasets`)."""
        return self._get(list[Dataset], "tenant", tenant_id, "datasets")

    def dataset(self, tenant_id: str, dataset_id: str) -> Dataset:
        """Return one dataset with its datatables (`getDataset`)."""
        return self._get(Dataset, "tenant", tenant_id, "datasets", dataset_id)

    def datatables(self, tenant_id: str) -> list[Datatable]:
        """Return all datatables of a tenant (`getDatatables`)."""
        return self._get(list[Datatable], "tenant", tenant_id, "datatables")

    def datatable(self, tenant_id: str, datatable_id: str) -> Datatable:
        """Return one datatable (`getDatatable`); its path says `datatable`, singular."""
        return self._get(Datatable, "tenant", tenant_id, "datatable", datatable_id)

    def create_dataset(self, tenant_id: str, display_name: str) -> Dataset:
        """Create a dataset (`createDataset`)."""
        body = {"displayName": display_name, "treeParentId": None, "treeNodeType": "Dataset"}
        return self._call(Dataset, "POST", ("tenant", tenant_id, "datasets"), body=body)

    def create_datatable(self, tenant_id: str, dataset_id: str, display_name: str) -> Datatable:
        """Create a datatable in a dataset (`createDatatable`)."""
        path = ("tenant", tenant_id, "datasets", dataset_id, "datatables")
        return self._call(Datatable, "POST", path, body={"displayName": display_name})

    def presigned_upload_url(
        self,
        tenant_id: str,
        datatable_id: str,
        *,
        dataset_id: str,
        filename: str,
        size: int,
        mtime_ms: int,
        valid_seconds: int | None = None,
    ) -> str:
        """Return a URL for one PUT (`getPresignedUploadUrl`). It is a bearer secret until it expires.

        `size` is in bytes, `mtime_ms` in milliseconds since the epoch; `valid_seconds` is the service's
        choice where it is None. Raises ServerFault where the answer holds no URL.
        """
        query = {"datasetid": dataset_id, "filename": filename, "filesize": str(size)}
        query["filelastmodified"] = str(mtime_ms)
        if valid_seconds is not None:
            query["validforseconds"] = str(valid_seconds)
        path = ("tenant", tenant_id, "datatable", datatable_id, "uploads", "presignedurl")
        answer = self._call(dict[str, Any], "GET", path, query=query)
        url = answer.get("PreSignedUploadUrl")
        if not isinstance(url, str) or not url:
            raise ServerFault("the API's answer holds no PreSignedUploadUrl", reason="bad_answer")
        return url

    def _get(self, shape: type[_T], *path: str) -> _T:
        return self._call(shape, "GET", path)

    def _call(
        self,
        shape: type[_T],
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> _T:
        url = "/".join((self._base, *(_segment(part) for part in path)))
        headers = {"x-api-key": self._key, "accept": "application/json"}
        if query:
            url += "?" + urlencode(query, quote_via=quote, safe="")
        if body is not None:
            headers["content-type"] = "application/json"
        request = self._http.build(
            method,
            url,
            headers=headers,
            content=b"" if body is None else json.dumps(body).encode(),
            timeout=self._http.timeouts.for_api(),
        )
        try:
            response = self._http.send(request)
        except AnswerLost as error:
            if method != "GET":
                raise
            raise Unreachable(error.message, hint=error.hint) from None  # reading again harms nothing
        if not response.is_success:
            raise api_error(response, secret=self._key)
        return _parse(shape, response)


def _segment(text: str) -> str:
    """Escape an id so that it stays one segment of the path, whatever it holds."""
    return quote(text, safe="").replace(".", "%2E") if set(text) == {"."} else quote(text, safe="")


def _parse(shape: type[_T], response: httpx.Response) -> _T:
    place = response.request.url.host
    try:
        data = json.loads(response.content)
    except (ValueError, RecursionError):
        raise ServerFault(
            f"{place}: the answer is not JSON", reason="bad_answer", status=response.status_code
        ) from None
    if isinstance(data, dict) and shape != dict[str, Any] and not _is_model(shape):
        data = next((value for value in data.values() if isinstance(value, list)), data)  # {"datasets": […]}
    try:
        parsed: _T = _adapter(cast("Hashable", shape)).validate_python(data)
    except (ValidationError, RecursionError):
        raise ServerFault(
            f"{place}: the answer has another shape than documented",
            reason="bad_answer",
            status=response.status_code,
        ) from None
    return parsed


@lru_cache(maxsize=64)
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    """Return the validator of a shape; building one costs more than using it."""
    return TypeAdapter(cast("Any", shape))


def _is_model(shape: type[Any]) -> bool:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def api_error(response: httpx.Response, *, secret: str = "") -> PmwatchError:
    """Return the error that an unsuccessful API answer means; where it repeats the `secret`, that is left out."""
    status, place = response.status_code, response.request.url.host
    said = _message(response, secret)
    text = f"{place} answered {status}" + (f": {said}" if said else "")
    facts = {"status": status, "request_id": request_id(response)}
    if status in (401, 403):
        return KeyRejected(text, hint="The API key is wrong, revoked or of another tenant; replace it.", **facts)  # type: ignore[arg-type]
    if status == 404:
        hint = "Check [api] base_url, and the ids of tenant, dataset and datatable."
        return DestinationUnknown(text, hint=hint, **facts)  # type: ignore[arg-type]
    if status in (429, 503):
        return Throttled(text, retry_after=retry_after(response), **facts)  # type: ignore[arg-type]
    if status >= 500 or status < 400 or status in (408, 425):
        return ServerFault(text, hint="The service has trouble of its own; it is tried again.", **facts)  # type: ignore[arg-type]
    return Rejected(text, hint="The service refuses this request; see its message.", **facts)  # type: ignore[arg-type]


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a `Retry-After` header, at most an hour; None where it says nothing, or what is past.

    Its date is compared with the `Date` of the same answer where there is one: clocks may differ.
    """
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT_SECONDS)
    until = http_date(text)
    now = http_date(response.headers.get("date", "")) or time.time()
    return min(until - now, _LONGEST_WAIT_SECONDS) if until is not None and until > now else None


def request_id(response: httpx.Response) -> str:
    """Return the id by which the other side finds this request in its logs."""
    headers = ("x-amz-request-id", "x-amzn-requestid", "x-request-id")
    return next((response.headers[name] for name in headers if name in response.headers), "")


def _message(response: httpx.Response, secret: str) -> str:
    """Return the `message` of an error body, which is untrusted: maybe empty, HTML or no JSON at all."""
    try:
        data = json.loads(response.content)
    except (ValueError, RecursionError):
        return ""
    said = data.get("message") if isinstance(data, dict) else None
    if not isinstance(said, str):
        return ""
    said = said.replace(secret, "(left out)") if secret else said
    return "".join(character if character.isprintable() else " " for character in said)[:_LONGEST_MESSAGE]
