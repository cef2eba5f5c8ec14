"""Debian's Chromium under Playwright: pages that watch themselves for console errors and for requests to strangers."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, Page, async_playwright, expect

from gateway.admin.static import DIST

Scheme = Literal["light", "dark"]

# Long, for a machine that other tests keep busy; what is awaited comes within a second on an idle one.
TIMEOUT_MS = 20_000

# Nothing that a test did not ask for may go out.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--disable-gpu",
)
# Chromium's word for a network interface that came or went, which is another test's (namespaces), not the page's fault:
# what was not loaded for it is asked for again.
MACHINE = "net::ERR_NETWORK_CHANGED"
# Rules of axe that are WCAG 2.2 level A and AA.
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@dataclass
class Watched:
    """A page and what it did that it should not. expected: parts of addresses whose failures belong to the test."""

    page: Page
    expected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    script_bytes: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        expected = [*self.expected, MACHINE]
        errors = [error for error in self.errors if not any(part in error for part in expected)]
        assert not errors
        assert not self.strangers

    async def violations(self) -> list[str]:
        """What axe finds wrong, one line each. Run in the page's own world, past its content security policy."""
        await self.page.evaluate(AXE_SCRIPT)
        found = await self.page.evaluate("tags => axe.run(document, {runOnly: {type: 'tag', values: tags}})", WCAG)
        return [
            f"{rule['id']}: {node['html'][:160]} ({node.get('failureSummary', '')[:200]})"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]


def executable() -> str:
    """Chromium, or the test is skipped with the reason; where FAREBOX_REQUIRE_BROWSER=1 (CI) it fails instead."""
    missing = []
    path = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        missing.append("no Chromium: apt-get install chromium, or set CHROMIUM_PATH")
    if not (DIST / "index.html").is_file():
        missing.append("the dashboard is not built: pip install -e . with npm in reach")
    if missing:
        if os.environ.get("FAREBOX_REQUIRE_BROWSER") == "1":
            pytest.fail("; ".join(missing))
        pytest.skip("; ".join(missing))
    assert path is not None
    return path


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    path = executable()
    async with async_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=path, args=[*QUIET, *root])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def page(
    browser: Browser, scheme: Scheme = "light", *, width: int = 1360, height: int = 900
) -> AsyncIterator[Watched]:
    """A page with a profile of its own."""
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    opened = Watched(await context.new_page())

    def on_request(address: str) -> None:
        if urlsplit(address).scheme in ("http", "https") and urlsplit(address).hostname != "127.0.0.1":
            opened.strangers.append(address)

    opened.page.on("request", lambda request: on_request(request.url))
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on(
        "console",
        lambda message: (
            opened.errors.append(f"{message.text} {message.location.get('url', '')}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    opened.page.on(
        "response",
        lambda response: (
            opened.script_bytes.update({response.url: int(response.headers.get("content-length", 0))})
            if response.url.endswith(".js")
            else None
        ),
    )
    try:
        yield opened
    except BaseException as error:
        error.add_note("\n".join(("on the page:", *opened.errors)))
        if folder := os.environ.get("FAREBOX_SCREENSHOTS"):
            await opened.page.screenshot(path=Path(folder) / f"failed-{scheme}.png", full_page=True)
        raise
    finally:
        await context.close()
