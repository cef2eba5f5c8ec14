"""Usage by the hour, filled from the rows that are there."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "billing_3"
down_revision = "billing_2"
branch_labels = None
depends_on = None

NAMES = ("organisation_id", "project_id", "key_id", "alias", "model", "provider")


def upgrade() -> None:
    hours = op.create_table(
        "usage_hours",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("estimated", sa.BigInteger(), nullable=False),
        sa.Column("unpriced", sa.BigInteger(), nullable=False),
        sa.Column("charge_usd", sa.BigInteger(), nullable=False),
        sa.Column("charge_rest_pusd", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.BigInteger(), nullable=False),
        sa.Column("cost_rest_pusd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    names = ", ".join(NAMES)
    found = op.get_bind().execute(
        sa.text(
            f"SELECT at_ns / 3600000000000 AS hour, {names}, count(*) AS requests, "  # noqa: S608 - our own names
            "sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, "
            "sum(CASE WHEN estimated THEN 1 ELSE 0 END) AS estimated, "
            "sum(CASE WHEN charge_pusd IS NULL THEN 1 ELSE 0 END) AS unpriced, "
            "coalesce(sum(charge_pusd / 1000000000000), 0) AS charge_usd, "
            "coalesce(sum(charge_pusd % 1000000000000), 0) AS charge_rest_pusd, "
            "coalesce(sum(cost_pusd / 1000000000000), 0) AS cost_usd, "
            "coalesce(sum(cost_pusd % 1000000000000), 0) AS cost_rest_pusd "
            f"FROM usage_records GROUP BY at_ns / 3600000000000, {names}"
        )
    )
    while rows := found.mappings().fetchmany(1000):
        op.bulk_insert(hours, [_counted(row) for row in rows])


def _counted(row: sa.RowMapping) -> dict[str, object]:
    values: dict[str, object] = {name: value if name in NAMES else int(value) for name, value in row.items()}
    for kind in ("charge", "cost"):
        carry, values[f"{kind}_rest_pusd"] = divmod(int(row[f"{kind}_rest_pusd"]), 10**12)
        values[f"{kind}_usd"] = int(row[f"{kind}_usd"]) + carry
    said = json.dumps([row[name] for name in NAMES], ensure_ascii=False, separators=(",", ":")).encode()
    return {"id": f"{row['hour']}:{hashlib.blake2b(said, digest_size=16).hexdigest()}", **values}


def downgrade() -> None:
    op.drop_table("usage_hours")
