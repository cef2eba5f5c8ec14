"""`farebox topup`: money that was paid in or out, credit that was granted, refunds, and corrections by hand."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from cyclopts import App

from gateway.cli.common import CHANGES, OK, WRONG_USAGE, Changes, Common, Problem, database, emit, organisation_of, usd
from gateway.cli.keys import key_admin
from gateway.cli.site import acting
from gateway.config import Settings

if TYPE_CHECKING:
    from billing.db import AsyncEngine

app = App(name="topup")

ACTOR = "farebox topup"

_YEAR_MAX = 2262  # Nanoseconds in 64 bits end there.


@app.command
async def pay(
    organisation: str,
    amount: str,
    /,
    *,
    id: str = "",  # noqa: A002 - the flag is called --id.
    note: str = "",
    common: Changes = CHANGES,
) -> int:
    """Book money that an organisation has paid in, for example 25usd.

    Parameters
    ----------
    organisation:
        Whose, by id or name; `farebox ledger organisations` lists them.
    amount:
        In US dollars, as 25usd or 25.50.
    id:
        The payment's own reference. Saying it again books nothing, so a script may be run twice.
    """
    from billing.ledger import top_up

    return await _move(common, organisation, _amount(amount), id, note, top_up, "ledger.top_up", "paid in")


@app.command
async def grant(
    organisation: str,
    amount: str,
    /,
    *,
    expires: str = "",
    id: str = "",  # noqa: A002 - the flag is called --id.
    note: str = "",
    common: Changes = CHANGES,
) -> int:
    """Give credit that nobody pays for.

    Parameters
    ----------
    expires:
        The day, as 2026-12-31 in UTC, from whose end on what is left of it is taken back. Default: never.
    id:
        A reference; saying it again grants nothing.
    """
    from billing.ledger import grant as grant_for_ever
    from billing.payments import grant_until

    until_ns = _end_of(expires) if expires else None
    if until_ns is not None and until_ns <= time.time_ns():
        raise Problem(f"{expires} is over", fix="a day to come", code=WRONG_USAGE)
    move = grant_for_ever if until_ns is None else partial(grant_until, expires_at_ns=until_ns)
    return await _move(common, organisation, _amount(amount), id, note, move, "ledger.top_up", "granted", granted=True)


@app.command
async def refund(
    organisation: str,
    amount: str,
    /,
    *,
    note: str,
    id: str = "",  # noqa: A002 - the flag is called --id.
    common: Changes = CHANGES,
) -> int:
    """Take a sale back: the organisation has it to spend again."""
    from billing.ledger import refund as give_back

    return await _move(common, organisation, _amount(amount), id, note, give_back, "ledger.refund", "refunded")


@app.command
async def payout(
    organisation: str,
    amount: str,
    /,
    *,
    note: str,
    id: str = "",  # noqa: A002 - the flag is called --id.
    common: Changes = CHANGES,
) -> int:
    """Hand unused credit back as money, no more than is left."""
    from billing.ledger import pay_out

    return await _move(common, organisation, _amount(amount), id, note, pay_out, "ledger.pay_out", "paid out")


@app.command
async def adjust(
    organisation: str,
    amount: str,
    /,
    *,
    note: str,
    id: str = "",  # noqa: A002 - the flag is called --id.
    common: Changes = CHANGES,
) -> int:
    """Correct a balance by hand: 5usd is in the organisation's favour, -5usd against it. The note says why.

    Parameters
    ----------
    amount:
        After `--` when it begins with a minus: farebox topup adjust --note why -- org_1 -5usd
    """
    from billing.ledger import adjust as correct

    sign = -1 if amount.startswith("-") else 1
    amount_pusd = sign * _amount(amount.removeprefix("-"))
    return await _move(common, organisation, amount_pusd, id, note, correct, "ledger.adjust", "adjusted")


async def _move(
    common: Changes,
    organisation: str,
    amount_pusd: int,
    reference: str,
    note: str,
    move: Callable[..., Awaitable[bool]],
    action: str,
    done: str,
    *,
    granted: bool = False,
) -> int:
    """Move the money and write down who did, once for each reference. note: for the books and the audit."""
    from billing import accounts
    from billing.db import writing
    from gateway import audit

    reference, now_ns, settings = reference or f"cli-{secrets.token_hex(8)}", time.time_ns(), common.settings()
    async with database(settings, dry=common.dry_run) as engine:
        async with writing(engine) as db:
            ident = await organisation_of(db, organisation)
            new = await move(db, ident, amount_pusd, reference, at_ns=now_ns, note=note or None)
            if new:
                after = {"amount_usd": usd(amount_pusd), "id": reference} | ({"granted": True} if granted else {})
                await audit.append(
                    db,
                    actor=acting(ACTOR),
                    action=action,
                    subject=accounts.customer(ident),
                    at_ns=now_ns,
                    after=after,
                    note=note or None,
                )
        await _announce(settings, engine)
    _say(common, ident, amount_pusd, reference, new=new, done=done)
    return OK


async def _announce(settings: Settings, engine: AsyncEngine) -> None:
    """What may be spent has changed: running gateways look at once, not within half a minute."""
    async with key_admin(settings, engine) as keys:
        await keys.changed()


@app.command
async def expire(*, common: Changes = CHANGES) -> int:
    """Take back what is left of grants that have expired. Workers do so each minute."""
    from billing.db import writing
    from billing.payments import expire_grants

    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        taken = await expire_grants(db, at_ns=time.time_ns())
    emit(common, {"taken_back_usd": usd(taken), "taken_back_pusd": taken}, lambda: f"{usd(taken)} USD taken back")
    return OK


def _amount(text: str) -> int:
    from billing.money import MAX_AMOUNT_PUSD, parse_usd

    try:
        amount_pusd = parse_usd(text)
    except ValueError as error:
        raise Problem(str(error), fix="for example 25usd", code=WRONG_USAGE) from error
    if not 0 < amount_pusd <= MAX_AMOUNT_PUSD:
        raise Problem(f"{text} is no amount to book", fix="above zero and below 9 million", code=WRONG_USAGE)
    return amount_pusd


def _end_of(day: str) -> int:
    try:
        date = datetime.date.fromisoformat(day)
    except ValueError as error:
        raise Problem(f"{day} is no day", fix="as 2026-12-31", code=WRONG_USAGE) from error
    if date.year >= _YEAR_MAX:
        raise Problem(f"{day} is too far away", fix=f"before {_YEAR_MAX}, or no end at all", code=WRONG_USAGE)
    start = datetime.datetime.combine(date, datetime.time(), datetime.UTC)
    return (int(start.timestamp()) + 86_400) * 10**9


def _say(common: Common, organisation_id: str, amount_pusd: int, reference: str, *, new: bool, done: str) -> None:
    value = {"organisation": organisation_id, "amount_usd": usd(amount_pusd), "id": reference, "new": new}
    emit(
        common,
        value,
        lambda: (
            f"{usd(amount_pusd)} USD {done} for {organisation_id} ({reference})"
            if new
            else f"{reference} was booked before; nothing has changed"
        ),
    )
