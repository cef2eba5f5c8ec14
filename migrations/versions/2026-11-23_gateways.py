"""Which gateway processes live, for whoever makes a budget's counter anew."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_4"
down_revision = "billing_5"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("seen_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_gateways"),
    )


def downgrade() -> None:
    op.drop_table("gateways")
