"""Audit rows say whose organisation they are about. Those of before stay the installation's: their hashes are made."""

import sqlalchemy as sa
from alembic import op

revision = "audit_organisation"
down_revision = "keys_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audit", sa.Column("organisation_id", sa.String(64)))
    op.create_index("ix_audit_organisation_id_id", "audit", ["organisation_id", "id"])


def downgrade() -> None:
    op.drop_index("ix_audit_organisation_id_id", "audit")
    op.drop_column("audit", "organisation_id")
