"""Organisations, projects, budgets and the windows they are spent in; and the reports over what was spent."""

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts
from billing.accounts import Budget, Scope, Window, check_scope, window_end_ns, window_start_ns
from billing.db import reading, writing
from billing.journal import Journal
from billing.statements import Dimension, spent, spent_by, usage_by
from billing.usage import Meter, Outcome
from billing.worker import Worker
from tests.billing.make import AT_NS, BOOK, RECORD_COST_PUSD, RECORD_SALE_PUSD, record

DAY_NS = 86_400 * 10**9


@given(st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2200, 1, 1)))
def test_a_window_begins_at_midnight_utc(at: datetime.datetime) -> None:
    at_ns = int(at.replace(tzinfo=datetime.UTC).timestamp()) * 10**9 + 999_999_999
    assert window_start_ns(Window.TOTAL, at_ns) == 0
    assert window_start_ns(Window.DAY, at_ns) == at_ns // DAY_NS * DAY_NS
    month = datetime.datetime.fromtimestamp(window_start_ns(Window.MONTH, at_ns) // 10**9, datetime.UTC)
    assert (month.year, month.month, month.day, month.hour) == (at.year, at.month, 1, 0)


@pytest.mark.parametrize("month", range(1, 13))
def test_a_window_ends_where_the_next_one_begins(month: int) -> None:
    at = datetime.datetime(2027, month, 28, 23, 59, 59, tzinfo=datetime.UTC)
    at_ns = int(at.timestamp()) * 10**9
    assert window_end_ns(Window.TOTAL, at_ns) is None
    for window in (Window.HOUR, Window.DAY, Window.MONTH):
        end_ns = window_end_ns(window, at_ns)
        assert end_ns is not None
        assert window_start_ns(window, end_ns - 1) == window_start_ns(window, at_ns) < end_ns
        assert window_start_ns(window, end_ns) == end_ns


def test_a_raise_counts_until_its_time() -> None:
    raised = Budget(Scope.KEY, "key_1", Window.DAY, 100, raise_pusd=20, raise_until_ns=AT_NS)
    assert [raised.limit_at(at_ns) for at_ns in (AT_NS - 1, AT_NS)] == [120, 100]
    assert Budget(Scope.KEY, "key_1", Window.DAY, 100, raise_pusd=20).limit_at(AT_NS) == 100


@pytest.mark.parametrize(
    ("scope", "scope_id"),
    [(scope, scope_id) for scope in accounts.NAMED for scope_id in ("", "org_1", "org_1/", "/ann")]
    + [(Scope.MODEL, "org_1/gpt-[45]"), (Scope.KEY, ""), (Scope.PROJECT, "org_1/project_1")],
)
def test_a_budget_of_nothing_that_could_be_is_refused(scope: Scope, scope_id: str) -> None:
    with pytest.raises(ValueError, match=r"limit of one|no brackets|not the id of one"):
        check_scope(scope, scope_id)


async def test_names_are_unique_where_they_are_said(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        one = await accounts.create_organisation(db, "org_1", "One", at_ns=AT_NS)
        two = await accounts.create_organisation(db, "org_2", "Two", at_ns=AT_NS, credit_limit_pusd=0)
        demo = await accounts.create_project(db, "project_1", "org_1", "demo", at_ns=AT_NS)
        other = await accounts.create_project(db, "project_2", "org_2", "demo", at_ns=AT_NS)
    async with reading(fresh_engine) as db:
        assert await accounts.organisations(db) == [one, two]
        assert await accounts.projects(db) in ([demo, other], [other, demo])
        assert await accounts.projects(db, "org_2") == [other]
    for project_id, organisation_id, name in (
        ("p", "org_1", "demo"),
        ("p", "nobody", "demo"),
        ("project_1", "org_1", "x"),
    ):
        with pytest.raises(IntegrityError):
            async with writing(fresh_engine) as db:
                await accounts.create_project(db, project_id, organisation_id, name, at_ns=AT_NS)
    with pytest.raises(IntegrityError):
        async with writing(fresh_engine) as db:
            await accounts.create_organisation(db, "org_3", "One", at_ns=AT_NS)


async def test_a_budget_is_set_changed_and_removed(fresh_engine: AsyncEngine) -> None:
    cent = Budget(Scope.KEY, "key_1", Window.TOTAL, 10**10)
    daily = Budget(Scope.PROJECT, "project_1", Window.DAY, 10**12)
    async with writing(fresh_engine) as db:
        await accounts.set_budget(db, Budget(Scope.KEY, "key_1", Window.TOTAL, 1), at_ns=AT_NS)
        await accounts.set_budget(db, cent, at_ns=AT_NS)
        await accounts.set_budget(db, daily, at_ns=AT_NS)
        assert await accounts.budgets(db) == [cent, daily]
        assert await accounts.budgets(db, ["key_1", "org_1"]) == [cent]
        with pytest.raises(ValueError, match="below zero"):
            await accounts.set_budget(db, Budget(Scope.KEY, "key_1", Window.TOTAL, -1), at_ns=AT_NS)
        assert await accounts.remove_budget(db, Scope.KEY, "key_1", Window.TOTAL)
        assert not await accounts.remove_budget(db, Scope.KEY, "key_1", Window.TOTAL)
        assert await accounts.budgets(db) == [daily]


HOLD_PUSD = 10**12


async def ship(engine: AsyncEngine, directory: Path) -> None:
    book = Journal.open(directory, "gateway")
    await book.settle(record("r1"))
    await book.settle(record("r2", key_id="key_2", at_ns=AT_NS + DAY_NS, model="other", estimated=True))
    await book.settle(record("r3", project_id="project_2", organisation_id="org_2", key_id="key_3", end_user="ann"))
    await book.settle(record("r4", quantities={Meter.SEARCHES: 1}, at_ns=AT_NS + DAY_NS))
    await book.settle(record("r5", quantities={}, outcome=Outcome.REJECTED, provider="groq"))
    await book.close()
    assert await Worker(directory, engine, BOOK).ship_once() == 5


async def test_what_a_scope_spent_in_a_window(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path)
    async with reading(fresh_engine) as db:
        # r4 has no price yet: what was held for it counts.
        assert await spent(db, Scope.KEY, "key_1") == RECORD_SALE_PUSD + HOLD_PUSD
        assert await spent(db, Scope.KEY, "nobody") == 0
        assert await spent(db, Scope.PROJECT, "project_1") == 2 * RECORD_SALE_PUSD + HOLD_PUSD
        assert await spent(db, Scope.ORGANISATION, "org_1", since_ns=AT_NS + 1) == RECORD_SALE_PUSD + HOLD_PUSD
        assert await spent(db, Scope.ORGANISATION, "org_1", since_ns=AT_NS, until_ns=AT_NS) == 0
        assert await spent(db, Scope.ORGANISATION, "org_1", since_ns=AT_NS, until_ns=AT_NS + 1) == RECORD_SALE_PUSD
        keys = await spent_by(db, Scope.KEY, ["key_1", "key_3", "key_4"])
    assert keys == {"key_1": RECORD_SALE_PUSD + HOLD_PUSD, "key_3": RECORD_SALE_PUSD, "key_4": 0}


@pytest.mark.parametrize(
    ("dimension", "requests"),
    [
        (Dimension.ORGANISATION, {"org_1": 4, "org_2": 1}),
        (Dimension.PROJECT, {"project_1": 4, "project_2": 1}),
        (Dimension.KEY, {"key_1": 3, "key_2": 1, "key_3": 1}),
        (Dimension.END_USER, {"": 4, "ann": 1}),
        (Dimension.ALIAS, {"gpt": 5}),
        (Dimension.MODEL, {"gpt-test": 4, "other": 1}),
        (Dimension.PROVIDER, {"groq": 1, "openai": 4}),
        (Dimension.DAY, {"2026-11-18": 3, "2026-11-19": 2}),
    ],
)
async def test_usage_by_each_dimension_adds_up(
    fresh_engine: AsyncEngine, tmp_path: Path, dimension: Dimension, requests: dict[str, int]
) -> None:
    await ship(fresh_engine, tmp_path)
    async with reading(fresh_engine) as db:
        lines = await usage_by(db, dimension)
        assert await usage_by(db, dimension, since_ns=AT_NS + 2 * DAY_NS) == []
        first_day = await usage_by(db, dimension, until_ns=AT_NS + DAY_NS)
    assert {line.name: line.requests for line in lines} == requests
    assert sum(line.charge_pusd for line in lines) == 3 * RECORD_SALE_PUSD
    assert sum(line.cost_pusd for line in lines) == 3 * RECORD_COST_PUSD
    assert (sum(line.input_tokens for line in lines), sum(line.output_tokens for line in lines)) == (270, 60)
    assert (sum(line.estimated for line in lines), sum(line.unpriced for line in lines)) == (1, 1)
    assert sum(line.requests for line in first_day) == 3
