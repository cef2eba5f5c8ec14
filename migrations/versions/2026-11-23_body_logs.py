"""Bodies of requests and answers, sealed, for projects that ask for it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "body_logs_1"
down_revision = "limits_away"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    op.create_table(
        "body_log_projects",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("detectors", json, nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_body_log_projects"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_body_log_projects_project_id"),
    )
    op.create_table(
        "body_logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=True),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_body_logs"),
    )
    op.create_index("ix_body_logs_request_id", "body_logs", ["request_id"])
    op.create_index("ix_body_logs_expires_at_ns", "body_logs", ["expires_at_ns"])


def downgrade() -> None:
    op.drop_table("body_logs")
    op.drop_table("body_log_projects")
