"""Folders as the configuration would make them, for tests below it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pmwatch.model import AfterUpload, Dedup, Folder, Order, Target


def make_folder(root: Path, **changes: Any) -> Folder:
    """Return a folder on `root` that goes to tenant acme, datatable table-1."""
    own = os.fsencode(root / ".pmwatch")
    folder = Folder(
        name="orders",
        root=os.fsencode(root),
        levels=(),
        target=Target("acme", "table-1"),
        include=(),
        exclude=(),
        recursive=False,
        settle_seconds=0.1,
        rescan_seconds=300.0,
        dedup=Dedup.CONTENT,
        order=Order.ARRIVAL,
        after_upload=AfterUpload.KEEP,
        archive_dir=own + b"/archive",
        quarantine_dir=own + b"/quarantine",
        tenants=frozenset({"acme"}),
    )
    return replace(folder, **changes)
