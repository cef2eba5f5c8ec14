"""An unforeseen error as Sentry gets it: a real envelope over HTTP, with a traceback and nothing of anybody's."""

from __future__ import annotations

import asyncio
import gzip
import io
import json

import structlog

from gateway.config import LogSettings
from gateway.observe import crashes, logs
from tests.emulators.server import Emulator, Out, Request


class Sentry(Emulator):
    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[bytes] = []

    async def handle(self, request: Request, out: Out) -> None:
        assert request.path == "/api/1/envelope/"
        body = request.body
        self.envelopes.append(gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body)
        await out.json(200, {"id": "x"})


def fail(prompt: str) -> None:
    raise RuntimeError(f"no way on with sk-proj-abcdefghijkl1234 at {len(prompt)}")


async def test_an_error_leaves_with_its_traceback_and_nothing_of_anybodys() -> None:
    async with Sentry() as sentry:
        end = await asyncio.to_thread(crashes.report_to, f"{sentry.url.replace('://', '://key@')}/1")
        try:
            logs.configure(LogSettings(format="json"), io.StringIO())
            log = structlog.get_logger("test")
            log.error("no exception here", body="a secret prompt")
            log.warning("nor an error", exc_info=RuntimeError("left out"))
            try:
                fail("a secret prompt")
            except RuntimeError:
                log.exception("unforeseen error", request_id="req_1", body="a secret prompt")
            async with asyncio.timeout(60):
                while not sentry.envelopes:
                    await asyncio.sleep(0.02)
        finally:
            await asyncio.to_thread(end)
    (envelope,) = sentry.envelopes
    event = next(said for line in envelope.splitlines() if "exception" in (said := json.loads(line)))
    (told,) = event["exception"]["values"]
    assert told["type"] == "RuntimeError"
    assert told["value"] == "no way on with sk-proj-[hidden] at 15"
    assert told["stacktrace"]["frames"][-1]["function"] == "fail"
    assert event["tags"] == {"request_id": "req_1"}
    for text in (b"secret prompt", b"abcdefghijkl1234", b"left out", b"no exception here", b'"vars"', b"breadcrumbs"):
        assert text not in envelope
