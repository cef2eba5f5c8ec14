"""Who asks and what they are allowed: frozen values that the key store makes and everything after it reads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import Struct

from billing.accounts import Window, window_start_ns

Unit = Literal["requests", "tokens", "parallel"]
Period = Literal["total", "hour", "day", "month"]
Kind = Literal["hard", "soft", "throttle"]

MINUTE_MS: Final = 60_000
END_USER: Final = "end_user"
# What a prepaid organisation paid in, was given, and may owe; its "limit" grows with each payment.
CREDIT: Final = "credit"


class Limit(Struct, frozen=True):
    """So many requests or tokens in a window, or so many requests at once (then the window means nothing).

    scope: whose it is, `key`, `project`, `organisation` or `end_user`; scope_id: which one. A limit of scope
    `end_user` stands for each end user of the project by itself."""

    scope: str
    scope_id: str
    unit: Unit
    limit: int
    window_ms: int = MINUTE_MS


class Budget(Struct, frozen=True):
    """So much money in a calendar hour, day or month (UTC), or ever. Worst cases are held before the call.

    scope: `key`, `project`, `organisation`, or `credit` for what an organisation has paid in. kind: what happens to a
    request that it does not cover: `hard` refuses it, `soft` only tells, `throttle` lets `slow_rpm` of them a minute
    pass, from `slow_from_percent` of the limit on."""

    scope: str
    scope_id: str
    limit_pusd: int
    period: Period = "total"
    kind: Kind = "hard"
    slow_rpm: int = 0
    slow_from_percent: int = 100

    @property
    def pace(self) -> int:
        """For the script: 0 refuses, -1 only tells, above that so many a minute."""
        return {"hard": 0, "soft": -1}.get(self.kind, self.slow_rpm)

    def need_pusd(self, hold_pusd: int) -> int:
        """What has to be available for a request of this hold to pass as if there were room."""
        if self.kind != "throttle":
            return hold_pusd
        return hold_pusd + self.limit_pusd * (100 - self.slow_from_percent) // 100


class Principal(Struct, frozen=True):
    """A verified key and everything that it brings along. models: shell globs of aliases, None for all."""

    key_id: str
    public_id: str
    name: str
    organisation_id: str
    project_id: str
    models: tuple[str, ...] | None = None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()


def window_of(period: Period, now_ms: int) -> tuple[str, int]:
    """Returns: the name of the budget window at that time, and its start in unix ns (0 for a budget without end)."""
    start_ns = window_start_ns(Window(period), now_ms * 1_000_000)
    if period == "total":
        return period, start_ns
    return datetime.fromtimestamp(start_ns // 10**9, UTC).date().isoformat(), start_ns
