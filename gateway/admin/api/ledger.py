"""Money: balances, postings, the audit over all of them, and what customers pay in."""

from __future__ import annotations

from typing import Annotated

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, HeaderParameter, JSONBody, QueryParameter
from msgspec import Meta, Struct
from sqlalchemy import and_, or_, select

from billing import accounts, ledger
from billing.db import AsyncConnection, writing
from billing.money import format_usd
from billing.schema import transfers, usage_records
from gateway.admin.api.projects import amount_of
from gateway.admin.api.requests import Posting, posting
from gateway.admin.api.usage import From, To
from gateway.admin.api.values import Page, at_cursor, cursor, usd
from gateway.admin.auth.routes import record
from gateway.admin.problems import invalid, not_found
from gateway.admin.times import period_of, stamp
from gateway.admin.wants import Caller, Office, Within


class AccountView(Struct, frozen=True):
    """balance_usd is counted on the side where the account grows: a customer's credit is what they have left."""

    account: str
    kind: str
    label: str
    balance_usd: str


class OrganisationView(Struct, frozen=True):
    """credit_limit_usd: None is billed afterwards; "0.00" prepaid; more may be owed up to that."""

    id: str
    name: str
    credit_limit_usd: str | None
    left_usd: str


class Balances(Struct, frozen=True):
    accounts: list[AccountView]
    organisations: list[OrganisationView]


class LedgerAudit(Struct, frozen=True):
    """Every posting added up anew. sound: debits equal credits and each kept balance is the sum of its postings."""

    sound: bool
    debits_minus_credits_usd: str
    differing: list[str]


class TopUp(Struct, frozen=True, forbid_unknown_fields=True):
    """granted: credit that nobody paid for, instead of a payment. note: why, for the books."""

    organisation_id: str
    amount_usd: Annotated[str, Meta(max_length=40)]
    note: Annotated[str, Meta(min_length=1, max_length=500)]
    granted: bool = False


class Refund(Struct, frozen=True, forbid_unknown_fields=True):
    """request_id: the sale that is taken back, no more than it was charged and only once; its organisation is known
    then. Without an amount, all of it."""

    note: Annotated[str, Meta(min_length=1, max_length=500)]
    request_id: Annotated[str, Meta(max_length=100)] | None = None
    organisation_id: str | None = None
    amount_usd: Annotated[str, Meta(max_length=40)] | None = None


class ToppedUp(Struct, frozen=True):
    """new: False when this idempotency key had been posted before; then nothing moved."""

    new: bool
    left_usd: str


@get("/ledger/balances", name="ledger.balances")
async def balances(services: Office, sight: Within) -> Balances:
    """Of every account; whoever belongs to an organisation alone sees that one's."""
    async with services.reader.reading() as db:
        organisations = [each for each in await accounts.organisations(db) if sight.shows("organisation", each.id)]
        names = {accounts.customer(organisation.id): organisation.name for organisation in organisations}
        found = [each for each in await ledger.balances(db) if sight.organisations is None or each.account in names]
        kept = {entry.account: entry for entry in found}
        return Balances(
            [
                AccountView(
                    entry.account,
                    entry.kind.value,
                    names.get(entry.account, entry.account),
                    format_usd(entry.normal_pusd),
                )
                for entry in found
            ],
            [
                OrganisationView(
                    each.id,
                    each.name,
                    usd(each.credit_limit_pusd),
                    format_usd(entry.normal_pusd if (entry := kept.get(accounts.customer(each.id))) else 0),
                )
                for each in organisations
            ],
        )


@get("/ledger/transfers", name="ledger.transfers")
async def list_transfers(
    services: Office,
    sight: Within,
    account: FromQuery[str | None] = None,
    kind: FromQuery[str | None] = None,
    start: From = None,
    end: To = None,
    cursor_: Annotated[str | None, QueryParameter(name="cursor")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
) -> Page[Posting]:
    """Postings, the newest first; of one account, one kind or a time when asked."""
    table = transfers.c
    query = select(transfers)
    if account is not None:
        query = query.where(or_(table.debit == account, table.credit == account))
    if sight.organisations is not None:
        own = [accounts.customer(each) for each in sight.organisations]
        query = query.where(or_(table.debit.in_(own), table.credit.in_(own)))
    if kind is not None:
        query = query.where(table.kind == kind)
    if start is not None or end is not None:
        period = period_of(start or stamp(0), end, services.clock())
        query = query.where(table.at_ns >= period.start_ns, table.at_ns < period.end_ns)
    if cursor_ is not None:
        at_ns, after = at_cursor(cursor_, tuple[int, str])
        query = query.where(or_(table.at_ns < at_ns, and_(table.at_ns == at_ns, table.id < after)))
    async with services.reader.reading() as db:
        rows = (await db.execute(query.order_by(table.at_ns.desc(), table.id.desc()).limit(limit + 1))).mappings().all()
    shown = rows[:limit]
    more = cursor(shown[-1]["at_ns"], shown[-1]["id"]) if len(rows) > limit else None
    return Page([posting(row) for row in shown], more)


@get("/ledger/audit", name="ledger.audit")
async def audit_ledger(services: Office) -> LedgerAudit:
    """Add everything up again. Reads all postings."""
    async with services.reader.reading() as db:
        found = await ledger.trial_balance(db)
    return LedgerAudit(found.sound, format_usd(found.debits_minus_credits_pusd), list(found.differing))


@post("/ledger/top-ups", name="ledger.top_up")
async def top_up(
    data: JSONBody[TopUp],
    actor: Caller,
    services: Office,
    idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key", min_length=8, max_length=100)],
) -> ToppedUp:
    """Credit an organisation. The Idempotency-Key header makes sending it twice the same as once."""
    now_ns, amount = services.clock(), _above_zero(data.amount_usd)
    async with writing(services.engine) as db:
        await _known(db, data.organisation_id)
        move = ledger.grant if data.granted else ledger.top_up
        new = await move(db, data.organisation_id, amount, idempotency_key, at_ns=now_ns, note=data.note)
        left = await ledger.credit_left(db, data.organisation_id)
        if new:
            after = {"amount_usd": format_usd(amount), "granted": data.granted, "left_usd": format_usd(left)}
            subject = accounts.customer(data.organisation_id)
            await record(db, actor, "ledger.top_up", subject, now_ns, after=after, note=data.note)
    # What a prepaid organisation may spend has grown: every process reads it anew.
    await services.keys.changed()
    return ToppedUp(new, format_usd(left))


@post("/ledger/refunds", name="ledger.refund")
async def refund(
    data: JSONBody[Refund],
    actor: Caller,
    services: Office,
    idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key", min_length=8, max_length=100)],
) -> ToppedUp:
    """Take a sale back, of one request or by hand: the organisation has it to spend again."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        organisation_id, amount, reference = await _sale(db, data, idempotency_key)
        new = await ledger.refund(db, organisation_id, amount, reference, at_ns=now_ns, note=data.note)
        left = await ledger.credit_left(db, organisation_id)
        if new:
            after = {"amount_usd": format_usd(amount), "request_id": data.request_id, "left_usd": format_usd(left)}
            subject = accounts.customer(organisation_id)
            await record(db, actor, "ledger.refund", subject, now_ns, after=after, note=data.note)
    await services.keys.changed()
    return ToppedUp(new, format_usd(left))


ledger_handlers: list[HTTPRouteHandler] = [balances, list_transfers, audit_ledger, top_up, refund]


async def _sale(db: AsyncConnection, data: Refund, idempotency_key: str) -> tuple[str, int, str]:
    """Whose, how much, and the refund's id. Raises: Problem."""
    if data.request_id is None:
        if data.organisation_id is None or data.amount_usd is None:
            raise invalid("organisation_id", "a refund by hand needs whose and how much", "Or name a request_id.")
        await _known(db, data.organisation_id)
        return data.organisation_id, _above_zero(data.amount_usd), idempotency_key
    table = usage_records.c
    found = await db.execute(select(table.organisation_id, table.charge_pusd).where(table.id == data.request_id))
    row = found.one_or_none()
    if row is None:
        raise not_found("request", data.request_id, "Take an id from /requests.")
    if data.organisation_id not in (None, row.organisation_id):
        raise invalid("organisation_id", "the request is another organisation's", "Leave it out: the request says.")
    charged = row.charge_pusd or 0
    amount = charged if data.amount_usd is None else _above_zero(data.amount_usd)
    if not 0 < amount <= charged:
        raise invalid("amount_usd", f"the request was charged {format_usd(charged)}", "No more than that comes back.")
    return row.organisation_id, amount, data.request_id


async def _known(db: AsyncConnection, organisation_id: str) -> None:
    if organisation_id not in {each.id for each in await accounts.organisations(db)}:
        raise not_found("organisation", organisation_id, "Take an id from /ledger/balances.")


def _above_zero(text: str) -> int:
    """pUSD. Raises: Problem."""
    amount = amount_of(text, "amount_usd")
    if amount == 0:
        raise invalid("amount_usd", "an amount is more than nothing", "Write dollars, as 25 or 0.01.")
    return amount
