"""What a request could choose from and what was tried, beside its usage row."""

import sqlalchemy as sa
from alembic import op

revision = "request_way"
down_revision = "guardrails_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_records", sa.Column("way", sa.Text()))


def downgrade() -> None:
    op.drop_column("usage_records", "way")
