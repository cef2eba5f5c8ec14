"""One request after another: the list, and everything that is known about one, down to the price of each line."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter
from msgspec import Struct
from sqlalchemy import and_, or_, select
from sqlalchemy.engine import RowMapping

from billing import partitions
from billing.db import AsyncConnection
from billing.money import format_usd
from billing.pricelist import load_sheet
from billing.schema import transfers, usage_records
from billing.usage import Meter, input_tokens_total
from gateway.admin import reports
from gateway.admin.api.guardrails import GuardrailFinding, findings_of
from gateway.admin.api.usage import From, To, filters_of
from gateway.admin.api.values import Page, at_cursor, cursor, usd
from gateway.admin.auth.roles import TELLERS
from gateway.admin.problems import not_found
from gateway.admin.times import DAY_NS, Stamp, period_of, stamp
from gateway.admin.wants import Caller, Office, Within
from gateway.routing.explaining import Way
from gateway.schema import guardrail_reports

WAIT_TRIES: Final = 10
WAIT_S: Final = 0.1


class RequestView(Struct, frozen=True):
    """charge_usd is None while a price is missing. Times are milliseconds since the request came in."""

    id: str
    at: Stamp
    key_id: str
    key: str
    project_id: str
    alias: str
    provider: str
    model: str
    dialect: str
    outcome: str
    status: int | None
    input_tokens: int
    output_tokens: int
    charge_usd: str | None
    estimated: bool
    first_token_ms: int | None
    duration_ms: int | None
    attempts: int
    finish_reason: str | None
    end_user: str | None


class PriceLine(Struct, frozen=True):
    """quantity x price = amount, exactly. price_usd_per_million is per a million units of the meter."""

    meter: str
    quantity: int
    price_usd_per_million: str | None
    amount_usd: str | None
    cost_usd: str | None


class PriceSheetView(Struct, frozen=True):
    id: str
    provider: str
    model: str
    source: str
    effective_from: Stamp
    above_input_tokens: int


class Posting(Struct, frozen=True):
    """note: why, where a person moved it."""

    id: str
    kind: str
    debit: str
    credit: str
    amount_usd: str
    at: Stamp
    note: str | None


class ChoiceView(Struct, frozen=True):
    deployment: str
    why: str


class TryView(Struct, frozen=True):
    """result: ok, the kind of failure with the provider's status, or lost: asked beside another that was sooner."""

    deployment: str
    result: str
    ms: int


class WayView(Struct, frozen=True):
    """legs: in the order they would be tried; tries: what came of each, where there was more than one. lost_usd: about
    what the provider of a try that was lost bills for its prompt; null where none was, and for roles that may not see
    money."""

    strategy: str
    legs: list[ChoiceView]
    left_out: list[ChoiceView]
    tries: list[TryView]
    lost_usd: str | None


class RequestDetail(Struct, frozen=True):
    """cost_usd and postings are what providers bill and the ledger holds: for those who may see money. way: null where
    one deployment alone could serve it and did."""

    request: RequestView
    project: str
    organisation: str
    deployment: str
    hold_usd: str
    cost_usd: str | None
    upstream_id: str | None
    tags: list[str]
    variant: str
    way: WayView | None
    sheet: PriceSheetView | None
    lines: list[PriceLine]
    postings: list[Posting]
    guardrails: list[GuardrailFinding]


@get("/requests", name="requests.list")
async def list_requests(
    request: Request[Any, Any, Any],
    services: Office,
    sight: Within,
    start: From = None,
    end: To = None,
    cursor_: Annotated[str | None, QueryParameter(name="cursor")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
) -> Page[RequestView]:
    """The newest first. Filters as in `/usage`; without `from`, the last 90 days."""
    now_ns = services.clock()
    period = period_of(start or stamp(now_ns - 90 * DAY_NS), end, now_ns)
    table = usage_records.c
    query = select(usage_records)
    if cursor_ is not None:
        at_ns, after = at_cursor(cursor_, tuple[int, str])
        query = query.where(or_(table.at_ns < at_ns, and_(table.at_ns == at_ns, table.id < after)))
    async with services.reader.reading() as db:
        query = query.where(*reports.where(db, period, sight.filters(filters_of(request))))
        rows = (await db.execute(query.order_by(table.at_ns.desc(), table.id.desc()).limit(limit + 1))).mappings().all()
        keys = await reports.labels(db, "key", list({row["key_id"] for row in rows}))
    shown = rows[:limit]
    more = cursor(shown[-1]["at_ns"], shown[-1]["id"]) if len(rows) > limit else None
    return Page([request_view(row, keys) for row in shown], more)


@get("/requests/{request_id:str}", name="requests.read")
async def read_request(request_id: FromPath[str], actor: Caller, sight: Within, services: Office) -> RequestDetail:
    """One request with its price sheet line by line, and, for those who may see money, cost and postings.

    Who asks the moment an answer is whole waits until its record has come from the journal, a second at most."""
    money = actor.role in TELLERS
    for _ in range(WAIT_TRIES):
        async with services.reader.reading() as db:
            if await partitions.known(db, [request_id]):
                break
        await asyncio.sleep(WAIT_S)
    async with services.reader.reading() as db:
        since_ns, until_ns = await partitions.span_of(db, [request_id])
        when = usage_records.c.at_ns
        query = select(usage_records).where(usage_records.c.id == request_id, when >= since_ns, when < until_ns)
        found = await db.execute(query)
        row = found.mappings().first()
        if row is None or not sight.shows("project", row["project_id"]):
            raise not_found("request", request_id, "It shows within a second of its end; a refused one never does.")
        sheet, lines = await _priced(db, row, money)
        ids = [*(f"{request_id}:{kind}" for kind in _POSTING_KINDS), f"refund:{request_id}"] if money else []
        posted = await db.execute(select(transfers).where(transfers.c.id.in_(ids)))
        said = guardrail_reports.c
        reported = await db.execute(select(said.findings).where(said.request_id == request_id).order_by(said.id))
        keys = await reports.labels(db, "key", [row["key_id"]])
        project = await reports.labels(db, "project", [row["project_id"]])
        organisation = await reports.labels(db, "organisation", [row["organisation_id"]])
        return RequestDetail(
            request_view(row, keys),
            project.get(row["project_id"], row["project_id"]),
            organisation.get(row["organisation_id"], row["organisation_id"]),
            row["deployment"],
            format_usd(row["hold_pusd"]),
            usd(row["cost_pusd"]) if money else None,
            row["upstream_id"],
            list(row["tags"]),
            row["variant"],
            _way(row["way"], money),
            sheet,
            lines,
            [posting(entry) for entry in posted.mappings()],
            findings_of([each for said in reported.scalars() for each in said]),
        )


request_handlers: list[HTTPRouteHandler] = [list_requests, read_request]

# As billing.ledger.usage_transfers names them; looked up by id, which is indexed.
_POSTING_KINDS = ("charge", "overrun", "cost")
_MILLION = 1_000_000


def posting(entry: RowMapping) -> Posting:
    amount = format_usd(entry["amount_pusd"])
    at, note = stamp(entry["at_ns"]), entry["note"]
    return Posting(entry["id"], entry["kind"], entry["debit"], entry["credit"], amount, at, note)


async def _priced(db: AsyncConnection, row: RowMapping, money: bool) -> tuple[PriceSheetView | None, list[PriceLine]]:
    quantities = {Meter(name): int(quantity) for name, quantity in row["quantities"].items()}
    sheet = await load_sheet(db, row["price_id"])
    if sheet is None:
        return None, [PriceLine(meter.value, quantity, None, None, None) for meter, quantity in quantities.items()]
    tier = sheet.tier(input_tokens_total(quantities))
    lines = []
    for meter, quantity in quantities.items():
        sale, cost = tier.sale.get(meter), tier.cost.get(meter)
        lines.append(
            PriceLine(
                meter.value,
                quantity,
                usd(None if sale is None else sale * _MILLION),
                usd(None if sale is None else sale * quantity),
                usd(cost * quantity if money and cost is not None else None),
            )
        )
    start = stamp(sheet.effective_from_ns)
    view = PriceSheetView(sheet.id, sheet.provider, sheet.model, sheet.source, start, tier.above_input_tokens)
    return view, lines


def _way(kept: str | None, money: bool) -> WayView | None:
    if kept is None:
        return None
    way = msgspec.json.decode(kept, type=Way)
    legs, left_out = ([ChoiceView(*each) for each in side] for side in (way.legs, way.left_out))
    lost = usd(way.lost_pusd) if money and way.lost_pusd else None
    return WayView(way.strategy, legs, left_out, [TryView(*each) for each in way.tries], lost)


def request_view(row: RowMapping, keys: dict[str, str]) -> RequestView:
    return RequestView(
        id=row["id"],
        at=stamp(row["at_ns"]),
        key_id=row["key_id"],
        key=keys.get(row["key_id"], row["key_id"]),
        project_id=row["project_id"],
        alias=row["alias"],
        provider=row["provider"],
        model=row["model"],
        dialect=row["dialect"],
        outcome=row["outcome"],
        status=row["status"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        charge_usd=usd(row["charge_pusd"]),
        estimated=row["estimated"],
        first_token_ms=row["first_token_ms"],
        duration_ms=row["duration_ms"],
        attempts=row["attempts"],
        finish_reason=row["finish_reason"],
        end_user=row["end_user"],
    )
