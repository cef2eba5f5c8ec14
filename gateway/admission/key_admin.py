"""Making, changing and revoking keys: SQL with an audit row in one transaction, then word to every process."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import aclosing
from ipaddress import ip_network
from typing import Any, Final, Literal

import hiredis
import structlog
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict, replace
from sqlalchemy import RowMapping, delete, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from billing import accounts
from billing.accounts import BudgetKind, Scope, Window
from billing.db import AsyncConnection, AsyncEngine, reading, writing
from billing.schema import projects
from gateway import audit
from gateway.admission.changes import EVERYTHING, announce
from gateway.admission.minting import GIVEN_CHARS_MIN, PREFIX, MintedKey, accept, mint
from gateway.admission.muster import recount_late
from gateway.admission.principal import MINUTE_MS, Unit
from gateway.admission.store import LimitStore, link_to
from gateway.errors import InvalidRequest, NotFound, Unavailable
from gateway.identity import key_secrets
from gateway.schema import loss_modes, rate_limits, virtual_keys

log = structlog.get_logger(__name__)

NAME_CHARS_MAX: Final = 200
_DAY_NS: Final = 86_400 * 10**9
OVERLAP_NS_MAX: Final = 90 * _DAY_NS
"""How long the secret before may go on after a rotation."""
WARN_NS: Final = 14 * _DAY_NS
"""How long before its end a key is pointed out."""
_NAMED_MAX: Final = 500
_WINDOW_MS_MAX: Final = 86_400_000
WEIGHT_MAX: Final = 1000
_LIMIT_MAX: Final = 10**10  # x 86,400,000 ms is still a whole number in Lua.


class KeyTerms(Struct, frozen=True, kw_only=True):
    """What a key may do. None: no limit of its own, and of weight 1 where requests wait for their turn."""

    models: tuple[str, ...] | None = None
    allow_ips: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    weight: int | None = None
    expires_at_ns: int | None = None


class KeyChanges(Struct, frozen=True, kw_only=True):
    """What to change of a key; UNSET leaves it as it is, None takes a limit away."""

    name: str | UnsetType = UNSET
    models: tuple[str, ...] | UnsetType | None = UNSET
    allow_ips: tuple[str, ...] | UnsetType | None = UNSET
    rpm: int | UnsetType | None = UNSET
    tpm: int | UnsetType | None = UNSET
    parallel: int | UnsetType | None = UNSET
    weight: int | UnsetType | None = UNSET
    expires_at_ns: int | UnsetType | None = UNSET


class KeyInfo(Struct, frozen=True, kw_only=True):
    """A key as lists show it: without anything that could be used as one."""

    id: str
    public_id: str
    organisation_id: str
    project_id: str
    name: str
    terms: KeyTerms
    budgets: tuple[accounts.Budget, ...]
    revoked_at_ns: int | None
    created_at_ns: int
    created_by: str
    old_until_ns: int | None = None
    """Rotated: the secret before works until then."""

    def warning(self, now_ns: int) -> str | None:
        """What its owner should know before it comes true."""
        if self.state(now_ns) != "active":
            return None
        ends_at_ns = self.terms.expires_at_ns
        if ends_at_ns is not None and ends_at_ns - now_ns < WARN_NS:
            return f"expires in {_left(ends_at_ns - now_ns)}"
        if self.old_until_ns is not None and self.old_until_ns > now_ns:
            return f"the old secret ends in {_left(self.old_until_ns - now_ns)}"
        return None

    def state(self, now_ns: int) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at_ns is not None:
            return "revoked"
        expires_at_ns = self.terms.expires_at_ns
        return "active" if expires_at_ns is None or expires_at_ns > now_ns else "expired"


def _left(span_ns: int) -> str:
    days, hours = span_ns // _DAY_NS, span_ns * 24 // _DAY_NS
    return f"{days} days" if days > 1 else f"{hours} hours" if hours > 1 else "an hour or less"


class NewKey(Struct, frozen=True):
    """plain: to be shown once, and kept by nobody here; None when the given key existed already."""

    key_id: str
    public_id: str
    plain: str | None

    def __repr__(self) -> str:
        return f"NewKey({self.key_id!r}, {self.public_id!r})"


class Losses(Struct, frozen=True):
    """own: what this one says itself. mode: what holds, and said_by: whose word that is; None: the settings'."""

    own: Literal["strict", "lenient"] | None
    mode: Literal["strict", "lenient"] | None
    said_by: Literal["key", "project", "settings"]


class KeyAdmin:
    """Every change names its actor. redis None: nobody is told, for a database that no gateway uses yet."""

    def __init__(self, engine: AsyncEngine, redis: LimitStore | None, pepper: bytes) -> None:
        self._engine = engine
        self._redis = redis
        self._pepper = pepper

    async def create_key(
        self,
        *,
        project_id: str,
        name: str,
        actor: str,
        now_ns: int,
        why: str | None = None,
        terms: KeyTerms | None = None,
        budgets: Sequence[tuple[Window, int]] = (),
        plain: str | None = None,
        plain_chars_min: int = GIVEN_CHARS_MIN,
    ) -> NewKey:
        """A key of a project. budgets: (window, limit in pUSD). plain: a key of the operator's own; given again it is
        left as it is.

        Raises: InvalidRequest naming the bad setting; NotFound for the project."""
        async with writing(self._engine) as db:
            new = await self.add_key(
                db, project_id=project_id, name=name, actor=actor, now_ns=now_ns, why=why, terms=terms,
                budgets=budgets, plain=plain, plain_chars_min=plain_chars_min,
            )  # fmt: skip
        if new.plain is not None:
            await self._announce(new.public_id)
        return new

    async def add_key(
        self,
        db: AsyncConnection,
        *,
        project_id: str,
        name: str,
        actor: str,
        now_ns: int,
        why: str | None = None,
        terms: KeyTerms | None = None,
        budgets: Sequence[tuple[Window, int]] = (),
        plain: str | None = None,
        plain_chars_min: int = GIVEN_CHARS_MIN,
    ) -> NewKey:
        """As `create_key`, in the caller's transaction; nobody is told."""
        terms = terms or KeyTerms()
        _check(asdict(terms) | {"name": name}, now_ns)
        if plain is None:
            minted = mint(self._pepper)
        else:
            try:
                minted = accept(plain, self._pepper, plain_chars_min)
            except ValueError as error:
                raise InvalidRequest(str(error), param="key") from None
        key_id = f"key_{secrets.token_hex(10)}"
        project = (
            await db.execute(select(projects.c.organisation_id).where(projects.c.id == project_id))
        ).scalar_one_or_none()
        if project is None:
            raise NotFound(f"no project {project_id!r}", param="project")
        await audit.hold(db, minted.public_id)
        if (known := await self._known(db, minted)) is not None:
            return NewKey(known["id"], minted.public_id, None)
        row = asdict(terms) | {
            "id": key_id,
            "public_id": minted.public_id,
            "organisation_id": project,
            "project_id": project_id,
            "name": name,
            "created_at_ns": now_ns,
            "created_by": actor,
        }
        await db.execute(insert(virtual_keys).values(row | {"secret_hash": minted.hash}))
        for window, limit_pusd in budgets:
            await _set_budget(db, accounts.Budget(Scope.KEY, key_id, window, limit_pusd), now_ns)
        money = {window.value: limit_pusd for window, limit_pusd in budgets}
        after = row | {"budgets_pusd": money}
        await note(db, now_ns, actor, "key.create", key_id, after=after, why=why)
        return NewKey(key_id, minted.public_id, minted.plain)

    async def revoke_key(self, key: str, *, actor: str, now_ns: int, why: str | None = None) -> KeyInfo:
        """For good; a second time changes nothing. key: id or public id. Raises: NotFound."""
        async with writing(self._engine) as db:
            row = await _find(db, key, hold=True)
            if row["revoked_at_ns"] is None:
                await db.execute(
                    update(virtual_keys).where(virtual_keys.c.id == row["id"]).values(revoked_at_ns=now_ns)
                )
                before, after = {"revoked_at_ns": None}, {"revoked_at_ns": now_ns}
                await note(db, now_ns, actor, "key.revoke", row["id"], before=before, after=after, why=why)
        await self._announce_key(row)
        return await self.key(row["id"])

    async def update_key(
        self, key: str, changes: KeyChanges, *, actor: str, now_ns: int, why: str | None = None
    ) -> KeyInfo:
        """key: id or public id. Raises: NotFound; InvalidRequest."""
        values = {name: value for name, value in asdict(changes).items() if value is not UNSET}
        _check(values, now_ns)
        async with writing(self._engine) as db:
            row = await _find(db, key, hold=True)
            if values:
                await db.execute(update(virtual_keys).where(virtual_keys.c.id == row["id"]).values(values))
                before = {name: row[name] for name in values}
                await note(db, now_ns, actor, "key.update", row["id"], before=before, after=values, why=why)
        await self._announce_key(row)
        return await self.key(row["id"])

    async def rotate_key(self, key: str, overlap_ns: int, *, actor: str, now_ns: int, why: str | None = None) -> NewKey:
        """A new secret for the same key: its limits, budgets and usage go on. What it was until now works for
        `overlap_ns` more; 0 ends it at once.

        key: id or public id. Raises: NotFound; InvalidRequest for a key that works no more, or too long an overlap."""
        if not 0 <= overlap_ns <= OVERLAP_NS_MAX:
            days = OVERLAP_NS_MAX // _DAY_NS
            raise InvalidRequest(f"the old secret may go on for {days} days at most", param="overlap")
        minted = mint(self._pepper)
        async with writing(self._engine) as db:
            row = await _find(db, key, hold=True)
            expires_at_ns = row["expires_at_ns"]
            if row["revoked_at_ns"] is not None or (expires_at_ns is not None and expires_at_ns <= now_ns):
                raise InvalidRequest("a key that is revoked or has expired is not rotated; make a new one", param="key")
            until_ns = now_ns + overlap_ns
            old = {"public_id": row["public_id"], "secret_hash": row["secret_hash"], "key_id": row["id"]}
            await db.execute(insert(key_secrets).values(old | {"until_ns": until_ns}))
            # One before that one goes no longer than it was promised, and no longer than this.
            earlier = (key_secrets.c.key_id == row["id"]) & (key_secrets.c.until_ns > until_ns)
            await db.execute(update(key_secrets).where(earlier).values(until_ns=until_ns))
            new = {"public_id": minted.public_id, "secret_hash": minted.hash}
            await db.execute(update(virtual_keys).where(virtual_keys.c.id == row["id"]).values(new))
            before, after = {"public_id": row["public_id"]}, {"public_id": minted.public_id, "old_until_ns": until_ns}
            await note(db, now_ns, actor, "key.rotate", row["id"], before=before, after=after, why=why)
        await self._announce_key(row)
        return NewKey(row["id"], minted.public_id, minted.plain)

    async def set_budget(
        self,
        scope: Scope,
        scope_id: str,
        window: Window,
        limit_pusd: int | None,
        *,
        actor: str,
        now_ns: int,
        why: str | None = None,
        kind: BudgetKind = BudgetKind.HARD,
        slow_rpm: int = 0,
        slow_from_percent: int = 100,
    ) -> None:
        """None takes it away; what it was raised by stays. Raises: InvalidRequest."""
        async with writing(self._engine) as db:
            old = await _budget(db, scope, scope_id, window)
            new = None
            if limit_pusd is None:
                await accounts.remove_budget(db, scope, scope_id, window)
            else:
                new = accounts.Budget(scope, scope_id, window, limit_pusd, kind, slow_rpm, slow_from_percent)
                if old is not None:
                    new = replace(new, raise_pusd=old.raise_pusd, raise_until_ns=old.raise_until_ns)
                await _set_budget(db, new, now_ns)
            await _note_budget(db, now_ns, actor, old, new, why)
        await self._announce(EVERYTHING)

    async def raise_budget(
        self,
        scope: Scope,
        scope_id: str,
        window: Window,
        raise_pusd: int,
        until_ns: int,
        *,
        actor: str,
        now_ns: int,
        why: str | None = None,
    ) -> None:
        """So much beside the limit until then; 0 ends a raise now. Felt within 30 s of its end.

        Raises: NotFound for a budget that is not there; InvalidRequest."""
        async with writing(self._engine) as db:
            old = await _budget(db, scope, scope_id, window)
            if old is None:
                raise NotFound(f"no {scope.value} budget of {scope_id!r} for {window.value}", param="budget")
            new = replace(old, raise_pusd=raise_pusd, raise_until_ns=until_ns if raise_pusd else None)
            await _set_budget(db, new, now_ns)
            await _note_budget(db, now_ns, actor, old, new, why)
        await self._announce(EVERYTHING)

    async def set_rate_limit(
        self,
        scope: Scope,
        scope_id: str,
        unit: Unit,
        amount: int | None,
        *,
        actor: str,
        now_ns: int,
        window_ms: int = MINUTE_MS,
    ) -> None:
        """None takes it away. Raises: InvalidRequest."""
        _check({"amount": amount}, now_ns)
        if not 1000 <= window_ms <= _WINDOW_MS_MAX:
            raise InvalidRequest("a limit's window has a second at least and a day at most", param="window")
        try:
            accounts.check_scope(scope, scope_id)
        except ValueError as error:
            raise InvalidRequest(str(error), param="scope_id") from None
        where = (
            (rate_limits.c.scope == scope.value)
            & (rate_limits.c.scope_id == scope_id)
            & (rate_limits.c.unit == unit)
            & (rate_limits.c.window_ms == window_ms)
        )
        async with writing(self._engine) as db:
            await audit.hold(db, scope_id)
            old = (await db.execute(select(rate_limits.c.amount).where(where))).scalar_one_or_none()
            if amount is None:
                await db.execute(delete(rate_limits).where(where))
            else:
                key = {"scope": scope.value, "scope_id": scope_id, "unit": unit, "window_ms": window_ms}
                await accounts.put(db, rate_limits, key | {"amount": amount})
            name = f"{unit}/{window_ms}ms"
            await note(db, now_ns, actor, f"{scope.value}.limit", scope_id, before={name: old}, after={name: amount})
        await self._announce(EVERYTHING)

    async def set_losses(
        self,
        scope: Literal["project", "key"],
        scope_id: str,
        mode: Literal["strict", "lenient"] | None,
        *,
        actor: str,
        now_ns: int,
    ) -> None:
        """What a provider has no word for is refused by name (strict), or left out and told in `x-farebox-dropped`
        (lenient). A key's own word wins over its project's; None: as the next wider scope says.

        scope_id: a key's id or public id. Raises: NotFound."""
        async with writing(self._engine) as db:
            if scope == "key":
                scope_id = (await _find(db, scope_id, hold=True))["id"]
            elif (await db.execute(select(projects.c.id).where(projects.c.id == scope_id))).first() is None:
                raise NotFound(f"no project {scope_id!r}", param="project")
            await audit.hold(db, scope_id)
            mine = (loss_modes.c.scope == scope) & (loss_modes.c.scope_id == scope_id)
            before = (await db.execute(select(loss_modes.c.mode).where(mine))).scalar_one_or_none()
            if mode is None:
                await db.execute(delete(loss_modes).where(mine))
            else:
                await accounts.put(db, loss_modes, {"scope": scope, "scope_id": scope_id, "mode": mode})
            was, now = {"losses": before}, {"losses": mode}
            await note(db, now_ns, actor, f"{scope}.losses", scope_id, before=was, after=now)
        await self._announce(EVERYTHING)

    async def losses(self, scope: Literal["project", "key"], scope_id: str) -> Losses:
        """What holds for a project or a key. scope_id: as `set_losses`. Raises: NotFound."""
        async with reading(self._engine) as db:
            if scope == "key":
                row = await _find(db, scope_id)
                wider = [("key", row["id"]), ("project", row["project_id"])]
            elif (await db.execute(select(projects.c.id).where(projects.c.id == scope_id))).first() is None:
                raise NotFound(f"no project {scope_id!r}", param="project")
            else:
                wider = [("project", scope_id)]
            found = select(loss_modes).where(loss_modes.c.scope_id.in_([ident for _, ident in wider]))
            said = {(row.scope, row.scope_id): row.mode for row in (await db.execute(found)).all()}
        heard = next(((said[each], each[0]) for each in wider if each in said), (None, "settings"))
        return Losses(said.get(wider[0]), *heard)

    async def list_keys(
        self,
        *,
        project_ids: Collection[str] | None = None,
        like: str | None = None,
        active_at_ns: int | None = None,
        before: tuple[int, str] | None = None,
        limit: int | None = None,
    ) -> list[KeyInfo]:
        """The newest first, revoked ones included.

        like: part of a name, of an id or of how a key begins. active_at_ns: only what works then. before: when another
        key was made, and its id: those after it in this order."""
        table = virtual_keys.c
        query = select(virtual_keys).order_by(table.created_at_ns.desc(), table.id.desc()).limit(limit)
        if project_ids is not None:
            query = query.where(table.project_id.in_(project_ids))
        if like:
            part = like.removeprefix(PREFIX)
            columns = (table.name, table.id, table.public_id)
            query = query.where(or_(*(column.icontains(part, autoescape=True) for column in columns)))
        if active_at_ns is not None:
            query = query.where(
                table.revoked_at_ns.is_(None),
                or_(table.expires_at_ns.is_(None), table.expires_at_ns > active_at_ns),
            )
        if before is not None:
            at_ns, after = before
            query = query.where(or_(table.created_at_ns < at_ns, (table.created_at_ns == at_ns) & (table.id < after)))
        async with reading(self._engine) as db:
            return await _infos(db, (await db.execute(query)).mappings().all())

    async def key(self, key: str) -> KeyInfo:
        """key: id or public id. Raises: NotFound."""
        async with reading(self._engine) as db:
            return (await _infos(db, [await _find(db, key)]))[0]

    async def changed(self) -> None:
        """Have every process read everything again: after a top-up, a credit limit, or a change made elsewhere."""
        await self._announce(EVERYTHING)

    async def recount_late(self) -> None:
        """Have budgets added up again from SQL, after a price that came late. Call it after the commit. While Redis or
        SQL is away it is left to the gateways: they look for it twice a minute."""
        if self._redis is None:
            return
        try:
            async with aclosing(link_to(self._redis)) as link:
                await recount_late(self._engine, link)
        except (Unavailable, hiredis.ReplyError, SQLAlchemyError, OSError) as error:  # What it follows is committed.
            log.warning("budgets not added up again yet", reason=type(error).__name__)

    async def _known(self, db: AsyncConnection, minted: MintedKey) -> RowMapping | None:
        """The row of a given key that was given before. Raises: InvalidRequest for another key of its public id."""
        query = select(virtual_keys).where(virtual_keys.c.public_id == minted.public_id)
        row = (await db.execute(query)).mappings().one_or_none()
        if row is None:
            earlier = key_secrets.c
            rotated = select(earlier.key_id.label("id"), earlier.secret_hash).where(
                earlier.public_id == minted.public_id
            )
            row = (await db.execute(rotated)).mappings().one_or_none()
        if row is not None and row["secret_hash"] != minted.hash:
            raise InvalidRequest("another key has this public id, or the pepper has changed", param="key")
        return row

    async def _announce_key(self, row: RowMapping) -> None:
        """By each public id that processes may remember it under: a rotated key has had several."""
        async with reading(self._engine) as db:
            of = select(key_secrets.c.public_id).where(key_secrets.c.key_id == row["id"])
            earlier = set((await db.execute(of)).scalars())
        for public_id in sorted({row["public_id"], *earlier}):
            await self._announce(public_id)

    async def _announce(self, public_id: str) -> None:
        if self._redis is not None:
            await announce(self._redis, public_id)


async def note(
    db: AsyncConnection, now_ns: int, actor: str, action: str, subject: str, *, before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None, why: str | None = None,
) -> None:  # fmt: skip
    """One line of the audit, in the transaction of what it tells. Neither side may hold a secret. why: as the actor
    said it."""
    await audit.append(
        db, at_ns=now_ns, actor=actor, action=action, subject=subject, before=before, after=after, note=why
    )


async def _find(db: AsyncConnection, key: str, *, hold: bool = False) -> RowMapping:
    earlier = select(key_secrets.c.key_id).where(key_secrets.c.public_id == key)
    ids = virtual_keys.c.id
    query = select(virtual_keys).where(or_(ids == key, virtual_keys.c.public_id == key, ids.in_(earlier)))
    row = (await db.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no key {key!r}; list the keys and take an id from there", param="key")
    if hold:
        await audit.hold(db, row["id"])
        return await _find(db, key)
    return row


async def _infos(db: AsyncConnection, rows: Sequence[RowMapping]) -> list[KeyInfo]:
    # All there are, where it takes more than one statement can name.
    ids = [row["id"] for row in rows] if len(rows) <= _NAMED_MAX else None
    money: dict[str, list[accounts.Budget]] = {}
    for budget in await accounts.budgets(db, ids, scope=Scope.KEY):
        money.setdefault(budget.scope_id, []).append(budget)
    earlier = select(key_secrets.c.key_id, func.max(key_secrets.c.until_ns)).group_by("key_id")
    if ids is not None:
        earlier = earlier.where(key_secrets.c.key_id.in_(ids))
    until: dict[str, int] = {row[0]: row[1] for row in await db.execute(earlier)}
    return [
        KeyInfo(
            id=row["id"],
            public_id=row["public_id"],
            organisation_id=row["organisation_id"],
            project_id=row["project_id"],
            name=row["name"],
            terms=KeyTerms(
                models=None if row["models"] is None else tuple(row["models"]),
                allow_ips=None if row["allow_ips"] is None else tuple(row["allow_ips"]),
                rpm=row["rpm"],
                tpm=row["tpm"],
                parallel=row["parallel"],
                weight=row["weight"],
                expires_at_ns=row["expires_at_ns"],
            ),
            budgets=tuple(money.get(row["id"], ())),
            revoked_at_ns=row["revoked_at_ns"],
            created_at_ns=row["created_at_ns"],
            created_by=row["created_by"],
            old_until_ns=until.get(row["id"]),
        )
        for row in rows
    ]


async def _budget(db: AsyncConnection, scope: Scope, scope_id: str, window: Window) -> accounts.Budget | None:
    """Held on to."""
    await audit.hold(db, scope_id)
    wanted = (scope, scope_id, window)
    found = await accounts.budgets(db, [scope_id], scope=scope)
    return next((b for b in found if (b.scope, b.scope_id, b.window) == wanted), None)


async def _set_budget(db: AsyncConnection, budget: accounts.Budget, now_ns: int) -> None:
    try:
        await accounts.set_budget(db, budget, at_ns=now_ns)
    except ValueError as error:
        raise InvalidRequest(str(error), param="budget") from None


async def _note_budget(
    db: AsyncConnection, now_ns: int, actor: str, old: accounts.Budget | None, new: accounts.Budget | None,
    why: str | None,
) -> None:  # fmt: skip
    about = old or new
    if about is not None:
        sides = [None if budget is None else _told(budget) for budget in (old, new)]
        before, after = ({about.window.value: side} for side in sides)
        await note(
            db, now_ns, actor, f"{about.scope.value}.budget", about.scope_id, before=before, after=after, why=why
        )


def _told(budget: accounts.Budget) -> int | dict[str, Any]:
    """A plain budget is its limit, in pUSD."""
    plain = accounts.Budget(budget.scope, budget.scope_id, budget.window, budget.limit_pusd)
    if budget == plain:
        return budget.limit_pusd
    return {name: value for name, value in asdict(budget).items() if name not in ("scope", "scope_id", "window")}


def _check(values: dict[str, Any], now_ns: int) -> None:
    """Raises: InvalidRequest naming the first setting that cannot be."""
    for name, value in values.items():
        match name, value:
            case "name", str(text) if not 0 < len(text) <= NAME_CHARS_MAX:
                raise InvalidRequest(f"a key's name has 1 to {NAME_CHARS_MAX} characters", param=name)
            case (("rpm" | "tpm" | "parallel" | "amount"), int(number)) if not 0 <= number <= _LIMIT_MAX:
                raise InvalidRequest(f"{name} must lie between 0 and {_LIMIT_MAX}, not {number}", param=name)
            case "weight", int(number) if not 1 <= number <= WEIGHT_MAX:
                raise InvalidRequest(f"weight must lie between 1 and {WEIGHT_MAX}, not {number}", param=name)
            case "expires_at_ns", int(at_ns) if at_ns <= now_ns:
                raise InvalidRequest("the expiry lies in the past", param="expires")
            case "models", tuple(patterns) if not patterns or not all(patterns):
                raise InvalidRequest("an empty list of models permits nothing; leave it out to permit all", param=name)
            case "allow_ips", tuple(networks):
                for network in networks:
                    try:
                        ip_network(network, strict=False)
                    except ValueError:
                        raise InvalidRequest(f"not an IP address or network: {network!r}", param=name) from None
