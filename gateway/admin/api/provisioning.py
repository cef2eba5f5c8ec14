"""Tokens for SCIM provisioning, and what single sign-on and SCIM are set to. /scim/v2 itself is gateway.admin.scim."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from litestar import delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from sqlalchemy import func, insert, select, update

from billing.db import reading, writing
from gateway import identity
from gateway.admin.auth.people import hashed
from gateway.admin.auth.routes import record
from gateway.admin.problems import not_found
from gateway.admin.scim.store import TOKEN_PREFIX
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office


class ScimTokenView(Struct, frozen=True):
    id: str
    name: str
    created_at: Stamp
    created_by: str
    last_used_at: Stamp | None
    revoked: bool


class NewScimToken(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)]


class IssuedScimToken(Struct, frozen=True):
    """secret is in this answer and nowhere else."""

    token: ScimTokenView
    secret: str


class ProviderState(Struct, frozen=True):
    """people: how many have come by it."""

    name: str
    label: str
    issuer: str
    redirect_uri: str
    create: bool
    domains: list[str]
    people: int


class GrantView(Struct, frozen=True):
    group: str
    role: str
    scope: str
    scope_id: str
    source: str


class Provisioning(Struct, frozen=True):
    """How people come to be here: providers of identities, what groups grant, SCIM."""

    passwords: bool
    providers: list[ProviderState]
    grants: list[GrantView]
    scim_url: str
    scim_people: int
    scim_groups: int
    scim_tokens: list[ScimTokenView]


@get("/provisioning", name="provisioning.read")
async def read_provisioning(services: Office) -> Provisioning:
    """What the settings say of sign-on and SCIM, and how it is used. No secret is in here."""
    admin, office = services.settings.admin, services.settings.office_url
    async with reading(services.engine) as db:
        by_issuer = select(identity.identities.c.issuer, func.count()).group_by(identity.identities.c.issuer)
        people = {row[0]: row[1] for row in await db.execute(by_issuer)}
        scim_people, scim_groups = [
            (await db.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (identity.scim_users, identity.scim_groups)
        ]
        rows = await db.execute(select(identity.scim_tokens).order_by(identity.scim_tokens.c.created_at_ns.desc()))
        tokens = [_view(dict(row)) for row in rows.mappings()]
    return Provisioning(
        admin.passwords,
        [
            ProviderState(
                each.name, each.label or each.name, each.issuer,
                f"{office}/admin/v1/auth/oidc/{each.name}/callback", each.create, list(each.domains),
                people.get(each.issuer, 0),
            )
            for each in admin.oidc
        ],
        [GrantView(each.group, each.role, each.scope, each.scope_id, each.source) for each in admin.grants],
        f"{office}/scim/v2",
        scim_people,
        scim_groups,
        tokens,
    )  # fmt: skip


@post("/scim-tokens", name="scim.issue")
async def issue_token(data: JSONBody[NewScimToken], actor: Caller, services: Office) -> IssuedScimToken:
    """A token for an identity provider's provisioning. It can do nothing but SCIM, and is shown this once."""
    now_ns, secret = services.clock(), TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = {"id": f"scim_{secrets.token_hex(8)}", "name": data.name, "created_at_ns": now_ns, "created_by": actor.name,
           "last_at_ns": None, "revoked_at_ns": None}  # fmt: skip
    async with writing(services.engine) as db:
        await db.execute(insert(identity.scim_tokens).values(**row, token_hash=hashed(secret)))
        await record(db, actor, "scim.issue", str(row["id"]), now_ns, after={"name": data.name})
    return IssuedScimToken(_view(row), secret)


@delete("/scim-tokens/{token_id:str}", name="scim.revoke", status_code=204)
async def revoke_token(token_id: FromPath[str], actor: Caller, services: Office) -> None:
    """Refused from the next request on. People and groups stay as they are."""
    now_ns, table = services.clock(), identity.scim_tokens
    async with writing(services.engine) as db:
        alive = (table.c.id == token_id) & table.c.revoked_at_ns.is_(None)
        if not (await db.execute(update(table).where(alive).values(revoked_at_ns=now_ns))).rowcount:
            raise not_found("SCIM token", token_id, "List them under /provisioning and take an id from there.")
        await record(db, actor, "scim.revoke", token_id, now_ns)


provisioning_handlers: list[HTTPRouteHandler] = [read_provisioning, issue_token, revoke_token]


def _view(fields: Mapping[str, Any]) -> ScimTokenView:
    used = None if fields["last_at_ns"] is None else stamp(fields["last_at_ns"])
    made = stamp(fields["created_at_ns"])
    return ScimTokenView(
        fields["id"], fields["name"], made, fields["created_by"], used, fields["revoked_at_ns"] is not None
    )
