"""A key with a new secret is the same key: the old secret goes on for its time, and both spend from one purse."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.accounts import Window
from billing.db import reading
from gateway import identity, schema
from gateway.admission.key_admin import OVERLAP_NS_MAX, KeyAdmin, KeyChanges, KeyTerms
from gateway.admission.keys import KeyStore
from gateway.errors import InvalidRequest, Unauthenticated
from tests.gateway.admission.support import NOW_MS, NOW_NS, PEPPER, PROJECT, until

IP = "192.0.2.1"
HOUR_NS, HOUR_MS = 3_600 * 10**9, 3_600_000


@pytest.fixture
def admin(engine: AsyncEngine, redis: Redis) -> KeyAdmin:
    return KeyAdmin(engine, redis, PEPPER)


@pytest.fixture
async def keys(engine: AsyncEngine, redis: Redis) -> AsyncIterator[KeyStore]:
    async with KeyStore(engine, redis, PEPPER) as store:
        yield store


async def made(admin: KeyAdmin, plain: str | None = None, **terms: int) -> tuple[str, str]:
    new = await admin.create_key(
        project_id=PROJECT, name="k", actor="tests", now_ns=NOW_NS, terms=KeyTerms(**terms),  # type: ignore[arg-type]
        budgets=[(Window.DAY, 10**12)], plain=plain,
    )  # fmt: skip
    assert new.plain
    return new.key_id, new.plain


async def rotated(admin: KeyAdmin, key_id: str, overlap_ns: int, now_ns: int = NOW_NS) -> str:
    new = await admin.rotate_key(key_id, overlap_ns, actor="tests", now_ns=now_ns, why="leaked in a chat")
    assert new.key_id == key_id
    assert new.plain
    return new.plain


async def test_both_secrets_are_one_key_until_the_old_one_ends(
    admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine
) -> None:
    key_id, old = await made(admin, rpm=60)
    await keys.principal(old, IP, NOW_MS)
    new = await rotated(admin, key_id, HOUR_NS)
    await until(lambda: keys.cached(old, NOW_MS) is None)
    by_old, by_new = [await keys.principal(secret, IP, NOW_MS) for secret in (old, new)]
    assert by_old.key_id == by_new.key_id == key_id
    assert (by_old.limits, by_old.budgets) == (by_new.limits, by_new.budgets)
    assert keys.cached(old, NOW_MS) == by_old
    # Not a moment longer, remembered or not.
    assert keys.cached(old, NOW_MS + HOUR_MS) is None
    with pytest.raises(Unauthenticated, match="expired"):
        await keys.principal(old, IP, NOW_MS + HOUR_MS)
    assert (await keys.principal(new, IP, NOW_MS + HOUR_MS)).key_id == key_id
    async with reading(engine) as db:
        row = (await db.execute(select(schema.audit).where(schema.audit.c.action == "key.rotate"))).mappings().one()
        kept = (await db.execute(select(identity.key_secrets))).mappings().one()
    assert (row["note"], row["before"]["public_id"]) == ("leaked in a chat", kept["public_id"])
    for secret in (old, new):
        assert secret not in str(dict(row)) + str(dict(kept))


async def test_a_rotation_without_overlap_ends_the_old_secret_at_once(admin: KeyAdmin, keys: KeyStore) -> None:
    key_id, old = await made(admin)
    new = await rotated(admin, key_id, 0)
    await until(lambda: keys.cached(old, NOW_MS) is None)
    with pytest.raises(Unauthenticated):
        await keys.principal(old, IP, NOW_MS)
    assert (await keys.principal(new, IP, NOW_MS)).key_id == key_id


async def test_what_ends_or_changes_the_key_ends_or_changes_both(admin: KeyAdmin, keys: KeyStore) -> None:
    key_id, old = await made(admin, rpm=60)
    new = await rotated(admin, key_id, HOUR_NS)
    for secret in (old, new):
        await keys.principal(secret, IP, NOW_MS)
    await admin.update_key(key_id, KeyChanges(rpm=7), actor="tests", now_ns=NOW_NS)
    await until(lambda: keys.cached(old, NOW_MS) is None and keys.cached(new, NOW_MS) is None)
    for secret in (old, new):
        assert [each.limit for each in (await keys.principal(secret, IP, NOW_MS)).limits] == [7]
    # Named by what is printed on the old one, it is the same key.
    public_id = old.removeprefix("fbx-").partition("_")[0]
    assert (await admin.revoke_key(public_id, actor="tests", now_ns=NOW_NS)).id == key_id
    await until(lambda: keys.cached(old, NOW_MS) is None and keys.cached(new, NOW_MS) is None)
    for secret in (old, new):
        with pytest.raises(Unauthenticated, match="revoked"):
            await keys.principal(secret, IP, NOW_MS)
    with pytest.raises(InvalidRequest, match="revoked"):
        await rotated(admin, key_id, HOUR_NS)


async def test_rotated_twice_each_goes_its_time(admin: KeyAdmin, keys: KeyStore) -> None:
    key_id, first = await made(admin)
    second = await rotated(admin, key_id, 48 * HOUR_NS)
    third = await rotated(admin, key_id, 2 * HOUR_NS, NOW_NS + HOUR_NS)
    for secret in (first, second, third):
        assert (await keys.principal(secret, IP, NOW_MS + 2 * HOUR_MS)).key_id == key_id
    # The last rotation says when everything before it ends.
    for secret in (first, second):
        with pytest.raises(Unauthenticated):
            await keys.principal(secret, IP, NOW_MS + 3 * HOUR_MS)


async def test_a_given_key_that_was_rotated_is_not_made_again(admin: KeyAdmin) -> None:
    given = "an operators own key of enough characters".replace(" ", "-")
    key_id, _ = await made(admin, plain=given)
    await rotated(admin, key_id, HOUR_NS)
    again = await admin.create_key(project_id=PROJECT, name="k", actor="tests", now_ns=NOW_NS, plain=given)
    assert (again.key_id, again.plain) == (key_id, None)


async def test_lists_say_what_is_about_to_end(admin: KeyAdmin) -> None:
    key_id, _ = await made(admin, expires_at_ns=NOW_NS + 60 * 24 * HOUR_NS)
    assert (await admin.key(key_id)).warning(NOW_NS) is None
    await rotated(admin, key_id, 30 * HOUR_NS)
    info = await admin.key(key_id)
    assert info.warning(NOW_NS) == "the old secret ends in 30 hours"
    assert info.warning(NOW_NS + 30 * HOUR_NS) is None
    assert info.warning(NOW_NS + 50 * 24 * HOUR_NS) == "expires in 10 days"
    with pytest.raises(InvalidRequest, match="90 days"):
        await rotated(admin, key_id, OVERLAP_NS_MAX + 1)
