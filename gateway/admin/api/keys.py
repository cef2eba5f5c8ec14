"""Virtual keys: made and shown once, listed with what they have spent, changed, revoked."""

from __future__ import annotations

from typing import Annotated, Literal

from litestar import delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy import func, select

from billing.accounts import Scope, Window
from billing.db import AsyncConnection, reading
from billing.schema import usage_records
from billing.statements import spent_by
from gateway.admin import reports
from gateway.admin.api.projects import amount_of
from gateway.admin.api.usage import BudgetView, budget_view
from gateway.admin.api.values import Page, at_cursor, cursor, usd
from gateway.admin.auth.grants import bounded, check_bounds, models_of
from gateway.admin.auth.places import place_of
from gateway.admin.auth.roles import ADMINS, Actor, Place
from gateway.admin.problems import invalid
from gateway.admin.services import Services
from gateway.admin.times import DAY_NS, HOUR_NS, Stamp, stamp, unstamp
from gateway.admin.wants import Caller, Office, Within
from gateway.admission.key_admin import WEIGHT_MAX, KeyChanges, KeyInfo, KeyTerms
from gateway.admission.minting import PREFIX

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Patterns = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=200)]
Bound = Annotated[int, Meta(ge=0)]
Weight = Annotated[int, Meta(ge=1, le=WEIGHT_MAX)]

PLAYGROUND_NS = HOUR_NS


class KeyView(Struct, frozen=True):
    """shown: how the key begins; the rest was shown once. spent_usd: in all; last_used_at: in the last 30 days.
    old_until: after a rotation, the secret before works until then. warning: what is about to end."""

    id: str
    shown: str
    name: str
    project_id: str
    project: str
    state: Literal["active", "expired", "revoked"]
    models: list[str] | None
    allow_ips: list[str] | None
    rpm: int | None
    tpm: int | None
    parallel: int | None
    weight: int
    expires_at: Stamp | None
    created_at: Stamp
    created_by: str
    spent_usd: str
    last_used_at: Stamp | None
    old_until: Stamp | None
    warning: str | None
    budgets: list[BudgetView]


class NewKeyBudget(Struct, frozen=True, forbid_unknown_fields=True):
    limit_usd: Annotated[str, Meta(max_length=40)]
    window: Window = Window.TOTAL


class NewKeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """None: no limit of its own. models: shell globs of aliases; allow_ips: addresses or networks. weight: how much of
    a saturated deployment it is given beside other keys, 1 where none is said."""

    project_id: str
    name: Name
    models: Patterns | None = None
    allow_ips: Patterns | None = None
    rpm: Bound | None = None
    tpm: Bound | None = None
    parallel: Bound | None = None
    weight: Weight | None = None
    expires_at: Stamp | None = None
    budgets: Annotated[list[NewKeyBudget], Meta(max_length=3)] = []


class KeyChangeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A field that is left out stays; null takes the limit away."""

    name: Name | UnsetType = UNSET
    models: Patterns | UnsetType | None = UNSET
    allow_ips: Patterns | UnsetType | None = UNSET
    rpm: Bound | UnsetType | None = UNSET
    tpm: Bound | UnsetType | None = UNSET
    parallel: Bound | UnsetType | None = UNSET
    weight: Weight | UnsetType | None = UNSET
    expires_at: Stamp | UnsetType | None = UNSET


class Rotation(Struct, frozen=True, forbid_unknown_fields=True):
    """overlap_hours: how long the secret before works on; 0 ends it at once."""

    overlap_hours: Annotated[int, Meta(ge=0, le=2160)] = 24


class ShownKey(Struct, frozen=True):
    """secret is in this answer and nowhere else."""

    key: KeyView
    secret: str


class PlaygroundRequest(Struct, frozen=True, forbid_unknown_fields=True):
    project_id: str


@get("/keys", name="keys.list")
async def list_keys(
    services: Office,
    sight: Within,
    project_id: FromQuery[str | None] = None,
    like: Annotated[str | None, QueryParameter(max_length=200)] = None,
    active: FromQuery[bool] = False,
    cursor_: Annotated[str | None, QueryParameter(name="cursor")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100,
) -> Page[KeyView]:
    """The newest first. `like`: a part of the name, or how the key begins. `active`: only what works."""
    now_ns = services.clock()
    wanted = sight.filters({} if project_id is None else {"project": [project_id]})
    found = await services.keys.list_keys(
        project_ids=wanted.get("project"),
        like=like,
        active_at_ns=now_ns if active else None,
        before=None if cursor_ is None else at_cursor(cursor_, tuple[int, str]),
        limit=limit + 1,
    )
    shown = found[:limit]
    more = cursor(shown[-1].created_at_ns, shown[-1].id) if len(found) > limit else None
    async with services.reader.reading() as db:
        return Page(await _views(db, shown, now_ns), more)


@get("/keys/{key_id:str}", name="keys.read")
async def read_key(key_id: FromPath[str], services: Office) -> KeyView:
    """One key, by its id or by how it begins (without the `fbx-`)."""
    info = await services.keys.key(key_id)
    async with services.reader.reading() as db:
        return (await _views(db, [info], services.clock()))[0]


@post("/keys", name="keys.create")
async def create_key(data: JSONBody[NewKeyRequest], actor: Caller, services: Office) -> ShownKey:
    """Make a key. Its secret is in this answer and cannot be had again."""
    budgets = [(each.window, amount_of(each.limit_usd, "budgets")) for each in data.budgets]
    async with reading(services.engine) as db:
        place = await place_of(db, "project", data.project_id)
        if place is not None:
            limits = {"rpm": data.rpm, "tpm": data.tpm, "parallel": data.parallel}
            await check_bounds(db, actor, place, limits=limits, budgets=budgets, now_ns=services.clock())
    terms = KeyTerms(
        models=_models(actor, place, data.models),
        allow_ips=_tuple(data.allow_ips),
        rpm=data.rpm,
        tpm=data.tpm,
        parallel=data.parallel,
        weight=_weight(actor, data.weight) or None,
        expires_at_ns=None if data.expires_at is None else unstamp(data.expires_at),
    )
    return await _make(services, actor, data.project_id, data.name, terms, budgets)


@patch("/keys/{key_id:str}", name="keys.update")
async def update_key(
    key_id: FromPath[str], data: JSONBody[KeyChangeRequest], actor: Caller, services: Office
) -> KeyView:
    """Change what a key may do. Budgets are set under /budgets."""
    now_ns = services.clock()
    async with reading(services.engine) as db:
        place = await place_of(db, "key", key_id)
        if place is not None:
            limits = {"rpm": data.rpm or None, "tpm": data.tpm or None, "parallel": data.parallel or None}
            await check_bounds(db, actor, place, limits=limits, now_ns=now_ns)
    changes = KeyChanges(
        name=data.name,
        models=data.models if isinstance(data.models, UnsetType) else _models(actor, place, data.models),
        allow_ips=data.allow_ips if isinstance(data.allow_ips, UnsetType) else _tuple(data.allow_ips),
        rpm=data.rpm,
        tpm=data.tpm,
        parallel=data.parallel,
        weight=_weight(actor, data.weight),
        expires_at_ns=unstamp(data.expires_at) if isinstance(data.expires_at, Stamp) else data.expires_at,
    )
    info = await services.keys.update_key(key_id, changes, actor=actor.name, now_ns=now_ns, why=actor.why)
    async with services.reader.reading() as db:
        return (await _views(db, [info], now_ns))[0]


@delete("/keys/{key_id:str}", name="keys.revoke", status_code=200)
async def revoke_key(key_id: FromPath[str], actor: Caller, services: Office) -> KeyView:
    """Revoke for good. Every running gateway refuses the key within a second."""
    now_ns = services.clock()
    info = await services.keys.revoke_key(key_id, actor=actor.name, now_ns=now_ns, why=actor.why)
    async with services.reader.reading() as db:
        return (await _views(db, [info], now_ns))[0]


@post("/keys/{key_id:str}/rotate", name="keys.rotate")
async def rotate_key(key_id: FromPath[str], data: JSONBody[Rotation], actor: Caller, services: Office) -> ShownKey:
    """A new secret for the same key, shown this once; limits, budgets and usage go on. The secret before works until
    `old_until`, so that its users can change over one by one."""
    now_ns = services.clock()
    async with reading(services.engine) as db:
        place = await place_of(db, "key", key_id)
    if place is not None:
        # A secret in one's hand is a grant: of no more than one could have made.
        now = (await services.keys.key(key_id)).terms.models
        if models_of(actor, place) is not None:
            bounded(actor, place, now or ("*",))
    new = await services.keys.rotate_key(
        key_id, data.overlap_hours * HOUR_NS, actor=actor.name, now_ns=now_ns, why=actor.why
    )
    assert new.plain is not None
    info = await services.keys.key(new.key_id)
    async with services.reader.reading() as db:
        return ShownKey((await _views(db, [info], now_ns))[0], new.plain)


@post("/playground/key", name="playground.key")
async def playground_key(data: JSONBody[PlaygroundRequest], actor: Caller, services: Office) -> ShownKey:
    """A key for the playground: good for an hour, bounded by its project's budgets alone."""
    async with reading(services.engine) as db:
        place = await place_of(db, "project", data.project_id)
    terms = KeyTerms(
        models=_models(actor, place, None), rpm=60, parallel=4, expires_at_ns=services.clock() + PLAYGROUND_NS
    )
    return await _make(services, actor, data.project_id, f"Playground ({actor.name})", terms, [])


key_handlers: list[HTTPRouteHandler] = [
    list_keys,
    read_key,
    create_key,
    update_key,
    revoke_key,
    rotate_key,
    playground_key,
]


async def _make(
    services: Services, actor: Actor, project_id: str, name: str, terms: KeyTerms, budgets: list[tuple[Window, int]]
) -> ShownKey:
    now_ns = services.clock()
    made = await services.keys.create_key(
        project_id=project_id, name=name, actor=actor.name, now_ns=now_ns, why=actor.why, terms=terms, budgets=budgets
    )
    assert made.plain is not None  # Only a key that was brought along can be there already.
    info = await services.keys.key(made.key_id)
    async with services.reader.reading() as db:
        return ShownKey((await _views(db, [info], now_ns))[0], made.plain)


def _models(actor: Actor, place: Place | None, wanted: list[str] | None) -> tuple[str, ...] | None:
    """No more than the maker may grant. Where there is no such place, what follows says so."""
    return _tuple(wanted) if place is None else bounded(actor, place, _tuple(wanted))


def _weight(actor: Actor, wanted: int | UnsetType | None) -> int | UnsetType | None:
    """Raises: Problem: what one key is given more of, all others are given less."""
    if isinstance(wanted, int) and wanted > 1 and actor.role not in ADMINS:
        raise invalid("weight", "takes turns from everybody's keys", "Ask an administrator of the installation.")
    return wanted


def _tuple(patterns: list[str] | None) -> tuple[str, ...] | None:
    return None if patterns is None else tuple(patterns)


async def _views(db: AsyncConnection, infos: list[KeyInfo], now_ns: int) -> list[KeyView]:
    ids = [info.id for info in infos]
    spent = await spent_by(db, Scope.KEY, ids)
    projects = await reports.labels(db, "project", [info.project_id for info in infos])
    used = select(usage_records.c.key_id, func.max(usage_records.c.at_ns)).where(
        usage_records.c.key_id.in_(ids), usage_records.c.at_ns > now_ns - 30 * DAY_NS
    )
    last = {row[0]: row[1] for row in await db.execute(used.group_by(usage_records.c.key_id))}
    return [
        KeyView(
            id=info.id,
            shown=f"{PREFIX}{info.public_id}",
            name=info.name,
            project_id=info.project_id,
            project=projects.get(info.project_id, info.project_id),
            state=info.state(now_ns),
            models=None if info.terms.models is None else list(info.terms.models),
            allow_ips=None if info.terms.allow_ips is None else list(info.terms.allow_ips),
            rpm=info.terms.rpm,
            tpm=info.terms.tpm,
            parallel=info.terms.parallel,
            weight=info.terms.weight or 1,
            expires_at=None if info.terms.expires_at_ns is None else stamp(info.terms.expires_at_ns),
            created_at=stamp(info.created_at_ns),
            created_by=info.created_by,
            spent_usd=usd(spent[info.id]) or "",
            last_used_at=stamp(last[info.id]) if info.id in last else None,
            old_until=stamp(until) if (until := info.old_until_ns or 0) > now_ns else None,
            warning=info.warning(now_ns),
            budgets=[await budget_view(db, budget, now_ns) for budget in info.budgets],
        )
        for info in infos
    ]
