"""Who owes and who spends: organisations, projects, budgets, and the chart of accounts."""

import datetime
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from billing import schema
from billing.db import AsyncConnection
from billing.money import MAX_AMOUNT_PUSD

# The chart. Normal side in brackets; a customer's account is a liability: what they paid in is theirs until used.
REVENUE: Final = "revenue"  # [credit] What was sold.
INFERENCE_COST: Final = "inference_cost"  # [debit] What providers will bill us for it.
CASH: Final = "cash"  # [debit] What customers paid in.
GRANTS: Final = "grants"  # [debit] What we gave away.
ADJUSTMENTS: Final = "adjustments"  # [debit] Corrections by hand, each with a note.


class AccountKind(StrEnum):
    ASSET = "asset"
    LIABILITY = "liability"
    INCOME = "income"
    EXPENSE = "expense"


_KINDS: Final = {
    REVENUE: AccountKind.INCOME,
    INFERENCE_COST: AccountKind.EXPENSE,
    CASH: AccountKind.ASSET,
    GRANTS: AccountKind.EXPENSE,
    ADJUSTMENTS: AccountKind.EXPENSE,
}


def customer(organisation_id: str) -> str:
    """[credit] What an organisation has left, or owes when it is negative."""
    return f"customer:{organisation_id}"


def payable_to(provider: str) -> str:
    """[credit] What we owe a provider until its bill is paid."""
    return f"payable:{provider}"


def kind_of(account: str) -> AccountKind:
    """Where an account stands in the balance. Raises: ValueError for a name that is not in the chart."""
    if account.startswith(("customer:", "payable:")):
        return AccountKind.LIABILITY
    if account not in _KINDS:
        raise ValueError(f"not in the chart of accounts: {account}")
    return _KINDS[account]


class Organisation(msgspec.Struct, frozen=True):
    """`credit_limit_pusd`: None is billed afterwards without limit, 0 prepaid, more may be owed up to that."""

    id: str
    name: str
    credit_limit_pusd: int | None
    created_at_ns: int
    currency: str = "USD"  # What its invoices are shown in.


class Project(msgspec.Struct, frozen=True):
    id: str
    organisation_id: str
    name: str
    created_at_ns: int
    team_id: str | None = None


class Scope(StrEnum):
    """Whose spending a budget bounds. A scope id is the id of an organisation, a team, a project or a key; the id of
    a project for each of its end users by itself; of the last three, `<organisation or project>/<name>`. The name of a
    model is a shell glob of aliases, counted together."""

    ORGANISATION = "organisation"
    TEAM = "team"
    PROJECT = "project"
    KEY = "key"
    END_USER = "end_user"
    MODEL = "model"
    PROVIDER = "provider"
    TAG = "tag"


NAMED: Final = (Scope.MODEL, Scope.PROVIDER, Scope.TAG)
"""Scopes that have a name beside their owner."""


class Window(StrEnum):
    """In what time. Hours, days and months are those of UTC."""

    TOTAL = "total"
    MONTH = "month"
    DAY = "day"
    HOUR = "hour"


class BudgetKind(StrEnum):
    """What happens to a request that a budget does not cover."""

    HARD = "hard"  # Refused.
    SOFT = "soft"  # Let through, and told.
    THROTTLE = "throttle"  # So many a minute are let through, the others told to wait.


class Budget(msgspec.Struct, frozen=True):
    """slow_rpm: requests a minute past a throttle; slow_from_percent: of the limit, where it begins. raise_pusd: what
    is added to the limit until raise_until_ns."""

    scope: Scope
    scope_id: str
    window: Window
    limit_pusd: int
    kind: BudgetKind = BudgetKind.HARD
    slow_rpm: int = 0
    slow_from_percent: int = 100
    raise_pusd: int = 0
    raise_until_ns: int | None = None

    def limit_at(self, at_ns: int) -> int:
        """With what it is raised by at that time."""
        return self.limit_pusd + (self.raise_pusd if at_ns < (self.raise_until_ns or 0) else 0)

    def check(self) -> None:
        """Raises: ValueError naming what cannot be."""
        if self.limit_pusd < 0 or self.raise_pusd < 0:
            raise ValueError(f"budget below zero: {min(self.limit_pusd, self.raise_pusd)} pUSD")
        if self.limit_pusd + self.raise_pusd > MAX_AMOUNT_PUSD:
            raise ValueError("a budget of more than nine million dollars")
        if self.kind is BudgetKind.THROTTLE and self.slow_rpm < 1:
            raise ValueError("a throttle lets at least one request a minute pass")
        if not 1 <= self.slow_from_percent <= 100:
            raise ValueError(f"a throttle begins at 1 to 100 % of its limit, not at {self.slow_from_percent}")
        check_scope(self.scope, self.scope_id)


def check_scope(scope: Scope, scope_id: str) -> None:
    """Raises: ValueError for an id that is not of this form."""
    owner, slash, name = scope_id.partition("/")
    if scope in NAMED:
        if not (owner and slash and name):
            raise ValueError(f"a limit of one {scope.value} is of <organisation or project>/<{scope.value}>")
        if scope is Scope.MODEL and "[" in name:
            raise ValueError("a limit's pattern of models knows * and ?, no brackets")
    elif not owner or slash:
        raise ValueError(f"not the id of one {scope.value}: {scope_id!r}")


class Team(msgspec.Struct, frozen=True):
    id: str
    organisation_id: str
    name: str
    created_at_ns: int


def window_start_ns(window: Window, at_ns: int) -> int:
    """When the window began that `at_ns` lies in."""
    if window is Window.TOTAL:
        return 0
    at = datetime.datetime.fromtimestamp(at_ns // 10**9, datetime.UTC)
    if window is Window.HOUR:
        return int(at.timestamp()) // 3600 * 3600 * 10**9
    start = at.replace(hour=0, minute=0, second=0, microsecond=0, day=1 if window is Window.MONTH else at.day)
    return int(start.timestamp()) * 10**9


def window_end_ns(window: Window, at_ns: int) -> int | None:
    """When the window ends that `at_ns` lies in. None: never."""
    if window is Window.TOTAL:
        return None
    if window is not Window.MONTH:
        return window_start_ns(window, at_ns) + (3600 if window is Window.HOUR else 86_400) * 10**9
    # The longest month has 31 days: 32 after its beginning lies in the next one.
    return window_start_ns(window, window_start_ns(window, at_ns) + 32 * 86_400 * 10**9)


async def create_organisation(
    db: AsyncConnection, organisation_id: str, name: str, *, at_ns: int, credit_limit_pusd: int | None = None
) -> Organisation:
    """Raises: sqlalchemy.exc.IntegrityError if id or name is taken."""
    organisation = Organisation(organisation_id, name, credit_limit_pusd, at_ns)
    await db.execute(insert(schema.organisations).values(msgspec.structs.asdict(organisation)))
    return organisation


async def set_credit_limit(db: AsyncConnection, organisation_id: str, limit_pusd: int | None) -> bool:
    """None: billed afterwards without limit. Returns: whether there is such an organisation. Raises: ValueError."""
    if limit_pusd is not None and not 0 <= limit_pusd <= MAX_AMOUNT_PUSD:
        raise ValueError("a credit limit is not negative and below nine million dollars")
    table = schema.organisations
    changed = update(table).where(table.c.id == organisation_id).values(credit_limit_pusd=limit_pusd)
    return bool((await db.execute(changed)).rowcount)


async def create_project(
    db: AsyncConnection, project_id: str, organisation_id: str, name: str, *, at_ns: int
) -> Project:
    """Raises: sqlalchemy.exc.IntegrityError if the name is taken in the organisation, or there is no such one."""
    project = Project(project_id, organisation_id, name, at_ns)
    await db.execute(insert(schema.projects).values(msgspec.structs.asdict(project)))
    return project


async def organisations(db: AsyncConnection) -> list[Organisation]:
    rows = await db.execute(select(schema.organisations).order_by(schema.organisations.c.name))
    return [Organisation(**row) for row in rows.mappings()]


async def projects(db: AsyncConnection, organisation_id: str | None = None) -> list[Project]:
    query = select(schema.projects).order_by(schema.projects.c.name)
    if organisation_id is not None:
        query = query.where(schema.projects.c.organisation_id == organisation_id)
    return [Project(**row) for row in (await db.execute(query)).mappings()]


async def create_team(db: AsyncConnection, team_id: str, organisation_id: str, name: str, *, at_ns: int) -> Team:
    """Raises: sqlalchemy.exc.IntegrityError if the name is taken in the organisation, or there is no such one."""
    team = Team(team_id, organisation_id, name, at_ns)
    await db.execute(insert(schema.teams).values(msgspec.structs.asdict(team)))
    return team


async def teams(db: AsyncConnection, organisation_id: str | None = None) -> list[Team]:
    query = select(schema.teams).order_by(schema.teams.c.name)
    if organisation_id is not None:
        query = query.where(schema.teams.c.organisation_id == organisation_id)
    return [Team(**row) for row in (await db.execute(query)).mappings()]


async def join_team(db: AsyncConnection, project_id: str, team_id: str | None) -> None:
    """None: of no team any more. Raises: ValueError for a project or team that is not there, or not of one
    organisation."""
    projects, of = schema.projects, schema.teams.c.organisation_id
    home = select(projects.c.organisation_id).where(projects.c.id == project_id)
    organisation = (await db.execute(home)).scalar_one_or_none()
    if organisation is None:
        raise ValueError(f"no project {project_id!r}")
    if team_id is not None:
        found = (await db.execute(select(of).where(schema.teams.c.id == team_id))).scalar_one_or_none()
        if found != organisation:
            raise ValueError(f"no team {team_id!r} in the project's organisation")
    await db.execute(update(projects).where(projects.c.id == project_id).values(team_id=team_id))


async def set_budget(db: AsyncConnection, budget: Budget, *, at_ns: int) -> None:
    """Raises: ValueError for what a budget cannot be."""
    budget.check()
    row = {
        "scope": budget.scope.value,
        "scope_id": budget.scope_id,
        "period": budget.window.value,
        "limit_pusd": budget.limit_pusd,
        "changed_at_ns": at_ns,
        "kind": budget.kind.value,
        "slow_rpm": budget.slow_rpm,
        "slow_from_percent": budget.slow_from_percent,
        "raise_pusd": budget.raise_pusd,
        "raise_until_ns": budget.raise_until_ns,
    }
    await put(db, schema.budgets, row)


async def remove_budget(db: AsyncConnection, scope: Scope, scope_id: str, window: Window) -> bool:
    """Returns: whether there was one."""
    gone = await db.execute(
        delete(schema.budgets).where(
            schema.budgets.c.scope == scope.value,
            schema.budgets.c.scope_id == scope_id,
            schema.budgets.c.period == window.value,
        )
    )
    return bool(gone.rowcount)


async def budgets(
    db: AsyncConnection, scope_ids: Sequence[str] | None = None, *, scope: Scope | None = None
) -> list[Budget]:
    """The budgets of these ids (of organisations, teams, projects, keys) and of what they own, or all there are.

    scope: only those of this kind, and of nothing that they own."""
    query = select(schema.budgets).order_by(schema.budgets.c.scope, schema.budgets.c.scope_id, schema.budgets.c.period)
    ids = schema.budgets.c.scope_id
    if scope is not None:
        query = query.where(schema.budgets.c.scope == scope.value)
    if scope_ids is not None:
        owned = () if scope is not None else (ids.startswith(f"{each}/", autoescape=True) for each in scope_ids)
        query = query.where(or_(ids.in_(scope_ids), *owned))
    return [
        Budget(
            Scope(row["scope"]),
            row["scope_id"],
            Window(row["period"]),
            row["limit_pusd"],
            BudgetKind(row["kind"]),
            row["slow_rpm"],
            row["slow_from_percent"],
            row["raise_pusd"],
            row["raise_until_ns"],
        )
        for row in (await db.execute(query)).mappings()
    ]


def upsert(db: AsyncConnection, table: Any) -> Any:
    """INSERT with ON CONFLICT, which both databases spell alike and SQLAlchemy only per dialect."""
    return postgresql.insert(table) if db.dialect.name == "postgresql" else sqlite.insert(table)


async def put(db: AsyncConnection, table: Any, row: Mapping[str, Any]) -> None:
    """What stands under this row's primary key from now on, whatever stood there. Two who put at once both succeed, and
    the later one counts; between a DELETE and an INSERT there is room for somebody else's INSERT."""
    key = [column.name for column in table.primary_key]
    statement = upsert(db, table).values(row)
    changed = {name: statement.excluded[name] for name in row if name not in key}
    await db.execute(statement.on_conflict_do_update(index_elements=key, set_=changed))
