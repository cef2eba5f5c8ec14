"""This installation: the audit log, and the settings it runs with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import Struct
from sqlalchemy import func, select

from gateway import audit, schema
from gateway.admin.api.values import Page, at_cursor, cursor
from gateway.admin.services import Services
from gateway.admin.times import Stamp, stamp, unstamp
from gateway.admin.wants import Office, Within
from gateway.config import public


class AuditView(Struct, frozen=True):
    id: int
    at: Stamp
    actor: str
    action: str
    subject: str
    before: Any
    after: Any
    note: str | None
    organisation_id: str | None
    hash: str


class AuditVerdict(Struct, frozen=True):
    """head: the newest hash. Kept elsewhere, it shows later whether rows were cut off at the end."""

    intact: bool
    rows: int
    head: str
    broken_at: int | None


class SettingsView(Struct, frozen=True):
    """settings: as loaded, with secrets as references. database: product and version."""

    version: str
    base_url: str
    database: str
    settings: dict[str, Any]


@get("/audit", name="audit.list")
async def list_audit(
    services: Office,
    sight: Within,
    subject: FromQuery[str | None] = None,
    actor_name: Annotated[str | None, QueryParameter(name="actor")] = None,
    action: FromQuery[str | None] = None,
    why: FromQuery[str | None] = None,
    cursor_: Annotated[str | None, QueryParameter(name="cursor")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
) -> Page[AuditView]:
    """The newest first. Filters match exactly; `why` matches a part of the reason. Administrators of an organisation
    see what belongs to it; people and settings belong to the installation."""
    table = schema.audit.c
    wanted = audit.Wanted(actor_name, action, subject, why, organisations=sight.organisations)
    query = select(schema.audit).where(*wanted.where())
    if cursor_ is not None:
        (after,) = at_cursor(cursor_, tuple[int])
        query = query.where(table.id < after)
    async with services.reader.reading() as db:
        rows = (await db.execute(query.order_by(table.id.desc()).limit(limit + 1))).mappings().all()
    shown = [
        AuditView(
            row["id"],
            stamp(row["at_ns"]),
            row["actor"],
            row["action"],
            row["subject"],
            row["before"],
            row["after"],
            row["note"],
            row["organisation_id"],
            row["hash"].hex(),
        )
        for row in rows[:limit]
    ]
    return Page(shown, cursor(shown[-1].id) if len(rows) > limit else None)


@get("/audit/export", name="audit.export", media_type="application/x-ndjson")
async def export_audit(
    services: Office,
    sight: Within,
    subject: FromQuery[str | None] = None,
    actor_name: Annotated[str | None, QueryParameter(name="actor")] = None,
    action: FromQuery[str | None] = None,
    why: FromQuery[str | None] = None,
    start: Annotated[Stamp | None, QueryParameter(name="from")] = None,
    end: Annotated[Stamp | None, QueryParameter(name="to")] = None,
) -> Stream:
    """Every change that is meant as JSON Lines, the oldest first, with the hashes that prove them."""
    since_ns = 0 if start is None else unstamp(start)
    until_ns = None if end is None else unstamp(end)
    wanted = audit.Wanted(actor_name, action, subject, why, since_ns, until_ns, sight.organisations)
    headers = {"content-disposition": 'attachment; filename="audit.jsonl"'}
    return Stream(_exported(services, wanted), media_type="application/x-ndjson", headers=headers)


@get("/audit/verify", name="audit.verify")
async def verify_audit(services: Office) -> AuditVerdict:
    """Go through the whole chain of hashes."""
    async with services.reader.reading() as db:
        found = await audit.verify(db)
    return AuditVerdict(found.broken_at is None, found.rows, found.head, found.broken_at)


@get("/settings", name="settings.read")
async def read_settings(services: Office) -> SettingsView:
    """What this process was told. No secret is in here."""
    async with services.reader.reading() as db:
        if db.dialect.name == "sqlite":
            server = f"SQLite {(await db.execute(select(func.sqlite_version()))).scalar_one()}"
        else:
            server = str((await db.execute(select(func.version()))).scalar_one()).split(",")[0].split(" on ")[0]
    return SettingsView(_version(), services.settings.base_url, server, public(services.settings))


installation_handlers: list[HTTPRouteHandler] = [list_audit, export_audit, verify_audit, read_settings]


async def _exported(services: Services, wanted: audit.Wanted) -> AsyncIterator[bytes]:
    async with services.reader.reading() as db:
        async for line in audit.lines(db, wanted):
            yield line


def _version() -> str:
    try:
        return version("farebox")
    except PackageNotFoundError:
        return "from a checkout"  # Run in place, without an installation.
