"""The remote end as a delivery sees it: resolve, presign, put. The narrow seam that tests may replace."""

import os
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from pmwatch.errors import DestinationUnknown, KeyRejected
from pmwatch.model import Delivery, Destination, Fingerprint, Target, Tenant
from pmwatch.processmind import Client, Http, Receipt, Storage, resolve
from pmwatch.processmind.keys import KeyRing
from pmwatch.processmind.storage import OpenBody

T = TypeVar("T")

LONGEST_VALID_SECONDS: Final = 7 * 86400
"""The longest a URL can be valid: S3's signatures end after a week, though the API names a month as well."""


class Remote(Protocol):
    """What a worker needs of the other side; every method raises the errors of `errors.RemoteError`."""

    def resolve(self, target: Target) -> Destination:
        """Return the ids that a target's names stand for."""

    def create(self, target: Target) -> None:
        """Create the datatable that a target names, and its dataset, or the process, where they do not exist."""

    def presign(self, delivery: Delivery, source: Fingerprint, *, valid_seconds: int | None = None) -> str:
        """Return a URL for one PUT of this source, valid so long, or as long as the service thinks."""

    def put(self, url: str, open_body: OpenBody, *, size: int, filename: str, only_if_absent: bool) -> Receipt:
        """Send the bytes of a fresh body to the URL; the receipt confirms exactly these."""

    def put_model(self, delivery: Delivery, text: str) -> None:
        """Give the delivery's process this BPMN model in place of the one it has."""

    def row_count(self, delivery: Delivery) -> int | None:
        """Return how many rows the delivery's datatable has, where the API tells."""


class ProcessMindRemote:
    """The real remote end: the API with each tenant's key, and the storage that its URLs point to."""

    def __init__(
        self, *, http: Http, storage: Storage, base_url: str, tenants: Mapping[str, Tenant], keys: KeyRing
    ) -> None:
        self._http = http
        self._storage = storage
        self._base_url = base_url
        self._tenants = tenants
        self._keys = keys

    def _call(self, tenant: str, call: Callable[[Client], T]) -> T:
        """Call the API with the tenant's key; a refused one is read again from its file once before it counts."""
        if tenant not in self._tenants:
            raise DestinationUnknown(f"tenant {tenant!r} is not in the configuration", hint="Add it under [[tenants]].")
        key = self._keys.key(tenant)
        try:
            return call(self._client(key))
        except KeyRejected as error:
            if not self._keys.refresh(tenant, refused=key):
                raise self._with_hint(error, tenant) from None
        try:
            return call(self._client(self._keys.key(tenant)))
        except KeyRejected as error:
            raise self._with_hint(error, tenant) from None

    def _client(self, key: str) -> Client:
        return Client(key, base_url=self._base_url, http=self._http, retries=False)  # the gates know better

    def resolve(self, target: Target) -> Destination:
        """Return the ids that a target's names stand for."""
        return self._call(target.tenant, lambda client: resolve(client, self._tenants[target.tenant].id, target))

    def create(self, target: Target) -> None:
        """Create the datatable that a target names as `Dataset/Table`, and its dataset, where they do not exist.

        Or the process, of that name.
        """
        tenant_id = self._tenants[target.tenant].id
        if target.process:
            self._call(target.tenant, lambda client: client.create_process(tenant_id, target.process))
            return
        dataset_name, _, table_name = target.datatable.rpartition("/")
        dataset_name = dataset_name or target.dataset
        if not dataset_name or not table_name:
            raise DestinationUnknown(
                f"the datatable {target.datatable!r} cannot be created: nobody knows in which dataset",
                hint='Write it as "Dataset/Table", or set dataset as well.',
            )

        def create(client: Client) -> None:
            there = [one for one in client.datasets(tenant_id) if dataset_name in (one.id, one.display_name)]
            dataset = there[0] if there else client.create_dataset(tenant_id, dataset_name)
            client.create_datatable(tenant_id, dataset.id, table_name)

        self._call(target.tenant, create)

    def presign(self, delivery: Delivery, source: Fingerprint, *, valid_seconds: int | None = None) -> str:
        """Return a URL for one PUT, which points to an allowed host."""
        destination = delivery.destination
        assert destination is not None
        url = self._call(
            delivery.target.tenant,
            lambda client: client.presigned_upload_url(
                destination.tenant_id,
                destination.datatable_id,
                dataset_id=destination.dataset_id,
                filename=api_filename(delivery.path),
                size=source.size,
                mtime_ms=source.mtime_ns // 1_000_000,
                valid_seconds=valid_seconds,
            ),
        )
        self._storage.check_url(url)
        return url

    def _with_hint(self, error: KeyRejected, tenant: str) -> KeyRejected:
        hint = f"The key of tenant {tenant!r} is wrong, revoked or of another tenant. {self._keys.renewal_hint(tenant)}"
        return KeyRejected(error.message, hint=hint, status=error.status, request_id=error.request_id)

    def put(self, url: str, open_body: OpenBody, *, size: int, filename: str, only_if_absent: bool) -> Receipt:
        """Send the bytes of a fresh body to the URL."""
        return self._storage.put(url, open_body, size=size, filename=filename, only_if_absent=only_if_absent)

    def put_model(self, delivery: Delivery, text: str) -> None:
        """Give the delivery's process this BPMN model in place of the one it has; repeating it changes nothing."""
        ids = delivery.destination
        assert ids is not None
        self._call(delivery.target.tenant, lambda client: client.upload_bpmn(ids.tenant_id, ids.datatable_id, text))

    def row_count(self, delivery: Delivery) -> int | None:
        """Return how many rows the delivery's datatable has, where the API tells."""
        ids = delivery.destination
        assert ids is not None
        found = self._call(delivery.target.tenant, lambda client: client.datatable(ids.tenant_id, ids.datatable_id))
        return found.row_count


def api_filename(path: bytes) -> str:
    r"""Return the name to tell the API: UTF-8 as it is; other bytes and control characters as `%XX`.

    >>> api_filename("in/größe\n".encode() + b"\\xff.csv")
    'größe%0A%FF.csv'
    """
    text = os.path.basename(path).decode("utf-8", "surrogateescape")
    return "".join(
        character if character.isprintable() else "".join(f"%{byte:02X}" for byte in os.fsencode(character))
        for character in text
    )
