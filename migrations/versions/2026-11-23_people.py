"""Front office: people, whose links, sessions and tokens these are, and a hash chain through the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_2"
down_revision = "gateway_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Links and sessions of the first form belonged to nobody: whoever holds one signs in anew.
    op.drop_table("sign_in_links")
    op.drop_table("admin_sessions")
    op.create_table(
        "admin_users",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("password_hash", sa.String(200)),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_admin_users"),
        sa.UniqueConstraint("name", name="uq_admin_users_name"),
    )
    op.create_table(
        "sign_in_links",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("used_at_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("token_hash", name="pk_sign_in_links"),
        sa.ForeignKeyConstraint(["user_id"], ["admin_users.id"], name="fk_sign_in_links_user_id"),
    )
    op.create_table(
        "admin_sessions",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_admin_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["admin_users.id"], name="fk_admin_sessions_user_id"),
    )
    op.create_index("ix_admin_sessions_expires_at_ns", "admin_sessions", ["expires_at_ns"])
    op.create_index("ix_admin_sessions_user_id", "admin_sessions", ["user_id"])
    op.create_table(
        "admin_tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger()),
        sa.Column("revoked_at_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_admin_tokens"),
        sa.ForeignKeyConstraint(["user_id"], ["admin_users.id"], name="fk_admin_tokens_user_id"),
        sa.UniqueConstraint("token_hash", name="uq_admin_tokens_token_hash"),
    )
    op.create_table(
        "sign_in_failures",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(260), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sign_in_failures"),
    )
    op.create_index("ix_sign_in_failures_subject_at_ns", "sign_in_failures", ["subject", "at_ns"])
    # Nothing has written audit rows before this release, so no row is without its hash.
    with op.batch_alter_table("audit") as audit:
        audit.add_column(sa.Column("hash", sa.LargeBinary(32), nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("audit") as audit:
        audit.drop_column("hash")
    for table in ("sign_in_failures", "admin_tokens", "admin_sessions", "sign_in_links", "admin_users"):
        op.drop_table(table)
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
