"""Who owes and who spends: organisations, projects, budgets, and the chart of accounts."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import schema

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


class Scope(StrEnum):
    """Whose spending a budget bounds."""

    ORGANISATION = "organisation"
    PROJECT = "project"
    KEY = "key"


class Window(StrEnum):
    """In what time. Days and months are those of UTC."""

    TOTAL = "total"
    MONTH = "month"
    DAY = "day"


class Budget(msgspec.Struct, frozen=True):
    scope: Scope
    scope_id: str
    window: Window
    limit_pusd: int


def window_start_ns(window: Window, at_ns: int) -> int:
    """When the window began that `at_ns` lies in."""
    if window is Window.TOTAL:
        return 0
    at = datetime.datetime.fromtimestamp(at_ns // 10**9, datetime.UTC)
    start = at.replace(hour=0, minute=0, second=0, microsecond=0, day=1 if window is Window.MONTH else at.day)
    return int(start.timestamp()) * 10**9


async def create_organisation(
    db: AsyncConnection, organisation_id: str, name: str, *, at_ns: int, credit_limit_pusd: int | None = None
) -> Organisation:
    """Raises: sqlalchemy.exc.IntegrityError if id or name is taken."""
    organisation = Organisation(organisation_id, name, credit_limit_pusd, at_ns)
    await db.execute(insert(schema.organisations).values(msgspec.structs.asdict(organisation)))
    return organisation


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


async def set_budget(db: AsyncConnection, budget: Budget, *, at_ns: int) -> None:
    """Raises: ValueError for a negative limit."""
    if budget.limit_pusd < 0:
        raise ValueError(f"budget below zero: {budget.limit_pusd} pUSD")
    row = {
        "scope": budget.scope.value,
        "scope_id": budget.scope_id,
        "period": budget.window.value,
        "limit_pusd": budget.limit_pusd,
        "changed_at_ns": at_ns,
    }
    key = [schema.budgets.c.scope, schema.budgets.c.scope_id, schema.budgets.c.period]
    await db.execute(
        upsert(db, schema.budgets)
        .values(row)
        .on_conflict_do_update(index_elements=key, set_={name: row[name] for name in ("limit_pusd", "changed_at_ns")})
    )


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


async def budgets(db: AsyncConnection, scope_ids: Sequence[str] | None = None) -> list[Budget]:
    """The budgets of these ids (of an organisation, a project, a key), or all there are."""
    query = select(schema.budgets).order_by(schema.budgets.c.scope, schema.budgets.c.scope_id, schema.budgets.c.period)
    if scope_ids is not None:
        query = query.where(schema.budgets.c.scope_id.in_(scope_ids))
    return [
        Budget(Scope(row["scope"]), row["scope_id"], Window(row["period"]), row["limit_pusd"])
        for row in (await db.execute(query)).mappings()
    ]


def upsert(db: AsyncConnection, table: Any) -> Any:
    """INSERT with ON CONFLICT, which both databases spell alike and SQLAlchemy only per dialect."""
    return postgresql.insert(table) if db.dialect.name == "postgresql" else sqlite.insert(table)
