"""The HTTP face of a model that generates: its endpoints and streams.

What the bytes mean in OpenAI's dialect is known in `openai_request` and `openai_response`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from local_backend import openai_response
from local_backend.client import CoreClient
from local_backend.config import Settings
from local_backend.errors import EngineError, InvalidRequest, NotReady, Unsupported
from local_backend.generate import Delta, Generation, Totals, check_length, generate
from local_backend.http_face import Exchange, Face, Route
from local_backend.model_text import ModelText
from local_backend.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, decode_body
from local_backend.openai_request import chat_generation, chat_prompt, completion_generation
from local_backend.openai_response import ChatEncoder, CompletionEncoder
from local_backend.tools import read_tools

log = logging.getLogger("local_backend")

Encoder = ChatEncoder | CompletionEncoder

LONG_BODY = 32_768  # bytes from which tokenising leaves the event loop: about 15 ms of it


CAPABILITIES: dict[str, Any] = {
    "operations": ["chat", "completions"],
    "tools": True,
    "response_format": ["json_object", "json_schema"],
    "structured_outputs": ["json", "regex", "choice", "grammar"],
    "logprobs": True,
    "images": False,
}


class Server(Face):
    """A model that generates."""

    def __init__(self, settings: Settings, served_name: str, model_dir: Path, core: CoreClient) -> None:
        self.text = ModelText.read(model_dir)
        self.tokenizer = self.text.tokenizer
        routes: dict[str, Route] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completion,
            "/v1/embeddings": self.refuse_embeddings,
            "/v1/rerank": self.refuse_embeddings,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
        }
        super().__init__(settings, served_name, core, self.text.config.max_position, CAPABILITIES, routes)

    async def refuse_embeddings(self, exchange: Exchange) -> None:
        """Vectors are the business of encoders."""
        raise Unsupported(f"{self.served_name!r} generates text; start an engine with an encoder for {exchange.path}")

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
        await self._answer(
            exchange,
            generation,
            encoder,
            self.names[body.model],
            stream=bool(body.stream),
            include_usage=body.include_usage,
        )

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
        await self._answer(
            exchange,
            generation,
            encoder,
            self.names[body.model],
            stream=bool(body.stream),
            include_usage=body.include_usage,
        )

    async def _answer(
        self,
        exchange: Exchange,
        generation: Generation,
        encoder: Encoder,
        adapter: str,
        *,
        stream: bool,
        include_usage: bool,
    ) -> None:
        if self.draining:
            raise NotReady("the engine is shutting down")
        generation = self._for_tenant(exchange, generation, adapter)
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

    def _for_tenant(self, exchange: Exchange, generation: Generation, adapter: str) -> Generation:
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
        terms = structs.replace(
            generation.terms, tenant=tenant or generation.cache_salt, timeout_s=timeout_s, adapter=adapter
        )
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


async def _off_loop(is_slow: bool, work: Callable[..., Generation], *args: Any) -> Generation:
    """What tokenises a long body or compiles a grammar runs in a thread (both let go of the interpreter)."""
    return await asyncio.to_thread(work, *args) if is_slow else work(*args)


def _events(encoder: Encoder, delta: Delta) -> bytes:
    """A piece of an answer as server-sent events; nothing if it says nothing yet."""
    return b"".join(map(openai_response.sse, encoder.chunks(delta)))
