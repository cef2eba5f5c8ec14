"""Since when the store of limits has not answered a gateway, for whoever sends alerts."""

import sqlalchemy as sa
from alembic import op

revision = "limits_away"
down_revision = "response_pieces_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("gateways") as table:
        table.add_column(sa.Column("limits_away_since_ns", sa.BigInteger()))


def downgrade() -> None:
    with op.batch_alter_table("gateways") as table:
        table.drop_column("limits_away_since_ns")
