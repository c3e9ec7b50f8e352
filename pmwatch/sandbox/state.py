"""What the sandbox knows: tenants, keys, datasets, datatables, and the key pair that signs its URLs.

All of it is in `STATE/state.json` (mode 0600), written as a whole and atomically on every change.
"""

import base64
import dataclasses
import json
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from pmwatch.sandbox.faults import Faults
from pmwatch.sandbox.sigv4 import Credentials
from pmwatch.sandbox.store import ObjectStore, RequestRecord

_REQUESTS_KEPT = 100_000
_STATE_FILE = "state.json"
DEMO_DATASETS: Mapping[str, Sequence[str]] = {"Order to cash": ("Orders", "Invoices", "Deliveries")}


class DatatableInfo(TypedDict):
    """A datatable, as the ready file shows it."""

    id: str
    name: str


class DatasetInfo(TypedDict):
    """A dataset, as the ready file shows it."""

    id: str
    name: str
    datatables: list[DatatableInfo]


class TenantInfo(TypedDict):
    """A tenant, as the ready file shows it; the key of a revoked one is empty."""

    id: str
    name: str
    api_key: str
    datasets: list[DatasetInfo]


@dataclass(frozen=True, slots=True)
class TenantSeed:
    """A tenant to create: datasets and their datatables by name. An empty id or key means a random one."""

    name: str
    datasets: Mapping[str, Sequence[str]] = field(default_factory=lambda: DEMO_DATASETS)
    id: str = ""
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """How URLs are signed.

    `url_expires_seconds` overrides what callers ask for; None means their `validforseconds`, or one hour.
    `security_token` puts an X-Amz-Security-Token into each URL; that expires after `security_token_seconds`.
    """

    url_expires_seconds: int | None = None
    sign_content_type: bool = False
    security_token: str | None = field(default=None, repr=False)
    security_token_seconds: int | None = None


Record = dict[str, Any]
"""A user or a process as JSON has it; a process has its `bpmn` and `mappings` as well."""


@dataclass(slots=True)
class Datatable:
    """One datatable; its rows are counted by the object store."""

    id: str
    name: str
    created_at: str


@dataclass(slots=True)
class Dataset:
    """One dataset, or with `tree_node_type` TreeGroup a folder of the tree that holds none."""

    id: str
    name: str
    created_at: str
    tree_parent_id: str | None = None
    tree_node_type: str = "Dataset"
    datatables: list[Datatable] = field(default_factory=list)


@dataclass(slots=True)
class Tenant:
    """One tenant; without a key, nobody can call for it."""

    id: str
    name: str
    created_at: str
    api_key: str | None = field(default=None, repr=False)
    datasets: list[Dataset] = field(default_factory=list)
    short_name: str = ""
    users: list[Record] = field(default_factory=list)
    processes: list[Record] = field(default_factory=list)

    def dataset(self, dataset_id: str) -> Dataset | None:
        """Return the dataset with this id, or None."""
        return next((dataset for dataset in self.datasets if dataset.id == dataset_id), None)

    def datatable(self, datatable_id: str) -> tuple[Dataset, Datatable] | None:
        """Return the datatable with this id and the dataset it is in, or None."""
        for dataset in self.datasets:
            for datatable in dataset.datatables:
                if datatable.id == datatable_id:
                    return dataset, datatable
        return None


class Sandbox:
    """The whole state of one sandbox, without its web server. Safe to use from any thread.

    `now` is the wall clock, in seconds since the epoch. A state directory that was used before keeps its ids,
    keys and objects; of `tenants`, only those with new names are then added.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tenants: Sequence[TenantSeed] | None = None,
        options: StorageOptions | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.now = now
        self.options = options or StorageOptions()
        self.faults = Faults()
        self.store = ObjectStore(directory, now=now)
        self._file = directory / _STATE_FILE
        self._lock = threading.RLock()
        self._requests: deque[RequestRecord] = deque(maxlen=_REQUESTS_KEPT)
        self._tenants: dict[str, Tenant] = {}
        self.organization_users: list[Record] = []
        self.credentials = self._load()
        self._seed(tenants)

    def tenants(self) -> list[TenantInfo]:
        """Return the tenants with their keys, in the form of the ready file."""
        with self._lock:
            return [_tenant_info(tenant) for tenant in self._tenants.values()]

    def tenant(self, tenant_id: str) -> Tenant | None:
        """Return the tenant with this id, or None."""
        with self._lock:
            return self._tenants.get(tenant_id)

    def tenant_of_key(self, api_key: str) -> Tenant | None:
        """Return the tenant that this API key belongs to, or None."""
        with self._lock:
            known = (tenant for tenant in self._tenants.values() if tenant.api_key == api_key)
            return next(known, None)

    def revoke_key(self, tenant_id: str) -> None:
        """Take the tenant's API key away; KeyError when there is no such tenant."""
        self._set_key(tenant_id, None)

    def rotate_key(self, tenant_id: str) -> str:
        """Give the tenant a new API key and return it; the old one ends at once. KeyError as above."""
        api_key = secrets.token_urlsafe(32)
        self._set_key(tenant_id, api_key)
        return api_key

    def all_tenants(self) -> list[Tenant]:
        """Return every tenant."""
        with self._lock:
            return list(self._tenants.values())

    def delete_tenant(self, tenant: Tenant) -> None:
        """Remove a tenant with all that is in it; the objects that arrived stay on record."""
        with self.changing():
            self._tenants.pop(tenant.id, None)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change something in a `with` block; it is kept at its end."""
        with self._lock:
            yield
            self._save()

    def add_tenant(self, seed: TenantSeed, *, short_name: str = "") -> Tenant:
        """Create a tenant with its datasets and datatables."""
        tenant = Tenant(
            id=seed.id or str(uuid.uuid4()),
            name=seed.name,
            created_at=self.timestamp(),
            api_key=seed.api_key or secrets.token_urlsafe(32),
            short_name=short_name or seed.name,
        )
        with self._lock:
            self._tenants[tenant.id] = tenant
            for name, datatables in seed.datasets.items():
                dataset = self._new_dataset(tenant, name)
                for datatable in datatables:
                    self._new_datatable(dataset, datatable)
            self._save()
        return tenant

    def add_dataset(
        self,
        tenant: Tenant,
        name: str,
        *,
        tree_parent_id: str | None = None,
        tree_node_type: str = "Dataset",
    ) -> Dataset:
        """Create a dataset in a tenant."""
        with self._lock:
            dataset = self._new_dataset(tenant, name)
            dataset.tree_parent_id = tree_parent_id
            dataset.tree_node_type = tree_node_type
            self._save()
        return dataset

    def add_datatable(self, dataset: Dataset, name: str) -> Datatable:
        """Create a datatable in a dataset."""
        with self._lock:
            datatable = self._new_datatable(dataset, name)
            self._save()
        return datatable

    def delete_dataset(self, tenant: Tenant, dataset: Dataset) -> None:
        """Remove a dataset and its datatables; the objects that arrived stay on record."""
        with self._lock:
            tenant.datasets.remove(dataset)
            self._save()

    def log_request(self, record: RequestRecord) -> None:
        """Remember a request."""
        self._requests.append(record)

    def models(self) -> list[tuple[str, Record]]:
        """Return the processes that have a BPMN model, each with its tenant's name, latest last."""
        with self._lock:
            found = [
                (one.name, process) for one in self._tenants.values() for process in one.processes if process["bpmn"]
            ]
        return sorted(found, key=lambda pair: str(pair[1]["updatedAt"]))

    def names(self) -> dict[str, str]:
        """Return `tenant/dataset/datatable` by the datatable's id."""
        with self._lock:
            return {
                table.id: f"{tenant.name}/{dataset.name}/{table.name}"
                for tenant in self._tenants.values()
                for dataset in tenant.datasets
                for table in dataset.datatables
            }

    def requests(self) -> list[RequestRecord]:
        """Return the latest requests to the API and the store, oldest first."""
        return list(self._requests.copy())

    def close(self) -> None:
        """Close the files. The sandbox stays usable."""
        self.store.close()

    def _set_key(self, tenant_id: str, api_key: str | None) -> None:
        with self._lock:
            self._tenants[tenant_id].api_key = api_key
            self._save()

    def _new_dataset(self, tenant: Tenant, name: str) -> Dataset:
        dataset = Dataset(id=str(uuid.uuid4()), name=name, created_at=self.timestamp())
        tenant.datasets.append(dataset)
        return dataset

    def _new_datatable(self, dataset: Dataset, name: str) -> Datatable:
        datatable = Datatable(id=str(uuid.uuid4()), name=name, created_at=self.timestamp())
        dataset.datatables.append(datatable)
        return datatable

    def timestamp(self) -> str:
        """Return the time as the API writes it."""
        return datetime.fromtimestamp(self.now(), UTC).isoformat()

    def _seed(self, seeds: Sequence[TenantSeed] | None) -> None:
        names = {tenant.name for tenant in self._tenants.values()}
        wanted = seeds if seeds is not None or names else [TenantSeed("demo")]
        for seed in wanted or ():
            if seed.name not in names:
                self.add_tenant(seed)
        if not self._file.exists():
            self._save()

    def _load(self) -> Credentials:
        """Read the state file, or make up a new key pair where there is none."""
        saved = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.organization_users = list(saved.get("organization_users", ()))
        self._tenants = {tenant.id: tenant for tenant in _read_tenants(saved.get("tenants", ()))}
        pair = saved.get("storage") or _new_key_pair()
        return Credentials(**pair, session_token=self.options.security_token)

    def _save(self) -> None:
        pair = {
            "access_key_id": self.credentials.access_key_id,
            "secret_key": self.credentials.secret_key,
        }
        tenants = [dataclasses.asdict(tenant) for tenant in self._tenants.values()]
        write_private_json(
            self._file, {"storage": pair, "tenants": tenants, "organization_users": self.organization_users}
        )


def is_known(directory: Path) -> bool:
    """Tell whether a sandbox has used this state directory before."""
    return (directory / _STATE_FILE).exists()


def write_private_json(path: Path, value: Any) -> None:
    """Replace the file atomically; only its owner can read it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _new_key_pair() -> dict[str, str]:
    suffix = base64.b32encode(secrets.token_bytes(8)).decode().rstrip("=")
    return {"access_key_id": f"SANDBOX{suffix}", "secret_key": secrets.token_urlsafe(30)}


def _read_tenants(saved: Iterable[dict[str, Any]]) -> list[Tenant]:
    return [
        Tenant(**{**tenant, "datasets": [_read_dataset(dataset) for dataset in tenant["datasets"]]}) for tenant in saved
    ]


def _read_dataset(saved: dict[str, Any]) -> Dataset:
    return Dataset(**{**saved, "datatables": [Datatable(**datatable) for datatable in saved["datatables"]]})


def _tenant_info(tenant: Tenant) -> TenantInfo:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "api_key": tenant.api_key or "",
        "datasets": [_dataset_info(dataset) for dataset in tenant.datasets],
    }


def _dataset_info(dataset: Dataset) -> DatasetInfo:
    datatables: list[DatatableInfo] = [{"id": table.id, "name": table.name} for table in dataset.datatables]
    return {"id": dataset.id, "name": dataset.name, "datatables": datatables}
