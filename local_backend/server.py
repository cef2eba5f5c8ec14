"""The HTTP face: a plain ASGI callable. Routes, bodies, streams, and what a gone client means.

What the bytes mean in OpenAI's dialect is known in `openai_request` and `openai_response`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from local_backend import openai_response
from local_backend.client import CoreClient
from local_backend.config import Settings
from local_backend.errors import (
    BodyTooLarge,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    QueueFull,
    RouteNotFound,
    Unauthorized,
)
from local_backend.generate import Delta, Generation, Totals, check_length, generate
from local_backend.metrics import Metrics
from local_backend.model_text import ModelText
from local_backend.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, decode_body
from local_backend.openai_request import chat_generation, chat_prompt, completion_generation
from local_backend.openai_response import ChatEncoder, CompletionEncoder
from local_backend.tools import read_tools

log = logging.getLogger("local_backend")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Encoder = ChatEncoder | CompletionEncoder

JSON = (b"content-type", b"application/json")
LONG_BODY = 32_768  # bytes from which tokenising leaves the event loop: about 15 ms of it


class Gone(Exception):
    """The client closed its connection; nobody is left to answer."""


class Server:
    """Everything that a request needs; built once."""

    def __init__(self, settings: Settings, served_name: str, model_dir: Path, core: CoreClient) -> None:
        self.settings = settings
        self.served_name = served_name
        self.core = core
        self.text = ModelText.read(model_dir)
        self.tokenizer = self.text.tokenizer
        self.metrics = Metrics(served_name, lambda: (core.stats, core.restarts))
        self.started = int(time.time())
        self.draining = False
        self._routes: dict[tuple[str, str], Callable[[Exchange], Awaitable[None]]] = {
            ("GET", "/health"): self.ready,
            ("GET", "/health/live"): self.live,
            ("GET", "/health/ready"): self.ready,
            ("GET", "/metrics"): self.show_metrics,
            ("GET", "/v1/models"): self.models,
            ("POST", "/v1/chat/completions"): self.chat,
            ("POST", "/v1/completions"): self.completion,
            ("POST", "/tokenize"): self.tokenize,
            ("POST", "/detokenize"): self.detokenize,
        }
        self._paths = {path for _, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Every accepted request gets an answer or an error, whatever happens behind it."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self.settings.max_body_bytes)
        try:
            await self._dispatch(exchange)
        except Gone:
            return
        except EngineError as error:
            await exchange.fail(error)
        except Exception:
            log.exception("request %s failed", exchange.id)
            await exchange.fail(EngineError("the engine failed on this request; its log says why"))

    async def _dispatch(self, exchange: Exchange) -> None:
        method, path = exchange.method, exchange.path
        route = self._routes.get((method, path))
        if route is None and method == "GET" and path.startswith("/v1/models/"):
            route = self.model
        if route is None:
            if path in self._paths:
                raise RouteNotFound(f"{method} is not known at {path}", code="method_not_allowed")
            raise RouteNotFound(f"nothing is served at {path}")
        if self.settings.key is not None and (path.startswith("/v1/") or method == "POST"):
            shown = exchange.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(shown, self.settings.key.encode()):
                raise Unauthorized("this engine asks for its key as a bearer token")
        await route(exchange)

    async def live(self, exchange: Exchange) -> None:
        """The process runs."""
        await exchange.reply({"status": "live"})

    async def ready(self, exchange: Exchange) -> None:
        """The model is loaded and requests are taken."""
        if self.core.ready is None or self.draining:
            raise NotReady("draining" if self.draining else "the core is not ready")
        await exchange.reply({"status": "ready"})

    async def show_metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        await exchange.raw(200, self.metrics.text(), [(b"content-type", kind)])

    async def models(self, exchange: Exchange) -> None:
        """The one model."""
        await exchange.reply({"object": "list", "data": [self._card()]})

    async def model(self, exchange: Exchange) -> None:
        """One model by name."""
        self._check_model(exchange.path.removeprefix("/v1/models/"))
        await exchange.reply(self._card())

    async def tokenize(self, exchange: Exchange) -> None:
        """Token ids of a prompt or of a conversation as its template writes it."""
        body, _ = decode_body(await exchange.body(), TokenizeBody)
        if body.model is not None:
            self._check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("give either a prompt or messages", param="prompt")
        if body.messages is not None:
            ids = self.tokenizer.encode(chat_prompt(body.messages, read_tools(body.tools), self.text), special=False)
        else:
            ids = self.tokenizer.encode(body.prompt or "", special=body.add_special_tokens)
        await exchange.reply({"count": len(ids), "max_model_len": self._max_model_len(), "tokens": ids})

    async def detokenize(self, exchange: Exchange) -> None:
        """Text of token ids."""
        body, _ = decode_body(await exchange.body(), DetokenizeBody)
        if body.model is not None:
            self._check_model(body.model)
        if wrong := [id_ for id_ in body.tokens if not 0 <= id_ < self.text.config.vocab_size]:
            raise InvalidRequest(f"{wrong[0]} is no token id of this model", param="tokens")
        await exchange.reply({"prompt": self.tokenizer.decode(body.tokens)})

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        raw = await exchange.body()
        body, ignored = decode_body(raw, ChatBody)
        self._check_model(body.model)
        exchange.ignored = ignored
        generation = await _off_loop(len(raw) > LONG_BODY or body.is_slow, chat_generation, body, self.text)
        encoder = ChatEncoder(exchange.id, body.model, int(time.time()), self.tokenizer)
        await self._answer(exchange, generation, encoder, stream=bool(body.stream), include_usage=body.include_usage)

    async def completion(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        raw = await exchange.body()
        body, ignored = decode_body(raw, CompletionBody)
        self._check_model(body.model)
        exchange.ignored = ignored
        generation = await _off_loop(len(raw) > LONG_BODY or body.is_slow, completion_generation, body, self.text)

        def echo(answer: int) -> str:
            return self.tokenizer.decode(generation.prompts[answer // generation.n]) if body.echo else ""

        encoder = CompletionEncoder(exchange.id, body.model, int(time.time()), self.tokenizer, echo)
        await self._answer(exchange, generation, encoder, stream=bool(body.stream), include_usage=body.include_usage)

    async def _answer(
        self, exchange: Exchange, generation: Generation, encoder: Encoder, *, stream: bool, include_usage: bool
    ) -> None:
        if self.draining:
            raise NotReady("the engine is shutting down")
        generation = self._for_tenant(exchange, generation)
        # A prompt too long is refused even while the core loads: waiting will not shorten it.
        for prompt in generation.prompts:
            check_length(prompt, self._max_model_len(), generation.prompt_param)
        totals = Totals()
        answers = len(generation.prompts) * generation.n
        deltas = generate(generation, self.core, self.tokenizer, self.metrics, totals)
        async with contextlib.aclosing(exchange.until_gone(deltas)) as watched:
            if stream:
                await self._stream(exchange, watched, encoder, answers, totals, include_usage=include_usage)
                return
            collected: list[list[Delta]] = [[] for _ in range(answers)]
            async for delta in watched:
                collected[delta.index].append(delta)
        await exchange.reply(encoder.whole(collected, totals))

    def _for_tenant(self, exchange: Exchange, generation: Generation) -> Generation:
        """Whose request it is: what the gateway says, else the client's salt. Raises InvalidRequest."""
        tenant = exchange.headers.get(b"x-farebox-tenant", b"").decode("latin-1")[:256]
        given = exchange.headers.get(b"x-farebox-timeout-s")
        timeout_s = self.settings.request_timeout_s
        if given is not None:
            try:
                timeout_s = float(given)
            except ValueError:
                timeout_s = math.nan
            if not 0 < timeout_s < math.inf:
                raise InvalidRequest("x-farebox-timeout-s is a number of seconds above 0", param="x-farebox-timeout-s")
        terms = structs.replace(generation.terms, tenant=tenant or generation.cache_salt, timeout_s=timeout_s)
        # A client's own salt divides its tenant's cache further; it never reaches into another's.
        salt = f"{tenant}\0{generation.cache_salt}" if tenant else generation.cache_salt
        return structs.replace(generation, terms=terms, cache_salt=salt)

    async def _stream(
        self,
        exchange: Exchange,
        deltas: AsyncIterator[Delta],
        encoder: Encoder,
        answers: int,
        totals: Totals,
        *,
        include_usage: bool,
    ) -> None:
        """Headers wait for the first token, so that whatever fails before it still has its own status."""
        first = await anext(deltas)
        await exchange.start_stream()
        try:
            opening = b"".join(map(openai_response.sse, encoder.start(answers)))
            await exchange.write(opening + _events(encoder, first))
            async for delta in deltas:
                if events := _events(encoder, delta):
                    await exchange.write(events)
            tail = openai_response.sse(encoder.usage_chunk(totals)) if include_usage else b""
            await exchange.write(tail + openai_response.DONE, last=True)
        except EngineError as error:
            # The status has gone out as 200: the error is an event, and no [DONE] follows it.
            await exchange.write(b"data: " + openai_response.error_body(error) + b"\n\n", last=True)

    def _check_model(self, name: str) -> None:
        if name != self.served_name:
            raise ModelNotFound(f"no model {name!r} here; this engine serves {self.served_name!r}", param="model")

    def _max_model_len(self) -> int:
        """The core may have shortened it to what its cache holds; before it is ready the model's own bound stands."""
        return self.core.ready.max_model_len if self.core.ready else self.text.config.max_position

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.served_name,
            "object": "model",
            "created": self.started,
            "owned_by": "farebox",
            "max_model_len": self._max_model_len(),
        }


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if 0 < len(given) <= 128 and given.isalnum() else secrets.token_hex(16)
        self.ignored: list[str] = []
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._started = False

    async def body(self) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as the bound is passed, Gone if the client leaves."""
        pieces: list[bytes] = []
        size = 0
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise BodyTooLarge(f"the body has {int(declared)} bytes, at most {self._max_body_bytes} are taken")
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._max_body_bytes:
                raise BodyTooLarge(f"the body has over {self._max_body_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def until_gone(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """The deltas; when the client leaves, the source is closed and Gone is raised."""
        gone = asyncio.ensure_future(self._disconnected())
        try:
            while True:
                coming = asyncio.ensure_future(anext(deltas))
                await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    coming.cancel()
                    await asyncio.wait({coming})
                    raise Gone
                try:
                    delta = coming.result()
                except StopAsyncIteration:
                    return
                yield delta
        finally:
            gone.cancel()
            await deltas.aclose()

    async def reply(self, value: Any, status: int = 200) -> None:
        """A JSON answer."""
        await self.raw(status, openai_response.encode(value), [JSON])

    async def fail(self, error: EngineError) -> None:
        """An error answer, unless an answer has begun."""
        if self._started:
            return
        headers = [JSON]
        if isinstance(error, QueueFull | NotReady):
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        await self.raw(error.status, openai_response.error_body(error), headers)

    async def raw(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """A whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self.write(body, last=True)

    async def start_stream(self) -> None:
        """Headers of an event stream."""
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        await self._start(200, [kind, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])

    async def write(self, body: bytes, *, last: bool = False) -> None:
        """A piece of the body. Waits while the client's buffers are full."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        headers = [*headers, (b"x-request-id", self.id.encode())]
        if self.ignored:
            # Never in silence: whoever sends a field we do not know can see that it did nothing.
            names = ",".join(name[:64] for name in self.ignored[:32])
            headers.append(
                (b"x-farebox-ignored", names.encode("ascii", "replace").replace(b"\n", b" ").replace(b"\r", b" "))
            )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _off_loop(is_slow: bool, work: Callable[..., Generation], *args: Any) -> Generation:
    """What tokenises a long body or compiles a grammar runs in a thread (both let go of the interpreter)."""
    return await asyncio.to_thread(work, *args) if is_slow else work(*args)


def _events(encoder: Encoder, delta: Delta) -> bytes:
    """A piece of an answer as server-sent events; nothing if it says nothing yet."""
    return b"".join(map(openai_response.sse, encoder.chunks(delta)))
