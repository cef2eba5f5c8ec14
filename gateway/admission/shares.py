"""What a gateway may still grant while nobody can be asked: `admission.store_away = "local_share"`.

Money is reserved in advance: while the store is there, each gateway holds a share of every budget that its requests
use, as a reservation like any other, renewed and called over like one. Without the store requests live on that, so a
hard budget is not overdrawn whatever becomes of the store. The price is that a share lies idle at each gateway: near
its end a budget may refuse one while others still hold theirs.

Rate limits are not reserved: each gateway lets through a share of the limit in each window, and one request at least.
Of the limits' side nothing else is promised.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from gateway.admission.limits import Scopes
from gateway.admission.principal import Budget
from gateway.errors import LimitsAway, RateLimited

# A budget that nobody has used here for so long has its share given back.
IDLE_S: Final = 300.0
# After a share did not fit, or was given up for a request that needed it.
PAUSE_S: Final = 10.0


class Share(Struct):
    """Of one budget. id: of the reservation. left_pusd: what of it is not spent or held by requests."""

    id: str
    scopes: Scopes
    amount_pusd: int
    left_pusd: int
    used_s: float

    @property
    def touched(self) -> bool:
        return self.left_pusd != self.amount_pusd


class Shares:
    """Bookkeeping alone: `Gate` takes shares and gives them back. now_s is any clock that does not go back."""

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._held: dict[str, Share] = {}
        self._wanted: dict[str, tuple[Scopes, float]] = {}
        self._paused_s: dict[str, float] = {}
        # Debt of each rate limit, in units x window_ms, and when.
        self._debts: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}
        self._granted: dict[str, tuple[Scopes, int]] = {}

    def __iter__(self) -> Iterator[Share]:
        return iter(tuple(self._held.values()))

    @property
    def touched(self) -> bool:
        """Whether anything was granted here that the store has not been told of as a share."""
        return any(share.touched for share in self._held.values()) or bool(self._granted)

    def used(self, scopes: Scopes, now_s: float) -> bool:
        """A request was admitted by the store: what it counts against will be wanted. Returns: whether that is news."""
        news = False
        for at, (key, budget) in enumerate(zip(scopes.budget_keys, scopes.budgets, strict=True)):
            if (share := self._held.get(key)) is not None:
                share.used_s = now_s
            elif budget.kind != "soft" and self._paused_s.get(key, now_s) <= now_s and key not in self._wanted:
                self._wanted[key] = (scopes.of_budget(at), now_s)
                news = True
        return news

    def wanted(self, now_s: float) -> list[Share]:
        """What is to be reserved now. Follow each with `took` or `missed`."""
        wanted, self._wanted = self._wanted, {}
        return [
            Share(f"share_{secrets.token_hex(8)}", scopes, amount, amount, now_s)
            for scopes, _ in wanted.values()
            if (amount := scopes.budgets[0].limit_pusd * self._percent // 100) > 0
        ]

    def took(self, share: Share) -> None:
        self._held[share.scopes.keys[0]] = share

    def missed(self, share: Share, now_s: float) -> None:
        self._paused_s[share.scopes.keys[0]] = now_s + PAUSE_S

    def give_up(self, scopes: Scopes, now_s: float) -> list[Share]:
        """For a request that the budgets do not cover otherwise. The caller gives them back."""
        if self.touched:
            return []  # The store does not know yet what of them is spent.
        given = [share for key in scopes.budget_keys if (share := self._held.pop(key, None)) is not None]
        for share in given:
            self.missed(share, now_s)
        return given

    def idle(self, now_s: float) -> list[Share]:
        """Those to be given back since nobody uses them: their window may be over."""
        idle = [key for key, share in self._held.items() if now_s - share.used_s > IDLE_S and not share.touched]
        self._paused_s = {key: until_s for key, until_s in self._paused_s.items() if until_s > now_s}
        return [self._held.pop(key) for key in idle]

    def start_over(self, now_s: float) -> list[Share]:
        """The store is there again and knows of everything granted: all shares are given back and wanted anew."""
        given, self._held = list(self._held.values()), {}
        self._wanted |= {share.scopes.keys[0]: (share.scopes, now_s) for share in given}
        self._granted.clear()
        self._running.clear()
        return given

    def grant(self, request_id: str, scopes: Scopes, tokens: int, hold_pusd: int, now_s: float) -> None:
        """Take a request from what is here, or nothing. Raises: LimitsAway, RateLimited."""
        hard = [
            (key, budget)
            for key, budget in zip(scopes.budget_keys, scopes.budgets, strict=True)
            if hold_pusd and budget.kind != "soft"
        ]
        for key, budget in hard:
            share = self._held.get(key)
            if share is None or share.left_pusd < hold_pusd:
                raise LimitsAway(f"limits cannot be asked, and {_share_of(budget)} here does not cover this request")
        debts: dict[str, tuple[float, float]] = {}
        for key, limit in zip(scopes.keys, scopes.buckets, strict=False):
            mine = max(1.0, limit.limit * self._percent / 100)
            cost = min(mine, 1 if limit.unit == "requests" else tokens)
            debt, at_s = self._debts.get(key, (0.0, now_s))
            debt = max(0.0, debt - (now_s - at_s) * 1000 * mine)
            over = debt + (cost - mine) * limit.window_ms
            if over > 0:
                raise RateLimited(
                    f"limits cannot be asked, and this gateway's share of the {limit.scope}'s {limit.unit} is used",
                    retry_after_s=over / mine / 1000,
                    scope=limit.scope,
                    scope_id=limit.scope_id,
                    unit=limit.unit,
                    limit=limit.limit,
                )
            debts[key] = (debt + cost * limit.window_ms, now_s)
        slots = list(zip(scopes.slot_keys, scopes.slots, strict=True))
        for key, limit in slots:
            if self._running.get(key, 0) >= max(1, limit.limit * self._percent // 100):
                raise RateLimited(
                    f"limits cannot be asked, and this gateway's share of the {limit.scope}'s parallel requests runs",
                    retry_after_s=1.0,
                    scope=limit.scope,
                    scope_id=limit.scope_id,
                    unit=limit.unit,
                )
        for key, _ in hard:
            self._held[key].left_pusd -= hold_pusd
        self._debts |= debts
        for key, _ in slots:
            self._running[key] = self._running.get(key, 0) + 1
        self._granted[request_id] = (scopes, hold_pusd)

    def settle(self, request_id: str, charge_pusd: int) -> None:
        """What was not used of a grant can be granted again. Nothing happens for what the store had admitted."""
        granted = self._granted.pop(request_id, None)
        if granted is None:
            return
        scopes, hold_pusd = granted
        for key in scopes.budget_keys:
            if (share := self._held.get(key)) is not None:
                share.left_pusd += hold_pusd - charge_pusd
        for key in scopes.slot_keys:
            self._running[key] = max(0, self._running.get(key, 0) - 1)


def _share_of(budget: Budget) -> str:
    return f"the share of the {budget.scope.replace('_', ' ')}'s budget"
