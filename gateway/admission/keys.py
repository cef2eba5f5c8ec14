"""Virtual key to principal. Verified keys are remembered in the process; a revocation is felt within a second.

Two ways to hear of a change, since a message can be lost: the channel drops the key at once, and the version, asked
for at most every 0.4 s and trusted for 0.9 s, drops everything that a lost message would have. While Redis is away an
entry lives 0.9 s and is then read from SQL again.
"""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import hiredis
import structlog
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.exc import SQLAlchemyError

from billing.accounts import budgets
from billing.db import AsyncConnection, AsyncEngine, reading
from billing.money import MAX_AMOUNT_PUSD
from billing.schema import organisations, projects
from gateway.admission import spending
from gateway.admission.changes import CHANNEL, EVERYTHING, VERSION
from gateway.admission.floods import Floods, address_of
from gateway.admission.minting import hash_of, public_id_of
from gateway.admission.principal import CREDIT, Budget, Limit, Principal, Unit
from gateway.admission.project_routing import routing_of
from gateway.admission.store import LimitStore, link_to
from gateway.errors import Forbidden, Unauthenticated, Unavailable
from gateway.identity import key_secrets
from gateway.schema import body_log_projects, guardrails, loss_modes, rate_limits, virtual_keys
from gateway.tasks import cancel

if TYPE_CHECKING:
    from gateway.bodies.store import TenantLogging
    from gateway.guardrails.guard import Guard

log = structlog.get_logger(__name__)

# A confirmation begun longer ago is not trusted: with the 0.1 s of a round trip, a change is felt within a second.
TRUST_MS: Final = 900
# Asked for anew from here on, in the background, so that no request waits while there are any.
REFRESH_MS: Final = 400
# A change that was committed and never announced (its process died in between) is felt after this.
REREAD_MS: Final = 30_000
# While SQL is away, a key that nobody announced a change of stays good for this long.
SQL_AWAY_MS: Final = 600_000
# How long a wrong key is known to be wrong. A key made meanwhile is announced, and that empties this memory.
WRONG_MS: Final = 5_000
ENTRIES_MAX: Final = 50_000
WRONG_MAX: Final = 4_096
# Look-ups at once: a flood of wrong keys waits here instead of taking the pool from everybody.
LOOKUPS_AT_ONCE: Final = 4
_RECONNECT_S: Final = 0.5

# One sentence for every reason, or it would tell which keys exist.
_WRONG: Final = "incorrect API key; check it, or ask the operator of this gateway for a new one"


class _Entry(Struct, frozen=True):
    """A key as SQL had it at read_ms."""

    principal: Principal
    networks: tuple[IPv4Network | IPv6Network, ...] | None
    expires_ms: int | None
    revoked: bool
    read_ms: int


class KeyStore:
    """Use as an async context: inside it changes are listened for. now_ms is unix time in ms, on every method."""

    def __init__(self, engine: AsyncEngine, redis: LimitStore, pepper: bytes) -> None:
        self._engine = engine
        self._pepper = pepper
        self._link = link_to(redis)
        self._entries: dict[bytes, _Entry] = {}
        self._hash_by_public_id: dict[str, bytes] = {}
        self._wrong: dict[bytes, int] = {}
        self._floods = Floods()
        self._reading: dict[bytes, asyncio.Task[_Entry | None]] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._version: bytes | None = None
        self._confirmed_ms = -TRUST_MS - 1
        self._confirming: asyncio.Task[None] | None = None
        # Grows with everything that was dropped: what was read from SQL before is not remembered after it.
        self._drops = 0
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._listener = asyncio.get_running_loop().create_task(self._listen(), name="listen for changed keys")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._listener, self._confirming, *self._reading.values()) if task is not None]
        with suppress(SQLAlchemyError, OSError):  # Of a look-up, which whoever waited for it has been told.
            await cancel(*tasks)
        await self._link.aclose()

    def cached(self, presented: str, now_ms: int) -> Principal | None:
        """The principal if it is known for sure without asking anybody; else `principal` has to be awaited."""
        entry = self._entries.get(hash_of(presented, self._pepper))
        if entry is None or entry.revoked or entry.networks is not None or not self._trusted(entry, now_ms):
            return None
        if entry.expires_ms is not None and entry.expires_ms <= now_ms:
            return None
        return entry.principal

    async def principal(self, presented: str, client_ip: str, now_ms: int) -> Principal:
        """Raises: Unauthenticated for a key that is wrong, expired or revoked; Forbidden for the wrong address;
        RateLimited for an address that keeps guessing; Unavailable when nobody is left to ask."""
        digest = hash_of(presented, self._pepper)
        entry = self._entries.get(digest)
        if entry is None or not self._trusted(entry, now_ms):
            await self._confirm(now_ms)
            entry = self._entries.get(digest)
            if entry is None or not self._trusted(entry, now_ms):
                entry = await self._look_up(digest, presented, client_ip, now_ms, entry)
        if entry.revoked:
            raise Unauthenticated("this API key has been revoked", code="key_revoked")
        if entry.expires_ms is not None and entry.expires_ms <= now_ms:
            raise Unauthenticated("this API key has expired", code="key_expired")
        if entry.networks is not None:
            address = address_of(client_ip)
            if address is None or not any(address in network for network in entry.networks):
                raise Forbidden("this API key may not be used from this address", code="address_not_allowed")
        return entry.principal

    async def principal_of(self, key_id: str, now_ms: int) -> Principal:
        """Of a key that was verified when its work was handed in, as it stands now: for what is done later in its name.
        Raises: Unauthenticated for a key that is gone by now; SQLAlchemyError."""
        async with reading(self._engine) as db:
            entry = await _fetch(db, virtual_keys.c.id == key_id, None, now_ms)
        if entry is None or entry.revoked:
            raise Unauthenticated("the API key of this batch has been revoked", code="key_revoked")
        if entry.expires_ms is not None and entry.expires_ms <= now_ms:
            raise Unauthenticated("the API key of this batch has expired", code="key_expired")
        return entry.principal

    def _trusted(self, entry: _Entry, now_ms: int) -> bool:
        age_ms = now_ms - entry.read_ms
        confirmed_ms = now_ms - self._confirmed_ms
        if confirmed_ms >= REFRESH_MS and self._confirming is None and self._listener is not None:
            self._start_confirming(now_ms)
        # A negative age: the clock was set back, and nothing that was noted before can be relied on.
        return 0 <= age_ms <= TRUST_MS or (0 <= confirmed_ms <= TRUST_MS and 0 <= age_ms <= REREAD_MS)

    async def _confirm(self, now_ms: int) -> None:
        """Afterwards the version is known to be that of now_ms or later, or Redis is away."""
        if 0 <= now_ms - self._confirmed_ms <= TRUST_MS:
            return
        await asyncio.shield(self._confirming or self._start_confirming(now_ms))

    def _start_confirming(self, now_ms: int) -> asyncio.Task[None]:
        self._confirming = task = asyncio.get_running_loop().create_task(self._ask_version(now_ms))
        task.add_done_callback(self._stop_confirming)
        return task

    def _stop_confirming(self, task: asyncio.Task[None]) -> None:
        self._confirming = None

    async def _ask_version(self, now_ms: int) -> None:
        try:
            version = await self._link.call("GET", VERSION)
        except (Unavailable, hiredis.ReplyError):
            return
        if version != self._version:
            self._drop_all()
            self._version = version
        self._confirmed_ms = now_ms

    async def _look_up(
        self, digest: bytes, presented: str, client_ip: str, now_ms: int, stale: _Entry | None
    ) -> _Entry:
        if 0 < self._wrong.get(digest, 0) - now_ms <= WRONG_MS:
            raise Unauthenticated(_WRONG)
        reading_it = self._reading.get(digest)
        if reading_it is None:
            if stale is None:
                # A key that was good a moment ago is no guess, whatever else comes from its address.
                self._floods.check(client_ip, now_ms)
            public_id = public_id_of(presented, self._pepper)
            if public_id is None:
                raise Unauthenticated(_WRONG)
            reading_it = asyncio.get_running_loop().create_task(self._read(digest, public_id, now_ms))
            self._reading[digest] = reading_it
            reading_it.add_done_callback(lambda read: self._looked_up(read, digest, client_ip, now_ms))
        try:
            entry = await asyncio.shield(reading_it)
        except (SQLAlchemyError, OSError) as error:
            confirmed = 0 <= now_ms - self._confirmed_ms <= TRUST_MS
            if stale is not None and confirmed and 0 <= now_ms - stale.read_ms <= SQL_AWAY_MS:
                return stale
            raise Unavailable("the database that knows the API keys is away") from error
        if entry is None:
            raise Unauthenticated(_WRONG)
        return entry

    def _looked_up(self, read: asyncio.Task[_Entry | None], digest: bytes, client_ip: str, now_ms: int) -> None:
        """One look-up is one guess, however many requests with that key waited for it, and if none of them did."""
        self._reading.pop(digest, None)
        if not read.cancelled() and read.exception() is None and read.result() is None:
            self._remember_wrong(digest, now_ms)
            self._floods.failed(client_ip, now_ms)

    async def _read(self, digest: bytes, public_id: str, now_ms: int) -> _Entry | None:
        async with self._lookups:
            for _ in range(3):
                drops = self._drops
                async with reading(self._engine) as db:
                    entry = await _fetch(db, virtual_keys.c.public_id == public_id, digest, now_ms)
                    if entry is None:
                        entry = await _fetch_rotated(db, public_id, digest, now_ms)
                if drops == self._drops:
                    break
                # Something changed while we read: perhaps this, so what we have may be what it was before.
        if entry is not None and drops == self._drops:
            if len(self._entries) >= ENTRIES_MAX:
                self._forget(next(iter(self._entries)))
            self._entries[digest] = entry
            self._hash_by_public_id[public_id] = digest
        return entry

    def _remember_wrong(self, digest: bytes, now_ms: int) -> None:
        if len(self._wrong) >= WRONG_MAX:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[digest] = now_ms + WRONG_MS

    def _forget(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._hash_by_public_id.pop(entry.principal.public_id, None)

    def _drop_all(self) -> None:
        self._drops += 1
        self._entries.clear()
        self._hash_by_public_id.clear()
        self._wrong.clear()

    def _heard(self, message: bytes) -> None:
        old, new, public_id = message.split(b" ", 2)
        if self._version is None or public_id == EVERYTHING.encode() or (self._version or b"") != old:
            # The last: an earlier message did not reach us.
            self._drop_all()
        else:
            self._drops += 1
            self._wrong.clear()
            digest = self._hash_by_public_id.get(public_id.decode())
            if digest is not None:
                self._forget(digest)
        self._version = new

    async def _listen(self) -> None:
        while True:
            try:
                await self._link.listen(CHANNEL, self._heard, self._drop_all)
            except (Unavailable, hiredis.ReplyError) as error:
                # The version tells what is missed meanwhile.
                log.warning("not listening for changed keys", reason=type(error).__name__)
                await asyncio.sleep(_RECONNECT_S)


async def _fetch(db: AsyncConnection, which: ColumnElement[bool], digest: bytes | None, now_ms: int) -> _Entry | None:
    """digest: of the key that was presented; None where none was."""
    key = virtual_keys.c
    query = (
        select(virtual_keys, organisations.c.credit_limit_pusd, projects.c.team_id)
        .join(organisations, organisations.c.id == key.organisation_id)
        .join(projects, projects.c.id == key.project_id)
        .where(which)
    )
    row = (await db.execute(query)).mappings().one_or_none()
    if row is None or (digest is not None and not hmac.compare_digest(row["secret_hash"], digest)):
        return None
    principal = Principal(
        key_id=row["id"],
        public_id=row["public_id"],
        name=row["name"],
        organisation_id=row["organisation_id"],
        project_id=row["project_id"],
        models=None if row["models"] is None else tuple(row["models"]),
        limits=await _limits(db, row),
        budgets=await _budgets(db, row, now_ms * 1_000_000),
        team_id=row["team_id"],
        strict=await _strict(db, row),
        guard=await _guard(db, _ids(row)),
        bodies=await _bodies(db, row["project_id"]),
        weight=row["weight"] or 1,
        routing=await routing_of(db, row["project_id"]),
    )
    networks = None if row["allow_ips"] is None else tuple(ip_network(n, strict=False) for n in row["allow_ips"])
    expires_ns = row["expires_at_ns"]
    return _Entry(
        principal,
        networks,
        None if expires_ns is None else expires_ns // 1_000_000,
        row["revoked_at_ns"] is not None,
        now_ms,
    )


async def _fetch_rotated(db: AsyncConnection, public_id: str, digest: bytes, now_ms: int) -> _Entry | None:
    """The key that this was the secret of before: the same one in everything, until its time is over."""
    earlier = key_secrets.c
    query = select(earlier.key_id, earlier.secret_hash, earlier.until_ns).where(earlier.public_id == public_id)
    row = (await db.execute(query)).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_hash, digest):
        return None
    entry = await _fetch(db, virtual_keys.c.id == row.key_id, None, now_ms)
    if entry is None:
        return None
    until_ms = row.until_ns // 1_000_000
    ends_ms = until_ms if entry.expires_ms is None else min(until_ms, entry.expires_ms)
    # Under the public id it came with, which its place in the memory goes by.
    return replace(entry, principal=replace(entry.principal, public_id=public_id), expires_ms=ends_ms)


async def _strict(db: AsyncConnection, row: Any) -> bool | None:
    """The key's own word, else its project's, else None."""
    said = loss_modes.c
    query = select(said.scope, said.mode).where(
        or_(
            (said.scope == "key") & (said.scope_id == row["id"]),
            (said.scope == "project") & (said.scope_id == row["project_id"]),
        )
    )
    found = {row.scope: row.mode for row in await db.execute(query)}
    mode = found.get("key") or found.get("project")
    return None if mode is None else mode == "strict"


async def _guard(db: AsyncConnection, ids: dict[str, str]) -> Guard | None:
    said = guardrails.c
    mine = [(said.scope == scope) & (said.scope_id == scope_id) for scope, scope_id in ids.items()]
    query = select(guardrails).where(said.enabled, or_(said.scope == "all", *mine))
    rows = (await db.execute(query)).mappings().all()
    if not rows:
        return None
    from gateway.guardrails.store import guard_of_rows  # Most gateways have none, and need not load what they are.

    return guard_of_rows(rows)


async def _bodies(db: AsyncConnection, project_id: str) -> TenantLogging | None:
    said = body_log_projects.c
    if (await db.execute(select(said.project_id).where(said.project_id == project_id))).first() is None:
        return None
    from gateway.bodies.store import logging_of  # As above: few projects log any.

    return await logging_of(db, project_id)


async def _limits(db: AsyncConnection, row: Any) -> tuple[Limit, ...]:
    units: tuple[tuple[Unit, str], ...] = (("requests", "rpm"), ("tokens", "tpm"), ("parallel", "parallel"))
    limits = [Limit("key", row["id"], unit, row[column]) for unit, column in units if row[column] is not None]
    ids, column = _ids(row), rate_limits.c.scope_id
    owned = (column.startswith(f"{each}/", autoescape=True) for each in ids.values())
    query = select(rate_limits).where(or_(column.in_(ids.values()), *owned))
    limits += [
        Limit(found["scope"], found["scope_id"], found["unit"], found["amount"], found["window_ms"])
        for found in (await db.execute(query)).mappings()
        if _brought(found["scope"], found["scope_id"], ids)
    ]
    return tuple(limits)


async def _budgets(db: AsyncConnection, row: Any, now_ns: int) -> tuple[Budget, ...]:
    ids = _ids(row)
    found = [
        Budget(
            each.scope.value,
            each.scope_id,
            each.limit_at(now_ns),
            each.window.value,
            each.kind.value,
            each.slow_rpm,
            each.slow_from_percent,
        )
        for each in await budgets(db, list(ids.values()))
        if _brought(each.scope.value, each.scope_id, ids)
    ]
    if row["credit_limit_pusd"] is not None:
        paid_in, _ = await spending.credit(db, row["organisation_id"])
        limit = min(MAX_AMOUNT_PUSD, paid_in + row["credit_limit_pusd"])
        found.append(Budget(CREDIT, row["organisation_id"], limit))
    return tuple(found)


def _ids(row: Any) -> dict[str, str]:
    """Whose a key is, on the way up."""
    ids = {"key": row["id"], "project": row["project_id"], "organisation": row["organisation_id"]}
    return ids if row["team_id"] is None else ids | {"team": row["team_id"]}


def _brought(scope: str, scope_id: str, ids: dict[str, str]) -> bool:
    """Whether a key brings this limit or budget along. An id may be of another kind, by chance or by design."""
    match scope:
        case "end_user":
            return scope_id == ids["project"]
        case "model" | "provider" | "tag":
            return scope_id.partition("/")[0] in (ids["project"], ids["organisation"])
    return ids.get(scope) == scope_id
