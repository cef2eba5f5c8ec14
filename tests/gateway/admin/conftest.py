"""A front office with a week of traffic, and somebody signed in."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.admin.auth.roles import Role
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World, world


@pytest.fixture
async def made(fresh_database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """On SQLite and on PostgreSQL."""
    async with world(fresh_database_url, tmp_path) as built:
        yield built


@pytest.fixture
async def small(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[World]:
    """On SQLite alone: for what does not hang on the database."""
    copy = shutil.copy(sqlite_template, tmp_path / "farebox.db")
    async with world(f"sqlite+aiosqlite:///{copy}", tmp_path) as built:
        yield built


@pytest.fixture
async def browser(made: World) -> AsyncIterator[Browser]:
    """An owner's."""
    async with Browser(made.app()) as opened:
        await opened.sign_in(await made.link(Role.OWNER))
        yield opened


@pytest.fixture
async def opened() -> AsyncIterator[Callable[[World], Browser]]:
    """Makes browsers that nobody is signed in with."""
    made: list[Browser] = []

    def open_one(where: World) -> Browser:
        made.append(Browser(where.app()))
        return made[-1]

    yield open_one
    for each in made:
        await each.aclose()
