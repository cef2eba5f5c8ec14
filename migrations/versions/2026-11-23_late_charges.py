"""Whose budgets are to be added up again, since usage of theirs was charged late."""

import sqlalchemy as sa
from alembic import op

revision = "late_charges"
down_revision = "project_routing"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "late_charges",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_late_charges"),
    )


def downgrade() -> None:
    op.drop_table("late_charges")
