"""A closed-loop load on a gateway, for operators: so many connections, each asks again when its answer is whole."""

from __future__ import annotations

import asyncio
import time

import msgspec
from msgspec import Struct, field

from providers.errors import ProviderError, Unreachable
from providers.transport.base import HttpRequest, Timeouts
from providers.transport.http1 import Http1Transport


class Outcome(Struct):
    """Latencies in ms, of good answers only. first_token_ms is empty when nothing was streamed. unreached: errors that
    were no connection at all."""

    seconds: float = 0.0
    answers: int = 0
    errors: int = 0
    unreached: int = 0
    chunks: int = 0
    latency_ms: list[float] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    last_error: str = ""

    def as_dict(self) -> dict[str, float | int | str]:
        found: dict[str, float | int | str] = {
            "answers": self.answers,
            "errors": self.errors,
            "answers_per_s": round(self.answers / self.seconds, 1) if self.seconds else 0.0,
        }
        for name, values in (("latency_ms", self.latency_ms), ("first_token_ms", self.first_token_ms)):
            if values:
                values.sort()
                found |= {
                    f"{name}_p{p}": round(values[min(len(values) - 1, len(values) * p // 100)], 2) for p in (50, 95, 99)
                }
        if self.chunks:
            found["chunks_per_s"] = round(self.chunks / self.seconds, 1)
        if self.last_error:
            found["last_error"] = self.last_error
        return found


async def measure(
    url: str, key: str, model: str, concurrency: int, seconds: float, stream: bool, max_tokens: int, *, quiet: bool
) -> Outcome:
    """Returns when the time is over and the answers under way are whole."""
    body = {
        "model": model,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Say hello."}],
    } | ({"stream": True} if stream else {})
    headers = (("authorization", f"Bearer {key}"), ("content-type", "application/json"))
    request = HttpRequest("POST", f"{url}/v1/chat/completions", headers, msgspec.json.encode(body))
    outcome, transport, began = Outcome(), Http1Transport(max_connections=concurrency), time.monotonic()
    try:
        workers = [_ask(transport, request, stream, began + seconds, outcome) for _ in range(concurrency)]
        if quiet:
            await asyncio.gather(*workers)
        else:
            await _with_progress(asyncio.gather(*workers), seconds, outcome)
    finally:
        await transport.aclose()
    outcome.seconds = time.monotonic() - began
    return outcome


async def _ask(transport: Http1Transport, request: HttpRequest, stream: bool, until: float, outcome: Outcome) -> None:
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            problem = await (_streamed if stream else _whole)(transport, request, began, outcome)
        except Unreachable as error:
            problem = error.message
            outcome.unreached += 1
        except ProviderError as error:
            problem = error.message
        if problem:
            outcome.errors += 1
            outcome.last_error = problem
            if outcome.unreached and not outcome.answers:
                return  # Nobody is there: to go on would measure how fast they are not.
        else:
            outcome.answers += 1
            outcome.latency_ms.append((time.monotonic() - began) * 1000)


async def _whole(transport: Http1Transport, request: HttpRequest, began: float, outcome: Outcome) -> str:
    """Returns: what is wrong with the answer, or nothing. Raises: ProviderError."""
    response = await transport.send(request, Timeouts())
    body = await response.read(1 << 24)
    await response.aclose()
    if response.status == 200 and b'"total_tokens"' in body:
        return ""
    return f"{response.status}: {body[:200].decode('utf-8', 'replace')}"


async def _streamed(transport: Http1Transport, request: HttpRequest, began: float, outcome: Outcome) -> str:
    response = await transport.send(request, Timeouts())
    first, last = b"", b""
    async for piece in response.chunks():
        if not first:
            first = piece
            outcome.first_token_ms.append((time.monotonic() - began) * 1000)
        outcome.chunks += piece.count(b"data: ")
        last = (last + piece)[-64:]
    await response.aclose()
    if response.status == 200 and b"data: [DONE]" in last:
        return ""
    return f"{response.status}: {first[:200].decode('utf-8', 'replace')}"


async def _with_progress(work: asyncio.Future[list[None]], seconds: float, outcome: Outcome) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.fields[answers]:,} answers, {task.fields[errors]} errors"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("load", total=seconds, answers=0, errors=0)
        while not work.done():
            await asyncio.wait({work}, timeout=0.2)
            progress.update(task, advance=0.2, answers=outcome.answers, errors=outcome.errors)
    await work
