"""The events of an answer that is made in the background, for whoever follows or takes up its stream."""

import sqlalchemy as sa
from alembic import op

revision = "response_pieces_1"
down_revision = "request_way"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "response_pieces",
        sa.Column("response_id", sa.String(64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("response_id", "place", name="pk_response_pieces"),
    )
    op.create_index("ix_response_pieces_expires_at_ns", "response_pieces", ["expires_at_ns"])


def downgrade() -> None:
    op.drop_table("response_pieces")
