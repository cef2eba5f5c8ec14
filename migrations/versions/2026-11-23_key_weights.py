"""A key's share where requests wait for their turn."""

import sqlalchemy as sa
from alembic import op

revision = "key_weights"
down_revision = "usage_partitions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("virtual_keys", sa.Column("weight", sa.Integer()))


def downgrade() -> None:
    op.drop_column("virtual_keys", "weight")
