"""Grants that expire."""

import sqlalchemy as sa
from alembic import op

revision = "billing_4"
down_revision = "billing_3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("id", sa.String(140), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("amount_pusd", sa.BigInteger(), nullable=False),
        sa.Column("granted_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expired_at_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
    )
    op.create_index("ix_grants_organisation_id", "grants", ["organisation_id"])


def downgrade() -> None:
    op.drop_table("grants")
