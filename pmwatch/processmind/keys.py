"""The tenants' API keys: read from their files when needed, and again when a file changes."""

import os
import threading
from collections.abc import Callable, Iterable

from pmwatch.errors import KeyUnavailable
from pmwatch.model import Tenant

_Stamp = tuple[int, int, int]
_LARGEST_KEY_FILE = 64 * 1024


class KeyRing:
    """Hands out API keys by tenant name. `on_key` is told of every key read, so that logs can redact it."""

    def __init__(self, tenants: Iterable[Tenant], *, on_key: Callable[[str], None] = lambda _: None) -> None:
        self._tenants = {tenant.name: tenant for tenant in tenants}
        self._on_key = on_key
        self._lock = threading.Lock()
        self._read: dict[str, tuple[_Stamp, str]] = {}
        self._seen: dict[str, _Stamp] = {}
        for tenant in self._tenants.values():
            on_key(tenant.api_key)

    def key(self, name: str) -> str:
        """Return the key of a tenant. Raises KeyUnavailable where its file is absent, unreadable or empty."""
        tenant = self._tenants[name]
        if tenant.api_key:
            return tenant.api_key
        try:
            return self._from_file(tenant)
        except OSError as error:
            denied = isinstance(error, PermissionError)
            raise self._unavailable(tenant, f"{error.strerror}", hint=_denied_hint(tenant) if denied else "") from None

    def _from_file(self, tenant: Tenant) -> str:
        stamp = _stamp(tenant.api_key_file)
        with self._lock:
            self._seen[tenant.name] = stamp
            cached = self._read.get(tenant.name)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        with open(tenant.api_key_file, encoding="utf-8", errors="replace") as file:
            key = file.read(_LARGEST_KEY_FILE).strip()
        if not key or not key.isascii() or not key.isprintable():
            raise self._unavailable(tenant, "it is empty" if not key else "it does not hold one line of plain text")
        self._on_key(key)
        with self._lock:
            self._read[tenant.name] = (stamp, key)
        return key

    def _unavailable(self, tenant: Tenant, why: str, *, hint: str = "") -> KeyUnavailable:
        return KeyUnavailable(
            f"the API key of tenant {tenant.name!r} cannot be read from {tenant.api_key_file}: {why}",
            hint=hint or self.renewal_hint(tenant.name),
        )

    def renewal_hint(self, name: str) -> str:
        """Say how a new key for this tenant comes into force."""
        tenant = self._tenants[name]
        if tenant.api_key:
            return "Write the new key into the configuration and reload (SIGHUP)."
        if tenant.from_systemd:
            return "Replace the credential's source and restart the service: systemd copies credentials at start."
        return f"Put the key into {tenant.api_key_file}; it is read again by itself."

    def changed(self, name: str) -> bool:
        """Tell whether there is a key file that differs from the one last looked at."""
        tenant = self._tenants[name]
        with self._lock:
            seen = self._seen.get(name)
        try:
            return bool(tenant.api_key_file) and seen != _stamp(tenant.api_key_file)
        except OSError:
            return False

    def refresh(self, name: str, *, refused: str) -> bool:
        """Read the key again whatever the file's times say; tell whether it is another one than was `refused`."""
        if self._tenants[name].api_key:
            return False
        with self._lock:
            self._read.pop(name, None)
        return self.key(name) != refused


def _denied_hint(tenant: Tenant) -> str:
    if tenant.from_systemd:
        return "A credential is for the service and for root: run the command as root."
    file = tenant.api_key_file
    user = f"pmwatch's user (uid {os.geteuid()})"
    return f"Give {user} read access to {file}, and let it into the directories above; it is read again by itself."


def _stamp(path: str) -> _Stamp:
    st = os.stat(path)  # follows links: Kubernetes swaps a link when a Secret changes
    return st.st_ino, st.st_mtime_ns, st.st_size
