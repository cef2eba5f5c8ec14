"""Instants and periods as the admin API speaks them: RFC 3339 in UTC outside, nanoseconds inside."""

from __future__ import annotations

import datetime
from typing import Final

from msgspec import Struct

from gateway.admin.problems import invalid

Stamp = datetime.datetime

SECOND_NS: Final = 10**9
HOUR_NS: Final = 3_600 * SECOND_NS
DAY_NS: Final = 24 * HOUR_NS
_MAX_POINTS: Final = 2_000


class Period(Struct, frozen=True):
    """From `start_ns` up to, not including, `end_ns`."""

    start_ns: int
    end_ns: int

    @property
    def before(self) -> Period:
        """As long, ending where this one begins."""
        return Period(2 * self.start_ns - self.end_ns, self.start_ns)


class Bucket(Struct, frozen=True):
    """A step of a time series. Steps begin at multiples of the width since 1970: at whole hours and days of UTC."""

    name: str
    width_ns: int

    def starts(self, period: Period) -> list[int]:
        first = period.start_ns // self.width_ns * self.width_ns
        return list(range(first, period.end_ns, self.width_ns))


BUCKETS: Final = {
    "minute": Bucket("minute", 60 * SECOND_NS),
    "hour": Bucket("hour", HOUR_NS),
    "day": Bucket("day", DAY_NS),
}


def stamp(at_ns: int) -> Stamp:
    # Microseconds by integers: the float in fromtimestamp() would lose some.
    return datetime.datetime.fromtimestamp(at_ns // SECOND_NS, datetime.UTC) + datetime.timedelta(
        microseconds=at_ns % SECOND_NS // 1000
    )


def unstamp(at: Stamp) -> int:
    """Raises: Problem for a time that is none of business: what is behind nanoseconds in 64 bits (2262) is not kept."""
    if not 1900 <= at.year < 2200:
        raise invalid("time", f"{at.isoformat()} is out of range", "Take a time between 1900 and 2200.")
    return (at.astimezone(datetime.UTC) - _EPOCH) // datetime.timedelta(microseconds=1) * 1000


_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def period_of(start: Stamp | None, end: Stamp | None, now_ns: int) -> Period:
    """What a query asks for; without a start the last 24 hours. Raises: Problem."""
    for field, at in (("from", start), ("to", end)):
        if at is not None and at.tzinfo is None:
            raise invalid(field, f"{at.isoformat()} has no time zone", "Write it as 2026-01-31T00:00:00Z.")
    end_ns = now_ns if end is None else unstamp(end)
    start_ns = end_ns - DAY_NS if start is None else unstamp(start)
    if start_ns >= end_ns:
        raise invalid("from", "the period ends before it begins", "Put `from` before `to`.")
    return Period(start_ns, end_ns)


def bucket_for(period: Period, name: str | None) -> Bucket:
    """The step that was asked for, or one that makes a readable chart. Raises: Problem."""
    length_ns = period.end_ns - period.start_ns
    if name is None:
        name = "minute" if length_ns <= 3 * HOUR_NS else "hour" if length_ns <= 4 * DAY_NS else "day"
    bucket = BUCKETS.get(name)
    if bucket is None:
        raise invalid("bucket", f"{name!r} is no step", f"Take one of: {', '.join(BUCKETS)}.")
    if length_ns // bucket.width_ns > _MAX_POINTS:
        raise invalid("bucket", f"more than {_MAX_POINTS} points", "Take a longer step or a shorter period.")
    return bucket
