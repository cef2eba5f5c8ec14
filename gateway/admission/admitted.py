"""A request that may go on, and what is still to be said of one that has ended."""

from __future__ import annotations

from msgspec import Struct

from billing.usage import Meter
from gateway.admission.headers import limit_headers
from gateway.admission.limits import Scopes, Window
from gateway.admission.principal import Budget, Principal


class Admission(Struct, frozen=True):
    """A request that may go on, and what is reserved for it until `settle` or `release`.

    max_output_tokens: what the answer has to be limited to because the budget covers no more; None where the client's
    own limit, or none, stands. tokens: what the rate limits count it as until its usage is known."""

    request_id: str
    principal: Principal
    alias: str
    estimate: dict[Meter, int]
    hold_pusd: int
    max_output_tokens: int | None
    tokens: int
    scopes: Scopes
    input_bytes: int
    windows: tuple[Window, ...] = ()
    past: tuple[Budget, ...] = ()

    def limit_headers(self, dialect: str, now_ns: int) -> list[tuple[str, str]]:
        """What is left of the limits, and what let the request through that did not cover it."""
        headers = limit_headers(self.windows, dialect, now_ns)
        if self.past:
            said = ", ".join(f"{budget.scope} {budget.period}; {budget.kind}" for budget in self.past)
            headers.append(("x-farebox-budget-exceeded", said))
        return headers


class Pending(Struct, frozen=True):
    admission: Admission
    tokens: int
    charge_pusd: int
    requests: int
    provider: str | None = None


def within_windows(tokens: int, fewest: int, scopes: Scopes) -> int:
    """A guess must not make a request larger than its limit, whether at its prompt or at an answer of unstated length:
    what it really used is counted afterwards, and the limit makes later requests wait for it. fewest: what it asks for
    without any guess."""
    room = scopes.token_room
    return max(tokens if room is None else min(tokens, room), fewest)
