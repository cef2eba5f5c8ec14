"""SQL tables of the gateway: keys, rate limits, sign-in, audit. Times are nanoseconds since 1970, UTC.

Money, and whom it belongs to, is in billing.schema.
"""

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
    LargeBinary,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing import schema as billing_schema
from billing.db import metadata
from gateway import identity

assert billing_schema.organisations.metadata is metadata  # Our foreign keys point into its tables.
assert identity.memberships.metadata is metadata  # The rest of ours.

_Json: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

virtual_keys: Final = Table(
    "virtual_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    # The part of the key that is no secret: look-ups, logs, lists.
    Column("public_id", String(32), nullable=False, unique=True),
    # HMAC-SHA-256 of the whole key under the pepper, which is not in this database.
    Column("secret_hash", LargeBinary(32), nullable=False),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("models", _Json),  # Globs of aliases. None: all.
    Column("allow_ips", _Json),  # Networks in CIDR form. None: from anywhere.
    Column("rpm", BigInteger),  # None here and in the next two: no limit of its own.
    Column("tpm", BigInteger),
    Column("parallel", BigInteger),
    Column("weight", Integer),  # Its share where requests wait for a turn. None: 1.
    Column("expires_at_ns", BigInteger),
    Column("revoked_at_ns", BigInteger),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),
    # Lists of keys, all of them or a project's.
    Index(None, "project_id"),
    Index(None, "created_at_ns", "id"),
)

# Limits above or beside the single key. A key's own three stand in its row.
rate_limits: Final = Table(
    "rate_limits",
    metadata,
    # organisation, project: all of their keys together. end_user: each end user of the project `scope_id` by itself.
    Column("scope", String(16), primary_key=True),
    Column("scope_id", String(128), primary_key=True),
    Column("unit", String(16), primary_key=True),  # requests, tokens, parallel
    Column("window_ms", BigInteger, primary_key=True),
    Column("amount", BigInteger, nullable=False),  # "limit" is a reserved word.
    CheckConstraint("amount >= 0", name="amount_not_negative"),
    CheckConstraint("window_ms > 0", name="window_positive"),
)

# People who use the dashboard and the admin API.
admin_users: Final = Table(
    "admin_users",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("role", String(32), nullable=False),
    Column("password_hash", String(200)),  # None: signs in by link until one is set.
    Column("created_at_ns", BigInteger, nullable=False),
    Column("disabled_at_ns", BigInteger),
)

# One-time links to the dashboard. Of them, sessions and tokens only the SHA-256 is kept: they are long and random, so
# no salt is needed.
sign_in_links: Final = Table(
    "sign_in_links",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("user_id", String(64), ForeignKey("admin_users.id"), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("used_at_ns", BigInteger),
)

admin_sessions: Final = Table(
    "admin_sessions",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("user_id", String(64), ForeignKey("admin_users.id"), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("last_seen_at_ns", BigInteger, nullable=False),
    # Clearing out what has expired; signing a person out everywhere.
    Index(None, "expires_at_ns"),
    Index(None, "user_id"),
)

# For automation: what a person may do, or less, without a browser.
admin_tokens: Final = Table(
    "admin_tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),
    Column("user_id", String(64), ForeignKey("admin_users.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("role", String(32), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger),
    Column("revoked_at_ns", BigInteger),
)

# Failed sign-ins, for as long as they count against the next try.
sign_in_failures: Final = Table(
    "sign_in_failures",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("subject", String(260), nullable=False),  # address:... or name:...
    Column("at_ns", BigInteger, nullable=False),
    Index(None, "subject", "at_ns"),
)

# Append-only: who changed what, from what to what. Never a secret, never a key's hash. Written by gateway.audit alone.
audit: Final = Table(
    "audit",
    metadata,
    # SQLite numbers rows by itself only in an INTEGER column.
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("before", _Json),
    Column("after", _Json),
    Column("note", Text),
    # Whose administrators may read it. None: the installation's alone. No foreign key: a trace outlives what it is of.
    Column("organisation_id", String(64)),
    # Covers the row and the hash of the row before it.
    Column("hash", LargeBinary(32), nullable=False),
    # What happened lately; what happened to one thing; what happened in one organisation, the newest first.
    Index(None, "at_ns"),
    Index(None, "subject", "at_ns"),
    Index(None, "organisation_id", "id"),
)

# What clients of the Responses API said `store` to: the whole conversation up to an answer, and the answer itself.
# People's words, so they are kept for a while only, and for nobody but the project that had them.
stored_responses: Final = Table(
    "stored_responses",
    metadata,
    # A provider's ids may meet by chance or by design: one is found in its own project alone.
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("conversation", LargeBinary, nullable=False),  # JSON array: input and output, as the next turn needs them.
    Column("body", LargeBinary, nullable=False),  # JSON object, as the client got it.
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    # What is past its time goes.
    Index(None, "expires_at_ns"),
)

# What an answer made in the background said so far, for those who follow its stream or take it up again.
response_pieces: Final = Table(
    "response_pieces",
    metadata,
    Column("response_id", String(64), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),  # Whole events, as the client gets them.
    Column("expires_at_ns", BigInteger, nullable=False),
    # What is past its time goes.
    Index(None, "expires_at_ns"),
)

# Processes that may hold money in Redis: whoever makes a budget's counter anew waits for all of them.
gateways: Final = Table(
    "gateways",
    metadata,
    Column("id", String(64), primary_key=True),  # Its journal's folder and run.
    Column("seen_at_ns", BigInteger, nullable=False),
    Column("limits_away_since_ns", BigInteger),  # None: the store of limits answers it.
)

# What clients uploaded, and what became of it. Kept for a while only; the bytes lie in `file_pieces`.
files: Final = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    # A project's list, newest first; what is past its time.
    Index(None, "project_id", "created_at_ns"),
    Index(None, "expires_at_ns"),
)

file_pieces: Final = Table(
    "file_pieces",
    metadata,
    # No foreign key: the bytes of an output file are there before the file is.
    Column("file_id", String(64), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

batches: Final = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("key_id", String(64), nullable=False),  # Whose limits and budgets every line is held against.
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("metadata", LargeBinary),  # JSON object, the client's own.
    Column("errors", LargeBinary),  # JSON array of what was wrong with the file.
    Column("status", String(16), nullable=False),
    Column("total", Integer, nullable=False),
    # While it has lines, these are counted there.
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    # Of whoever is closing it.
    Column("owner", String(200)),
    Column("lease_until_ns", BigInteger, nullable=False, default=0),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("finalizing_at_ns", BigInteger),
    Column("cancelling_at_ns", BigInteger),
    Column("ended_at_ns", BigInteger),
    # A project's list; what there is to do, oldest first.
    Index(None, "project_id", "created_at_ns"),
    Index(None, "status", "created_at_ns"),
)

# One request of a batch, until the batch has become files.
batch_lines: Final = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), ForeignKey("batches.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("custom_id", String(512), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False, default="waiting"),  # waiting, running, done
    Column("tries", Integer, nullable=False, default=0),
    Column("owner", String(200)),
    Column("lease_until_ns", BigInteger, nullable=False, default=0),
    Column("not_before_ns", BigInteger, nullable=False, default=0),
    Column("good", Boolean),
    Column("result", LargeBinary),  # The line of the output or error file.
    # Leases that one process renews.
    Index(None, "state", "owner"),
)

# What becomes of a request that says something its provider has no word for: refused by name, or run and told what was
# left out. Where there is no row, the settings say.
loss_modes: Final = Table(
    "loss_modes",
    metadata,
    Column("scope", String(16), primary_key=True),  # project, key
    Column("scope_id", String(64), primary_key=True),
    Column("mode", String(8), nullable=False),  # strict, lenient
)

# What operators offer beside the settings (gateway.catalogue), every version whole: the newest one is in force. The
# oldest ones go.
catalogue_versions: Final = Table(
    "catalogue_versions",
    metadata,
    # Counted by whoever writes: two who write at once cannot both have the next number.
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("change", String(400), nullable=False),  # As `aliases.put fast`.
    Column("document", LargeBinary, nullable=False),  # JSON, gateway.catalogue.document. Never a secret.
)

# Credentials of providers, sealed (gateway.envelope) under the row's id.
provider_credentials: Final = Table(
    "provider_credentials",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("kind", String(64), nullable=False),  # Of the provider it is for.
    Column("key_id", String(32), nullable=False),  # Which key of the ring wraps the data key.
    Column("wrapped", LargeBinary, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),  # JSON object: field -> value or reference.
    Column("shown", _Json, nullable=False),  # What of it may be seen again: references, last characters, fingerprints.
    Column("created_at_ns", BigInteger, nullable=False),
    Column("changed_at_ns", BigInteger, nullable=False),
    Column("changed_by", String(200), nullable=False),
)

# What may not go in or come out. Read with a key; many keys share one row.
guardrails: Final = Table(
    "guardrails",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("scope", String(16), nullable=False),  # all, organisation, project, key
    Column("scope_id", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("stage", String(8), nullable=False),  # input, output, both
    Column("action", String(8), nullable=False),  # redact, block, flag
    Column("position", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("message", String(1000)),
    Column("spec", _Json, nullable=False),  # As gateway.guardrails.policy has it.
    Column("created_at_ns", BigInteger, nullable=False),
    # Those of a key, when it is looked up.
    Index(None, "scope", "scope_id"),
)

# What the guardrails of a request said, in order. Kept for a while; never what they found, only how often.
guardrail_reports: Final = Table(
    "guardrail_reports",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("request_id", String(64), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("organisation_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("alias", String(200), nullable=False),
    Column("outcome", String(16), nullable=False),  # The worst of them.
    Column("findings", _Json, nullable=False),
    # One request's; what was stopped lately, and what is past its time.
    Index(None, "request_id"),
    Index(None, "at_ns"),
)

# What a project says of its requests' ways (gateway.admission.project_routing). Null, or no row: as the alias says.
project_routing: Final = Table(
    "project_routing",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("second_pusd", BigInteger),
    Column("cache_prompts", Boolean),
)

# Projects whose bodies are logged. No row: not logged.
body_log_projects: Final = Table(
    "body_log_projects",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("days", Integer, nullable=False),
    Column("detectors", _Json, nullable=False),
)

# What a tenant's sealed rows are salted with; without it nothing of theirs opens again.
tenant_salts: Final = Table(
    "tenant_salts",
    metadata,
    Column("organisation_id", String(64), ForeignKey("organisations.id"), primary_key=True),
    Column("salt", LargeBinary, nullable=False),
)

# Redacted and sealed (gateway.envelope) for their request's row: people's words, kept for a while only.
body_logs: Final = Table(
    "body_logs",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("request_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    # Whose salt it needs to open. None: sealed before tenants had one.
    Column("salted_for", String(64)),
    # One request's; what is past its time.
    Index(None, "request_id"),
    Index(None, "expires_at_ns"),
)
