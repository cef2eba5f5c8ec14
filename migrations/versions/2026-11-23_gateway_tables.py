"""Gateway: virtual keys, rate limits beside them, sign-in links and sessions, audit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_1"
down_revision = "billing_1"
branch_labels = None
depends_on = None

# As they were when this was written: a migration does not follow what gateway.schema becomes.
json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "virtual_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("public_id", sa.String(32), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("models", json),
        sa.Column("allow_ips", json),
        sa.Column("rpm", sa.BigInteger()),
        sa.Column("tpm", sa.BigInteger()),
        sa.Column("parallel", sa.BigInteger()),
        sa.Column("expires_at_ns", sa.BigInteger()),
        sa.Column("revoked_at_ns", sa.BigInteger()),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_virtual_keys"),
        sa.UniqueConstraint("public_id", name="uq_virtual_keys_public_id"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisations.id"], name="fk_virtual_keys_organisation_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_virtual_keys_project_id"),
    )
    op.create_index("ix_virtual_keys_project_id", "virtual_keys", ["project_id"])
    op.create_table(
        "rate_limits",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(128), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("window_ms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "scope_id", "unit", "window_ms", name="pk_rate_limits"),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_rate_limits_amount_not_negative")),
        sa.CheckConstraint("window_ms > 0", name=op.f("ck_rate_limits_window_positive")),
    )
    op.create_table(
        "sign_in_links",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("used_at_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("token_hash", name="pk_sign_in_links"),
    )
    op.create_table(
        "admin_sessions",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_admin_sessions"),
    )
    op.create_index("ix_admin_sessions_expires_at_ns", "admin_sessions", ["expires_at_ns"])
    op.create_table(
        "audit",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("before", json),
        sa.Column("after", json),
        sa.Column("note", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at_ns", "audit", ["at_ns"])
    op.create_index("ix_audit_subject_at_ns", "audit", ["subject", "at_ns"])


def downgrade() -> None:
    for table in ("audit", "admin_sessions", "sign_in_links", "rate_limits", "virtual_keys"):
        op.drop_table(table)
