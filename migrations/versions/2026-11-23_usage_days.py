"""Usage by the hour knows deployment, outcome and dialect; days, made of hours; chores of the workers."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "billing_5"
down_revision = "gateway_3"
branch_labels = None
depends_on = None

OLD = ("organisation_id", "project_id", "key_id", "alias", "model", "provider")
NAMES = (*OLD, "deployment", "outcome", "dialect")
COUNTS = (
    "requests", "input_tokens", "output_tokens", "estimated", "unpriced",
    "charge_usd", "charge_rest_pusd", "cost_usd", "cost_rest_pusd",
)  # fmt: skip


def _names(names: tuple[str, ...] = NAMES) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(64) if name.endswith("_id") else sa.Text(), nullable=False) for name in names]


def _counts() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS]


def upgrade() -> None:
    _make_hours(NAMES)
    op.create_table(
        "usage_sealed",
        sa.Column("day", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("pruned", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_usage_sealed"),
    )
    op.create_table("usage_days", sa.Column("day", sa.BigInteger(), nullable=False), *_names(), *_counts())
    op.create_index("ix_usage_days_day", "usage_days", ["day"])
    op.create_table(
        "usage_day_facets",
        sa.Column("day", sa.BigInteger(), nullable=False),
        sa.Column("facet", sa.String(16), nullable=False),
        sa.Column("name", sa.Text()),
        *_names(("organisation_id", "project_id")),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        *_counts(),
    )
    op.create_index("ix_usage_day_facets_facet_day", "usage_day_facets", ["facet", "day"])
    op.create_table(
        "usage_day_waits",
        sa.Column("day", sa.BigInteger(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("first_token_ms", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_usage_day_waits_day", "usage_day_waits", ["day"])
    op.create_table(
        "chores",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("due_ns", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(64)),
        sa.Column("done_ns", sa.BigInteger()),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("name", name="pk_chores"),
    )


def _make_hours(names: tuple[str, ...]) -> None:
    """The key is a digest of the names, so another set of names means other rows: they are made anew."""
    op.drop_table("usage_hours")
    hours = op.create_table(
        "usage_hours",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        *_names(names),
        *_counts(),
        sa.PrimaryKeyConstraint("id", name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    listed = ", ".join(names)
    found = op.get_bind().execute(
        sa.text(
            f"SELECT at_ns / 3600000000000 AS hour, {listed}, count(*) AS requests, "  # noqa: S608 - our own names
            "sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, "
            "sum(CASE WHEN estimated THEN 1 ELSE 0 END) AS estimated, "
            "sum(CASE WHEN charge_pusd IS NULL THEN 1 ELSE 0 END) AS unpriced, "
            "coalesce(sum(charge_pusd / 1000000000000), 0) AS charge_usd, "
            "coalesce(sum(charge_pusd % 1000000000000), 0) AS charge_rest_pusd, "
            "coalesce(sum(cost_pusd / 1000000000000), 0) AS cost_usd, "
            "coalesce(sum(cost_pusd % 1000000000000), 0) AS cost_rest_pusd "
            f"FROM usage_records GROUP BY at_ns / 3600000000000, {listed}"
        )
    )
    while rows := found.mappings().fetchmany(1000):
        op.bulk_insert(hours, [_counted(row, names) for row in rows])


def _counted(row: sa.RowMapping, names: tuple[str, ...]) -> dict[str, object]:
    values: dict[str, object] = {name: value if name in names else int(value) for name, value in row.items()}
    for kind in ("charge", "cost"):
        carry, values[f"{kind}_rest_pusd"] = divmod(int(row[f"{kind}_rest_pusd"]), 10**12)
        values[f"{kind}_usd"] = int(row[f"{kind}_usd"]) + carry
    said = json.dumps([row[name] for name in names], ensure_ascii=False, separators=(",", ":")).encode()
    return {"id": f"{row['hour']}:{hashlib.blake2b(said, digest_size=16).hexdigest()}", **values}


def downgrade() -> None:
    for name in ("chores", "usage_day_waits", "usage_day_facets", "usage_days", "usage_sealed"):
        op.drop_table(name)
    _make_hours(OLD)
