"""The front office on a real socket, with traffic behind it and somebody signed in: how every browser test begins."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from playwright.async_api import Page, expect

from gateway.admin.auth.roles import Role
from tests.e2e.dashboard.browser import Watched
from tests.gateway.admin.world import NOW_NS, World, traffic, world

REQUESTS = 900


@asynccontextmanager
async def serving(made: World) -> AsyncIterator[str]:
    """The front office on a real socket. Yields its address."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(made.app(), log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def office(template: Path, folder: Path, requests: int = REQUESTS) -> AsyncIterator[tuple[World, str]]:
    copy = shutil.copy(template, folder / "farebox.db")
    async with world(f"sqlite+aiosqlite:///{copy}", folder) as made:
        if requests:
            await traffic(made, folder / "journal", requests)
        async with serving(made) as base:
            yield made, base


async def sign_in(made: World, base: str, visit: Page, role: Role = Role.OWNER) -> None:
    """In the world's own time, so that its traffic is of today."""
    await visit.clock.set_fixed_time(datetime.datetime.fromtimestamp(NOW_NS // 10**9, datetime.UTC))
    await visit.goto(f"{base}/ui/sign-in#token={await made.link(role)}")
    await visit.get_by_role("button", name="Not now").click()
    await expect(visit.get_by_role("heading", name="Overview")).to_be_visible()


async def picture(watched: Watched, name: str) -> None:
    if folder := os.environ.get("FAREBOX_SCREENSHOTS"):
        await watched.page.screenshot(path=Path(folder) / f"{name}.png")


def file_name(path: str, scheme: str) -> str:
    return f"{path.replace('?', '-').replace('&', '-').replace('=', '-').replace('/', '_')}-{scheme}"
