"""The fixtures that everybody stands on."""

import redis.asyncio
from sqlalchemy import text

from billing.db import create_engine, reading
from billing.migrate import is_current
from tests import services


async def test_a_clone_is_migrated_and_alone(fresh_database_url: str) -> None:
    assert await is_current(fresh_database_url)
    engine = create_engine(fresh_database_url)
    async with reading(engine) as db:
        assert (await db.execute(text("SELECT count(*) FROM usage_records"))).scalar_one() == 0
        assert (await db.execute(text("SELECT count(*) FROM prices"))).scalar_one() > 500
    await engine.dispose()


async def test_valkey_is_real_and_runs_scripts(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        assert await client.eval("return redis.call('INCR', KEYS[1])", 1, "a") == 1
        assert await client.dbsize() == 1


async def test_valkey_is_empty_for_the_next_test(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0


def test_the_header_names_the_servers() -> None:
    assert not [line for line in services.versions() if "MISSING" in line]
