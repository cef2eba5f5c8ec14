"""Who asks and what they are allowed: frozen values that the key store makes and everything after it reads."""

from __future__ import annotations

from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from billing.accounts import Window, window_start_ns

if TYPE_CHECKING:
    from gateway.bodies.store import TenantLogging
    from gateway.guardrails.guard import Guard

Unit = Literal["requests", "tokens", "parallel"]
Period = Literal["total", "hour", "day", "month"]
Kind = Literal["hard", "soft", "throttle"]

MINUTE_MS: Final = 60_000
END_USER: Final = "end_user"
PROVIDER: Final = "provider"
# What a prepaid organisation paid in, was given, and may owe; its "limit" grows with each payment.
CREDIT: Final = "credit"


class Facts(Struct, frozen=True):
    """What a request is, beside whose: what limits of a model, a provider, a tag or an end user ask for. providers: of
    every deployment that may answer."""

    alias: str = ""
    providers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    end_user: str | None = None


NOTHING_KNOWN: Final = Facts()


class Limit(Struct, frozen=True):
    """So many requests or tokens in a window, or so many requests at once (then the window means nothing).

    scope, scope_id: whose it is, as in `billing.accounts.Scope`. One of scope `end_user` stands for each end user of
    the project by itself."""

    scope: str
    scope_id: str
    unit: Unit
    limit: int
    window_ms: int = MINUTE_MS


class Budget(Struct, frozen=True):
    """So much money in a calendar hour, day or month (UTC), or ever. Worst cases are held before the call.

    scope: as in `billing.accounts.Scope`, or `credit` for what an organisation has paid in. end_user: whose it is of
    scope `end_user`. kind: what happens to a
    request that it does not cover: `hard` refuses it, `soft` only tells, `throttle` lets `slow_rpm` of them a minute
    pass, from `slow_from_percent` of the limit on."""

    scope: str
    scope_id: str
    limit_pusd: int
    period: Period = "total"
    kind: Kind = "hard"
    slow_rpm: int = 0
    slow_from_percent: int = 100
    end_user: str | None = None

    @property
    def pace(self) -> int:
        """For the script: 0 refuses, -1 only tells, above that so many a minute."""
        return {"hard": 0, "soft": -1}.get(self.kind, self.slow_rpm)

    def need_pusd(self, hold_pusd: int) -> int:
        """What has to be available for a request of this hold to pass as if there were room."""
        if self.kind != "throttle":
            return hold_pusd
        return hold_pusd + self.limit_pusd * (100 - self.slow_from_percent) // 100


class ProjectRouting(Struct, frozen=True):
    """second_pusd: what the strategy `auto` pays to save a second. cache_prompts: whether its prompts are marked for
    providers' caches. None: as the alias says."""

    second_pusd: int | None = None
    cache_prompts: bool | None = None


AS_THE_ALIAS: Final = ProjectRouting()


class Principal(Struct, frozen=True, dict=True):
    """A verified key and everything that it brings along. models: shell globs of aliases, None for all. strict: what a
    provider has no word for is refused; None: as the settings say. guard: what its prompts and answers must pass; None:
    nothing. bodies: how its project logs them; None: it does not. weight: its share where requests wait for a turn.
    routing: its project's word on its ways; None: it says nothing."""

    key_id: str
    public_id: str
    name: str
    organisation_id: str
    project_id: str
    models: tuple[str, ...] | None = None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    team_id: str | None = None
    strict: bool | None = None
    guard: Guard | None = None
    bodies: TenantLogging | None = None
    weight: int = 1
    routing: ProjectRouting | None = None

    @cached_property
    def depends_on_facts(self) -> bool:
        return any(depends(each.scope) for each in self.limits) or any(depends(each.scope) for each in self.budgets)


NOBODY: Final = Principal("", "", "", "", "")
"""For what a gateway holds for itself."""


def window_of(period: Period, now_ms: int) -> tuple[str, int]:
    """Returns: the name of the budget window at that time, and its start in unix ns (0 for a budget without end)."""
    start_ns = window_start_ns(Window(period), now_ms * 1_000_000)
    if period == "total":
        return period, start_ns
    start = datetime.fromtimestamp(start_ns // 10**9, UTC)
    return f"{start:%Y-%m-%dT%H}" if period == "hour" else f"{start:%Y-%m-%d}", start_ns


def concerns(scope: str, scope_id: str, facts: Facts) -> bool:
    """Whether a request counts against what its key brings along."""
    match scope:
        case "end_user":
            return facts.end_user is not None
        case "model":
            return fnmatchcase(facts.alias, scope_id.partition("/")[2])
        case "provider":
            return scope_id.partition("/")[2] in facts.providers
        case "tag":
            return scope_id.partition("/")[2] in facts.tags
    return True


def depends(scope: str) -> bool:
    """Whether it takes more than the key to know if a request counts."""
    return scope in ("end_user", "model", "provider", "tag")
