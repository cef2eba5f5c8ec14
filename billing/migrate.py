"""Bring a database to the newest schema and the shipped prices: what `farebox migrate` and `farebox up` call."""

import asyncio
import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection

from billing.db import create_engine, reading, writing
from billing.pricelist import read_seed, seed_prices

# Any number that nothing else in this database locks by: "farebox" in ASCII.
_ADVISORY_LOCK: Final = int.from_bytes(b"farebox", "big")


def migrations() -> Path:
    """Where the migrations lie: inside the wheel beside this file, in a checkout beside the package."""
    packed = Path(__file__).with_name("_migrations")
    return packed if packed.is_dir() else Path(__file__).parents[1] / "migrations"


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's settings. There is no alembic.ini: it would be a second place that knows the database."""
    config = Config()
    # Its parser reads % as a reference.
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def upgrade(url: str, *, at_ns: int | None = None) -> None:
    """Migrate to the newest revision and seed the shipped prices, all or nothing; once where several start at once.

    An edge: asks the clock from when new prices hold, unless told."""
    engine = create_engine(url)
    try:
        # One transaction for everything: both databases take back a table as they take back a row.
        async with writing(engine) as db:
            if engine.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE is such a lock already.
                await db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            await db.run_sync(lambda connection: command.upgrade(configuration(connection), "heads"))
            seed = await asyncio.to_thread(read_seed)
            await seed_prices(db, seed, at_ns=time.time_ns() if at_ns is None else at_ns)
    finally:
        await engine.dispose()


async def is_current(url: str) -> bool:
    """Does the database have every migration that we have?"""
    engine = create_engine(url)
    wanted = set(ScriptDirectory.from_config(configuration()).get_heads())
    try:
        async with reading(engine) as db:
            heads = await db.run_sync(lambda connection: MigrationContext.configure(connection).get_current_heads())
    finally:
        await engine.dispose()
    return set(heads) == wanted
