"""Whose money and whose tokens: every scope and every kind of budget, in Redis and in the sums of SQL."""

from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, schema
from billing.accounts import BudgetKind, Scope, Window
from billing.db import writing
from gateway.admission import KeyStore
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.admission.limits import Scopes, scopes_of
from gateway.admission.principal import Budget, Facts, Limit, Principal
from gateway.admission.spending import spending
from gateway.errors import InvalidRequest, NotFound, QuotaExceeded, RateLimited
from tests.gateway.admission.support import (
    DAY_MS,
    NOW_MS,
    NOW_NS,
    ORGANISATION,
    PEPPER,
    PROJECT,
    limiter,
    principal,
    scopes,
)
from tests.gateway.admission.test_gate import ROW

HOUR_NS = 3600 * 10**9
GPT = Facts("gpt-4o", ("openai", "azure"), ("batch", "night"), "ann")


def of(who: Principal, facts: Facts = GPT) -> Scopes:
    return scopes_of(who, facts, NOW_MS)


def test_a_request_counts_where_it_belongs() -> None:
    who = principal(
        Limit("model", "org_1/gpt-*", "tokens", 5),
        Limit("model", "org_1/claude-*", "tokens", 5),
        Limit("provider", "org_1/azure", "requests", 5),
        Limit("provider", "org_1/groq", "requests", 5),
        Limit("tag", "prj_1/night", "parallel", 5),
        Limit("tag", "prj_1/day", "parallel", 5),
        Limit("team", "team_1", "requests", 5, 3_600_000),
        budgets=(Budget("end_user", "prj_1", 5, "hour"), Budget("tag", "org_1/night", 5), Budget("team", "team_1", 5)),
    )
    found = of(who)
    assert [(each.scope, each.scope_id) for each in (*found.buckets, *found.slots)] == [
        ("model", "org_1/gpt-*"), ("provider", "org_1/azure"), ("team", "team_1"), ("tag", "prj_1/night"),
    ]  # fmt: skip
    assert [(each.scope, each.end_user) for each in found.budgets] == [
        ("end_user", "ann"), ("tag", None), ("team", None),
    ]  # fmt: skip
    assert found.window_starts_ns[0] == NOW_NS // HOUR_NS * HOUR_NS
    assert all(key.startswith("fb:{org_1}:") for key in found.keys)
    later = scopes_of(who, GPT, NOW_MS + 3_600_000)
    assert later.budget_keys[0] != found.budget_keys[0]
    assert later.budget_keys[1:] == found.budget_keys[1:]
    bare = of(who, Facts("claude-opus"))
    assert [each.scope_id for each in bare.buckets] == ["org_1/claude-*", "team_1"]
    assert [each.scope for each in bare.budgets] == ["team"]


async def test_a_provider_that_did_not_answer_is_not_charged(redis: Redis) -> None:
    limits_ = [Limit("provider", f"org_1/{name}", "tokens", 1000, DAY_MS) for name in ("openai", "azure")]
    budgets = tuple(Budget("provider", f"org_1/{name}", 1000) for name in ("openai", "azure"))
    where = of(principal(*limits_, Limit("key", "key_1", "tokens", 1000, DAY_MS), budgets=budgets))
    async with limiter(redis) as limits:
        await limits.reserve("r", where, tokens=100, hold_pusd=300)
        await limits.settle("r", where, tokens=40, charge_pusd=200, provider="azure")
        assert await limits.available_pusd(where) == (1000, 800)
        probe = await limits.reserve("probe", where, tokens=0, hold_pusd=0)
        assert [window.remaining for window in probe.windows] == [1000, 960, 960]


async def test_a_soft_budget_tells_and_a_hard_one_beside_it_refuses(redis: Redis) -> None:
    soft = Budget("project", "prj_1", 100, kind="soft")
    async with limiter(redis) as limits:
        alone = scopes(budgets=(soft,))
        assert (await limits.reserve("a", alone, tokens=0, hold_pusd=80)).past == ()
        taken = await limits.reserve("b", alone, tokens=0, hold_pusd=80)
        assert taken.past == (soft,)
        assert await limits.available_pusd(alone) == (-60,)
        both = scopes(budgets=(soft, Budget("key", "key_1", 50)))
        with pytest.raises(QuotaExceeded) as refused:
            await limits.reserve("c", both, tokens=0, hold_pusd=80)
        assert refused.value.scope == "key"


async def test_a_throttle_lets_so_many_a_minute_through(redis: Redis) -> None:
    slow = Budget("key", "key_1", 1000, kind="throttle", slow_rpm=30, slow_from_percent=80)
    where = scopes(budgets=(slow,))
    async with limiter(redis) as limits:
        for name in "abcd":  # 4 x 200 = 80 %.
            assert (await limits.reserve(name, where, tokens=0, hold_pusd=200)).past == ()
        assert (await limits.reserve("e", where, tokens=0, hold_pusd=200)).past == (slow,)
        for _ in range(3):  # Refusals cost no place.
            with pytest.raises(RateLimited) as refused:
                await limits.reserve("f", where, tokens=0, hold_pusd=200)
            assert 0 < refused.value.retry_after_s <= 2
            assert refused.value.scope == "key"
        await limits.reserve("free", where, tokens=0, hold_pusd=0)
        assert await limits.available_pusd(where) == (0,)


ROWS: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({"alias": "gpt-4o", "provider": "azure", "tags": ["night", "x"], "end_user": "ann"}, 10),
    ({"alias": "GPT-4o", "end_user": "ann", "at_ns": NOW_NS - HOUR_NS}, 100),
    ({"alias": "gpt-3", "project_id": "prj_2", "provider": "azure", "tags": ["night"], "end_user": "ann"}, 1_000),
    ({"alias": "gpt%", "project_id": "prj_2", "tags": ["nigh"], "end_user": "ben"}, 10_000),
    ({"organisation_id": "org_2", "project_id": "prj_3", "provider": "azure", "tags": ["night"]}, 100_000),
]


async def test_sql_adds_up_every_scope(engine: AsyncEngine) -> None:
    async with writing(engine) as db:
        await accounts.create_project(db, "prj_2", ORGANISATION, "second", at_ns=NOW_NS)
        await accounts.create_team(db, "team_1", ORGANISATION, "red", at_ns=NOW_NS)
        await accounts.join_team(db, PROJECT, "team_1")
        for bad in (("prj_2", "team_2"), ("prj_9", "team_1")):
            with pytest.raises(ValueError, match="no "):
                await accounts.join_team(db, *bad)
        rows = [ROW | {"id": str(at), "charge_pusd": pusd} | facts for at, (facts, pusd) in enumerate(ROWS)]
        await db.execute(insert(schema.usage_records), rows)

    async def spent(scope: str, scope_id: str, start_ns: int = 0, end_user: str | None = None) -> int:
        return (await spending(engine, Budget(scope, scope_id, 1, end_user=end_user), start_ns)).pusd

    assert await spent("organisation", "org_1") == 11_111
    assert await spent("team", "team_1") == 111
    assert await spent("model", "org_1/gpt-*") == 1_010
    assert await spent("model", "org_1/gpt%") == 10_000
    assert await spent("model", "prj_1/gpt-4?") == 10
    assert await spent("provider", "org_1/azure") == 1_010
    assert await spent("provider", "prj_2/azure") == 1_000
    assert await spent("tag", "org_1/night") == 1_010
    assert await spent("tag", "prj_1/x") == 10
    assert await spent("tag", "prj_1/none") == 0
    assert await spent("end_user", PROJECT, end_user="ann") == 110
    assert await spent("end_user", PROJECT, NOW_NS, end_user="ann") == 10
    assert await spent("end_user", "prj_2") == 10_000, "nobody named: who spent most"
    found = await spending(engine, Budget("key", "key_1", 1), NOW_NS, ["0", "2", "9"])
    assert found.counted == {"0", "2"}


async def test_a_key_brings_along_what_is_above_it(engine: AsyncEngine, redis: Redis) -> None:
    """Budgets of its team, its project's end users, models of its organisation; raised for a time."""
    admin = KeyAdmin(engine, redis, PEPPER)
    async with writing(engine) as db:
        await accounts.create_team(db, "team_1", ORGANISATION, "red", at_ns=NOW_NS)
        await accounts.join_team(db, PROJECT, "team_1")
    made = await admin.create_key(project_id=PROJECT, name="k", actor="t", now_ns=NOW_NS, terms=KeyTerms(rpm=9))
    assert made.plain is not None
    say: dict[str, Any] = {"actor": "t", "now_ns": NOW_NS}
    await admin.set_budget(Scope.TEAM, "team_1", Window.HOUR, 10, **say)
    await admin.set_budget(
        Scope.MODEL,
        f"{ORGANISATION}/gpt-*",
        Window.DAY,
        20,
        kind=BudgetKind.THROTTLE,
        slow_rpm=3,
        slow_from_percent=50,
        **say,
    )
    await admin.set_budget(Scope.END_USER, PROJECT, Window.MONTH, 30, kind=BudgetKind.SOFT, **say)
    await admin.set_budget(Scope.TAG, "prj_other/x", Window.DAY, 1, **say)
    await admin.set_budget(Scope.TEAM, "team_2", Window.DAY, 1, **say)
    await admin.set_rate_limit(Scope.TEAM, "team_1", "tokens", 7, window_ms=3_600_000, **say)
    await admin.set_rate_limit(Scope.PROVIDER, f"{PROJECT}/groq", "parallel", 2, **say)
    await admin.raise_budget(Scope.TEAM, "team_1", Window.HOUR, 5, NOW_NS + 60 * 10**9, **say)
    async with KeyStore(engine, redis, PEPPER) as keys:
        who = await keys.principal(made.plain, "127.0.0.1", NOW_MS)
        assert who.team_id == "team_1"
        assert set(who.budgets) == {
            Budget("team", "team_1", 15, "hour"),
            Budget("model", f"{ORGANISATION}/gpt-*", 20, "day", "throttle", 3, 50),
            Budget("end_user", PROJECT, 30, "month", "soft"),
        }
        assert set(who.limits[1:]) == {
            Limit("team", "team_1", "tokens", 7, 3_600_000),
            Limit("provider", f"{PROJECT}/groq", "parallel", 2),
        }
        later = await keys.principal(made.plain, "127.0.0.1", NOW_MS + 61_000)
        assert Budget("team", "team_1", 10, "hour") in later.budgets, "the raise is over"


@pytest.mark.parametrize(
    ("scope", "scope_id", "more", "match"),
    [
        (Scope.MODEL, "org_1", {}, "<organisation or project>/<model>"),
        (Scope.TAG, "org_1/", {}, "<organisation or project>/<tag>"),
        (Scope.MODEL, "org_1/gpt-[34]", {}, "brackets"),
        (Scope.KEY, "key_1/x", {}, "not the id of one key"),
        (Scope.KEY, "key_1", {"kind": BudgetKind.THROTTLE}, "at least one request"),
        (Scope.KEY, "key_1", {"slow_from_percent": 0}, "1 to 100 %"),
    ],
)
async def test_what_cannot_be_is_said(
    engine: AsyncEngine, scope: Scope, scope_id: str, more: dict[str, Any], match: str
) -> None:
    admin = KeyAdmin(engine, None, PEPPER)
    with pytest.raises(InvalidRequest, match=match):
        await admin.set_budget(scope, scope_id, Window.DAY, 1, actor="t", now_ns=NOW_NS, **more)
    with pytest.raises(NotFound):
        await admin.raise_budget(scope, scope_id, Window.DAY, 1, NOW_NS, actor="t", now_ns=NOW_NS)
