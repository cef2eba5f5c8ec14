"""Engines over the databases of tests/conftest.py."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.db import create_engine


@pytest.fixture
async def fresh_engine(fresh_database_url: str) -> AsyncIterator[AsyncEngine]:
    """A migrated database for one test alone."""
    engine = create_engine(fresh_database_url)
    yield engine
    await engine.dispose()
