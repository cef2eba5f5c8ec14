"""Which projects log bodies, and the logged ones: sealed rows that go after their time, each reading audited."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import delete, select

from billing.accounts import put, upsert
from billing.db import AsyncConnection, AsyncEngine, reading, writing
from billing.schema import projects
from gateway import audit
from gateway.bodies.recorder import of_row
from gateway.envelope import KEY_BYTES, KeyRing, Sealed
from gateway.errors import InvalidRequest, NotFound
from gateway.guardrails import detectors
from gateway.schema import body_log_projects, body_logs, tenant_salts

DAYS_MAX = 3650


class BodyLogging(Struct, frozen=True):
    """days: how long a body is kept. detectors: what is taken out before (gateway.guardrails.detectors)."""

    project_id: str
    days: int
    detectors: tuple[str, ...]


class TenantLogging(BodyLogging, frozen=True):
    """With whose salt what it logs is sealed. Empty: the tenant has none."""

    organisation_id: str
    salt: bytes


class Bodies:
    """changed: has every process read its keys again (`KeyAdmin.changed`)."""

    def __init__(self, engine: AsyncEngine, changed: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._changed = changed

    async def projects(self) -> list[BodyLogging]:
        """Those that log."""
        async with reading(self._engine) as db:
            rows = await db.execute(select(body_log_projects).order_by(body_log_projects.c.project_id))
        return [BodyLogging(row.project_id, row.days, tuple(row.detectors)) for row in rows]

    async def set(
        self, project_id: str, days: int | None, found: tuple[str, ...], *, actor: str, now_ns: int
    ) -> BodyLogging | None:
        """days: None stops it; what is kept stays until its time. Raises: NotFound, InvalidRequest."""
        if days is not None and not 1 <= days <= DAYS_MAX:
            raise InvalidRequest(f"bodies are kept 1 to {DAYS_MAX} days", param="days")
        try:
            detectors.named(found)
        except ValueError as error:
            raise InvalidRequest(str(error), param="detectors") from None
        new = None if days is None else BodyLogging(project_id, days, found)
        table = body_log_projects.c
        async with writing(self._engine) as db:
            owner = select(projects.c.organisation_id).where(projects.c.id == project_id)
            if (organisation_id := (await db.execute(owner)).scalar()) is None:
                raise NotFound(f"no project {project_id!r}", param="project_id")
            await audit.hold(db, project_id)
            before = (await db.execute(select(body_log_projects).where(table.project_id == project_id))).first()
            if new is None:
                await db.execute(delete(body_log_projects).where(table.project_id == project_id))
            else:
                await put(db, body_log_projects, msgspec.to_builtins(new))
                salt = {"organisation_id": organisation_id, "salt": secrets.token_bytes(KEY_BYTES)}
                await db.execute(upsert(db, tenant_salts).values(salt).on_conflict_do_nothing())
            await audit.append(
                db, actor=actor, action="bodies.set", subject=project_id, at_ns=now_ns,
                before={"days": None if before is None else before.days},
                after={"days": days, "detectors": list(found)},
            )  # fmt: skip
        await self._changed()
        return new

    async def read(self, request_id: str, ring: KeyRing, *, actor: str, now_ns: int) -> dict[str, Any]:
        """`request` and `response`. The reading stands in the audit before anybody reads.

        Raises: NotFound; CannotOpen."""
        theirs = body_logs.outerjoin(tenant_salts, tenant_salts.c.organisation_id == body_logs.c.salted_for)
        query = select(body_logs, tenant_salts.c.salt).select_from(theirs)
        query = query.where(body_logs.c.request_id == request_id, body_logs.c.expires_at_ns > now_ns)
        async with writing(self._engine) as db:
            row = (await db.execute(query.order_by(body_logs.c.id.desc()).limit(1))).first()
            if row is None:
                raise NotFound(f"no bodies of the request {request_id!r} are kept", param="request_id")
            await audit.append(db, actor=actor, action="bodies.read", subject=request_id, at_ns=now_ns,
                               of=row.project_id)  # fmt: skip
        plain = ring.open(Sealed(row.key_id, row.wrapped, row.ciphertext), of_row(request_id), row.salt or b"")
        said: dict[str, Any] = msgspec.json.decode(plain)
        return said


async def logging_of(db: AsyncConnection, project_id: str) -> TenantLogging | None:
    """With a key: None where its project logs nothing, as most do."""
    owned = body_log_projects.join(projects, projects.c.id == body_log_projects.c.project_id)
    salted = owned.outerjoin(tenant_salts, tenant_salts.c.organisation_id == projects.c.organisation_id)
    query = select(body_log_projects, projects.c.organisation_id, tenant_salts.c.salt).select_from(salted)
    row = (await db.execute(query.where(projects.c.id == project_id))).first()
    if row is None:
        return None
    return TenantLogging(row.project_id, row.days, tuple(row.detectors), row.organisation_id, row.salt or b"")


async def forget_bodies(engine: AsyncEngine, *, now_ns: int) -> int:
    """The chore. Returns: how many went."""
    async with writing(engine) as db:
        done = await db.execute(delete(body_logs).where(body_logs.c.expires_at_ns <= now_ns))
    return done.rowcount
