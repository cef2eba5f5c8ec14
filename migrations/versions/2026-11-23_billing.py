"""Billing: organisations and projects, budgets, price book, usage records, and the double-entry ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "billing_1"
down_revision = None
branch_labels = None
depends_on = None

# As they were when this was written: a migration does not follow what billing.schema becomes.
json = sa.JSON().with_variant(JSONB(), "postgresql")
wide_amount = sa.Numeric(38, 0).with_variant(sa.String(40), "sqlite")


def upgrade() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("credit_limit_pusd", sa.BigInteger()),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organisations"),
        sa.UniqueConstraint("name", name="uq_organisations_name"),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisations.id"], name="fk_projects_organisation_id"),
        sa.UniqueConstraint("organisation_id", "name", name="uq_projects_organisation_id_name"),
    )
    op.create_table(
        "budgets",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(128), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("limit_pusd", sa.BigInteger(), nullable=False),
        sa.Column("changed_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "scope_id", "period", name="pk_budgets"),
        sa.CheckConstraint("limit_pusd >= 0", name=op.f("ck_budgets_limit_not_negative")),
    )
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("balance_pusd", wide_amount, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.String(160), nullable=False),
        sa.Column("debit", sa.String(160), nullable=False),
        sa.Column("credit", sa.String(160), nullable=False),
        sa.Column("amount_pusd", sa.BigInteger(), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("record_id", sa.String(128)),
        sa.Column("note", sa.String(500)),
        sa.PrimaryKeyConstraint("id", name="pk_transfers"),
        sa.ForeignKeyConstraint(["debit"], ["accounts.id"], name="fk_transfers_debit"),
        sa.ForeignKeyConstraint(["credit"], ["accounts.id"], name="fk_transfers_credit"),
        sa.CheckConstraint("amount_pusd > 0", name=op.f("ck_transfers_amount_positive")),
        sa.CheckConstraint("debit <> credit", name=op.f("ck_transfers_two_accounts")),
    )
    op.create_index("ix_transfers_debit_at_ns", "transfers", ["debit", "at_ns"])
    op.create_index("ix_transfers_credit_at_ns", "transfers", ["credit", "at_ns"])
    op.create_table(
        "usage_records",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("end_user", sa.Text()),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("price_id", sa.String(64), nullable=False),
        sa.Column("quantities", json, nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("charge_pusd", sa.BigInteger()),
        sa.Column("cost_pusd", sa.BigInteger()),
        sa.Column("hold_pusd", sa.BigInteger(), nullable=False),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("first_token_ms", sa.BigInteger()),
        sa.Column("duration_ms", sa.BigInteger()),
        sa.Column("status", sa.Integer()),
        sa.Column("dialect", sa.String(64), nullable=False),
        sa.Column("tags", json, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("upstream_id", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_usage_records"),
    )
    for column in ("key_id", "project_id", "organisation_id"):
        op.create_index(f"ix_usage_records_{column}_at_ns", "usage_records", [column, "at_ns"])
    op.create_index("ix_usage_records_at_ns", "usage_records", ["at_ns"])
    unpriced = sa.text("charge_pusd IS NULL")
    op.create_index(
        "ix_usage_records_unpriced", "usage_records", ["id"], sqlite_where=unpriced, postgresql_where=unpriced
    )
    op.create_table(
        "journal_offsets",
        sa.Column("segment", sa.String(300), nullable=False),
        sa.Column("offset_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("segment", name="pk_journal_offsets"),
    )
    op.create_table(
        "price_models",
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("match", json),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("provider", "model", name="pk_price_models"),
    )
    op.create_table(
        "prices",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("effective_from_ns", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("rates", json, nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prices"),
    )


def downgrade() -> None:
    for table in (
        "prices",
        "price_models",
        "journal_offsets",
        "usage_records",
        "transfers",
        "accounts",
        "budgets",
        "projects",
        "organisations",
    ):
        op.drop_table(table)
