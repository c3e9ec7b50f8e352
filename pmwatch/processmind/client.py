"""The API client: one method for each operation, errors as pmwatch's tree.

Source of paths, fields and answers: ProcessMind's "API calls" and "API reference: data".
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Self, TypeVar, cast, get_origin
from urllib.parse import quote, urlencode, urlsplit

import httpx
from pydantic import BaseModel, FailFast, TypeAdapter, ValidationError

from pmwatch.errors import (
    AnswerLost,
    ChecksumMismatch,
    DestinationUnknown,
    KeyRejected,
    PmwatchError,
    Refused,
    Rejected,
    ServerFault,
    SourceChanged,
    Throttled,
    Unreachable,
)
from pmwatch.formats import MAX_MODEL_BYTES, Broken, read_model
from pmwatch.processmind.http import Http, printable, request_id, retry_after
from pmwatch.processmind.models import (
    Dataset,
    Datatable,
    Mapping,
    Organization,
    Process,
    Statistics,
    Success,
    TenantInfo,
    User,
)
from pmwatch.processmind.storage import Receipt, Storage, is_loopback_host

DEFAULT_BASE_URL: Final = "https://api.processmind.com"
_T = TypeVar("_T")
_Identified = TypeVar("_Identified", User, Mapping)
Fields = dict[str, Any]
_PAUSES_SECONDS: Final = (0.3, 1.0, 3.0)
_LONGEST_RETRY_SECONDS: Final = 10.0
_WRITING: Final = ("POST", "PUT", "DELETE")  # whose answers may be empty
_LONGEST_MESSAGE: Final = 300
_CHUNK_BYTES: Final = 1024 * 1024
_NO_SUCH_ID: Final = "Check the ids, and the address of the API."
_NOT_THE_API: Final = "Check the address of the API; a proxy or a login page may be in between."


class Client:
    """ProcessMind's API with one key; safe to use from many threads.

    What only reads is tried again a few times where the service has trouble, unless `retries` is False; what writes
    never is, nor is the question for an upload URL, which begins an upload. `upload_file` sends to Amazon S3 only, or
    to `allowed_upload_hosts`. Every method raises the errors below `RemoteError`: KeyRejected, DestinationUnknown
    (404), Rejected (400 and the like), Throttled, ServerFault, Unreachable, AnswerLost, each with status, request id
    and hint.

    >>> from pmwatch.errors import RemoteError
    >>> with Client(api_key) as client:
    ...     for dataset in client.datasets(tenant_id):
    ...         print(dataset.display_name, dataset.datatable_count)
    ...     try:
    ...         client.process(tenant_id, "p-17")
    ...     except RemoteError as error:
    ...         print(error.status, error.hint)
    Sales 1
    404 Check the ids, and the address of the API.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        http: Http | None = None,
        retries: bool = True,
        sleep: Callable[[float], None] = time.sleep,
        allowed_upload_hosts: Sequence[str] = (),
    ) -> None:
        self._retries = retries
        self._sleep = sleep
        self._key = api_key
        self._base = base_url.rstrip("/")
        self._own_http = http is None
        self._http = http or Http()
        self._hosts = tuple(allowed_upload_hosts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, where they are this client's own."""
        if self._own_http:
            self._http.close()

    # ---- tenants ------------------------------------------------------------------------------------------

    def tenant(self, tenant_id: str) -> TenantInfo:
        """Return a tenant (`getTenant`).

        >>> client.tenant(tenant_id).display_name
        'acme'
        """
        return self._get(TenantInfo, "tenant", tenant_id)

    def update_tenant(self, tenant_id: str, *, display_name: str) -> TenantInfo:
        """Give a tenant another name (`updateTenant`).

        >>> client.update_tenant(tenant_id, display_name="Acme Ltd").display_name
        'Acme Ltd'
        """
        return self._send(TenantInfo, "PUT", ("tenant", tenant_id), {"displayName": display_name})

    def tenant_statistics(self, tenant_id: str) -> Statistics:
        """Return numbers about a tenant (`getTenantStatistics`).

        >>> client.tenant_statistics(tenant_id).model_dump()["datatableCount"]
        1
        """
        return self._get(Statistics, "tenant", tenant_id, "statistics")

    # ---- users of a tenant --------------------------------------------------------------------------------

    def users(self, tenant_id: str) -> list[User]:
        """Return the users of a tenant (`getTenantUsers`).

        >>> [user.email for user in client.users(tenant_id)]
        ['ann@example.com']
        """
        return self._get(list[User], "tenant", tenant_id, "users")

    def add_user(
        self,
        tenant_id: str,
        email: str,
        *,
        first_name: str = "",
        last_name: str = "",
        active: bool = True,
        admin: bool = False,
        developer: bool = False,
        user_id: str | None = None,
        send_invitation: bool | None = None,
    ) -> User:
        """Add a user to a tenant (`addTenantUser`).

        The user's id, and whether an e-mail is sent (`send_invitation`), are the service's choice where they are None.

        >>> client.add_user(tenant_id, "bob@example.com", first_name="Bob", developer=True).is_admin_in_tenant
        False
        """
        body: dict[str, Any] = {"email": email, "firstName": first_name, "lastName": last_name}
        body |= _tenant_flags(active=active, admin=admin, developer=developer)
        if user_id is not None:
            body["id"] = user_id
        if send_invitation is not None:
            body["sendInvitationEmail"] = send_invitation
        return self._send(User, "POST", ("tenant", tenant_id, "users"), body)

    def update_user(
        self,
        tenant_id: str,
        user_id: str,
        *,
        active: bool | None = None,
        admin: bool | None = None,
        developer: bool | None = None,
    ) -> User:
        """Say what a user may do in a tenant (`updateTenantUser`).

        What is None stays as it is; the users are read first to know how.

        >>> client.update_user(tenant_id, user_id, admin=True).is_active_in_tenant
        True
        """
        if None in (active, admin, developer):
            now = _one_of(self.users(tenant_id), user_id, "user")
            active = _chosen(active, now.is_active_in_tenant, default=True)
            admin = _chosen(admin, now.is_admin_in_tenant, default=False)
            developer = _chosen(developer, now.is_developer_in_tenant, default=False)
        body = {"userId": user_id, "tenantId": tenant_id}
        flags = _tenant_flags(active=bool(active), admin=bool(admin), developer=bool(developer))
        return self._send(User, "PUT", ("tenant", tenant_id, "users"), body | flags)

    def remove_user(self, tenant_id: str, user_id: str) -> Success:
        """Take a user out of a tenant (`removeTenantUser`).

        >>> client.remove_user(tenant_id, user_id).success
        True
        """
        body = {"userId": user_id, "tenantId": tenant_id}
        return self._send(Success, "DELETE", ("tenant", tenant_id, "users"), body)

    # ---- datasets and datatables --------------------------------------------------------------------------

    def datasets(self, tenant_id: str) -> list[Dataset]:
        """Return the datasets of a tenant (`getDatasets`).

        >>> [dataset.display_name for dataset in client.datasets(tenant_id)]
        ['Sales']
        """
        return self._get(list[Dataset], "tenant", tenant_id, "datasets")

    def dataset(self, tenant_id: str, dataset_id: str) -> Dataset:
        """Return one dataset with its datatables (`getDataset`).

        >>> [table.display_name for table in client.dataset(tenant_id, dataset_id).datatables]
        ['Orders']
        """
        return self._get(Dataset, "tenant", tenant_id, "datasets", dataset_id)

    def create_dataset(
        self, tenant_id: str, display_name: str, *, parent_id: str | None = None, group: bool = False
    ) -> Dataset:
        """Create a dataset, or with `group` a group of them (`createDataset`).

        >>> client.create_dataset(tenant_id, "Purchasing").display_name
        'Purchasing'
        """
        body = _tree_node(display_name, parent_id, "TreeGroup" if group else "Dataset")
        return self._send(Dataset, "POST", ("tenant", tenant_id, "datasets"), body)

    def delete_dataset(self, tenant_id: str, dataset_id: str) -> Success:
        """Delete a dataset with its datatables (`deleteDataset`).

        >>> client.delete_dataset(tenant_id, dataset_id).success
        True
        """
        return self._send(Success, "DELETE", ("tenant", tenant_id, "datasets", dataset_id), None)

    def datatables(self, tenant_id: str) -> list[Datatable]:
        """Return all datatables of a tenant (`getDatatables`).

        >>> [(table.display_name, table.row_count) for table in client.datatables(tenant_id)]
        [('Orders', 0)]
        """
        return self._get(list[Datatable], "tenant", tenant_id, "datatables")

    def datatable(self, tenant_id: str, datatable_id: str) -> Datatable:
        """Return one datatable (`getDatatable`).

        >>> client.datatable(tenant_id, datatable_id).row_count
        0
        """
        return self._get(Datatable, "tenant", tenant_id, "datatable", datatable_id)

    def create_datatable(self, tenant_id: str, dataset_id: str, display_name: str) -> Datatable:
        """Create a datatable in a dataset (`createDatatable`).

        >>> client.create_datatable(tenant_id, dataset_id, "Invoices").display_name
        'Invoices'
        """
        path = ("tenant", tenant_id, "datasets", dataset_id, "datatables")
        return self._send(Datatable, "POST", path, {"displayName": display_name})

    # ---- processes and mappings ---------------------------------------------------------------------------

    def processes(self, tenant_id: str) -> list[Process]:
        """Return the processes of a tenant (`getProcesses`).

        >>> [process.display_name for process in client.processes(tenant_id)]
        ['Order to cash']
        """
        return self._get(list[Process], "tenant", tenant_id, "processes")

    def process(self, tenant_id: str, process_id: str) -> Process:
        """Return one process (`getProcess`).

        >>> client.process(tenant_id, process_id).display_name
        'Order to cash'
        """
        return self._get(Process, "tenant", tenant_id, "processes", process_id)

    def create_process(
        self, tenant_id: str, display_name: str, *, parent_id: str | None = None, group: bool = False
    ) -> Process:
        """Create a process, or with `group` a group of them (`createProcess`).

        >>> client.create_process(tenant_id, "Purchase to pay").designer_model_id is None
        True
        """
        body = _tree_node(display_name, parent_id, "TreeGroup" if group else "Process")
        return self._send(Process, "POST", ("tenant", tenant_id, "processes"), body)

    def update_process(
        self, tenant_id: str, process_id: str, *, display_name: str | None = None, parent_id: str | None = None
    ) -> Process:
        """Give a process another name, or another place in the tree (`updateProcess`).

        What is None stays as it is; the process is read first to know how. The `parent_id` "" is the top of the tree.

        >>> client.update_process(tenant_id, process_id, display_name="O2C").display_name
        'O2C'
        """
        if display_name is None or parent_id is None:
            now = self.process(tenant_id, process_id)
            display_name = now.display_name if display_name is None else display_name
            parent_id = now.tree_parent_id if parent_id is None else parent_id
        body = {"displayName": display_name, "treeParentId": parent_id or None}
        return self._send(Process, "PUT", ("tenant", tenant_id, "processes", process_id), body)

    def delete_process(self, tenant_id: str, process_id: str) -> Success:
        """Delete a process (`deleteProcess`).

        >>> client.delete_process(tenant_id, process_id).success
        True
        """
        return self._send(Success, "DELETE", ("tenant", tenant_id, "processes", process_id), None)

    def upload_bpmn(self, tenant_id: str, process_id: str, bpmn_xml: str) -> Success:
        """Give a process its BPMN 2.0 model (`uploadBpmn`).

        `bpmn_xml` is the text of an XML document.

        >>> client.upload_bpmn(tenant_id, process_id, bpmn_xml).success
        True
        """
        path = ("tenant", tenant_id, "processes", process_id, "bpmn")
        return self._send(Success, "PUT", path, {"bpmnXml": bpmn_xml})

    def mappings(self, tenant_id: str, process_id: str) -> list[Mapping]:
        """Return the mappings of a process (`getProcessMappings`).

        >>> [(one.display_name, one.color.id) for one in client.mappings(tenant_id, process_id)]
        [('Orders', 'data-1')]
        """
        return self._get(list[Mapping], "tenant", tenant_id, "processes", process_id, "mappings")

    def create_mapping(
        self,
        tenant_id: str,
        process_id: str,
        datatable_id: str,
        *,
        display_name: str,
        color: str = "data-1",
        show_by_default: bool = True,
    ) -> Mapping:
        """Connect a process, which must have a BPMN model, with a datatable (`createProcessMapping`).

        `color` is one of `data-1` to `data-8`.

        >>> client.create_mapping(tenant_id, process_id, datatable_id, display_name="New orders").show_by_default
        True
        """
        body = {"dataTableId": datatable_id, **_mapping(display_name, color, show_by_default=show_by_default)}
        return self._send(Mapping, "POST", ("tenant", tenant_id, "processes", process_id, "mappings"), body)

    def update_mapping(
        self,
        tenant_id: str,
        process_id: str,
        mapping_id: str,
        *,
        display_name: str | None = None,
        color: str | None = None,
        show_by_default: bool | None = None,
    ) -> Mapping:
        """Give a mapping another name or colour, or show it by default or not (`updateProcessMapping`).

        What is None stays as it is; the mappings are read first to know how.

        >>> client.update_mapping(tenant_id, process_id, mapping_id, color="data-8").display_name
        'Orders'
        """
        if display_name is None or color is None or show_by_default is None:
            now = _one_of(self.mappings(tenant_id, process_id), mapping_id, "mapping")
            display_name = now.display_name if display_name is None else display_name
            color = color or (now.color.id if now.color else "") or "data-1"
            show_by_default = _chosen(show_by_default, now.show_by_default, default=True)
        path = ("tenant", tenant_id, "processes", process_id, "mappings", mapping_id)
        return self._send(Mapping, "PUT", path, _mapping(display_name, color, show_by_default=show_by_default))

    def delete_mapping(self, tenant_id: str, process_id: str, mapping_id: str) -> Success:
        """Delete a mapping (`deleteProcessMapping`).

        >>> client.delete_mapping(tenant_id, process_id, mapping_id).success
        True
        """
        path = ("tenant", tenant_id, "processes", process_id, "mappings", mapping_id)
        return self._send(Success, "DELETE", path, None)

    # ---- the organisation ---------------------------------------------------------------------------------

    def organization(self, tenant_id: str) -> Organization:
        """Return the organisation that a tenant belongs to (`getOrganization`).

        >>> client.organization(tenant_id).display_name
        'Sandbox'
        """
        return self._get(Organization, "tenant", tenant_id, "organization")

    def organization_statistics(self, tenant_id: str) -> Statistics:
        """Return numbers about the organisation (`getOrganizationStatistics`).

        >>> client.organization_statistics(tenant_id).model_dump()["tenantCount"]
        2
        """
        return self._get(Statistics, "tenant", tenant_id, "organization", "statistics")

    def organization_tenants(self, tenant_id: str) -> list[TenantInfo]:
        """Return the tenants of the organisation (`getOrganizationTenants`).

        >>> [tenant.short_name for tenant in client.organization_tenants(tenant_id)]
        ['acme', 'globex']
        """
        return self._get(list[TenantInfo], "tenant", tenant_id, "organization", "tenants")

    def create_organization_tenant(self, tenant_id: str, short_name: str, *, display_name: str) -> TenantInfo:
        """Create a tenant in the organisation (`createOrganizationTenant`).

        >>> client.create_organization_tenant(tenant_id, "eu", display_name="Europe").short_name
        'eu'
        """
        body = {"shortName": short_name, "displayName": display_name}
        return self._send(TenantInfo, "POST", ("tenant", tenant_id, "organization", "tenants"), body)

    def delete_organization_tenant(self, tenant_id: str, target_id: str) -> Success:
        """Delete a tenant of the organisation, with all that is in it (`deleteOrganizationTenant`).

        >>> client.delete_organization_tenant(tenant_id, target_id).success
        True
        """
        return self._send(Success, "DELETE", ("tenant", tenant_id, "organization", "tenants", target_id), None)

    def organization_users(self, tenant_id: str) -> list[User]:
        """Return the users of the organisation (`getOrganizationUsers`).

        >>> [user.email for user in client.organization_users(tenant_id)]
        ['ann@example.com']
        """
        return self._get(list[User], "tenant", tenant_id, "organization", "users")

    def update_organization_user(
        self, tenant_id: str, user_id: str, *, active: bool | None = None, admin: bool | None = None
    ) -> User:
        """Say what a user may do in the organisation (`updateOrganizationUser`).

        What is None stays as it is; the users are read first to know how.

        >>> client.update_organization_user(tenant_id, user_id, admin=True).is_active_in_organization
        True
        """
        if active is None or admin is None:
            now = _one_of(self.organization_users(tenant_id), user_id, "user")
            active = _chosen(active, now.is_active_in_organization, default=True)
            admin = _chosen(admin, now.is_admin_in_organization, default=False)
        body = {"userId": user_id, "isActiveInOrganization": active, "isAdminInOrganization": admin}
        return self._send(User, "PUT", ("tenant", tenant_id, "organization", "users"), body)

    def remove_organization_user(self, tenant_id: str, user_id: str) -> Success:
        """Take a user out of the organisation (`removeOrganizationUser`).

        >>> client.remove_organization_user(tenant_id, user_id).success
        True
        """
        return self._send(Success, "DELETE", ("tenant", tenant_id, "organization", "users"), {"userId": user_id})

    # ---- uploads ------------------------------------------------------------------------------------------

    def presigned_upload_url(
        self,
        tenant_id: str,
        datatable_id: str,
        *,
        dataset_id: str = "",
        filename: str = "",
        size: int | None = None,
        mtime_ms: int | None = None,
        valid_seconds: int | None = None,
    ) -> str:
        """Return a URL for one PUT (`getPresignedUploadUrl`), a bearer secret. Only `filename` makes the file known.

        It needs the file's `size` in bytes then; `dataset_id` is looked up where it is not given, and `mtime_ms`
        (milliseconds since the epoch) is now where it is None. Without `filename` it is the older form of the call.
        `valid_seconds` is the service's choice where it is None. Raises ValueError for a `filename` without `size`, and
        for what describes a file without `filename`, ServerFault where the answer holds no URL.

        >>> url = client.presigned_upload_url(tenant_id, datatable_id, filename="orders.csv", size=1234)
        >>> "X-Amz-Signature=" in url
        True
        """
        query: dict[str, str] = {}
        if filename:
            if size is None:
                raise ValueError("`filename` needs `size` beside it, the bytes of the file")
            dataset_id = dataset_id or self._dataset_of(tenant_id, datatable_id)
            query = {"datasetid": dataset_id, "filename": filename, "filesize": str(size)}
            query["filelastmodified"] = str(int(time.time() * 1000) if mtime_ms is None else mtime_ms)
        elif dataset_id or size is not None or mtime_ms is not None:
            raise ValueError("`dataset_id`, `size` and `mtime_ms` say nothing without a file: name it with `filename`")
        if valid_seconds is not None:
            query["validforseconds"] = str(valid_seconds)
        path = ("tenant", tenant_id, "datatable", datatable_id, "uploads", "presignedurl")
        answer = self._call(dict[str, Any], "GET", path, query=query)
        url = answer.get("PreSignedUploadUrl")
        if not isinstance(url, str) or not url:
            raise ServerFault("the API's answer holds no PreSignedUploadUrl", hint=_NOT_THE_API, reason="bad_answer")
        return url

    def upload_file(
        self, tenant_id: str, datatable_id: str, path: str | os.PathLike[str], *, dataset_id: str = ""
    ) -> Receipt:
        """Send a file to a datatable, byte for byte (`uploadFile`): presign, PUT, and compare the ETag.

        Without `dataset_id` it is looked up. It is tried once. Raises OSError where the file cannot be
        read, SourceChanged where it changes meanwhile, ChecksumMismatch where the storage confirms other bytes.

        >>> receipt = client.upload_file(tenant_id, datatable_id, "orders.csv")
        >>> receipt.etag == receipt.md5
        True
        """
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            name = os.path.basename(os.fsdecode(path))
            url = self.presigned_upload_url(
                tenant_id,
                datatable_id,
                dataset_id=dataset_id,
                filename=name,
                size=before.st_size,
                mtime_ms=before.st_mtime_ns // 1_000_000,
            )
            md5 = hashlib.md5(usedforsecurity=False)  # only to compare it with S3's ETag

            def body() -> Iterator[bytes]:
                file.seek(0)
                while chunk := file.read(_CHUNK_BYTES):
                    md5.update(chunk)
                    if file.tell() >= before.st_size and os.fstat(file.fileno()).st_mtime_ns != before.st_mtime_ns:
                        raise SourceChanged("the file changed while it was read")
                    yield chunk

            local = is_loopback_host(urlsplit(self._base).hostname or "")
            storage = Storage(self._http, allowed_hosts=self._hosts, allow_loopback=local)
            receipt = storage.put(url, body, size=before.st_size, filename=name)
        if receipt.md5 and receipt.md5 != md5.hexdigest():
            raise ChecksumMismatch("the storage's ETag is not the MD5 of what was sent")
        return receipt

    def upload_bpmn_file(self, tenant_id: str, process_id: str, path: str | os.PathLike[str]) -> Success:
        """Give a process the BPMN model in a file, in whatever encoding it is (`uploadBpmnFile`).

        Raises OSError where the file cannot be read, Refused where it is no well-formed BPMN 2.0 model.

        >>> client.upload_bpmn_file(tenant_id, process_id, "order-to-cash.bpmn").success
        True
        """
        with open(path, "rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
        if len(data) > MAX_MODEL_BYTES:
            raise Refused(f"a model has at most {MAX_MODEL_BYTES >> 20} MiB", reason="too_large", fail=True)
        try:
            text = read_model(data)
        except Broken as broken:
            raise Refused(broken.sentence, reason="invalid", fail=True) from None
        return self.upload_bpmn(tenant_id, process_id, text)

    def _dataset_of(self, tenant_id: str, datatable_id: str) -> str:
        """Return the dataset of a datatable, which says it itself, or else the datasets do."""
        said = self.datatable(tenant_id, datatable_id).dataset_id
        if said:
            return said
        for dataset in self.datasets(tenant_id):
            tables = dataset.datatables or self.dataset(tenant_id, dataset.id).datatables
            if any(table.id == datatable_id for table in tables):
                return dataset.id
        raise DestinationUnknown(f"no dataset of the tenant has the datatable {datatable_id!r}", hint=_NO_SUCH_ID)

    def _get(self, shape: type[_T], *path: str) -> _T:
        """Read, and try again a few times where the service has trouble: reading harms nothing."""
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return self._call(shape, "GET", path)
            except (Throttled, ServerFault, Unreachable) as error:
                if pause is None or self._retries is False or error.reason in ("bad_answer", "bad_url", "tls"):
                    raise
                wait = error.retry_after or pause * (0.5 + random.random())  # noqa: S311  jitter is no secret
                if wait > _LONGEST_RETRY_SECONDS:
                    raise
                self._sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _send(self, shape: type[_T], method: str, path: tuple[str, ...], body: Fields | None) -> _T:
        if any(value == "" for name, value in (body or {}).items() if name.lower().endswith("id")):
            raise DestinationUnknown("an id is empty", hint=_NO_SUCH_ID)
        return self._call(shape, method, path, body=body)

    def _call(
        self,
        shape: type[_T],
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str] | None = None,
        body: Fields | None = None,
    ) -> _T:
        url = self._base + path_of(path)
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
            raise Unreachable(error.message) from None  # reading again harms nothing
        if not response.is_success:
            raise api_error(response, secret=self._key)
        return _parse(shape, response, wrote=method in _WRITING)


def _one_of(there: Sequence[_Identified], id_: str, what: str) -> _Identified:
    found = next((one for one in there if one.id == id_), None)
    if found is None:
        raise DestinationUnknown(f"there is no {what} {id_!r}", hint=_NO_SUCH_ID)
    return found


def _chosen(wanted: bool | None, now: bool | None, *, default: bool) -> bool:  # noqa: FBT001  three of a kind
    return next((one for one in (wanted, now) if one is not None), default)


def _tree_node(display_name: str, parent_id: str | None, node_type: str) -> Fields:
    return {"displayName": display_name, "treeParentId": parent_id or None, "treeNodeType": node_type}


def _tenant_flags(*, active: bool, admin: bool, developer: bool) -> Fields:
    return {"isActiveInTenant": active, "isAdminInTenant": admin, "isDeveloperInTenant": developer}


def _mapping(display_name: str, color: str, *, show_by_default: bool) -> Fields:
    return {"displayName": display_name, "color": {"id": color}, "showByDefault": show_by_default}


def path_of(parts: Sequence[str]) -> str:
    """Return the path of these segments. Raises DestinationUnknown where one is empty: that would be another path."""
    if not all(parts):
        raise DestinationUnknown("an id is empty", hint=_NO_SUCH_ID)
    return "".join(f"/{_segment(part)}" for part in parts)


def _segment(text: str) -> str:
    """Escape an id so that it stays one segment of the path, whatever it holds."""
    return quote(text, safe="").replace(".", "%2E") if set(text) == {"."} else quote(text, safe="")


def _parse(shape: type[_T], response: httpx.Response, *, wrote: bool = False) -> _T:
    """Return the answer in its shape. What `wrote` is done, however little the answer says: nothing, `null`, `"OK"`."""
    try:
        data = json.loads(response.content)
    except (ValueError, RecursionError):
        if not wrote:
            raise _bad_answer(response, "the answer is not JSON") from None
        data = {}
    if wrote:
        data = ({"id": ""} if _needs_id(shape) else {}) | (data if isinstance(data, dict) else {})
    if isinstance(data, dict) and shape != dict[str, Any] and not _is_model(shape):
        data = next((value for value in data.values() if isinstance(value, list)), data)  # {"datasets": […]}
    try:
        parsed: _T = _adapter(cast("Hashable", shape)).validate_python(data)
    except (ValidationError, RecursionError):
        raise _bad_answer(response, "the answer has another shape than documented") from None
    return parsed


def _bad_answer(response: httpx.Response, what: str) -> ServerFault:
    return ServerFault(
        f"{response.request.url.host}: {what}",
        hint=_NOT_THE_API,
        reason="bad_answer",
        status=response.status_code,
        request_id=request_id(response),
    )


@lru_cache(maxsize=64)
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    """Return the validator of a shape; building one costs more than using it."""
    if get_origin(shape) is list:
        return TypeAdapter(
            cast("Any", Annotated[cast("Any", shape), FailFast()])
        )  # the first wrong one of a million is enough
    return TypeAdapter(cast("Any", shape))


def _is_model(shape: type[Any]) -> bool:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def _needs_id(shape: type[Any]) -> bool:
    return _is_model(shape) and "id" in shape.model_fields and shape.model_fields["id"].is_required()


def api_error(response: httpx.Response, *, secret: str = "") -> PmwatchError:
    """Return the error that an unsuccessful API answer means; where it repeats the `secret`, that is left out."""
    status, place = response.status_code, response.request.url.host
    said = _message(response, secret)
    text = f"{place} answered {status}" + (f": {said}" if said else "")
    facts = {"status": status, "request_id": _without(secret, request_id(response))}
    if status in (401, 403):
        return KeyRejected(text, hint="The API key is wrong, revoked or of another tenant; replace it.", **facts)  # type: ignore[arg-type]
    if status == 404:
        return DestinationUnknown(text, hint=_NO_SUCH_ID, **facts)  # type: ignore[arg-type]
    if status in (429, 503):
        return Throttled(text, retry_after=retry_after(response), **facts)  # type: ignore[arg-type]
    if status >= 500 or status < 400 or status in (408, 425):
        return ServerFault(text, **facts)  # type: ignore[arg-type]
    return Rejected(text, **facts)  # type: ignore[arg-type]


def _message(response: httpx.Response, secret: str) -> str:
    """Return the `message` of an error body, which is untrusted: maybe empty, HTML or no JSON at all."""
    try:
        data = json.loads(response.content)
    except (ValueError, RecursionError):
        return ""
    said = data.get("message") if isinstance(data, dict) else None
    if not isinstance(said, str):
        return ""
    return printable(_without(secret, said), _LONGEST_MESSAGE)


def _without(secret: str, text: str) -> str:
    return text.replace(secret, "(left out)") if secret else text
