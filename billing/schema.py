"""SQL tables of billing. Times are nanoseconds since 1970, UTC; amounts are pUSD."""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.db import WideAmount, metadata

_Json: Final = JSON().with_variant(JSONB(), "postgresql")

organisations: Final = Table(
    "organisations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    # None: billed afterwards, without limit. 0: prepaid, spends what it topped up. More: may owe up to that.
    Column("credit_limit_pusd", BigInteger),
    Column("created_at_ns", BigInteger, nullable=False),
    # What invoices are shown in, ISO 4217. The ledger stays in pUSD.
    Column("currency", String(3), nullable=False, server_default=text("'USD'")),
)

projects: Final = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("team_id", String(64), ForeignKey("teams.id", name="fk_projects_team_id_teams")),
    UniqueConstraint("organisation_id", "name"),
)

# Several projects of one organisation under one budget.
teams: Final = Table(
    "teams",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    UniqueConstraint("organisation_id", "name"),
)

budgets: Final = Table(
    "budgets",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("scope_id", String(128), primary_key=True),
    Column("period", String(8), primary_key=True),  # "window" is a reserved word in PostgreSQL.
    Column("limit_pusd", BigInteger, nullable=False),
    Column("changed_at_ns", BigInteger, nullable=False),
    # hard, soft, throttle: what happens to a request that it does not cover. The next two are a throttle's.
    Column("kind", String(8), nullable=False, server_default=text("'hard'")),
    Column("slow_rpm", BigInteger, nullable=False, server_default=text("0")),
    Column("slow_from_percent", Integer, nullable=False, server_default=text("100")),
    # Beside the limit, until then.
    Column("raise_pusd", BigInteger, nullable=False, server_default=text("0")),
    Column("raise_until_ns", BigInteger),
    CheckConstraint("limit_pusd >= 0", name="limit_not_negative"),
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("kind", String(16), nullable=False),
    # Debits minus credits, kept in the same transaction as the transfers: reading a balance adds up nothing.
    Column("balance_pusd", WideAmount, nullable=False),
)

transfers: Final = Table(
    "transfers",
    metadata,
    # Made from what caused it (record id and kind), so that posting twice is seen, not done.
    Column("id", String(160), primary_key=True),
    Column("debit", String(160), ForeignKey("accounts.id"), nullable=False),
    Column("credit", String(160), ForeignKey("accounts.id"), nullable=False),
    Column("amount_pusd", BigInteger, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("record_id", String(128)),
    Column("note", String(500)),
    CheckConstraint("amount_pusd > 0", name="amount_positive"),
    CheckConstraint("debit <> credit", name="two_accounts"),
    # Statements: what left and what entered one account in a month.
    Index(None, "debit", "at_ns"),
    Index(None, "credit", "at_ns"),
)

usage_records: Final = Table(
    "usage_records",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("organisation_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    # Text without a bound: some of these come from clients and providers, and no row may fail for its length.
    Column("end_user", Text),
    Column("alias", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("price_id", String(64), nullable=False),
    Column("quantities", _Json, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    # None: counted, but its price is not known yet; billing.worker.post_unpriced comes back to it.
    Column("charge_pusd", BigInteger),
    Column("cost_pusd", BigInteger),
    Column("hold_pusd", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("finish_reason", Text),
    Column("first_token_ms", BigInteger),
    Column("duration_ms", BigInteger),
    Column("status", Integer),
    Column("dialect", String(64), nullable=False),
    Column("tags", _Json, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("upstream_id", Text),
    # The price variant that was answered: "" (standard), flex, priority, batch, or a tier that we have no price for.
    Column("variant", Text, nullable=False, server_default=text("''")),
    # gateway.routing.explaining.Way as JSON, where there was something to choose or something failed.
    Column("way", Text),
    # What has been spent in a budget's window, on the way up from the key.
    Index(None, "key_id", "at_ns"),
    Index(None, "project_id", "at_ns"),
    Index(None, "organisation_id", "at_ns"),
    # Reports over everybody, and in time retention.
    Index(None, "at_ns"),
)
# Small: only what waits for a price is in it.
Index("ix_usage_records_unpriced", usage_records.c.id, sqlite_where=usage_records.c.charge_pusd.is_(None),
      postgresql_where=usage_records.c.charge_pusd.is_(None))  # fmt: skip

# Those that expire; what they moved is in transfers as grant:<id> and expiry:<id>.
grants: Final = Table(
    "grants",
    metadata,
    Column("id", String(140), primary_key=True),
    Column("organisation_id", String(64), nullable=False),
    Column("amount_pusd", BigInteger, nullable=False),
    Column("granted_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("expired_at_ns", BigInteger),  # When what was left of it was taken back.
    # What an organisation was given, to see what is left of it.
    Index(None, "organisation_id"),
)

_counted: Final = (
    "requests", "input_tokens", "output_tokens", "estimated", "unpriced",
    # Whole dollars, and what is below a dollar.
    "charge_usd", "charge_rest_pusd", "cost_usd", "cost_rest_pusd",
)  # fmt: skip


def _counts() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in _counted]


def _names() -> list[Column[str]]:
    short = [Column(name, String(64), nullable=False) for name in ("organisation_id", "project_id", "key_id")]
    long = ("alias", "model", "provider", "deployment", "outcome", "dialect")
    return [*short, *(Column(name, Text, nullable=False) for name in long)]


# billing.rollups: usage by the hour, in the same transaction as the rows it sums up.
usage_hours: Final = Table(
    "usage_hours",
    metadata,
    Column("id", String(64), primary_key=True),  # A digest of hour and names.
    Column("hour", BigInteger, nullable=False),  # Since 1970.
    *_names(),
    *_counts(),
    # Reports over a time.
    Index(None, "hour"),
)

# billing.days: days of UTC that are over, made from the hours and the rows of that day. `usage_sealed` says which ones
# may be read; a late row takes its day out of it.
usage_sealed: Final = Table(
    "usage_sealed",
    metadata,
    Column("day", BigInteger, primary_key=True, autoincrement=False),  # Since 1970, as in the next three.
    # The rows themselves are gone (billing.retention): what was made of them can not be made again.
    Column("pruned", Boolean, nullable=False),
)

usage_days: Final = Table(
    "usage_days", metadata, Column("day", BigInteger, nullable=False), *_names(), *_counts(), Index(None, "day")
)

# What there are too many names of to keep by the hour and beside everything else.
usage_day_facets: Final = Table(
    "usage_day_facets",
    metadata,
    Column("day", BigInteger, nullable=False),
    Column("facet", String(16), nullable=False),  # end_user, tag
    Column("name", Text),  # None: requests without one. With two tags a request stands under both.
    Column("organisation_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("failed", BigInteger, nullable=False),
    *_counts(),
    Index(None, "facet", "day"),
)

# How long the first token took, by the millisecond below a second and by the hundredth of a second above.
usage_day_waits: Final = Table(
    "usage_day_waits",
    metadata,
    Column("day", BigInteger, nullable=False),
    Column("provider", Text, nullable=False),
    Column("first_token_ms", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Index(None, "day"),
)

# billing.chores: what any worker does now and then, one at a time.
chores: Final = Table(
    "chores",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("due_ns", BigInteger, nullable=False),  # While it is being done: when its holder is taken for dead.
    Column("holder", String(64)),
    Column("done_ns", BigInteger),
    Column("problem", Text),  # What the last try failed with.
)

# How far each journal segment has been shipped: moves in the transaction that writes its rows.
journal_offsets: Final = Table(
    "journal_offsets",
    metadata,
    Column("segment", String(300), primary_key=True),
    Column("offset_bytes", BigInteger, nullable=False),
)

# Which names a provider's model answers to. Prices are per (provider, model).
price_models: Final = Table(
    "price_models",
    metadata,
    Column("provider", String(64), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("match", _Json),  # billing.prices.matches; None: its own name alone.
    Column("position", Integer, nullable=False),  # The first match wins.
)

# Append-only: a price that has been charged stays readable for ever.
prices: Final = Table(
    "prices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("provider", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("effective_from_ns", BigInteger, nullable=False),
    Column("position", Integer, nullable=False),  # Among rows of the same instant the highest wins.
    Column("rates", _Json, nullable=False),  # billing.prices.Rates
    Column("source", String(64), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("variant", String(32), nullable=False, server_default=text("''")),  # billing.prices.variant_of
)

# Sale = cost x margin / 10,000, for one organisation or for all that are on a plan.
margins: Final = Table(
    "margins",
    metadata,
    Column("scope", String(16), primary_key=True),  # organisation, plan
    Column("scope_id", String(64), primary_key=True),
    Column("margin_bps", Integer, nullable=False),
    Column("changed_at_ns", BigInteger, nullable=False),
    CheckConstraint("margin_bps >= 0", name="margin_not_negative"),
)

plan_members: Final = Table(
    "plan_members",
    metadata,
    Column("organisation_id", String(64), primary_key=True),
    Column("plan", String(64), nullable=False),
)

# billing.currency: append-only; an invoice names the rate and the day that it was shown with.
exchange_rates: Final = Table(
    "exchange_rates",
    metadata,
    Column("currency", String(3), primary_key=True),
    Column("effective_from_ns", BigInteger, primary_key=True),
    Column("per_usd_nano", BigInteger, nullable=False),  # So many 10**-9 of its unit are one US dollar.
    Column("source", String(200), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    CheckConstraint("per_usd_nano > 0", name="rate_positive"),
)

# billing.alerts: when somebody wants to be told of what, and where.
alert_rules: Final = Table(
    "alert_rules",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),  # billing.alerts.Kind
    Column("scope", String(16)),  # None: of any kind.
    Column("scope_id", String(128)),  # None: each one.
    Column("threshold", BigInteger, nullable=False),  # Basis points, or pUSD for a balance.
    Column("channel", String(16), nullable=False),
    Column("target", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
)

# On which side of its threshold each thing was when it was last looked at.
alert_states: Final = Table(
    "alert_states",
    metadata,
    Column("rule_id", String(64), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("period_ns", BigInteger, nullable=False),  # When the budget's window began: a new one may cross again.
    Column("crossed", Boolean, nullable=False),
)

# Written with the crossing, sent afterwards, and kept.
alert_deliveries: Final = Table(
    "alert_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("rule_id", String(64), nullable=False),
    Column("channel", String(16), nullable=False),
    Column("target", Text, nullable=False),
    Column("message", _Json, nullable=False),  # billing.alerts.Message
    Column("created_at_ns", BigInteger, nullable=False),
    Column("due_ns", BigInteger),  # None: sent, or given up.
    Column("attempts", Integer, nullable=False),
    Column("sent_at_ns", BigInteger),
    Column("problem", Text),
    # What is to be sent now; what was sent lately.
    Index(None, "due_ns"),
    Index(None, "created_at_ns"),
)

# billing.exports: requests that a metering service has not heard of yet, written with their rows.
export_queue: Final = Table(
    "export_queue",
    metadata,
    Column("export", String(200), primary_key=True),
    Column("record_id", String(128), primary_key=True),
    Column("due_ns", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("problem", Text),
    Index(None, "export", "due_ns"),
)

# Organisations with usage that was charged late, until whoever counts budgets elsewhere has counted them anew.
late_charges: Final = Table(
    "late_charges",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("organisation_id", String(64), nullable=False),
)
