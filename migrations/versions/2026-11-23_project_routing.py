"""What a second is worth to a project, and whether its prompts are marked for providers' caches."""

import sqlalchemy as sa
from alembic import op

revision = "project_routing"
down_revision = "tenant_salts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project_routing",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("second_pusd", sa.BigInteger()),
        sa.Column("cache_prompts", sa.Boolean()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_project_routing_project_id"),
        sa.PrimaryKeyConstraint("project_id", name="pk_project_routing"),
    )


def downgrade() -> None:
    op.drop_table("project_routing")
