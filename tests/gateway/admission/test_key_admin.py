"""Making and changing keys: one transaction with its audit, and nothing that could be used as a key in either."""

import asyncio

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.accounts import Budget, Scope, Window
from billing.db import reading
from gateway.admission.key_admin import KeyAdmin, KeyChanges, KeyTerms
from gateway.errors import InvalidRequest, NotFound
from gateway.schema import audit, virtual_keys
from tests.gateway.admission.support import NOW_NS, ORGANISATION, PEPPER, PROJECT


@pytest.fixture
def admin(engine: AsyncEngine, redis: Redis) -> KeyAdmin:
    return KeyAdmin(engine, redis, PEPPER)


async def test_a_key_from_birth_to_revocation(admin: KeyAdmin, engine: AsyncEngine) -> None:
    terms = KeyTerms(models=("gpt-*",), allow_ips=("10.0.0.0/8",), rpm=60, expires_at_ns=NOW_NS + 9)
    made = await admin.create_key(
        project_id=PROJECT, name="ci", actor="ann", now_ns=NOW_NS, terms=terms, budgets=[(Window.DAY, 7)]
    )
    assert made.plain is not None
    info = await admin.key(made.public_id)
    assert (info.id, info.terms, info.organisation_id) == (made.key_id, terms, ORGANISATION)
    assert info.budgets == (Budget(Scope.KEY, made.key_id, Window.DAY, 7),)
    assert (info.state(NOW_NS), info.state(NOW_NS + 9)) == ("active", "expired")
    changed = await admin.update_key(made.key_id, KeyChanges(rpm=None, name="ci 2"), actor="ben", now_ns=NOW_NS + 1)
    assert (changed.terms.rpm, changed.name, changed.terms.models) == (None, "ci 2", ("gpt-*",))
    await admin.set_budget(Scope.KEY, made.key_id, Window.DAY, None, actor="ben", now_ns=NOW_NS + 2)
    revoked = await admin.revoke_key(made.key_id, actor="cy", now_ns=NOW_NS + 3)
    assert (revoked.state(NOW_NS), revoked.budgets) == ("revoked", ())
    assert (await admin.revoke_key(made.key_id, actor="cy", now_ns=NOW_NS + 4)).revoked_at_ns == NOW_NS + 3
    assert await admin.list_keys() == await admin.list_keys(project_ids=[PROJECT]) == [revoked]
    assert await admin.list_keys(project_ids=["other"]) == []

    async with reading(engine) as db:
        lines = (await db.execute(select(audit).order_by(audit.c.id))).mappings().all()
        (row,) = (await db.execute(select(virtual_keys))).mappings().all()
    assert [(line["actor"], line["action"]) for line in lines] == [
        ("ann", "key.create"), ("ben", "key.update"), ("ben", "key.budget"), ("cy", "key.revoke"),
    ]  # fmt: skip
    assert (lines[1]["before"], lines[1]["after"]) == ({"rpm": 60, "name": "ci"}, {"rpm": None, "name": "ci 2"})
    assert (lines[2]["before"], lines[2]["after"]) == ({"day": 7}, {"day": None})
    stored = f"{lines} {dict(row)}"
    assert made.plain not in stored
    assert made.plain[14:] not in stored
    assert row["secret_hash"].hex() not in f"{lines}"
    assert made.plain not in repr(made)


@pytest.mark.parametrize(
    ("terms", "name", "param"),
    [
        (KeyTerms(), "", "name"),
        (KeyTerms(), "x" * 201, "name"),
        (KeyTerms(rpm=-1), "k", "rpm"),
        (KeyTerms(tpm=10**11), "k", "tpm"),
        (KeyTerms(models=()), "k", "models"),
        (KeyTerms(models=("",)), "k", "models"),
        (KeyTerms(allow_ips=("not an address",)), "k", "allow_ips"),
        (KeyTerms(expires_at_ns=NOW_NS), "k", "expires"),
    ],
)
async def test_bad_settings_are_named(
    admin: KeyAdmin, engine: AsyncEngine, terms: KeyTerms, name: str, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await admin.create_key(project_id=PROJECT, name=name, actor="ann", now_ns=NOW_NS, terms=terms)
    assert refused.value.param == param
    await nothing_written(engine)


async def test_what_fails_leaves_nothing(admin: KeyAdmin, engine: AsyncEngine) -> None:
    with pytest.raises(NotFound):
        await admin.create_key(project_id="none", name="k", actor="ann", now_ns=NOW_NS)
    with pytest.raises(InvalidRequest):
        await admin.create_key(project_id=PROJECT, name="k", actor="ann", now_ns=NOW_NS, budgets=[(Window.DAY, -1)])
    with pytest.raises(InvalidRequest):
        await admin.create_key(project_id=PROJECT, name="k", actor="ann", now_ns=NOW_NS, plain="too short")
    for change in (admin.revoke_key("none", actor="a", now_ns=1), admin.key("none")):
        with pytest.raises(NotFound):
            await change
    with pytest.raises(InvalidRequest):
        await admin.set_budget(Scope.PROJECT, PROJECT, Window.DAY, -1, actor="a", now_ns=NOW_NS)
    await nothing_written(engine)


async def nothing_written(engine: AsyncEngine) -> None:
    async with reading(engine) as db:
        for table in ("virtual_keys", "budgets", "audit"):
            assert (await db.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0, table


async def test_a_key_that_several_bring_along_at_once_is_one(admin: KeyAdmin) -> None:
    given = "an-operator-made-this-key-by-hand"
    made = await asyncio.gather(
        *(admin.create_key(project_id=PROJECT, name="k", actor="a", now_ns=NOW_NS, plain=given) for _ in range(4))
    )
    assert [key.id for key in await admin.list_keys()] == [made[0].key_id]
    assert {(each.key_id, each.public_id) for each in made} == {(made[0].key_id, made[0].public_id)}
    assert [each.plain for each in made].count(given) == 1


async def test_a_given_key_under_another_pepper_is_told(engine: AsyncEngine, admin: KeyAdmin) -> None:
    made = await admin.create_key(project_id=PROJECT, name="k", actor="a", now_ns=NOW_NS)
    other = KeyAdmin(engine, None, b"another pepper")
    with pytest.raises(InvalidRequest, match="pepper"):
        await other.create_key(project_id=PROJECT, name="k", actor="a", now_ns=NOW_NS, plain=made.plain)


async def test_changes_go_on_while_redis_is_away(engine: AsyncEngine) -> None:
    async with Redis.from_url("unix:///nowhere/valkey.sock") as nobody:
        admin = KeyAdmin(engine, nobody, PEPPER)
        made = await admin.create_key(project_id=PROJECT, name="k", actor="a", now_ns=NOW_NS)
        assert (await admin.revoke_key(made.key_id, actor="a", now_ns=NOW_NS)).revoked_at_ns == NOW_NS
