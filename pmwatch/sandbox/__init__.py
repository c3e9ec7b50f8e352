"""A local ProcessMind for the demo and the tests: its API, and an object store that verifies like S3.

It listens on loopback, keeps everything below one state directory, and needs no account anywhere.
The pages below `/` and `/sandbox/` ask for no key: this is a toy for one machine, never a service.
"""

from pmwatch.sandbox.faults import Fault, Faults, When
from pmwatch.sandbox.server import SandboxServer, serve
from pmwatch.sandbox.state import (
    DatasetInfo,
    DatatableInfo,
    Sandbox,
    StorageOptions,
    TenantInfo,
    TenantSeed,
)
from pmwatch.sandbox.store import ObjectRecord, RequestRecord

__all__ = [
    "DatasetInfo",
    "DatatableInfo",
    "Fault",
    "Faults",
    "ObjectRecord",
    "RequestRecord",
    "Sandbox",
    "SandboxServer",
    "StorageOptions",
    "TenantInfo",
    "TenantSeed",
    "When",
    "serve",
]
