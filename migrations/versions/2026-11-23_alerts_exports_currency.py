"""Alerts and their deliveries, what metering services have not heard of yet, currencies with dated rates."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "billing_6"
down_revision = "gateway_4"
branch_labels = None
depends_on = None

TABLES = ("export_queue", "alert_deliveries", "alert_states", "alert_rules", "exchange_rates")


def upgrade() -> None:
    op.add_column("organisations", sa.Column("currency", sa.String(3), nullable=False, server_default=sa.text("'USD'")))
    op.create_table(
        "exchange_rates",
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("effective_from_ns", sa.BigInteger(), nullable=False),
        sa.Column("per_usd_nano", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("per_usd_nano > 0", name="ck_exchange_rates_rate_positive"),
        sa.PrimaryKeyConstraint("currency", "effective_from_ns", name="pk_exchange_rates"),
    )
    op.create_table(
        "alert_rules",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("scope", sa.String(16)),
        sa.Column("scope_id", sa.String(128)),
        sa.Column("threshold", sa.BigInteger(), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alert_rules"),
    )
    op.create_table(
        "alert_states",
        sa.Column("rule_id", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("period_ns", sa.BigInteger(), nullable=False),
        sa.Column("crossed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("rule_id", "subject", name="pk_alert_states"),
    )
    op.create_table(
        "alert_deliveries",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("rule_id", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("message", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("due_ns", sa.BigInteger()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("sent_at_ns", sa.BigInteger()),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_alert_deliveries"),
    )
    op.create_index("ix_alert_deliveries_due_ns", "alert_deliveries", ["due_ns"])
    op.create_index("ix_alert_deliveries_created_at_ns", "alert_deliveries", ["created_at_ns"])
    op.create_table(
        "export_queue",
        sa.Column("export", sa.String(200), nullable=False),
        sa.Column("record_id", sa.String(128), nullable=False),
        sa.Column("due_ns", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("export", "record_id", name="pk_export_queue"),
    )
    op.create_index("ix_export_queue_export_due_ns", "export_queue", ["export", "due_ns"])


def downgrade() -> None:
    for name in TABLES:
        op.drop_table(name)
    op.drop_column("organisations", "currency")
