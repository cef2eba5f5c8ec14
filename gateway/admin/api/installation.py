"""This installation: the local engine, the audit log, and the settings it runs with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import httpx
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from gateway import audit, schema
from gateway.admin.api.values import Page, at_cursor, cursor
from gateway.admin.services import Services
from gateway.admin.times import Stamp, stamp, unstamp
from gateway.admin.wants import Office
from gateway.config import public

ENGINE_TIMEOUT_S = 2.0


class EngineView(Struct, frozen=True):
    """state: off (not configured), away (does not answer), up. figures: its /metrics, histograms as _sum and _count."""

    state: str
    model: str
    detail: str
    figures: dict[str, float]


class AuditView(Struct, frozen=True):
    id: int
    at: Stamp
    actor: str
    action: str
    subject: str
    before: Any
    after: Any
    note: str | None
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


@get("/engine", name="engine.read")
async def read_engine(services: Office) -> EngineView:
    """The local engine's own figures, asked for now."""
    local = services.settings.local
    if not local.enabled or not local.base_url:
        return EngineView("off", local.model, "The local engine is not configured; `farebox up` starts one.", {})
    headers = {"authorization": f"Bearer {services.engine_key}"} if services.engine_key else {}
    try:
        answer = await services.http.get(
            f"{local.base_url.rstrip('/').removesuffix('/v1')}/metrics", headers=headers, timeout=ENGINE_TIMEOUT_S
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return EngineView("away", local.model, f"It does not answer ({type(error).__name__}); see its log.", {})
    return EngineView("up", local.model, "", _figures(answer.text))


@get("/audit", name="audit.list")
async def list_audit(
    services: Office,
    subject: FromQuery[str | None] = None,
    actor_name: Annotated[str | None, QueryParameter(name="actor")] = None,
    action: FromQuery[str | None] = None,
    why: FromQuery[str | None] = None,
    cursor_: Annotated[str | None, QueryParameter(name="cursor")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
) -> Page[AuditView]:
    """The newest first. Filters match exactly; `why` matches a part of the reason."""
    table = schema.audit.c
    query = select(schema.audit).where(*audit.Wanted(actor_name, action, subject, why).where())
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
            row["hash"].hex(),
        )
        for row in rows[:limit]
    ]
    return Page(shown, cursor(shown[-1].id) if len(rows) > limit else None)


@get("/audit/export", name="audit.export", media_type="application/x-ndjson")
async def export_audit(
    services: Office,
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
    wanted = audit.Wanted(actor_name, action, subject, why, since_ns, until_ns)
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


installation_handlers: list[HTTPRouteHandler] = [read_engine, list_audit, export_audit, verify_audit, read_settings]


async def _exported(services: Services, wanted: audit.Wanted) -> AsyncIterator[bytes]:
    async with services.reader.reading() as db:
        async for line in audit.lines(db, wanted):
            yield line


def _version() -> str:
    try:
        return version("farebox")
    except PackageNotFoundError:
        return "from a checkout"  # Run in place, without an installation.


def _figures(text: str) -> dict[str, float]:
    """Counters and gauges summed over labels; of histograms the sum and the count."""
    figures: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                figures[sample.name] = figures.get(sample.name, 0.0) + sample.value
    return figures
