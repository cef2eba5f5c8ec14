"""`farebox ledger`: the accounts, who pays how, and the audit over all postings."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from cyclopts import App

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    emit,
    make_table,
    organisation_of,
    usd,
)
from gateway.cli.keys import key_admin
from gateway.cli.site import acting

if TYPE_CHECKING:
    from billing.db import AsyncConnection

app = App(name="ledger")

ACTOR = "farebox ledger"


@app.command
async def balance(*, common: Common = DEFAULTS) -> int:
    """Show every account's balance, on the side where the account grows, in US dollars."""
    from billing.db import reading
    from billing.ledger import balances

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await balances(db)
    rows = [
        {
            "account": entry.account,
            "kind": entry.kind.value,
            "balance_usd": usd(entry.normal_pusd),
            "balance_pusd": entry.normal_pusd,
        }
        for entry in found
    ]
    columns = ["account", "kind", "balance_usd"]
    emit(
        common,
        {"accounts": rows},
        lambda: make_table(columns, [[row[c] for c in columns] for row in rows], right=["balance_usd"]),
    )
    return OK


@app.command
async def organisations(*, common: Common = DEFAULTS) -> int:
    """Show who pays how: prepaid or afterwards, up to what, in which currency, and what is left."""
    from billing import accounts
    from billing.db import reading
    from billing.ledger import credit_left

    async with database(common.settings()) as engine, reading(engine) as db:
        found = [(each, await credit_left(db, each.id)) for each in await accounts.organisations(db)]
    rows = [
        {
            "id": each.id,
            "name": each.name,
            "pays": {None: "afterwards", 0: "ahead"}.get(each.credit_limit_pusd, "ahead or owing"),
            "credit_limit_usd": usd(each.credit_limit_pusd),
            "left_usd": usd(left),
            "currency": each.currency,
        }
        for each, left in found
    ]
    columns = ["id", "name", "pays", "credit_limit_usd", "left_usd", "currency"]
    emit(
        common,
        {"organisations": rows},
        lambda: make_table(columns, [[row[c] for c in columns] for row in rows], right=columns[3:5]),
    )
    return OK


@app.command(name="open")
async def open_(
    name: str, /, *, limit: str = "0usd", currency: str = "USD", id: str = "",  # noqa: A002 - the flag is called --id.
    common: Changes = CHANGES,
) -> int:  # fmt: skip
    """Open an organisation's account. Its projects: `farebox projects create`.

    Parameters
    ----------
    name:
        What people call it.
    limit:
        How it pays: 0usd is ahead, more is what it may owe, none is afterwards without limit.
    currency:
        What its invoices are shown in.
    id:
        Its id. Default: made.
    """
    from sqlalchemy.exc import IntegrityError

    from billing import accounts
    from billing import currency as money
    from billing.db import writing
    from billing.money import parse_usd

    account = id or f"org_{secrets.token_hex(6)}"
    try:
        limit_pusd = None if limit == "none" else parse_usd(limit)
        async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
            await accounts.create_organisation(db, account, name, at_ns=time.time_ns())
            await accounts.set_credit_limit(db, account, limit_pusd)
            await money.set_currency(db, account, currency)
            await _note(db, "organisations.create", account, name=name, limit_usd=_limit(limit_pusd), currency=currency)
    except IntegrityError as error:
        raise Problem(f"{name!r} or {account!r} is there already", fix="`farebox ledger organisations`") from error
    except ValueError as error:
        raise Problem(str(error), fix="--limit 0usd, 500usd or none; --currency EUR", code=WRONG_USAGE) from error
    value = {"id": account, "name": name, "credit_limit_usd": usd(limit_pusd), "currency": currency}
    emit(common, value, lambda: f"{account}: {name}")
    return OK


@app.command
async def limit(organisation_id: str, amount: str, /, *, common: Changes = CHANGES) -> int:
    """Say how an organisation pays: 0usd is ahead, more is what it may owe, none is afterwards without limit."""
    from billing import accounts
    from billing.db import writing
    from billing.money import parse_usd

    settings = common.settings()
    try:
        limit_pusd = None if amount == "none" else parse_usd(amount)
        async with database(settings, dry=common.dry_run) as engine:
            async with writing(engine) as db:
                organisation_id = await organisation_of(db, organisation_id)
                await accounts.set_credit_limit(db, organisation_id, limit_pusd)
                await _note(db, "ledger.limit", organisation_id, limit_usd=_limit(limit_pusd))
            async with key_admin(settings, engine) as keys:
                await keys.changed()
    except ValueError as error:
        raise Problem(str(error), fix="0usd, 500usd or none", code=WRONG_USAGE) from error
    value = {"organisation": organisation_id, "credit_limit_usd": usd(limit_pusd)}
    told = "is billed afterwards, without limit" if limit_pusd is None else f"may owe up to {usd(limit_pusd)} USD"
    emit(common, value, lambda: f"{organisation_id} {told}")
    return OK


@app.command
async def currency(organisation_id: str, currency: str, /, *, common: Changes = CHANGES) -> int:
    """Say what an organisation's invoices are shown in, as EUR. Its rate: `farebox prices rate`."""
    from billing import currency as money
    from billing.db import writing

    try:
        async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
            organisation_id = await organisation_of(db, organisation_id)
            await money.set_currency(db, organisation_id, currency)
            await _note(db, "ledger.currency", organisation_id, currency=currency)
    except ValueError as error:
        raise Problem(str(error), fix="`farebox ledger currency ORGANISATION EUR`", code=WRONG_USAGE) from error
    value = {"organisation": organisation_id, "currency": currency}
    emit(common, value, lambda: f"invoices of {organisation_id} are shown in {currency}")
    return OK


def _limit(limit_pusd: int | None) -> str:
    return usd(limit_pusd) or "none"


async def _note(db: AsyncConnection, action: str, organisation_id: str, **after: str) -> None:
    from gateway import audit

    now_ns = time.time_ns()
    await audit.append(db, actor=acting(ACTOR), action=action, subject=organisation_id, at_ns=now_ns, after=after)


@app.command
async def trial(*, common: Common = DEFAULTS) -> int:
    """Add up every posting anew and compare with the balances kept. Exit code 1 if anything differs."""
    from billing.db import reading
    from billing.ledger import trial_balance

    async with database(common.settings()) as engine, reading(engine) as db:
        result = await trial_balance(db)
    value = {
        "sound": result.sound,
        "debits_minus_credits_pusd": result.debits_minus_credits_pusd,
        "differing": list(result.differing),
    }
    emit(
        common,
        value,
        lambda: (
            "debits equal credits, and every balance is the sum of its postings"
            if result.sound
            else f"NOT SOUND: debits minus credits {result.debits_minus_credits_pusd} pUSD; "
            f"differing accounts: {', '.join(result.differing) or 'none'}"
        ),
    )
    return OK if result.sound else NOT_WELL
