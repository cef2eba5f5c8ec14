"""Usage over any time, by any dimension: each stretch of it is read from the coarsest table that knows the answer.

Days that are over and sealed come from usage_days, other whole hours from usage_hours, what is left of an hour at
either end from the rows. End users and tags are kept by the day alone, so that a day that is not sealed, and a filter
that the table of facets does not have, are read from the rows. Reads, never writes. Days and hours are those of UTC.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from operator import add, itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Table,
    and_,
    case,
    cast,
    exists,
    func,
    or_,
    select,
    true,
    union_all,
)

from billing import schema
from billing.db import SPLIT, AsyncConnection, add_up, kept_parts, parts
from billing.rollups import NS_PER_HOUR, TOKENS_MAX
from billing.schema import usage_records
from billing.usage import Outcome

NS_PER_DAY: Final = 24 * NS_PER_HOUR
FOR_EVER_NS: Final = 2**63 - 1

OTHER: Final = "(other)"
ALL: Final = "all"
NOBODY: Final = "(none)"

FAILED: Final = (Outcome.UPSTREAM_FAILED, Outcome.TIMED_OUT, Outcome.KILLED)
"""What counts as an error of the service. A rejected request is the client's, a gone client nobody's."""


class Dimension(StrEnum):
    ORGANISATION = "organisation"
    TEAM = "team"  # That the project is in today.
    PROJECT = "project"
    KEY = "key"
    ALIAS = "alias"
    MODEL = "model"
    PROVIDER = "provider"
    DEPLOYMENT = "deployment"
    OUTCOME = "outcome"
    DIALECT = "dialect"
    END_USER = "end_user"
    TAG = "tag"


Filters = Mapping[Dimension, Sequence[str]]
"""Values to keep of each dimension; an empty sequence keeps all."""

_COLUMN: Final = {
    Dimension.ORGANISATION: "organisation_id",
    Dimension.PROJECT: "project_id",
    Dimension.KEY: "key_id",
    **{each: each.value for each in Dimension if each.value not in ("organisation", "team", "project", "key", "tag")},
}
FACETS: Final = (Dimension.END_USER, Dimension.TAG)
_BESIDE_FACETS: Final = (Dimension.ORGANISATION, Dimension.TEAM, Dimension.PROJECT)


class Totals(msgspec.Struct, frozen=True):
    """charge: what customers owe for it; cost: what providers will bill. estimated, unpriced: so many of the requests
    were not counted by a provider, or have not been charged yet."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charge_pusd: int = 0
    cost_pusd: int = 0
    estimated: int = 0
    unpriced: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*map(add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class Span(msgspec.Struct, frozen=True):
    """From `since_ns` up to, not including, `until_ns`."""

    since_ns: int = 0
    until_ns: int = FOR_EVER_NS


async def totals(db: AsyncConnection, span: Span, filters: Filters) -> Totals:
    found = _union(await _cover(db, span, filters, None, None))
    return _totals((await db.execute(select(*_outer(found)))).one())


async def groups(
    db: AsyncConnection, by: Dimension, span: Span, filters: Filters, *, limit: int | None = None
) -> list[tuple[str | None, Totals]]:
    """The dearest first, then the busiest. None: requests that have no such name. By tag, a request with two tags is
    in two groups."""
    found = _union(await _cover(db, span, filters, by, None), by)
    amounts = _outer(found)
    query = (
        select(found.c.name, *amounts).group_by(found.c.name).order_by(*_dearest(found.c.name, amounts)).limit(limit)
    )
    return [(name, _totals(row)) for name, *row in await db.execute(query)]


async def series(
    db: AsyncConnection,
    by: Dimension | None,
    width_ns: int,
    span: Span,
    filters: Filters,
    top: Sequence[str] | None = (),
) -> list[tuple[int, str, Totals]]:
    """Totals of each step of `width_ns` since 1970 and each name, in the order of time. Names that are not in `top`
    come together as OTHER; None is every name by itself.

    Returns: number of the step, name, totals; without `by` all under the name ALL."""
    found = _union(await _cover(db, span, filters, by, width_ns), by, width_ns, top)
    keys = [found.c.step] if by is None else [found.c.step, found.c.name]
    query = select(*keys, *_outer(found)).group_by(*keys).order_by(*keys)
    points = []
    for step, *row in await db.execute(query):
        name = ALL if by is None else row.pop(0)
        points.append((int(step), name, _totals(row)))
    return points


async def ranked(
    db: AsyncConnection, by: Dimension, width_ns: int, span: Span, filters: Filters, *, limit: int, top: int
) -> tuple[list[tuple[str | None, Totals]], list[tuple[int, str, Totals]]]:
    """`groups`, and the `series` of the first `top` of them, in one statement that reads rows once: they are what takes
    the time of both where names are kept by the day alone."""
    parts = [_read_once(part, by, width_ns) for part in await _cover(db, span, filters, by, width_ns)]
    found = _union(parts, by)
    sums = [amount.label(name) for amount, name in zip(_outer(found), _SUMS, strict=True)]
    names = select(found.c.name, *sums).group_by(found.c.name).cte("names")
    amounts = [names.c[name] for name in _SUMS]
    order = _dearest(names.c.name, amounts)
    listed = (
        select(cast(None, BigInteger).label("step"), names.c.name, *amounts).order_by(*order).limit(limit).subquery()
    )
    steps = _union(parts, by, width_ns, select(names.c.name).order_by(*order).limit(top))
    keys = [steps.c.step, steps.c.name]
    query = union_all(select(*listed.c), select(*keys, *_outer(steps)).group_by(*keys))
    groups: list[tuple[str | None, Totals]] = []
    points: list[tuple[int, str, Totals]] = []
    for step, name, *row in await db.execute(query):
        if step is None:
            groups.append((name, _totals(row)))
        else:
            points.append((int(step), name, _totals(row)))
    groups.sort(key=lambda group: (-group[1].charge_pusd, -group[1].requests, group[0] or ""))
    return groups, sorted(points, key=itemgetter(0, 1))


async def waits(db: AsyncConnection, span: Span, providers: Sequence[str] = ()) -> list[tuple[int, int]]:
    """(milliseconds to the first token, how many requests waited so long), in order; exact within a day.

    A span of more than two days begins and ends at midnight where that day is sealed, and a second and more is counted
    in hundredths of it: nobody reads a quantile of a month to the millisecond."""
    since_ns, until_ns = span.since_ns, span.until_ns
    days: list[tuple[int, int]] = []
    if until_ns - since_ns > 2 * NS_PER_DAY:
        since_day, until_day = since_ns // NS_PER_DAY, until_ns // NS_PER_DAY
        days = await _sealed(db, since_day, until_day + 1)
        if days and days[0][0] == since_day:
            since_ns = since_day * NS_PER_DAY
        if days and days[-1][1] > until_day:
            until_ns = until_day * NS_PER_DAY
            days[-1] = (days[-1][0], until_day)
    table, kept = usage_records.c, schema.usage_day_waits.c
    rows = [_between(table.at_ns, a, b) for a, b in _without(since_ns, until_ns, days)]
    selects: list[Select[Any]] = []
    if rows:
        query = select(table.first_token_ms.label("ms"), func.count().label("times"))
        query = query.where(or_(*rows), table.first_token_ms.is_not(None)).group_by(table.first_token_ms)
        selects.append(query.where(table.provider.in_(providers)) if providers else query)
    if days:
        query = select(kept.first_token_ms.label("ms"), func.sum(kept.requests).label("times"))
        query = query.where(or_(*(_between(kept.day, a, b) for a, b in days))).group_by(kept.first_token_ms)
        selects.append(query.where(kept.provider.in_(providers)) if providers else query)
    if not selects:
        return []
    found = union_all(*selects).subquery()
    merged = select(found.c.ms, func.sum(found.c.times)).group_by(found.c.ms).order_by(found.c.ms)
    return [(int(ms), int(times)) for ms, times in await db.execute(merged)]


def where(span: Span, filters: Filters, dialect: str) -> list[ColumnElement[bool]]:
    """The same choice over usage_records, for lists of requests. dialect: of the database."""
    return [_between(usage_records.c.at_ns, span.since_ns, span.until_ns), *_rows_filters(filters, dialect)]


class _Part(NamedTuple):
    """One table, and how it says what the others say as well. sums: in the order of `_SUMS`."""

    table: FromClause
    columns: Mapping[Dimension, ColumnElement[Any]]
    sums: Sequence[ColumnElement[Any]]
    unit: ColumnElement[int]
    unit_ns: int
    within: Sequence[ColumnElement[bool]]


_SUMS: Final = ("requests", "failed", "input_tokens", "output_tokens", "charge", "charge_rest", "cost", "cost_rest",
                "estimated", "unpriced")  # fmt: skip


def _outer(found: Any) -> list[ColumnElement[Any]]:
    return [func.coalesce(func.sum(found.c[name]), 0) for name in _SUMS]


def _totals(row: Sequence[Any]) -> Totals:
    requests, failed, tokens_in, tokens_out, charge, charge_rest, cost, cost_rest, estimated, unpriced = row
    counts = (int(requests), int(failed), int(tokens_in), int(tokens_out))
    return Totals(*counts, add_up(charge, charge_rest), add_up(cost, cost_rest), int(estimated), int(unpriced))


def _dearest(name: ColumnElement[Any], amounts: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    """An order: the dearest first, then the busiest. amounts: in the order of `_SUMS`."""
    whole, rest = (cast(amounts[i], BigInteger) for i in (4, 5))
    return [(whole + rest // SPLIT).desc(), (rest % SPLIT).desc(), amounts[0].desc(), name.asc()]


def _union(
    parts: Sequence[_Part],
    by: Dimension | None = None,
    width_ns: int | None = None,
    top: Sequence[str] | Select[Any] | None = (),
) -> Any:
    """Sums of every part, with `step` where there is a width and `name` where there is a dimension."""
    selects = []
    for part in parts:
        keys: list[ColumnElement[Any]] = []
        if width_ns is not None:
            keys.append(_step(part, width_ns).label("step"))
        if by is not None:
            column = part.columns[by]
            if width_ns is not None:
                other = column if top is None else case((column.in_(top), column), else_=OTHER)
                column = case((column.is_(None), NOBODY), else_=other)
            keys.append(column.label("name"))
        sums = [func.sum(column).label(name) for name, column in zip(_SUMS, part.sums, strict=True)]
        query = select(*keys, *sums).select_from(part.table).where(*part.within)
        selects.append(query.group_by(*keys) if keys else query)
    return union_all(*selects).subquery()


def _step(part: _Part, width_ns: int) -> ColumnElement[int]:
    exact = width_ns % part.unit_ns == 0
    return part.unit // (width_ns // part.unit_ns) if exact else part.unit * part.unit_ns // width_ns


def _read_once(part: _Part, by: Dimension, width_ns: int) -> _Part:
    """Rows as a table of their sums by step and name, for a statement that asks twice. What is kept stays as it is: it
    has about as many lines as such a table would have."""
    if part.unit_ns != 1:
        return part
    keys = [_step(part, width_ns).label("step"), part.columns[by].label("name")]
    sums = [func.sum(column).label(name) for name, column in zip(_SUMS, part.sums, strict=True)]
    query = select(*keys, *sums).select_from(part.table).where(*part.within).group_by(*keys)
    table = query.cte("counted")
    return _Part(table, {by: table.c.name}, [table.c[name] for name in _SUMS], table.c.step, width_ns, ())


async def _cover(
    db: AsyncConnection, span: Span, filters: Filters, by: Dimension | None, width_ns: int | None
) -> list[_Part]:
    """Parts that do not overlap and are the whole of the span."""
    filters = {name: values for name, values in filters.items() if values}
    asked = {*filters, *([by] if by is not None else [])}
    facets = [facet for facet in FACETS if facet in asked]
    whole_days = width_ns is None or width_ns % NS_PER_DAY == 0
    whole_hours = width_ns is None or width_ns % NS_PER_HOUR == 0
    kept = _kept(facets, asked, by, filters)
    days: list[tuple[int, int]] = []
    if whole_days and kept is not None:
        days = await _sealed(db, -(-span.since_ns // NS_PER_DAY), span.until_ns // NS_PER_DAY)
    hours: list[tuple[int, int]] = []
    rows = _without(span.since_ns, span.until_ns, days)
    if whole_hours and not facets:
        rows, left = [], rows
        for since_ns, until_ns in left:
            first, last = -(-since_ns // NS_PER_HOUR), until_ns // NS_PER_HOUR
            if first >= last:
                rows.append((since_ns, until_ns))
                continue
            hours.append((first, last))
            edges = ((since_ns, first * NS_PER_HOUR), (last * NS_PER_HOUR, until_ns))
            rows += [edge for edge in edges if edge[0] < edge[1] < FOR_EVER_NS]
    found = []
    if days and kept is not None:
        found.append(_facet_part(kept, days, filters) if isinstance(kept, Dimension) else _day_part(days, filters))
    if hours:
        found.append(_kept_part(schema.usage_hours, schema.usage_hours.c.hour, NS_PER_HOUR, hours, filters))
    if rows or not found:
        found.append(_row_part(rows or [(0, 0)], filters, by, db.dialect.name))
    return found


def _kept(
    facets: Sequence[Dimension], asked: Iterable[Dimension], by: Dimension | None, filters: Filters
) -> Table | Dimension | None:
    """What days are kept in for this question: usage_days, the facet of that name, or nothing but rows."""
    if not facets:
        return schema.usage_days
    if len(facets) > 1 or any(each not in (facets[0], *_BESIDE_FACETS) for each in asked):
        return None
    if facets[0] is Dimension.TAG and by is not Dimension.TAG and len(filters[Dimension.TAG]) > 1:
        return None  # A request with two of the tags would be counted twice.
    return facets[0]


def _without(since_ns: int, until_ns: int, days: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a span when these days are taken out."""
    left = []
    for first, last in days:
        if since_ns < first * NS_PER_DAY:
            left.append((since_ns, first * NS_PER_DAY))
        since_ns = last * NS_PER_DAY
    if since_ns < until_ns:
        left.append((since_ns, until_ns))
    return left


async def _sealed(db: AsyncConnection, first: int, until: int) -> list[tuple[int, int]]:
    """Runs [first, after the last) of sealed days."""
    day = schema.usage_sealed.c.day
    runs: list[tuple[int, int]] = []
    for (number,) in await db.execute(select(day).where(day >= first, day < until).order_by(day)):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _between(column: Any, first: int, until: int) -> ColumnElement[bool]:
    return and_(column >= first, column < until)


def _day_part(days: Sequence[tuple[int, int]], filters: Filters) -> _Part:
    return _kept_part(schema.usage_days, schema.usage_days.c.day, NS_PER_DAY, days, filters)


def _kept_part(
    table: Table, unit: ColumnElement[int], unit_ns: int, runs: Sequence[tuple[int, int]], filters: Filters
) -> _Part:
    c = table.c
    columns = {each: c[name] for each, name in _COLUMN.items() if name in c} | {Dimension.TEAM: _team_of(c.project_id)}
    failed = case((c.outcome.in_([outcome.value for outcome in FAILED]), c.requests), else_=0)
    within = [or_(*(_between(unit, a, b) for a, b in runs))]
    within += [columns[name].in_(values) for name, values in filters.items()]
    return _Part(table, columns, _kept_sums(table, failed), unit, unit_ns, within)


def _facet_part(facet: Dimension, days: Sequence[tuple[int, int]], filters: Filters) -> _Part:
    table = schema.usage_day_facets
    c = table.c
    columns: dict[Dimension, ColumnElement[Any]] = {
        Dimension.ORGANISATION: c.organisation_id,
        Dimension.TEAM: _team_of(c.project_id),
        Dimension.PROJECT: c.project_id,
        facet: c.name,
    }
    within = [c.facet == facet.value, or_(*(_between(c.day, a, b) for a, b in days))]
    within += [columns[name].in_(values) for name, values in filters.items()]
    return _Part(table, columns, _kept_sums(table, c.failed), c.day, NS_PER_DAY, within)


def _kept_sums(table: Table, failed: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    c = table.c
    charge, cost = kept_parts(c.charge_usd, c.charge_rest_pusd), kept_parts(c.cost_usd, c.cost_rest_pusd)
    return [c.requests, failed, c.input_tokens, c.output_tokens, *charge, *cost, c.estimated, c.unpriced]


def _row_part(spans: Sequence[tuple[int, int]], filters: Filters, by: Dimension | None, dialect: str) -> _Part:
    c = usage_records.c
    columns: dict[Dimension, ColumnElement[Any]] = {each: c[name] for each, name in _COLUMN.items()}
    columns[Dimension.TEAM] = _team_of(c.project_id)
    table: FromClause = usage_records
    within: list[ColumnElement[bool]] = [or_(*(_between(c.at_ns, a, b) for a, b in spans))]
    if by is Dimension.TAG:
        tag = tag_of(dialect)
        table = usage_records.outerjoin(tag.table, true())
        columns[Dimension.TAG] = tag
        if chosen := filters.get(Dimension.TAG):
            within.append(tag.in_(chosen))
            filters = {name: values for name, values in filters.items() if name is not Dimension.TAG}
    within += _rows_filters(filters, dialect)
    return _Part(table, columns, row_sums(), c.at_ns, 1, within)


def _team_of(project_id: ColumnElement[Any]) -> ColumnElement[Any]:
    """Teams change; what is kept knows projects alone."""
    projects = schema.projects.c
    return select(projects.team_id).where(projects.id == project_id).scalar_subquery()


def row_sums() -> list[ColumnElement[Any]]:
    """What one row of usage_records counts, in the order of the sums."""
    c = usage_records.c
    failed = case((c.outcome.in_([outcome.value for outcome in FAILED]), 1), else_=0)
    estimated, unpriced = case((c.estimated.is_(True), 1), else_=0), case((c.charge_pusd.is_(None), 1), else_=0)
    charge, cost = parts(func.coalesce(c.charge_pusd, 0)), parts(func.coalesce(c.cost_pusd, 0))
    one = case((c.at_ns.is_(None), 0), else_=1)
    tokens = [case((column > TOKENS_MAX, TOKENS_MAX), else_=column) for column in (c.input_tokens, c.output_tokens)]
    return [one, failed, *tokens, *charge, *cost, estimated, unpriced]


def tag_of(dialect: str) -> Any:
    """The column of a row's tags, one by one, from a table to be joined."""
    tags = usage_records.c.tags
    if dialect == "postgresql":
        return func.jsonb_array_elements_text(tags).table_valued("value", name="tag").c.value
    return func.json_each(tags).table_valued("value", name="tag").c.value


def _rows_filters(filters: Filters, dialect: str) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    for name, values in filters.items():
        if name is Dimension.TAG and values:
            tag = tag_of(dialect)
            found.append(exists().select_from(tag.table).where(tag.in_(values)))
        elif name is Dimension.TEAM and values:
            found.append(_team_of(usage_records.c.project_id).in_(values))
        elif values:
            found.append(usage_records.c[_COLUMN[name]].in_(values))
    return found
