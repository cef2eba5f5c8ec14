"""Which scopes a request counts against, remembered: they are the same for a key until it is read anew, or the hour and
with it a window ends."""

from __future__ import annotations

from typing import Final

from gateway.admission.limits import Scopes, scopes_of
from gateway.admission.principal import NOTHING_KNOWN, Facts, Principal

# Remembered at most; the names of end users and models in them come from clients.
PLANS_MAX: Final = 10_000


class Plans:
    """By key id, and by what else its scopes depend on."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Facts], tuple[Principal, int, Scopes]] = {}

    def scopes(self, principal: Principal, facts: Facts, now_ms: int) -> Scopes:
        known = (principal.key_id, facts if principal.depends_on_facts else NOTHING_KNOWN)
        hour = now_ms // 3_600_000
        plan = self._known.get(known)
        if plan is not None and plan[0] is principal and plan[1] == hour:
            return plan[2]
        if len(self._known) >= PLANS_MAX:
            self._known.clear()
        scopes = scopes_of(principal, facts, now_ms)
        self._known[known] = (principal, hour, scopes)
        return scopes
