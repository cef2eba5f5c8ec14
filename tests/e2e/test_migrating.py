"""A forward migration while requests run: the gateway of the older version serves on, before, during and after it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from billing import migrate
from tests.e2e.harness import house, model, provider, settings_for, until
from tests.e2e.test_upgrade import Traffic
from tests.emulators.openai import OpenAIEmulator
from tests.services import Databases

LOCK = 4_711
# What a version to come may do: change the table that requests are shipped to, make another, and take its time.
NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision = "to_come"
down_revision = "{{before}}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_records", sa.Column("to_come", sa.Text()))
    op.create_index("ix_to_come", "usage_records", ["to_come"])
    op.create_table("to_come", sa.Column("id", sa.Text(), primary_key=True))
    op.execute("SELECT pg_advisory_xact_lock({LOCK})")
    op.add_column("virtual_keys", sa.Column("to_come", sa.Text()))
"""


@pytest.mark.timeout(180)
async def test_requests_run_on_while_the_database_is_migrated(
    databases: Databases,
    tmp_path: Path,
    redis_url: str,
    upstream: OpenAIEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (before,) = migrate.newest()
    newer = shutil.copytree(migrate.migrations(), tmp_path / "migrations")
    (newer / "versions" / "2099-01-01_to_come.py").write_text(NEXT.replace("{before}", before))
    with databases.clone() as url:
        up = {"up": provider("openai", f"{upstream.url}/v1")}
        settings = settings_for(tmp_path / "data", url, redis_url, up, (model("echo", "up/echo-1"),))
        monkeypatch.setattr(migrate, "migrations", lambda: newer)
        assert migrate.newest() == {"to_come"}
        held = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
        try:
            async with house(settings) as gateway:
                traffic = Traffic(f"{gateway.v1}/chat/completions", gateway.key)
                await traffic.start(streams=4, words=100)
                await held.execute("SELECT pg_advisory_lock($1)", LOCK)
                migrating = asyncio.create_task(migrate.upgrade(url))
                async with asyncio.timeout(60):
                    while not await held.fetchval(
                        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted", LOCK
                    ):
                        assert not migrating.done(), migrating
                        await asyncio.sleep(0.01)
                # The table of requests is locked now, for as long as the migration takes.
                so_far = traffic.short.total()
                await until(lambda: traffic.short.total() >= so_far + 10)
                assert not any(stream.done() and not stream.result() for stream in traffic.streams)
                await held.execute("SELECT pg_advisory_unlock($1)", LOCK)
                async with asyncio.timeout(60):
                    await migrating
                assert await migrate.is_current(url)
                afterwards = traffic.short.total()
                await until(lambda: traffic.short.total() >= afterwards + 5)
                assert all(await traffic.finish())
                assert set(traffic.short) == {"200"}, traffic.short
                rows = await gateway.rows(at_least=traffic.short.total() + 4)
                assert len(rows) == traffic.short.total() + 4
                assert await gateway.charged_pusd() == sum(row["charge_pusd"] for row in rows) > 0
        finally:
            await held.close()
