"""The tables, and how an older ledger becomes a newer one.

`MIGRATIONS[n]` are the statements that lead from version n to n + 1; they are never edited once released, and
the tables below describe the newest version for queries. A test holds the two against each other.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

from pmwatch.errors import LedgerNewer

metadata: Final = MetaData()

deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("folder", Text, nullable=False),
    Column("path", LargeBinary, nullable=False),
    Column("current", Integer),  # 1 for the newest row of a path, else NULL: unique with folder and path
    Column("tenant", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("datatable", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("dataset_id", Text, nullable=False),
    Column("datatable_id", Text, nullable=False),  # empty until the names are resolved
    Column("lane", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("ctime_ns", BigInteger, nullable=False),
    Column("inode", BigInteger, nullable=False),
    Column("device", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("inflight_sha256", Text),  # the hash while uploading under dedup, else NULL: unique in a datatable
    Column("etag", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("recoveries", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("settled_at", Double, nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("first_failed_at", Double, nullable=False),
    Column("uploaded_at", Double, nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("presigned_url", Text, nullable=False),
    Column("duplicate_of", Integer, nullable=False),
    Column("previous_id", Integer, nullable=False),
    Column("kept", Integer, nullable=False),  # 1 while the source stands where it landed
    Column("location", LargeBinary, nullable=False),
    Column("released", Integer, nullable=False),  # 1 once a person said that it shall go
    Column("expected_sha256", Text, nullable=False),  # what a manifest says, else empty
    Column("sort_key", LargeBinary, nullable=False),  # its place in the lane, before seq; empty by arrival
    Column("blocks", Integer, nullable=False),  # 1 while it ended badly and those behind it in the lane have to wait
    Column("resent", Integer, nullable=False),  # the action by which a person asked for this repetition, else 0
    Column("process", Text, nullable=False),  # whose BPMN model it is, else empty; its id is in datatable_id
    Column("row_count", BigInteger),  # the datatable's rows after this upload, where the API told
    Column("arrival", BigInteger, nullable=False),  # its place among the uploads to its datatable, else 0
)

actions: Final = Table(
    "actions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("who", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("deliveries", Text, nullable=False),  # their ids: "3-17,20"
)

lanes: Final = Table(
    "lanes",
    metadata,
    Column("lane", Text, primary_key=True),
    Column("ordered", Integer, nullable=False),
    Column("turn", BigInteger, nullable=False),  # counts up at every claim: the lane with the lowest goes next
)

counts: Final = Table(
    "counts",
    metadata,
    Column("folder", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("n", Integer, nullable=False),
)

destinations: Final = Table(
    "destinations",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("dataset", Text, primary_key=True),
    Column("datatable", Text, primary_key=True),
    Column("process", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("dataset_id", Text, nullable=False),
    Column("datatable_id", Text, nullable=False),
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE deliveries (
            id INTEGER PRIMARY KEY, folder TEXT NOT NULL, path BLOB NOT NULL, current INTEGER,
            tenant TEXT NOT NULL, dataset TEXT NOT NULL, datatable TEXT NOT NULL,
            tenant_id TEXT NOT NULL, dataset_id TEXT NOT NULL, datatable_id TEXT NOT NULL,
            lane TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
            detail TEXT NOT NULL, size BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, ctime_ns BIGINT NOT NULL,
            inode BIGINT NOT NULL, device BIGINT NOT NULL, sha256 TEXT NOT NULL, inflight_sha256 TEXT,
            etag TEXT NOT NULL, seq BIGINT NOT NULL, attempts INTEGER NOT NULL, recoveries INTEGER NOT NULL,
            not_before DOUBLE NOT NULL, seen_at DOUBLE NOT NULL, settled_at DOUBLE NOT NULL,
            claimed_at DOUBLE NOT NULL, first_failed_at DOUBLE NOT NULL, uploaded_at DOUBLE NOT NULL,
            finished_at DOUBLE NOT NULL, presigned_url TEXT NOT NULL, duplicate_of INTEGER NOT NULL,
            previous_id INTEGER NOT NULL, kept INTEGER NOT NULL, location BLOB NOT NULL)""",
        "CREATE UNIQUE INDEX ux_current ON deliveries (folder, path, current)",
        "CREATE UNIQUE INDEX ux_inflight ON deliveries (tenant_id, datatable_id, inflight_sha256)",
        "CREATE INDEX ix_lane ON deliveries (lane, state, seq)",
        "CREATE INDEX ix_state ON deliveries (state, not_before)",
        "CREATE INDEX ix_content ON deliveries (tenant_id, datatable_id, size, sha256)",
        "CREATE INDEX ix_latest ON deliveries (tenant_id, datatable_id, uploaded_at, seq)",
        "CREATE INDEX ix_folder ON deliveries (folder, state, settled_at)",
        "CREATE INDEX ix_uploaded ON deliveries (folder, uploaded_at)",
        "CREATE INDEX ix_seq ON deliveries (seq)",
        "CREATE TABLE lanes (lane TEXT PRIMARY KEY, ordered INTEGER NOT NULL, turn BIGINT NOT NULL)",
        """CREATE TABLE counts (
            folder TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (folder, state))""",
        """CREATE TABLE destinations (
            tenant TEXT NOT NULL, dataset TEXT NOT NULL, datatable TEXT NOT NULL, tenant_id TEXT NOT NULL,
            dataset_id TEXT NOT NULL, datatable_id TEXT NOT NULL, PRIMARY KEY (tenant, dataset, datatable))""",
    ),
    (
        "ALTER TABLE deliveries ADD COLUMN released INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deliveries ADD COLUMN expected_sha256 TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE deliveries ADD COLUMN sort_key BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE deliveries ADD COLUMN blocks INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deliveries ADD COLUMN resent INTEGER NOT NULL DEFAULT 0",
        "DROP INDEX ix_lane",
        "CREATE INDEX ix_lane ON deliveries (lane, state, sort_key, seq)",
        "CREATE INDEX ix_blocks ON deliveries (lane) WHERE blocks = 1",
        "CREATE INDEX ix_location ON deliveries (location)",
        """CREATE TABLE actions (id INTEGER PRIMARY KEY, at DOUBLE NOT NULL, who TEXT NOT NULL, command TEXT NOT NULL,
            why TEXT NOT NULL, deliveries TEXT NOT NULL)""",
        "ALTER TABLE deliveries ADD COLUMN process TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE deliveries ADD COLUMN row_count BIGINT",
        "DROP TABLE destinations",  # only what the API told, which is asked again at every start
        """CREATE TABLE destinations (
            tenant TEXT NOT NULL, dataset TEXT NOT NULL, datatable TEXT NOT NULL, process TEXT NOT NULL,
            tenant_id TEXT NOT NULL, dataset_id TEXT NOT NULL, datatable_id TEXT NOT NULL,
            PRIMARY KEY (tenant, dataset, datatable, process))""",
    ),
    (
        "ALTER TABLE deliveries ADD COLUMN arrival BIGINT NOT NULL DEFAULT 0",
        """UPDATE deliveries SET arrival = (SELECT n FROM (
            SELECT id, row_number() OVER (ORDER BY uploaded_at, seq) AS n FROM deliveries WHERE outcome = 'uploaded'
            ) AS places WHERE places.id = deliveries.id) WHERE outcome = 'uploaded'""",
        "DROP INDEX ix_latest",
        "CREATE INDEX ix_latest ON deliveries (tenant_id, datatable_id, arrival)",
    ),
)
VERSION: Final = len(MIGRATIONS)


def version_of(connection: Connection) -> int:
    """Return the ledger's version, 0 for an empty file. Raises LedgerNewer for one that this pmwatch cannot read."""
    found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    if found > VERSION:
        raise LedgerNewer(
            f"the ledger has version {found}, and this pmwatch knows versions up to {VERSION}",
            hint="A newer pmwatch wrote it: install that version again, or go back to a backup of before the upgrade "
            "with pmwatch ledger rebuild --from FILE.",
        )
    return found


def migrate(connection: Connection) -> None:
    """Bring the ledger to `VERSION` inside the caller's transaction. Raises LedgerNewer for a newer one."""
    found = version_of(connection)
    for statements in MIGRATIONS[found:]:
        for statement in statements:
            connection.execute(text(statement))
    if found != VERSION:
        connection.execute(text(f"PRAGMA user_version = {VERSION}"))
