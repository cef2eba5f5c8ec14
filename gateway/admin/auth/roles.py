"""Which role may call which endpoint, on what: the one place where that is said. auth/guard.py enforces it.

An endpoint goes by its handler's name. One that is not in PERMITTED fails the start; one that is not in CONCERNS is for
roles over the whole installation alone: nothing is open by oversight.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, Literal

from msgspec import Struct


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    FINANCE = "finance"
    TEAM_LEAD = "team_lead"
    DEVELOPER = "developer"
    VIEWER = "viewer"
    MEMBER = "member"
    """Over the whole installation nothing: what memberships of organisations, teams and projects say."""


ANYONE: Final = frozenset(Role) - {Role.MEMBER}
ADMINS: Final = frozenset({Role.OWNER, Role.ADMIN})
LEADS: Final = ADMINS | {Role.TEAM_LEAD}
"""Who says who belongs to a team and its projects."""
MAKERS: Final = LEADS | {Role.DEVELOPER}
"""Who makes keys and tries models."""
TELLERS: Final = ADMINS | {Role.FINANCE}
"""Who sees and moves money."""
BOUNDERS: Final = TELLERS | {Role.TEAM_LEAD}
"""Who sets budgets; a team lead only below what they lead."""

PERMITTED: Final[dict[str, frozenset[Role]]] = {
    "session.end": frozenset(Role),
    "password.set": frozenset(Role),
    "passkeys.list": frozenset(Role),
    "passkeys.begin": frozenset(Role),
    "passkeys.add": frozenset(Role),
    "passkeys.remove": frozenset(Role),
    "overview.read": ANYONE,
    "usage.read": ANYONE,
    "usage.export": ANYONE,
    "usage.parquet": ANYONE,
    "savings.read": ANYONE,
    "requests.list": ANYONE,
    "requests.read": ANYONE,
    "requests.tail": ANYONE,
    "keys.list": ANYONE,
    "keys.read": ANYONE,
    "keys.create": MAKERS,
    "keys.update": MAKERS,
    "keys.revoke": MAKERS,
    "keys.rotate": MAKERS,
    "playground.key": MAKERS,
    "losses.read": ANYONE,
    "losses.set": MAKERS,
    "projects.list": ANYONE,
    "projects.create": ADMINS,
    "projects.join": ADMINS,
    "project_routing.read": ANYONE,
    "project_routing.set": LEADS,
    "teams.list": ANYONE,
    "teams.create": ADMINS,
    "organisations.list": ANYONE,
    "organisations.create": ADMINS,
    "members.list": ANYONE,
    "members.invite": LEADS,
    "members.set": LEADS,
    "members.remove": LEADS,
    "budgets.list": ANYONE,
    "forecast.read": ANYONE,
    "budgets.set": BOUNDERS,
    "budgets.raise": BOUNDERS,
    "budgets.remove": BOUNDERS,
    "models.list": ANYONE,
    "providers.list": ANYONE,
    "providers.kinds": ADMINS,
    "providers.read": ADMINS,
    "providers.put": ADMINS,
    "providers.remove": ADMINS,
    "providers.test": ADMINS,
    "providers.try": ADMINS,
    "providers.discover": ADMINS,
    "credentials.list": ADMINS,
    "credentials.put": ADMINS,
    "credentials.remove": ADMINS,
    "deployments.list": ADMINS,
    "deployments.put": ADMINS,
    "deployments.remove": ADMINS,
    "aliases.list": ADMINS,
    "aliases.put": ADMINS,
    "aliases.remove": ADMINS,
    "route.preview": ADMINS,
    "catalogue.read": ADMINS,
    "catalogue.restore": ADMINS,
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
    "guardrails.list": ANYONE,
    "guardrails.create": ADMINS,
    "guardrails.update": ADMINS,
    "guardrails.remove": ADMINS,
    "guardrails.test": ADMINS,
    "guardrails.reports": ADMINS,
    "bodies.list": ADMINS,
    "bodies.set": ADMINS,
    "bodies.stop": ADMINS,
    "bodies.read": ADMINS,
    "engine.read": ANYONE,
    "engines.list": ANYONE,
    "audit.list": ADMINS,
    "audit.export": ADMINS,
    "audit.verify": ADMINS,
    "users.list": ADMINS,
    "users.create": ADMINS,
    "users.update": ADMINS,
    "users.link": ADMINS,
    "tokens.list": MAKERS,
    "tokens.create": MAKERS,
    "tokens.revoke": MAKERS,
    "settings.read": ADMINS,
    "provisioning.read": ADMINS,
    "scim.issue": ADMINS,
    "scim.revoke": ADMINS,
    # Each command by itself: see below.
    "commands.run": ANYONE,
}

COMMANDS: Final[dict[str, frozenset[Role]]] = {
    # Those that show what providers bill are for tellers, as such columns are elsewhere.
    "usage": TELLERS,
    "usage rebuild": ADMINS,
    "top": TELLERS,
    "audit": ADMINS,
    "keys": ADMINS,
    "keys list": ANYONE,
    "projects": ADMINS,
    "projects list": ANYONE,
    "quotas": TELLERS,
    "quotas team": ADMINS,
    "ledger": TELLERS,
    "invoice": TELLERS,
    "topup": TELLERS,
    "alerts": TELLERS,
    "export": TELLERS,
    "guardrails": ADMINS,
    "bodies": ADMINS,
    "reconcile": TELLERS,
    "prices": TELLERS,
    "prices list": ANYONE,
    "models": ADMINS,
    "models list": ANYONE,
    "providers": ADMINS,
    "providers list": ANYONE,
    "credentials": ADMINS,
    "route": ADMINS,
    "route explain": ANYONE,
    # Reads a database that the caller names.
    "import": frozenset({Role.OWNER}),
    "demo": ADMINS,
}
"""Who may send which command to a gateway (`farebox --url`): it works on the whole installation, as on its own machine.
The longest name counts."""

OPEN: Final = frozenset({
    "session.by_link", "session.by_password", "session.read", "session.ways", "session.oidc_begin", "session.oidc_end",
    "session.passkey_begin", "session.by_passkey",
})  # fmt: skip
"""What works before sign-in."""


class Own(Struct, frozen=True):
    """About nobody but the caller, or the same for all: whoever holds a permitted role anywhere."""


class Seen(Struct, frozen=True):
    """A list. Its handler takes `sight` and answers with what lies within it; a test looks that it does."""


Kind = Literal["organisation", "team", "project", "project's organisation", "key", "scope"]


class Of(Struct, frozen=True):
    """One resource. kind: what the id is of; `scope` goes by the path's own word. where: "path", or "body" for a field
    of the JSON; field: its name; optional: a body may leave it out, where there is only one."""

    kind: Kind
    where: Literal["path", "body"]
    field: str
    optional: bool = False


CONCERNS: Final[dict[str, Own | Seen | Of]] = {
    "session.end": Own(),
    "password.set": Own(),
    "passkeys.list": Own(),
    "passkeys.begin": Own(),
    "passkeys.add": Own(),
    "passkeys.remove": Own(),
    "overview.read": Seen(),
    "usage.read": Seen(),
    "usage.export": Seen(),
    "usage.parquet": Seen(),
    "savings.read": Seen(),
    "requests.list": Seen(),
    "requests.read": Seen(),
    "requests.tail": Seen(),
    "keys.list": Seen(),
    "keys.read": Of("key", "path", "key_id"),
    "keys.create": Of("project", "body", "project_id"),
    "keys.update": Of("key", "path", "key_id"),
    "keys.revoke": Of("key", "path", "key_id"),
    "keys.rotate": Of("key", "path", "key_id"),
    "playground.key": Of("project", "body", "project_id"),
    "losses.read": Of("scope", "path", "scope_id"),
    "losses.set": Of("scope", "path", "scope_id"),
    "projects.list": Seen(),
    "projects.create": Of("organisation", "body", "organisation_id", optional=True),
    # Out of one team and into another: whoever leads one of them alone may not.
    "projects.join": Of("project's organisation", "path", "project_id"),
    "project_routing.read": Of("project", "path", "project_id"),
    "project_routing.set": Of("project", "path", "project_id"),
    "teams.list": Seen(),
    "teams.create": Of("organisation", "body", "organisation_id", optional=True),
    "organisations.list": Seen(),
    "members.list": Seen(),
    "members.invite": Of("scope", "path", "scope_id"),
    "members.set": Of("scope", "path", "scope_id"),
    "members.remove": Of("scope", "path", "scope_id"),
    "budgets.list": Seen(),
    "forecast.read": Of("scope", "path", "scope_id"),
    "budgets.set": Of("scope", "path", "scope_id"),
    "budgets.raise": Of("scope", "path", "scope_id"),
    "budgets.remove": Of("scope", "path", "scope_id"),
    "models.list": Own(),
    # Its own account. What is paid in is booked by the house: nobody may credit themselves.
    "ledger.balances": Seen(),
    "ledger.transfers": Seen(),
    "invoices.list": Seen(),
    "invoices.read": Of("organisation", "path", "organisation_id"),
    "invoices.pdf": Of("organisation", "path", "organisation_id"),
    "invoices.csv": Of("organisation", "path", "organisation_id"),
    # An organisation's own rows: the chain of hashes is the installation's.
    "audit.list": Seen(),
    "audit.export": Seen(),
    "tokens.list": Own(),
    "tokens.create": Own(),
    "tokens.revoke": Own(),
}

_RANK: Final = {
    Role.MEMBER: -1,
    Role.VIEWER: 0,
    Role.DEVELOPER: 1,
    Role.FINANCE: 1,
    Role.TEAM_LEAD: 2,
    Role.ADMIN: 3,
    Role.OWNER: 4,
}


def powers(role: Role) -> frozenset[str]:
    return frozenset(name for name, roles in PERMITTED.items() if role in roles)


def may_run(role: Role, words: str) -> bool:
    """words: a command, as `keys create`. One that is not in the table is for owners alone."""
    names = [name for name in COMMANDS if words == name or words.startswith(f"{name} ")]
    return role in (COMMANDS[max(names, key=len)] if names else {Role.OWNER})


def may_hand_out(own: Role, other: Role) -> bool:
    """Whether somebody with the role `own` may give `other` to a person or a token: no more than what they hold."""
    return own is other or (_RANK[own] > _RANK[other] and powers(own) >= powers(other))


def higher(one: Role, other: Role) -> Role:
    return other if _RANK[other] > _RANK[one] else one


class Place(Struct, frozen=True):
    """Where a resource is, from the top. None: it lies above."""

    organisation_id: str
    team_id: str | None = None
    project_id: str | None = None


class Membership(Struct, frozen=True):
    """A role in one organisation, team or project, and in all that is below it. models: globs of what keys made by it
    may ask for; None: all."""

    scope: str
    scope_id: str
    role: Role
    models: tuple[str, ...] | None = None

    def covers(self, place: Place) -> bool:
        own = {"organisation": place.organisation_id, "team": place.team_id, "project": place.project_id}
        return own.get(self.scope) == self.scope_id


class Sight(Struct, frozen=True):
    """What a list may show: ids of what lies within the caller's memberships. None: everything."""

    organisations: frozenset[str] | None = None
    teams: frozenset[str] | None = None
    projects: frozenset[str] | None = None

    def filters(self, asked: dict[str, list[str]]) -> dict[str, list[str]]:
        """Filters of a report, narrowed."""
        if self.projects is None:
            return asked
        wanted = asked.get("project") or sorted(self.projects)
        # To a report an empty list is no filter; no project has the empty name.
        return asked | {"project": [each for each in wanted if each in self.projects] or [""]}

    def shows(self, scope: str, scope_id: str) -> bool:
        """scope, scope_id: as a budget's. Of keys their project is to be asked."""
        if self.projects is None or self.organisations is None or self.teams is None:
            return True
        ids = {"organisation": self.organisations, "team": self.teams, "project": self.projects}
        return scope_id.partition("/")[0] in ids.get(scope, self.projects | self.organisations)


EVERYTHING: Final = Sight()


class Actor(Struct, frozen=True):
    """Who calls. role: over the whole installation. held: memberships. A token's is cut to the token's role in both.

    via: "session" or "token"; only a session's browser needs protection from forged requests. why: what the caller
    gave as the reason of a change, for the audit."""

    user_id: str
    name: str
    role: Role
    via: str
    has_password: bool = True
    held: tuple[Membership, ...] = ()
    why: str | None = None

    def roles_at(self, place: Place) -> frozenset[Role]:
        return frozenset({self.role, *(each.role for each in self.held if each.covers(place))}) - {Role.MEMBER}

    def may_hand_out(self, role: Role, place: Place | None = None) -> bool:
        """place: of what the role is to be over; None: the whole installation."""
        roles = {self.role} if place is None else self.roles_at(place)
        return any(may_hand_out(own, role) for own in roles)

    def powers(self) -> list[str]:
        """Names of what this one may call on something, for pages to hide the rest."""
        local = {name for each in self.held for name in powers(each.role) if name in CONCERNS}
        return sorted(local | powers(self.role))


def cut(role: Role, most: Role) -> Role | None:
    """What is left of a role under a token that may do no more than `most`; None: nothing."""
    return most if may_hand_out(role, most) else None


def uncovered(handler_names: Iterable[str]) -> list[str]:
    """Handlers that the table does not know."""
    return sorted(name for name in handler_names if name not in PERMITTED and name not in OPEN)
