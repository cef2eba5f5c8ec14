"""Bring a database to the newest schema and the shipped prices: what `farebox migrate` and `farebox up` call.

Alembic is loaded where there is something to migrate: a quarter of a start's CPU, and most starts find nothing."""

import asyncio
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from billing.db import AsyncConnection, create_engine, reading, take_turn, writing
from billing.pricelist import read_seed, seed_prices

if TYPE_CHECKING:
    from alembic.config import Config

# Not the audit's: whoever waits for that one has locked what a migration wants.
_TURN: Final = int.from_bytes(b"migrate", "big")
TRIES: Final = 20
"""Each takes the database a second (deadlock_timeout) to find, and nothing is left of it."""
# Source: PostgreSQL error codes, class 40 (deadlock_detected), read 2026-11.
_DEADLOCK_DETECTED: Final = "40P01"


def migrations() -> Path:
    """Where the migrations lie: inside the wheel beside this file, in a checkout beside the package."""
    packed = Path(__file__).with_name("_migrations")
    return packed if packed.is_dir() else Path(__file__).parents[1] / "migrations"


def configuration(connection: Connection | None = None) -> "Config":
    """Alembic's settings. There is no alembic.ini: it would be a second place that knows the database."""
    from alembic.config import Config

    config = Config()
    # Its parser reads % as a reference.
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def upgrade(url: str, *, at_ns: int | None = None) -> None:
    """Migrate to the newest revision and seed the shipped prices, all or nothing; once where several start at once.

    An edge: asks the clock from when new prices hold, unless told. Raises: DBAPIError where the database refuses, or
    chose this transaction to end a deadlock with `TRIES` times."""
    engine = create_engine(url)
    try:
        for left in reversed(range(TRIES)):
            try:
                # One transaction for everything: both databases take back a table as they take back a row.
                async with writing(engine) as db:
                    await _bring_up(db, time.time_ns() if at_ns is None else at_ns)
                return
            except DBAPIError as error:
                # A migration takes its tables in its own order, and those of a gateway that serves on in theirs.
                if getattr(error.orig, "sqlstate", None) != _DEADLOCK_DETECTED or not left:
                    raise
    finally:
        await engine.dispose()


async def _bring_up(db: AsyncConnection, at_ns: int) -> None:
    await take_turn(db, _TURN)
    if (heads := await db.run_sync(_heads)) != newest():
        # Loaded by a first start alone.
        from billing import fresh

        if not heads and await db.run_sync(fresh.takes):
            await db.run_sync(fresh.make)
            heads = await db.run_sync(_heads)
    if heads != newest():
        await db.run_sync(_upgrade)
    await seed_prices(db, await asyncio.to_thread(read_seed), at_ns=at_ns)


async def by_migrations(url: str) -> None:
    """One after the other, on a database that has nothing; without prices."""
    engine = create_engine(url)
    try:
        async with writing(engine) as db:
            await db.run_sync(_upgrade)
    finally:
        await engine.dispose()


async def is_current(url: str) -> bool:
    """Does the database have every migration that we have?"""
    engine = create_engine(url)
    try:
        async with reading(engine) as db:
            return await db.run_sync(_heads) == newest()
    finally:
        await engine.dispose()


def newest() -> set[str]:
    """The revisions that no other one follows, read off the files as Alembic would."""
    revisions: set[str] = set()
    followed: set[str] = set()
    for path in (migrations() / "versions").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        if (found := _REVISION.search(source)) is not None:
            revisions.add(found[1])
        if (found := _DOWN_REVISION.search(source)) is not None:
            followed.update(_QUOTED.findall(found[1]))
    return revisions - followed


def _heads(connection: Connection) -> set[str]:
    """What the database says it has."""
    if not inspect(connection).has_table("alembic_version"):
        return set()
    return set(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())


def _upgrade(connection: Connection) -> None:
    from alembic import command

    command.upgrade(configuration(connection), "heads")


_REVISION: Final = re.compile(r'^revision(?:: str)? = "([^"]+)"', re.MULTILINE)
_DOWN_REVISION: Final = re.compile(r"^down_revision(?::[^=]+)? = (.+?)$", re.MULTILINE)
_QUOTED: Final = re.compile(r'"([^"]+)"')
