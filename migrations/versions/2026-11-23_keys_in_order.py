"""Pages of keys, the newest first, whatever number of them there is."""

from alembic import op

revision = "keys_1"
down_revision = "body_logs_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_virtual_keys_created_at_ns_id", "virtual_keys", ["created_at_ns", "id"])


def downgrade() -> None:
    op.drop_index("ix_virtual_keys_created_at_ns_id", "virtual_keys")
