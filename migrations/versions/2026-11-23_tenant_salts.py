"""A salt for each organisation, with which its bodies are sealed from now on. Those sealed before open as before."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "tenant_salts"
down_revision = "key_weights"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant_salts",
        sa.Column("organisation_id", sa.String(64), sa.ForeignKey("organisations.id"), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("organisation_id", name="pk_tenant_salts"),
    )
    op.add_column("body_logs", sa.Column("salted_for", sa.String(64)))
    connection = op.get_bind()
    logging = "SELECT DISTINCT organisation_id FROM projects JOIN body_log_projects ON project_id = projects.id"
    for (organisation_id,) in connection.execute(sa.text(logging)).all():
        connection.execute(
            sa.text("INSERT INTO tenant_salts (organisation_id, salt) VALUES (:of, :salt)"),
            {"of": organisation_id, "salt": secrets.token_bytes(32)},
        )


def downgrade() -> None:
    """What was sealed with a salt is lost: nothing opens it without."""
    op.execute("DELETE FROM body_logs WHERE salted_for IS NOT NULL")
    with op.batch_alter_table("body_logs") as table:
        table.drop_column("salted_for")
    op.drop_table("tenant_salts")
