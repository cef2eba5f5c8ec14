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
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs

from local_backend.client import CoreClient
from local_backend.config import Settings
from local_backend.errors import EngineError, InvalidRequest, NotReady, Unsupported
from local_backend.generate import Delta, Generation, Totals, check_length, generate
from local_backend.http_face import Exchange, Face, Route
from local_backend.images import Room, bytes_of, images_of
from local_backend.model_text import ModelText
from local_backend.openai_bodies import ChatBody, Common, CompletionBody, DetokenizeBody, TokenizeBody, decode_body
from local_backend.openai_request import chat_generation, chat_prompt, completion_generation
from local_backend.openai_response import ChatEncoder, CompletionEncoder, Encoder
from local_backend.responses_answer import ResponsesEncoder
from local_backend.responses_request import ResponsesBody, responses_generation
from local_backend.tools import read_tools

log = logging.getLogger("local_backend")

Asked = TypeVar("Asked", bound=Common)

DECODERS = 2  # images decoded at once: each may take 350 MB for a moment
LONG_BODY = 32_768  # bytes from which tokenising leaves the event loop: about 15 ms of it


CAPABILITIES: dict[str, Any] = {
    "operations": ["chat", "completions", "responses"],
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
            "/v1/responses": self.response,
            "/v1/embeddings": self.refuse_embeddings,
            "/v1/rerank": self.refuse_embeddings,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
        }
        capabilities = CAPABILITIES | {"images": self.text.config.vision is not None}
        self.room = Room(settings.image_bytes)
        self._decoders = asyncio.Semaphore(DECODERS)
        super().__init__(settings, served_name, core, self.text.config.max_position, capabilities, routes)

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
            prompt, _ = chat_prompt(body.messages, read_tools(body.tools), self.text)
            ids = self.tokenizer.encode(prompt, special=False)
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
        body, generation = await self._asked(exchange, ChatBody, chat_generation)
        encoder = ChatEncoder(exchange.id, body.model, int(time.time()), self.tokenizer)
        await self._answer(exchange, body, generation, encoder)

    async def completion(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        body, generation = await self._asked(exchange, CompletionBody, completion_generation)

        def echo(answer: int) -> str:
            return self.tokenizer.decode(generation.prompts[answer // generation.n]) if body.echo else ""

        encoder = CompletionEncoder(exchange.id, body.model, int(time.time()), self.tokenizer, echo)
        await self._answer(exchange, body, generation, encoder)

    async def response(self, exchange: Exchange) -> None:
        """POST /v1/responses."""
        body, generation = await self._asked(exchange, ResponsesBody, responses_generation)
        encoder = ResponsesEncoder(exchange.id, body, int(time.time()), self.tokenizer)
        await self._answer(exchange, body, generation, encoder)

    async def _asked(
        self, exchange: Exchange, kind: type[Asked], read: Callable[[Asked, ModelText], Generation]
    ) -> tuple[Asked, Generation]:
        """The body, and what it asks to generate. What tokenises much or compiles a grammar runs in a thread."""
        raw = await exchange.body()
        body, ignored = decode_body(raw, kind)
        self._check_model(body.model)
        exchange.ignored = ignored
        if len(raw) > LONG_BODY or body.is_slow:
            return body, await asyncio.to_thread(read, body, self.text)
        return body, read(body, self.text)

    async def _answer(self, exchange: Exchange, body: Common, generation: Generation, encoder: Encoder) -> None:
        if self.draining:
            raise NotReady("the engine is shutting down")
        generation = self._for_tenant(exchange, generation, self.names[body.model])
        # A prompt too long is refused even while the core loads: waiting will not shorten it.
        for prompt in generation.prompts:
            check_length(prompt, self._max_model_len(), generation.prompt_param)
        with ExitStack() as held:
            if generation.pictures:
                generation = await self._shown(generation, held)
            await self._generate(exchange, body, generation, encoder)

    async def _shown(self, generation: Generation, held: ExitStack) -> Generation:
        """With its images as the core takes them; `held` is their memory. Raises InvalidRequest or QueueFull."""
        config = self.text.config
        assert config.vision is not None
        held.enter_context(self.room.take(bytes_of(generation.pictures, config.vision, config.hidden_size)))
        async with self._decoders:
            images = await asyncio.to_thread(images_of, generation.pictures, generation.prompts[0], config.vision)
        return structs.replace(generation, pictures=[], images=images)

    async def _generate(self, exchange: Exchange, body: Common, generation: Generation, encoder: Encoder) -> None:
        totals = Totals()
        answers = len(generation.prompts) * generation.n
        deltas = generate(generation, self.core, self.tokenizer, self.metrics, totals)
        async with contextlib.aclosing(exchange.until_gone(deltas)) as watched:
            if body.stream:
                await self._stream(exchange, watched, encoder, answers, totals, include_usage=body.include_usage)
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
            await exchange.write(encoder.opening(answers) + encoder.piece(first))
            async for delta in deltas:
                if events := encoder.piece(delta):
                    await exchange.write(events)
            await exchange.write(encoder.closing(totals, include_usage=include_usage), last=True)
        except EngineError as error:
            await exchange.write(encoder.failing(error), last=True)
