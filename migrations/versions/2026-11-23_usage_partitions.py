"""Usage rows by the day on PostgreSQL, their ids in a table of their own. Nothing changes on SQLite.

No row is copied and no index is built: the table there is becomes the first partition, up to the end of tomorrow, so
that gateways of the release before, which know nothing of `usage_ids`, write where the id is still the primary key.
What takes time is that PostgreSQL reads that table once to believe that no row is younger, while nobody else may touch
it. billing/README.md says how long, and how to have it read beforehand, with nobody kept waiting.
"""

import re
import time

import sqlalchemy as sa
from alembic import op

revision = "usage_partitions"
down_revision = "audit_organisation"
branch_labels = None
depends_on = None

DAY_NS = 86_400 * 10**9
INDEXES = {
    "ix_usage_records_key_id_at_ns": "(key_id, at_ns)",
    "ix_usage_records_project_id_at_ns": "(project_id, at_ns)",
    "ix_usage_records_organisation_id_at_ns": "(organisation_id, at_ns)",
    "ix_usage_records_at_ns": "(at_ns)",
    "ix_usage_records_unpriced": "(id) WHERE charge_pusd IS NULL",
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE")
    end_ns = _end_ns()
    op.execute("ALTER TABLE usage_records RENAME TO usage_records_before")
    op.execute("ALTER TABLE usage_records_before RENAME CONSTRAINT pk_usage_records TO pk_usage_records_before")
    for name in INDEXES:
        op.execute(f"ALTER INDEX {name} RENAME TO {name.replace('usage_records', 'usage_records_before')}")
    op.execute("CREATE TABLE usage_records (LIKE usage_records_before INCLUDING DEFAULTS) PARTITION BY RANGE (at_ns)")
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON usage_records {columns}")
    op.execute(
        f"ALTER TABLE usage_records ATTACH PARTITION usage_records_before FOR VALUES FROM (MINVALUE) TO ({end_ns})"
    )
    op.execute("CREATE TABLE usage_records_other PARTITION OF usage_records DEFAULT")
    op.execute("ALTER TABLE usage_records_other ADD CONSTRAINT pk_usage_records_other PRIMARY KEY (id)")
    op.create_table(
        "usage_ids",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_ids"),
    )
    op.create_index("ix_usage_ids_at_ns", "usage_ids", ["at_ns"], postgresql_using="brin")
    # What is queued is looked up there.
    op.execute(
        "INSERT INTO usage_ids SELECT id, at_ns FROM usage_records WHERE id IN (SELECT record_id FROM export_queue)"
    )


def _end_ns() -> int:
    """Where days begin: where the operator has had it checked, the end of tomorrow, or the end of the youngest row's
    day where that is later. Today's beginning where there is no row."""
    bind = op.get_bind()
    checked = bind.execute(
        sa.text(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'usage_records'::regclass "
            "AND conname = 'usage_records_before' AND convalidated"
        )
    ).scalar_one_or_none()
    if checked is not None:
        return int(re.sub(r"\D", "", checked.partition("<")[2].partition("::")[0]))
    today = time.time_ns() // DAY_NS
    youngest = bind.execute(sa.text("SELECT max(at_ns) FROM usage_records")).scalar_one_or_none()
    return today * DAY_NS if youngest is None else max(today + 2, youngest // DAY_NS + 1) * DAY_NS


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.drop_table("usage_ids")
    op.execute("ALTER TABLE usage_records RENAME TO usage_records_by_day")
    for name in INDEXES:
        op.execute(f"ALTER INDEX {name} RENAME TO {name}_by_day")
    op.execute("CREATE TABLE usage_records (LIKE usage_records_by_day INCLUDING DEFAULTS)")
    op.execute("INSERT INTO usage_records SELECT * FROM usage_records_by_day")
    op.execute("DROP TABLE usage_records_by_day")
    op.execute("ALTER TABLE usage_records ADD CONSTRAINT pk_usage_records PRIMARY KEY (id)")
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON usage_records {columns}")
