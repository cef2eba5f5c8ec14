"""An organisation with a project in a migrated database, and limiters over a real Valkey."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts
from billing.db import create_engine, writing
from tests.gateway.admission.support import NOW_NS, ORGANISATION, PROJECT


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, protocol=3) as client:
        yield client


@pytest.fixture
async def engine(fresh_database_url: str) -> AsyncIterator[AsyncEngine]:
    """Migrated, with one organisation, billed afterwards, and one project of it."""
    engine = create_engine(fresh_database_url)
    async with writing(engine) as db:
        await accounts.create_organisation(db, ORGANISATION, "Acme", at_ns=NOW_NS)
        await accounts.create_project(db, PROJECT, ORGANISATION, "demo", at_ns=NOW_NS)
    yield engine
    await engine.dispose()
