"""What an account's statements are shown in: dated rates, and amounts in other currencies, in integers.

The ledger stays in pUSD. A rate is never changed: another one holds from a later time on, and whatever is shown names
the rate that it was shown with and its day.
"""

import datetime
import re
from decimal import Decimal
from typing import Any, Final

import msgspec
from sqlalchemy import insert, select, update

from billing import schema
from billing.db import AsyncConnection
from billing.errors import BillingError

USD: Final = "USD"
RATE_DIGITS: Final = 9
_RATE_MAX: Final = 10**9  # So many units for a dollar; fits 64 bits with its digits.

# Digits behind the point where there are not two. Source: ISO 4217 list one, read 2026-11.
_MINOR_DIGITS: Final = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF",
                     "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}  # fmt: skip
_CODE: Final = re.compile(r"[A-Z]{3}")
# Lines of a statement have finer parts than coins: most requests cost less than one.
LINE_DIGITS: Final = 6


class UnknownRate(BillingError):
    """Nobody has said what a dollar is worth in that currency at that time."""

    def __init__(self, currency: str, day: str) -> None:
        super().__init__(f"no rate for {currency} that holds at {day}; set one: farebox prices rate {currency} 0.91")
        self.currency = currency


class Rate(msgspec.Struct, frozen=True):
    """`per_usd_nano` 10**-9 of a unit are one US dollar, from that time on. source: who says so."""

    currency: str
    per_usd_nano: int
    effective_from_ns: int
    source: str

    @property
    def per_usd(self) -> str:
        whole, rest = divmod(self.per_usd_nano, 10**RATE_DIGITS)
        return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")

    @property
    def day(self) -> str:
        return datetime.datetime.fromtimestamp(self.effective_from_ns // 10**9, datetime.UTC).date().isoformat()


IN_DOLLARS: Final = Rate(USD, 10**RATE_DIGITS, 0, "")


def minor_digits(currency: str) -> int:
    return _MINOR_DIGITS.get(currency, 2)


def convert(amount_pusd: int, rate: Rate, digits: int) -> int:
    """The amount in so many digits behind the point, rounded to the nearest, a half to the even one."""
    exact, unit = amount_pusd * rate.per_usd_nano, int(10 ** (12 + RATE_DIGITS - digits))
    whole, rest = divmod(exact, unit)
    return whole + (2 * rest > unit or (2 * rest == unit and whole % 2 == 1))


def show(amount_pusd: int, rate: Rate, digits: int | None = None) -> str:
    """As text, without the currency's name. digits: None is as many as the currency's coins have."""
    digits = minor_digits(rate.currency) if digits is None else digits
    amount = convert(amount_pusd, rate, digits)
    if digits == 0:
        return str(amount)
    whole, rest = divmod(abs(amount), 10**digits)
    return f"{'-' if amount < 0 else ''}{whole}.{rest:0{digits}d}"


def parse_rate(text: str) -> int:
    """Units of a currency for one US dollar, as 0.912345. Returns: in 10**-9. Raises: ValueError."""
    if re.fullmatch(r"\d{1,10}(\.\d{1,9})?", text.strip()) is None:
        raise ValueError(f"not a rate: {text!r}; at most nine digits behind the point")
    nano = int(Decimal(text.strip()) * 10**RATE_DIGITS)
    if not 0 < nano <= _RATE_MAX * 10**RATE_DIGITS:
        raise ValueError(f"not a rate: {text!r}")
    return nano


def check_code(currency: str) -> str:
    """Raises: ValueError."""
    if _CODE.fullmatch(currency) is None:
        raise ValueError(f"not a currency: {currency!r}; three capital letters, as EUR")
    return currency


async def set_rate(
    db: AsyncConnection, currency: str, per_usd_nano: int, *, effective_from_ns: int, source: str, at_ns: int
) -> Rate:
    """Raises: ValueError, also where another rate stands for the same instant: what was shown stays explained."""
    if check_code(currency) == USD:
        raise ValueError("a dollar is a dollar")
    table = schema.exchange_rates
    where = (table.c.currency == currency, table.c.effective_from_ns == effective_from_ns)
    said = (await db.execute(select(table.c.per_usd_nano).where(*where))).scalar_one_or_none()
    rate = Rate(currency, per_usd_nano, effective_from_ns, source)
    if said is None:
        await db.execute(insert(table).values(**msgspec.structs.asdict(rate), created_at_ns=at_ns))
    elif said != per_usd_nano:
        raise ValueError(f"{currency} has another rate from {rate.day} on; take a later time")
    return rate


async def rate_at(db: AsyncConnection, currency: str, at_ns: int) -> Rate:
    """The rate in force then. Raises: UnknownRate."""
    if currency == USD:
        return IN_DOLLARS
    table = schema.exchange_rates
    query = select(table).where(table.c.currency == currency, table.c.effective_from_ns <= at_ns)
    row = (await db.execute(query.order_by(table.c.effective_from_ns.desc()).limit(1))).mappings().first()
    if row is None:
        raise UnknownRate(currency, datetime.datetime.fromtimestamp(at_ns // 10**9, datetime.UTC).date().isoformat())
    return _rate(row)


async def rates(db: AsyncConnection) -> list[Rate]:
    """All that were ever said, the newest first within each currency."""
    table = schema.exchange_rates
    rows = await db.execute(select(table).order_by(table.c.currency, table.c.effective_from_ns.desc()))
    return [_rate(row) for row in rows.mappings()]


async def set_currency(db: AsyncConnection, organisation_id: str, currency: str) -> bool:
    """What an organisation's invoices are shown in from now on. Returns: whether there is such an organisation."""
    table = schema.organisations
    changed = update(table).where(table.c.id == organisation_id).values(currency=check_code(currency))
    return bool((await db.execute(changed)).rowcount)


def _rate(row: Any) -> Rate:
    return Rate(row["currency"], row["per_usd_nano"], row["effective_from_ns"], row["source"])
