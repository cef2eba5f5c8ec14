"""The provider's bill against our rows: what differs on which day, of which model, and how much of it is unexplained.

Rows that are estimates explain a part: what was really used lies between nothing and the estimate, so a provider may
count up to that much less than we do.
"""

import datetime
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from sqlalchemy import func, select

from billing import schema
from billing.bills import BillLine
from billing.db import AsyncConnection, add_up, wide_sum, wide_sum_kept
from billing.rollups import NS_PER_HOUR

_NS_PER_DAY: Final = 24 * NS_PER_HOUR
# A dated snapshot is billed under its date and asked for with or without: gpt-4o-2024-08-06, claude-x-20250514, -v1:0.
_DATED: Final = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8})(-v\d+:\d+)?$|-v\d+:\d+$|-latest$")


class Counted(msgspec.Struct, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cost_pusd: int = 0


class DayDifference(msgspec.Struct, frozen=True):
    """One model on one day. theirs: what the export does not say is None in `unexplained` too.

    unexplained: theirs less ours, as far as estimated rows can not be its cause. Above zero: they count more."""

    day: str
    model: str
    ours: Counted
    estimated: Counted
    theirs: BillLine | None
    unexplained_input_tokens: int | None
    unexplained_output_tokens: int | None
    unexplained_cost_pusd: int | None

    @property
    def explained(self) -> bool:
        return not (self.unexplained_input_tokens or self.unexplained_output_tokens or self.unexplained_cost_pusd)


def same_model(name: str) -> str:
    """The name under which both sides of a comparison meet."""
    plain = name.strip().lower().rpartition("/")[2]
    return _DATED.sub("", plain)


ALL_MODELS: Final = "(all models)"


async def providers(db: AsyncConnection) -> list[str]:
    """Who was ever asked, as rows name them; retention leaves the hours there."""
    hours = schema.usage_hours.c.provider
    return list((await db.execute(select(hours).distinct().order_by(hours))).scalars())


async def reconcile(
    db: AsyncConnection,
    provider: str,
    bill: Sequence[BillLine],
    *,
    names: Mapping[str, str] = MappingProxyType({}),
    by_day: bool = False,
) -> list[DayDifference]:
    """Every model of every day from the bill's first to its last, by day and model. `provider`: as in usage rows.

    names: what the bill calls a model (a pattern of the shell) and what it goes by with us; clouds bill by names of
    their own, several of them for one model. by_day: all models of a day together, for which no name has to match."""
    if not bill:
        return []
    bill = [replace(line, model=ALL_MODELS if by_day else _ours_called(line.model, names)) for line in bill]
    days = sorted({line.day for line in bill})
    since_ns, until_ns = _start_ns(days[0]), _start_ns(days[-1]) + _NS_PER_DAY
    ours, guessed = await _ours(db, provider, since_ns, until_ns)
    if by_day:
        ours, guessed = _together(ours), _together(guessed)
    theirs: defaultdict[tuple[str, str], list[BillLine]] = defaultdict(list)
    for line in bill:
        theirs[(line.day, same_model(line.model))].append(line)
    says_tokens = any(line.output_tokens is not None for line in bill)
    says_cost = any(line.cost_pusd is not None for line in bill)
    return [
        _compare(
            key, ours.get(key, Counted()), guessed.get(key, Counted()), theirs.get(key, []), says_tokens, says_cost
        )
        for key in sorted(ours.keys() | theirs.keys())
    ]


def _ours_called(name: str, names: Mapping[str, str]) -> str:
    return next((ours for pattern, ours in names.items() if fnmatchcase(name.lower(), pattern.lower())), name)


def _together(found: Mapping[tuple[str, str], Counted]) -> dict[tuple[str, str], Counted]:
    days: dict[tuple[str, str], Counted] = {}
    for (day, _), counted in found.items():
        before = days.get((day, ALL_MODELS), Counted())
        days[day, ALL_MODELS] = Counted(
            before.input_tokens + counted.input_tokens,
            before.output_tokens + counted.output_tokens,
            before.cost_pusd + counted.cost_pusd,
        )
    return days


def _compare(
    key: tuple[str, str], ours: Counted, guessed: Counted, lines: Sequence[BillLine], tokens: bool, cost: bool
) -> DayDifference:
    total = BillLine(
        *key,
        sum(line.input_tokens or 0 for line in lines) if tokens else None,
        sum(line.output_tokens or 0 for line in lines) if tokens else None,
        sum(line.cost_pusd or 0 for line in lines) if cost else None,
    )
    return DayDifference(
        *key,
        ours,
        guessed,
        total if lines else None,
        _unexplained(total.input_tokens, ours.input_tokens, guessed.input_tokens),
        _unexplained(total.output_tokens, ours.output_tokens, guessed.output_tokens),
        _unexplained(total.cost_pusd, ours.cost_pusd, guessed.cost_pusd),
    )


def _unexplained(theirs: int | None, ours: int, guessed: int) -> int | None:
    if theirs is None:
        return None
    return theirs - ours if theirs > ours else min(0, theirs - (ours - guessed))


async def _ours(
    db: AsyncConnection, provider: str, since_ns: int, until_ns: int
) -> tuple[dict[tuple[str, str], Counted], dict[tuple[str, str], Counted]]:
    hours, rows = schema.usage_hours.c, schema.usage_records.c
    day = (hours.hour // 24).label("day")
    tokens = (func.sum(hours.input_tokens), func.sum(hours.output_tokens))
    found = await db.execute(
        select(day, hours.model, *tokens, *wide_sum_kept(hours.cost_usd, hours.cost_rest_pusd))
        .where(hours.provider == provider)
        .where(hours.hour >= since_ns // NS_PER_HOUR, hours.hour < until_ns // NS_PER_HOUR)
        .group_by(day, hours.model)
    )
    day = (rows.at_ns // _NS_PER_DAY).label("day")
    guessed = await db.execute(
        select(day, rows.model, func.sum(rows.input_tokens), func.sum(rows.output_tokens), *wide_sum(rows.cost_pusd))
        .where(rows.provider == provider, rows.estimated.is_(True), rows.at_ns >= since_ns, rows.at_ns < until_ns)
        .group_by(day, rows.model)
    )
    return _by_day(found), _by_day(guessed)


def _by_day(found: Any) -> dict[tuple[str, str], Counted]:
    counted: dict[tuple[str, str], Counted] = {}
    for number, model, tokens_in, tokens_out, *cost in found:
        key = (_name(int(number)), same_model(model))
        before = counted.get(key, Counted())
        counted[key] = Counted(
            before.input_tokens + int(tokens_in),
            before.output_tokens + int(tokens_out),
            before.cost_pusd + add_up(*cost),
        )
    return counted


def _start_ns(day: str) -> int:
    return (datetime.date.fromisoformat(day) - datetime.date(1970, 1, 1)).days * _NS_PER_DAY


def _name(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=number)).isoformat()
