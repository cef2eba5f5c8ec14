"""The usage explorer's groups as files: CSV for spreadsheets, Parquet for notebooks and warehouses."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any, Final

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery

from billing.archive import NoParquet
from gateway.admin import reports
from gateway.admin.api.usage import From, To, asked
from gateway.admin.api.values import totals_view
from gateway.admin.auth.roles import TELLERS, Actor, Sight
from gateway.admin.problems import Problem
from gateway.admin.reports import Group, Point
from gateway.admin.services import Services
from gateway.admin.times import bucket_for, stamp
from gateway.admin.wants import Caller, Office, Within

EXPORT_ROWS: Final = 100_000
_SERIES: Final = 500
_NUMBERS: Final = ("requests", "failed", "input_tokens", "output_tokens", "unpriced")
_AMOUNTS: Final = ("charge_usd", "cost_usd")


@get("/usage.csv", name="usage.export", media_type="text/csv")
async def export_csv(
    request: Request[Any, Any, Any],
    actor: Caller,
    sight: Within,
    services: Office,
    start: From = None,
    end: To = None,
    by: FromQuery[str] = "alias",
    bucket: FromQuery[str | None] = None,
) -> Response[bytes]:
    """The same as a table: one line for each group, or for each step and group when `bucket` is given."""
    heading, rows = await _table(request, actor, sight, services, start, end, by, bucket)
    file = io.StringIO()
    lines = csv.writer(file)
    lines.writerow(heading)
    lines.writerows([_inert(value) for value in row] for row in rows)
    return _file(file.getvalue().encode(), "text/csv; charset=utf-8", f"usage-by-{by}.csv")


@get("/usage.parquet", name="usage.parquet", media_type="application/vnd.apache.parquet")
async def export_parquet(
    request: Request[Any, Any, Any],
    actor: Caller,
    sight: Within,
    services: Office,
    start: From = None,
    end: To = None,
    by: FromQuery[str] = "alias",
    bucket: FromQuery[str | None] = None,
) -> Response[bytes]:
    """As /usage.csv, in Parquet: counts as integers, amounts as exact decimals in text."""
    heading, rows = await _table(request, actor, sight, services, start, end, by, bucket)
    try:
        content = await asyncio.to_thread(_parquet, heading, rows)
    except NoParquet as error:
        todo = "Install the extra where the gateway runs, or take CSV."
        raise Problem(501, "no-parquet", str(error), todo) from error
    return _file(content, "application/vnd.apache.parquet", f"usage-by-{by}.parquet")


export_handlers: list[HTTPRouteHandler] = [export_csv, export_parquet]


async def _table(
    request: Request[Any, Any, Any],
    actor: Actor,
    sight: Sight,
    services: Services,
    start: From,
    end: To,
    by: str,
    bucket: str | None,
) -> tuple[list[str], list[list[Any]]]:
    period, filters, column = asked(request, services, sight, start, end, by)
    lines: list[tuple[str, Group | Point]]
    money = actor.role in TELLERS
    async with services.reader.reading() as db:
        found = await reports.groups(db, by, period, filters, limit=EXPORT_ROWS)
        if bucket is None:
            lines = [("", group) for group in found]
        else:
            step = bucket_for(period, bucket)
            points = await reports.series(db, by, step, period, filters, [group.name for group in found[:_SERIES]])
            lines = [(stamp(point.at_ns).isoformat(), point) for point in points]
        names = await reports.labels(db, by, [line.name for _, line in lines][:_SERIES])
    rows = []
    for at, line in lines:
        view = totals_view(line.totals, money=money)
        numbers = [getattr(view, field) for field in _FIELDS]
        rows.append([*((at,) if bucket else ()), line.name, names.get(line.name, line.name), *numbers])
    return [*(("start",) if bucket else ()), column, "label", *_FIELDS], rows


_FIELDS: Final = ("requests", "failed", "input_tokens", "output_tokens", "charge_usd", "cost_usd", "unpriced")


def _parquet(heading: list[str], rows: list[list[Any]]) -> bytes:
    """Raises: NoParquet."""
    try:
        from arro3.core import Array, DataType, Field, RecordBatch, Schema
        from arro3.io import write_parquet
    except ImportError as error:
        raise NoParquet from error
    kinds = [DataType.int64() if name in _NUMBERS else DataType.utf8() for name in heading]
    columns = list(zip(*rows, strict=True)) or [()] * len(heading)
    schema = Schema([Field(name, kind, nullable=True) for name, kind in zip(heading, kinds, strict=True)])
    arrays = [Array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
    file = io.BytesIO()
    write_parquet(RecordBatch.from_arrays(arrays, schema=schema), file, compression="zstd(3)")
    return file.getvalue()


def _file(content: bytes, media_type: str, name: str) -> Response[bytes]:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)


def _inert(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula comes from a client, and must stay text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
