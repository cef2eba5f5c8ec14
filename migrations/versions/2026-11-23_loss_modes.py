"""Whether a project or a key refuses what a provider has no word for, or leaves it out and tells."""

import sqlalchemy as sa
from alembic import op

revision = "loss_modes_1"
down_revision = "billing_7"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "loss_modes",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(64), nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("scope", "scope_id", name="pk_loss_modes"),
    )


def downgrade() -> None:
    op.drop_table("loss_modes")
