"""SQL tables of who is who: memberships, single sign-on, passkeys, SCIM, and the secrets that a rotated key still has.

People, sessions and tokens themselves are in gateway.schema, which loads this file.
"""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.db import metadata

_Json: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# What a person may do, where. A role over the whole installation stands in admin_users, or here as `installation`.
memberships: Final = Table(
    "memberships",
    metadata,
    Column("user_id", String(64), ForeignKey("admin_users.id"), primary_key=True),
    Column("scope", String(16), primary_key=True),  # installation, organisation, team, project
    Column("scope_id", String(64), primary_key=True),  # Empty for the installation.
    # manual, oidc:<provider> or scim: each replaces its own rows and leaves the others'.
    Column("source", String(80), primary_key=True),
    Column("role", String(32), nullable=False),
    # What keys made by virtue of this may ask for, as globs of aliases. None: all.
    Column("models", _Json),
    Column("created_at_ns", BigInteger, nullable=False),
    # Who is a member here.
    Index(None, "scope", "scope_id"),
)

# Whom a provider of identities means by a subject.
identities: Final = Table(
    "identities",
    metadata,
    Column("issuer", String(500), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user_id", String(64), ForeignKey("admin_users.id"), nullable=False),
    Column("email", String(320)),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("last_at_ns", BigInteger, nullable=False),
    Index(None, "user_id"),
)

# Sign-ins that have gone to a provider and not come back. Each comes back once.
oidc_sign_ins: Final = Table(
    "oidc_sign_ins",
    metadata,
    Column("state_hash", LargeBinary(32), primary_key=True),
    # Of a cookie: only the browser that began may end it.
    Column("browser_hash", LargeBinary(32), nullable=False),
    Column("provider", String(80), nullable=False),
    Column("nonce", String(64), nullable=False),
    Column("verifier", String(128), nullable=False),
    Column("next", String(500), nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Index(None, "expires_at_ns"),
)

# Of sessions that a provider began: what its logout asks for.
session_origins: Final = Table(
    "session_origins",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("provider", String(80), nullable=False),
    Column("id_token", Text, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Index(None, "expires_at_ns"),
)

passkeys: Final = Table(
    "passkeys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("credential_id", LargeBinary(1023), nullable=False, unique=True),
    Column("user_id", String(64), ForeignKey("admin_users.id"), nullable=False),
    Column("public_key", LargeBinary, nullable=False),  # COSE
    Column("sign_count", BigInteger, nullable=False),
    Column("name", String(200), nullable=False),
    Column("synced", Boolean, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("last_at_ns", BigInteger),
    Index(None, "user_id"),
)

# What an authenticator was asked to sign. Each is answered once.
passkey_challenges: Final = Table(
    "passkey_challenges",
    metadata,
    Column("challenge_hash", LargeBinary(32), primary_key=True),
    Column("user_id", String(64)),  # None: to sign in, whoever it will be.
    Column("expires_at_ns", BigInteger, nullable=False),
    Index(None, "expires_at_ns"),
)

# Of their own kind: they provision people and groups, and can do nothing else.
scim_tokens: Final = Table(
    "scim_tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("last_at_ns", BigInteger),
    Column("revoked_at_ns", BigInteger),
)

# People that are provisioned from outside; whoever is not in here is no business of SCIM's.
scim_users: Final = Table(
    "scim_users",
    metadata,
    Column("user_id", String(64), ForeignKey("admin_users.id"), primary_key=True),
    Column("user_name", String(200), nullable=False, unique=True),  # Lower case: RFC 7643 compares it so.
    Column("external_id", String(255)),
    Column("resource", _Json, nullable=False),  # The attributes as given, without what stands in columns.
    Column("created_at_ns", BigInteger, nullable=False),
    Column("changed_at_ns", BigInteger, nullable=False),
    Index(None, "external_id"),
)

scim_groups: Final = Table(
    "scim_groups",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("display_name", String(255), nullable=False),
    Column("external_id", String(255)),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("changed_at_ns", BigInteger, nullable=False),
    UniqueConstraint("display_name"),
)

scim_members: Final = Table(
    "scim_members",
    metadata,
    Column("group_id", String(64), ForeignKey("scim_groups.id"), primary_key=True),
    Column("user_id", String(64), ForeignKey("admin_users.id"), primary_key=True),
    Index(None, "user_id"),
)

# Earlier secrets of keys that were rotated: good until then, and the same key for limits, budgets and usage.
key_secrets: Final = Table(
    "key_secrets",
    metadata,
    Column("public_id", String(32), primary_key=True),
    Column("secret_hash", LargeBinary(32), nullable=False),
    Column("key_id", String(64), ForeignKey("virtual_keys.id"), nullable=False),
    Column("until_ns", BigInteger, nullable=False),
    Index(None, "key_id"),
)
