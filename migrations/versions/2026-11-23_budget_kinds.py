"""Budgets that tell or slow down instead of refusing, raises for a time, and teams of projects."""

import sqlalchemy as sa
from alembic import op

revision = "billing_7"
down_revision = "batches_1"
branch_labels = None
depends_on = None

COLUMNS = (
    ("kind", sa.String(8), "'hard'"),
    ("slow_rpm", sa.BigInteger(), "0"),
    ("slow_from_percent", sa.Integer(), "100"),
    ("raise_pusd", sa.BigInteger(), "0"),
)


def upgrade() -> None:
    op.create_table(
        "teams",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_teams"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_teams_organisation_id_organisations"
        ),
        sa.UniqueConstraint("organisation_id", "name", name="uq_teams_organisation_id_name"),
    )
    for name, kind, default in COLUMNS:
        op.add_column("budgets", sa.Column(name, kind, nullable=False, server_default=sa.text(default)))
    op.add_column("budgets", sa.Column("raise_until_ns", sa.BigInteger()))
    # In one statement, as both have it: Alembic would copy SQLite's table, which may not be dropped while a key belongs
    # to one of its rows.
    op.execute(
        "ALTER TABLE projects ADD COLUMN team_id VARCHAR(64) CONSTRAINT fk_projects_team_id_teams REFERENCES teams (id)"
    )


def downgrade() -> None:
    with op.batch_alter_table("projects") as projects:
        projects.drop_column("team_id")
    op.drop_column("budgets", "raise_until_ns")
    for name, _, _ in reversed(COLUMNS):
        op.drop_column("budgets", name)
    op.drop_table("teams")
