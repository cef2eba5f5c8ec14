"""Which requests a metering service has not heard of yet, and what it is told of each. Knows no HTTP.

A request is put into the queue of every export in the transaction that writes its row, and leaves it once the service
has taken it: nothing is skipped, whatever is killed, and a row that is shipped late is no exception. It may be told
twice, under the same id; the services count it once.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import delete, func, insert, literal, select, update

from billing import partitions, schema
from billing.accounts import upsert
from billing.db import AsyncConnection
from billing.money import PUSD_PER_USD, format_usd

_FIRST_RETRY_NS: Final = 10 * 10**9
_LAST_RETRY_NS: Final = 3600 * 10**9


class Event(msgspec.Struct, frozen=True):
    """One finished request. id: its own. charge_microusd: what the customer pays, rounded to the nearest."""

    id: str
    at_ns: int
    attempts: int
    organisation_id: str
    project_id: str
    key_id: str
    alias: str
    provider: str
    model: str
    outcome: str
    estimated: bool
    input_tokens: int
    output_tokens: int
    charge_usd: str
    charge_microusd: int
    quantities: dict[str, int]
    tags: list[str]

    @property
    def time(self) -> str:
        """RFC 3339, to the microsecond."""
        whole = datetime.datetime.fromtimestamp(self.at_ns // 10**9, datetime.UTC)
        return (whole + datetime.timedelta(microseconds=self.at_ns % 10**9 // 1000)).isoformat().replace("+00:00", "Z")


class Backlog(msgspec.Struct, frozen=True):
    """failing: how many of the waiting were refused or not heard at least once; problem: what one of them was told."""

    export: str
    waiting: int
    failing: int
    problem: str | None


async def enqueue(db: AsyncConnection, exports: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """With the rows, in their transaction. rows: of usage_records."""
    if exports and rows:
        queued = [{"export": name, "record_id": row["id"], "due_ns": 0} for name in exports for row in rows]
        await db.execute(insert(schema.export_queue), queued)


async def enqueue_span(db: AsyncConnection, export: str, since_ns: int, until_ns: int) -> int:
    """What was there before the export was, or once more. Returns: how many requests."""
    rows = schema.usage_records.c
    await partitions.locate(db, since_ns, until_ns)
    query = select(literal(export), rows.id, literal(0)).where(rows.at_ns >= since_ns, rows.at_ns < until_ns)
    statement = upsert(db, schema.export_queue).from_select(["export", "record_id", "due_ns"], query)
    return int((await db.execute(statement.on_conflict_do_nothing())).rowcount)


async def due(db: AsyncConnection, export: str, *, now_ns: int, most: int) -> list[Event]:
    """What to tell now. A request without a price waits for it."""
    queue, rows = schema.export_queue.c, schema.usage_records.c
    query = (
        select(schema.usage_records, queue.attempts.label("tries"))
        .join(schema.export_queue, queue.record_id == rows.id)
        .where(queue.export == export, queue.due_ns <= now_ns, rows.charge_pusd.is_not(None))
        .order_by(queue.due_ns, rows.id)
        .limit(most)
    )
    found = await db.execute(partitions.located(db, query, queue.record_id))
    return [_event(row) for row in found.mappings()]


async def done(db: AsyncConnection, export: str, ids: Sequence[str]) -> None:
    queue = schema.export_queue
    await db.execute(delete(queue).where(queue.c.export == export, queue.c.record_id.in_(ids)))


async def failed(db: AsyncConnection, export: str, events: Sequence[Event], problem: str, *, now_ns: int) -> None:
    """Later again, ever less often, at least once an hour."""
    queue = schema.export_queue
    for attempts in {event.attempts for event in events}:
        ids = [event.id for event in events if event.attempts == attempts]
        due_ns = now_ns + min(_FIRST_RETRY_NS << min(attempts, 20), _LAST_RETRY_NS)
        said = {"due_ns": due_ns, "attempts": attempts + 1, "problem": problem[:500]}
        await db.execute(update(queue).where(queue.c.export == export, queue.c.record_id.in_(ids)).values(**said))


async def backlogs(db: AsyncConnection) -> list[Backlog]:
    queue = schema.export_queue.c
    failing = func.sum(func.sign(queue.attempts))
    query = select(queue.export, func.count(), failing, func.max(queue.problem)).group_by(queue.export)
    rows = await db.execute(query.order_by(queue.export))
    return [Backlog(name, int(waiting), int(tried), problem) for name, waiting, tried, problem in rows]


def _event(row: Any) -> Event:
    charge = row["charge_pusd"]
    names = ("id", "at_ns", "organisation_id", "project_id", "key_id", "alias", "provider", "model", "outcome",
             "estimated", "input_tokens", "output_tokens", "quantities", "tags")  # fmt: skip
    micro = PUSD_PER_USD // 10**6
    return Event(
        attempts=row["tries"],
        charge_usd=format_usd(charge),
        charge_microusd=(charge + micro // 2) // micro,
        **{name: row[name] for name in names},
    )
