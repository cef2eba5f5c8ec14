"""Guardrails, and what they said of requests."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "guardrails_1"
down_revision = "catalogue_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    op.create_table(
        "guardrails",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("stage", sa.String(8), nullable=False),
        sa.Column("action", sa.String(8), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("message", sa.String(1000)),
        sa.Column("spec", json, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_guardrails"),
    )
    op.create_index("ix_guardrails_scope_scope_id", "guardrails", ["scope", "scope_id"])
    op.create_table(
        "guardrail_reports",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=True
        ),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(200), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("findings", json, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_guardrail_reports"),
    )
    op.create_index("ix_guardrail_reports_request_id", "guardrail_reports", ["request_id"])
    op.create_index("ix_guardrail_reports_at_ns", "guardrail_reports", ["at_ns"])


def downgrade() -> None:
    op.drop_table("guardrail_reports")
    op.drop_table("guardrails")
