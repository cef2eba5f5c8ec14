"""Which role may call which endpoint: the one place where that is said, and the one where it is enforced.

An endpoint goes by its handler's name. One that is not in the table fails the start: nothing is open by oversight.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from msgspec import Struct


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    FINANCE = "finance"
    DEVELOPER = "developer"
    VIEWER = "viewer"


ANYONE: Final = frozenset(Role)
ADMINS: Final = frozenset({Role.OWNER, Role.ADMIN})
MAKERS: Final = ADMINS | {Role.DEVELOPER}
"""Who makes keys and tries models."""
TELLERS: Final = ADMINS | {Role.FINANCE}
"""Who sees and moves money."""

PERMITTED: Final[dict[str, frozenset[Role]]] = {
    "session.end": ANYONE,
    "password.set": ANYONE,
    "overview.read": ANYONE,
    "usage.read": ANYONE,
    "usage.export": ANYONE,
    "requests.list": ANYONE,
    "requests.read": ANYONE,
    "keys.list": ANYONE,
    "keys.create": MAKERS,
    "keys.update": MAKERS,
    "keys.revoke": MAKERS,
    "playground.key": MAKERS,
    "projects.list": ANYONE,
    "projects.create": ADMINS,
    "budgets.list": ANYONE,
    "budgets.set": TELLERS,
    "budgets.raise": TELLERS,
    "budgets.remove": TELLERS,
    "models.list": ANYONE,
    "providers.list": ANYONE,
    "prices.list": ANYONE,
    "prices.set": TELLERS,
    "prices.compare": TELLERS,
    "prices.import": TELLERS,
    "ledger.balances": TELLERS,
    "ledger.transfers": TELLERS,
    "ledger.audit": TELLERS,
    "ledger.top_up": TELLERS,
    "ledger.refund": TELLERS,
    "invoices.list": TELLERS,
    "invoices.read": TELLERS,
    "invoices.pdf": TELLERS,
    "invoices.csv": TELLERS,
    "reconcile.read": TELLERS,
    "alerts.list": TELLERS,
    "alerts.create": TELLERS,
    "alerts.remove": TELLERS,
    "alerts.test": TELLERS,
    "alerts.deliveries": TELLERS,
    "engine.read": ANYONE,
    "audit.list": ADMINS,
    "audit.verify": ADMINS,
    "users.list": ADMINS,
    "users.create": ADMINS,
    "users.update": ADMINS,
    "users.link": ADMINS,
    "tokens.list": MAKERS,
    "tokens.create": MAKERS,
    "tokens.revoke": MAKERS,
    "settings.read": ADMINS,
    # Each command by itself: see below.
    "commands.run": ANYONE,
}

COMMANDS: Final[dict[str, frozenset[Role]]] = {
    # Those that show what providers bill are for tellers, as such columns are elsewhere.
    "usage": TELLERS,
    "usage rebuild": ADMINS,
    "top": TELLERS,
    "keys": ADMINS,
    "keys list": ANYONE,
    "quotas": TELLERS,
    "quotas team": ADMINS,
    "ledger": TELLERS,
    "invoice": TELLERS,
    "topup": TELLERS,
    "alerts": TELLERS,
    "export": TELLERS,
    "reconcile": TELLERS,
    "prices": TELLERS,
    "prices list": ANYONE,
    "models": ADMINS,
    "models list": ANYONE,
    "providers": ADMINS,
    "providers list": ANYONE,
    "route": ADMINS,
    "route explain": ANYONE,
    "import": ADMINS,
    "demo": ADMINS,
}
"""Who may send which command to a gateway (`farebox --url`): it works on the whole installation, as on its own machine.
The longest name counts."""

OPEN: Final = frozenset({"session.by_link", "session.by_password", "session.read"})
"""What works before sign-in."""

_RANK: Final = {Role.VIEWER: 0, Role.DEVELOPER: 1, Role.FINANCE: 1, Role.ADMIN: 2, Role.OWNER: 3}


def may_run(role: Role, words: str) -> bool:
    """words: a command, as `keys create`. One that is not in the table is for owners alone."""
    names = [name for name in COMMANDS if words == name or words.startswith(f"{name} ")]
    return role in (COMMANDS[max(names, key=len)] if names else {Role.OWNER})


def may_hand_out(own: Role, other: Role) -> bool:
    """Whether somebody with the role `own` may give `other` to a person or a token: no more than what they hold."""
    return own is other or _RANK[own] > _RANK[other]


class Actor(Struct, frozen=True):
    """Who calls. via: "session" or "token"; only a session's browser needs protection from forged requests."""

    user_id: str
    name: str
    role: Role
    via: str
    has_password: bool = True


def uncovered(handler_names: Iterable[str]) -> list[str]:
    """Handlers that the table does not know."""
    return sorted(name for name in handler_names if name not in PERMITTED and name not in OPEN)
