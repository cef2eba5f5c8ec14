"""Conversations that clients of the Responses API have us keep."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_3"
down_revision = "billing_4"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stored_responses",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("conversation", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_stored_responses_project_id_projects"),
        sa.PrimaryKeyConstraint("project_id", "id", name="pk_stored_responses"),
    )
    op.create_index("ix_stored_responses_expires_at_ns", "stored_responses", ["expires_at_ns"])


def downgrade() -> None:
    op.drop_table("stored_responses")
