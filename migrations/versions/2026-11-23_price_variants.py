"""Prices by service tier, margins by organisation and plan."""

import sqlalchemy as sa
from alembic import op

revision = "billing_2"
down_revision = "gateway_2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prices", sa.Column("variant", sa.String(32), nullable=False, server_default=sa.text("''")))
    op.add_column("usage_records", sa.Column("variant", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.create_table(
        "margins",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(64), nullable=False),
        sa.Column("margin_bps", sa.Integer(), nullable=False),
        sa.Column("changed_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "scope_id", name="pk_margins"),
        sa.CheckConstraint("margin_bps >= 0", name="ck_margins_margin_not_negative"),
    )
    op.create_table(
        "plan_members",
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("plan", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("organisation_id", name="pk_plan_members"),
    )


def downgrade() -> None:
    op.drop_table("plan_members")
    op.drop_table("margins")
    op.drop_column("usage_records", "variant")
    op.drop_column("prices", "variant")
