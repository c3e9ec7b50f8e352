"""ProcessMind's API and the storage behind its presigned URLs; the only importer of httpx."""

from pmwatch.processmind.client import Client
from pmwatch.processmind.http import Http, Timeouts, open_http
from pmwatch.processmind.models import Dataset, Datatable, TenantInfo
from pmwatch.processmind.resolve import resolve
from pmwatch.processmind.storage import Receipt, Storage, url_expiry, url_host

__all__ = [
    "Client",
    "Dataset",
    "Datatable",
    "Http",
    "Receipt",
    "Storage",
    "TenantInfo",
    "Timeouts",
    "open_http",
    "resolve",
    "url_expiry",
    "url_host",
]
