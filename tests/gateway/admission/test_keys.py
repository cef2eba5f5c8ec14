"""From a presented key to a principal, and how fast a change is felt."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, ledger
from billing.accounts import Scope, Window
from billing.db import create_engine, writing
from billing.migrate import upgrade
from gateway.admission import changes
from gateway.admission import keys as keys_module
from gateway.admission.floods import BURST
from gateway.admission.key_admin import KeyAdmin, KeyChanges, KeyTerms, NewKey
from gateway.admission.keys import REREAD_MS, SQL_AWAY_MS, WRONG_MAX, KeyStore
from gateway.admission.minting import mint
from gateway.admission.principal import Budget, Limit
from gateway.errors import Forbidden, GatewayError, RateLimited, Unauthenticated, Unavailable
from tests.gateway.admission.support import NOW_MS, NOW_NS, ORGANISATION, PEPPER, PROJECT, relay_to, until

IP = "192.0.2.1"


@pytest.fixture
def admin(engine: AsyncEngine, redis: Redis) -> KeyAdmin:
    return KeyAdmin(engine, redis, PEPPER)


@pytest.fixture
async def keys(engine: AsyncEngine, redis: Redis) -> AsyncIterator[KeyStore]:
    async with KeyStore(engine, redis, PEPPER) as keys:
        yield keys


async def make(admin: KeyAdmin, **more: object) -> NewKey:
    budgets = more.pop("budgets", ())
    plain = more.pop("plain", None)
    return await admin.create_key(
        project_id=PROJECT, name="test", actor="tests", now_ns=NOW_NS, terms=KeyTerms(**more),  # type: ignore[arg-type]
        budgets=budgets, plain=plain,  # type: ignore[arg-type]
    )  # fmt: skip


def shown(key: NewKey) -> str:
    assert key.plain is not None
    return key.plain


@contextlib.contextmanager
def counted(engine: AsyncEngine) -> Iterator[Callable[[], int]]:
    """How many statements went to SQL."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield lambda: count
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_a_good_key_brings_everything_along(admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine) -> None:
    key = await make(
        admin, models=("gpt-*", "claude-*"), rpm=60, tpm=9000, parallel=4, budgets=[(Window.TOTAL, 10**10)]
    )
    await admin.set_budget(Scope.PROJECT, PROJECT, Window.MONTH, 5 * 10**12, actor="tests", now_ns=NOW_NS)
    await admin.set_rate_limit(Scope.ORGANISATION, ORGANISATION, "tokens", 10**6, actor="tests", now_ns=NOW_NS)
    await admin.set_rate_limit(Scope.END_USER, PROJECT, "requests", 5, actor="tests", now_ns=NOW_NS)
    who = await keys.principal(shown(key), IP, NOW_MS)
    assert (who.key_id, who.public_id, who.name) == (key.key_id, key.public_id, "test")
    assert (who.organisation_id, who.project_id, who.models) == (ORGANISATION, PROJECT, ("gpt-*", "claude-*"))
    assert set(who.limits) == {
        Limit("key", key.key_id, "requests", 60),
        Limit("key", key.key_id, "tokens", 9000),
        Limit("key", key.key_id, "parallel", 4),
        Limit("organisation", ORGANISATION, "tokens", 10**6),
        Limit("end_user", PROJECT, "requests", 5),
    }
    assert set(who.budgets) == {
        Budget("key", key.key_id, 10**10, "total"),
        Budget("project", PROJECT, 5 * 10**12, "month"),
    }
    with counted(engine) as statements:
        assert keys.cached(shown(key), NOW_MS) is who
        assert await keys.principal(shown(key), IP, NOW_MS) is who
        assert statements() == 0


async def test_a_prepaid_organisation_brings_its_credit(admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine) -> None:
    key = await make(admin)
    async with writing(engine) as db:
        await db.execute(text("UPDATE organisations SET credit_limit_pusd = 500"))
        await ledger.top_up(db, ORGANISATION, 2_000, "invoice 1", at_ns=NOW_NS)
    await admin.changed()
    await until(lambda: keys.cached(shown(key), NOW_MS) is None)
    who = await keys.principal(shown(key), IP, NOW_MS)
    assert who.budgets == (Budget("credit", ORGANISATION, 2_500),)


def wrong_keys(good: str) -> dict[str, str]:
    return {
        "typo": good[:-1] + ("1" if good[-1] != "1" else "2"),
        "cut": good[:30],
        "short": "hello",
        "empty": "",
        "unknown": mint(PEPPER).plain,
        "unknown of another format": "sk-proj-0123456789abcdef0123456789abcdef",
        "not ascii": "schlüssel" * 5,
        "surrogate": "\udcff" * 30,
        "hash of it": "0" * 64,
    }


async def test_wrong_keys_are_all_refused_alike(admin: KeyAdmin, keys: KeyStore) -> None:
    good = shown(await make(admin))
    said = set()
    for name, presented in wrong_keys(good).items():
        for _ in range(2):
            with pytest.raises(Unauthenticated) as refused:
                await keys.principal(presented, IP, NOW_MS)
            assert refused.value.code == "invalid_api_key", name
            assert presented == "" or presented not in refused.value.message
            said.add(refused.value.message)
    assert len(said) == 1


async def test_a_key_with_the_public_id_of_another_is_refused(
    admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine
) -> None:
    key, other = await make(admin), mint(PEPPER)
    async with writing(engine) as db:
        await db.execute(text("UPDATE virtual_keys SET public_id = :id"), {"id": other.public_id})
    with pytest.raises(Unauthenticated) as refused:
        await keys.principal(other.plain, IP, NOW_MS)
    assert refused.value.code == "invalid_api_key"
    assert key.public_id != other.public_id


async def test_typos_cost_no_sql(admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine) -> None:
    good = shown(await make(admin))
    with counted(engine) as statements:
        for name in ("typo", "cut", "short", "empty"):
            with pytest.raises(Unauthenticated):
                await keys.principal(wrong_keys(good)[name], IP, NOW_MS)
        assert statements() == 0


@pytest.mark.parametrize(
    ("terms", "at_ms", "ip", "error", "code"),
    [
        ({}, 0, IP, None, ""),
        ({"expires_at_ns": NOW_NS + 10**9}, 999, IP, None, ""),
        ({"expires_at_ns": NOW_NS + 10**9}, 1_000, IP, Unauthenticated, "key_expired"),
        ({"allow_ips": ("192.0.2.0/24",)}, 0, IP, None, ""),
        ({"allow_ips": ("192.0.2.0/24",)}, 0, "::ffff:192.0.2.9", None, ""),
        ({"allow_ips": ("192.0.2.7", "2001:db8::/32")}, 0, "2001:db8::5", None, ""),
        ({"allow_ips": ("192.0.2.7", "2001:db8::/32")}, 0, IP, Forbidden, "address_not_allowed"),
        ({"allow_ips": ("192.0.2.7",)}, 0, "", Forbidden, "address_not_allowed"),
    ],
)
async def test_terms(
    admin: KeyAdmin, keys: KeyStore, terms: dict[str, object], at_ms: int, ip: str,
    error: type[GatewayError] | None, code: str,
) -> None:  # fmt: skip
    key = await make(admin, **terms)
    for _ in range(2):  # From SQL, then from memory.
        if error is None:
            assert (await keys.principal(shown(key), ip, NOW_MS + at_ms)).key_id == key.key_id
        else:
            with pytest.raises(error) as refused:
                await keys.principal(shown(key), ip, NOW_MS + at_ms)
            assert refused.value.code == code
            assert keys.cached(shown(key), NOW_MS + at_ms) is None


async def test_the_hot_path_forgets_what_expires(admin: KeyAdmin, keys: KeyStore) -> None:
    key = await make(admin, expires_at_ns=NOW_NS + 10**8)
    await keys.principal(shown(key), IP, NOW_MS)
    assert keys.cached(shown(key), NOW_MS + 99) is not None
    assert keys.cached(shown(key), NOW_MS + 100) is None


async def refused(keys: KeyStore, plain: str, now_ms: int) -> bool:
    """Asked as requests do."""
    try:
        if keys.cached(plain, now_ms) is None:
            await keys.principal(plain, IP, now_ms)
    except Unauthenticated:
        return True
    while keys._confirming is not None:  # However slow this machine is, by the clock of the keys it takes no time.
        await asyncio.sleep(0.001)
    return False


async def refused_after(keys: KeyStore, plain: str) -> int:
    """Ask as a busy client does, ever later than NOW_MS, until refused. Returns: how much later, in ms."""
    for later_ms in range(0, 5_000, 20):
        if await refused(keys, plain, NOW_MS + later_ms):
            return later_ms
    pytest.fail("never refused")


async def test_a_revocation_is_felt_by_every_process(admin: KeyAdmin, engine: AsyncEngine, redis: Redis) -> None:
    key = await make(admin)
    async with KeyStore(engine, redis, PEPPER) as one, KeyStore(engine, redis, PEPPER) as two:
        for keys in (one, two):
            await keys.principal(shown(key), IP, NOW_MS)
        await until(lambda: listeners(redis, 2))
        await admin.revoke_key(key.public_id, actor="tests", now_ns=NOW_NS)
        for keys in (one, two):  # By the message alone: their clock stands, so they ask for no version.
            await until(lambda keys=keys: refused(keys, shown(key), NOW_MS))  # type: ignore[misc]


async def listeners(redis: Redis, wanted: int) -> bool:
    found: Any = await redis.pubsub_numsub(changes.CHANNEL)
    return dict(found)[changes.CHANNEL.encode()] == wanted


async def test_a_lost_message_is_felt_within_a_second(
    admin: KeyAdmin, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens; the version alone tells."""
    key = await make(admin)
    monkeypatch.setattr("gateway.admission.keys.CHANNEL", "another channel")
    async with KeyStore(engine, redis, PEPPER) as one, KeyStore(engine, redis, PEPPER) as two:
        for keys in (one, two):
            await keys.principal(shown(key), IP, NOW_MS)
        await admin.revoke_key(key.key_id, actor="tests", now_ns=NOW_NS)
        assert max([await refused_after(keys, shown(key)) for keys in (one, two)]) < 1_000


async def test_a_revocation_is_felt_while_redis_is_away(
    admin: KeyAdmin, engine: AsyncEngine, redis_url: str, tmp_path: Path
) -> None:
    key = await make(admin)
    async with (
        relay_to(redis_url, tmp_path) as relay,
        Redis.from_url(relay.url, protocol=3) as through,
        KeyStore(engine, through, PEPPER) as keys,
    ):
        await keys.principal(shown(key), IP, NOW_MS)
        await relay.cut()
        await KeyAdmin(engine, through, PEPPER).revoke_key(key.key_id, actor="tests", now_ns=NOW_NS)
        assert await refused_after(keys, shown(key)) < 1_000


async def test_a_busy_process_waits_for_no_redis(admin: KeyAdmin, keys: KeyStore) -> None:
    """Under steady traffic the version is asked for beside the requests: none of them misses the cache."""
    key = await make(admin)
    await keys.principal(shown(key), IP, NOW_MS)
    for step in range(1, 200):
        assert keys.cached(shown(key), NOW_MS + step * 100) is not None, step
        # However slow this machine is, less than a tenth of the clock's second goes by until Redis has answered.
        while keys._confirming is not None:
            await asyncio.sleep(0.001)


async def test_an_unannounced_change_is_felt_in_time(admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine) -> None:
    key = await make(admin)
    await keys.principal(shown(key), IP, NOW_MS)
    async with writing(engine) as db:
        await db.execute(text("UPDATE virtual_keys SET revoked_at_ns = 1"))
    await keys.principal(shown(key), IP, NOW_MS + REREAD_MS)
    with pytest.raises(Unauthenticated):
        await keys.principal(shown(key), IP, NOW_MS + REREAD_MS + 1)


async def test_what_is_done_later_in_a_keys_name_asks_what_it_may_by_then(admin: KeyAdmin, keys: KeyStore) -> None:
    lasting = await make(admin, expires_at_ns=NOW_NS + 10**9)
    assert (await keys.principal_of(lasting.key_id, NOW_MS + 999)).key_id == lasting.key_id
    with pytest.raises(Unauthenticated, match="expired"):
        await keys.principal_of(lasting.key_id, NOW_MS + 1_000)
    await admin.revoke_key(lasting.key_id, actor="tests", now_ns=NOW_NS)
    for gone in (lasting.key_id, "key_nobody"):
        with pytest.raises(Unauthenticated, match="revoked"):
            await keys.principal_of(gone, NOW_MS)


async def test_a_change_while_sql_is_read_is_not_overwritten(
    admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old row, read before a revocation, must not be remembered after it."""
    key = await make(admin)
    await keys.principal(shown(key), IP, NOW_MS)
    await admin.changed()
    await until(lambda: keys.cached(shown(key), NOW_MS) is None)
    fetch, reads = keys_module._fetch, 0

    async def revoked_meanwhile(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        found = await fetch(*args)
        if reads == 1:
            async with writing(engine) as db:
                await db.execute(text("UPDATE virtual_keys SET revoked_at_ns = 1"))
            drops = keys._drops
            await admin.changed()
            await until(lambda: keys._drops > drops)
        return found

    monkeypatch.setattr(keys_module, "_fetch", revoked_meanwhile)
    with pytest.raises(Unauthenticated):
        await keys.principal(shown(key), IP, NOW_MS)
    assert reads == 2


async def test_a_key_made_after_it_was_tried(admin: KeyAdmin, keys: KeyStore) -> None:
    minted = mint(PEPPER)
    with pytest.raises(Unauthenticated):
        await keys.principal(minted.plain, IP, NOW_MS)
    key = await make(admin, plain=minted.plain)
    assert key.plain == minted.plain
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Unauthenticated):
                assert (await keys.principal(minted.plain, IP, NOW_MS)).key_id == key.key_id
                return
            await asyncio.sleep(0.01)


async def test_a_key_that_the_operator_brings(admin: KeyAdmin, keys: KeyStore) -> None:
    plain = "infrastructure-as-code-0123456789"
    key = await make(admin, plain=plain)
    assert await make(admin, plain=plain) == NewKey(key.key_id, key.public_id, None)
    assert (await keys.principal(plain, IP, NOW_MS)).key_id == key.key_id


async def test_guessing_is_slowed_and_forgotten(admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine) -> None:
    good = shown(await make(admin))
    await keys.principal(good, IP, NOW_MS)
    for _ in range(BURST):
        with pytest.raises(Unauthenticated):
            await keys.principal(mint(PEPPER).plain, IP, NOW_MS)
    with counted(engine) as statements:
        with pytest.raises(RateLimited):
            await keys.principal(mint(PEPPER).plain, IP, NOW_MS)
        assert statements() == 0
    assert keys.cached(good, NOW_MS) is not None
    assert await keys.principal(good, IP, NOW_MS + REREAD_MS + 1)  # A known key is no guess.
    with pytest.raises(Unauthenticated):
        await keys.principal(mint(PEPPER).plain, "192.0.2.99", NOW_MS)


async def test_one_wrong_key_from_many_at_once_is_one_guess(admin: KeyAdmin, keys: KeyStore) -> None:
    """An office behind one address has a job with an old key: it must not lock out its neighbours' good ones."""
    good, old = shown(await make(admin)), mint(PEPPER).plain
    asked = (keys.principal(old, IP, NOW_MS) for _ in range(3 * BURST))
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in told} == {Unauthenticated}
    assert await keys.principal(good, IP, NOW_MS)


async def test_a_guess_counts_though_its_client_has_left(keys: KeyStore) -> None:
    for _ in range(BURST):
        asking = asyncio.create_task(keys.principal(mint(PEPPER).plain, IP, NOW_MS))
        async with asyncio.timeout(30):
            while not keys._reading:
                await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: not keys._reading)
    with pytest.raises(RateLimited):
        await keys.principal(mint(PEPPER).plain, IP, NOW_MS)


async def test_the_memory_of_wrong_keys_is_bounded(keys: KeyStore) -> None:
    for i in range(WRONG_MAX + 100):
        keys._remember_wrong(i.to_bytes(32, "big"), NOW_MS)
    assert len(keys._wrong) == WRONG_MAX


async def test_one_look_up_for_a_crowd(admin: KeyAdmin, keys: KeyStore, engine: AsyncEngine) -> None:
    key = await make(admin)
    with counted(engine) as statements:
        await keys.principal(shown(await make(admin)), IP, NOW_MS)
        before = statements()
        await keys.principal(shown(key), IP, NOW_MS)
        alone = statements() - before
    await admin.changed()
    await until(lambda: keys.cached(shown(key), NOW_MS) is None)
    with counted(engine) as statements:
        await asyncio.gather(*(keys.principal(shown(key), IP, NOW_MS) for _ in range(50)))
        assert statements() <= 2 * alone


async def test_sql_away(redis: Redis, tmp_path: Path) -> None:
    """A known key goes on as long as Redis vouches for it; a new one cannot be known."""
    url = f"sqlite:///{tmp_path / 'farebox.db'}"
    await upgrade(url, at_ns=NOW_NS)
    engine = create_engine(url)
    async with writing(engine) as db:
        await accounts.create_organisation(db, ORGANISATION, "Acme", at_ns=NOW_NS)
        await accounts.create_project(db, PROJECT, ORGANISATION, "demo", at_ns=NOW_NS)
    key = await make(KeyAdmin(engine, redis, PEPPER))
    async with KeyStore(engine, redis, PEPPER) as keys:
        await keys.principal(shown(key), IP, NOW_MS)
        async with writing(engine) as db:
            await db.execute(text("ALTER TABLE virtual_keys RENAME TO elsewhere"))
        later = NOW_MS + REREAD_MS + 1
        assert (await keys.principal(shown(key), IP, later)).key_id == key.key_id
        with pytest.raises(Unavailable):
            await keys.principal(mint(PEPPER).plain, IP, later)
        with pytest.raises(Unavailable):
            await keys.principal(shown(key), IP, NOW_MS + SQL_AWAY_MS + 1)
    await engine.dispose()


async def test_an_edit_is_felt(admin: KeyAdmin, keys: KeyStore) -> None:
    key = await make(admin, rpm=60)
    await keys.principal(shown(key), IP, NOW_MS)
    await admin.update_key(key.key_id, KeyChanges(rpm=None, tpm=7), actor="tests", now_ns=NOW_NS)
    await until(lambda: keys.cached(shown(key), NOW_MS) is None)
    assert (await keys.principal(shown(key), IP, NOW_MS)).limits == (Limit("key", key.key_id, "tokens", 7),)
