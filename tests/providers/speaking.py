"""A server on a real socket that speaks with our own dialects, so that the owners' SDKs can judge what we write.

It decodes what the SDK sent, asks the scripted model, and encodes its answer: the whole of an ingress, and no gateway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from providers.dialects import gemini, openai_responses
from providers.dialects.base import ErrorBody
from providers.dialects.gemini import counting, embeddings
from providers.errors import BadRequest
from providers.neutral import (
    ChatRequest,
    Citation,
    EmbeddingResponse,
    Event,
    Finish,
    ImagePart,
    PartDelta,
    PartEnd,
    PartStart,
    ReasoningPart,
    RefusalPart,
    ResponseStart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
    collect,
)
from tests.emulators import scripted
from tests.emulators.openai import vector
from tests.emulators.scripted import Prompt, Tool
from tests.emulators.server import Emulator, Out, Request

_GEMINI = re.compile(
    r"/v1\w*/(?:projects/[^/]+/locations/[^/]+/publishers/google/)?models/(?P<model>[^:]+):(?P<verb>\w+)"
)
SIGNATURE = "c2lnbmF0dXJl"


def prompt_of(request: ChatRequest) -> Prompt:
    texts, results, last_user, images = [], [], "", 0
    for message in request.messages:
        said = " ".join(part.text for part in message.content if isinstance(part, TextPart))
        images += sum(isinstance(part, ImagePart) for part in message.content)
        texts.append(said)
        answers = [
            " ".join(inner.text for inner in part.content if isinstance(inner, TextPart))
            for part in message.content
            if isinstance(part, ToolResultPart)
        ]
        if message.role == "assistant":
            results = []
        elif answers:
            results += answers
        elif message.role == "user":
            last_user, results = said, []
    choice = request.tool_choice
    forced = {"named": choice.name, "required": "*"}.get(choice.mode) if choice is not None else None
    form = request.response_format
    return Prompt(
        model=request.model,
        last_user=last_user,
        texts=tuple(texts),
        tools=tuple(Tool(tool.name, tool.parameters or {}) for tool in request.tools),
        forced_tool=forced,
        tools_forbidden=choice is not None and choice.mode == "none",
        tool_results=tuple(results),
        images=images,
        schema=form.schema if form is not None else None,
        json_mode=form is not None and form.kind == "json_object",
        reasoning=request.reasoning is not None and request.reasoning.enabled is not False,
        max_output_tokens=request.max_output_tokens,
        stop=request.stop,
    )


def events_of(request: ChatRequest) -> Iterator[Event]:
    """The scripted answer as another provider's decoder would tell it: thinking sealed by Anthropic, signed calls."""
    prompt = prompt_of(request)
    reply = scripted.answer(prompt)
    script = scripted.script_of(prompt)
    yield ResponseStart("msg_01ABC", "upstream-model", 1_700_000_000)
    index = 0
    if reply.reasoning:
        thought = ReasoningPart(dialect="anthropic_messages")
        yield PartStart(index, thought)
        yield from (PartDelta(index, piece) for piece in scripted.pieces(reply.reasoning))
        yield PartDelta(index, signature="sealed-by-claude")
        yield PartEnd(index)
        index += 1
    for text, empty in ((reply.text, TextPart("")), (reply.refusal, RefusalPart(""))):
        if text:
            yield PartStart(index, empty)
            yield from (PartDelta(index, piece) for piece in scripted.pieces(text))
            cited = TextPart(text, citations=(Citation("https://example.org/", "Example", "q", 0, 3),))
            yield PartEnd(index, cited if "cite" in script and empty == TextPart("") else None)
            index += 1
    calls = [(index + n, call) for n, call in enumerate(reply.tool_calls)]
    for at, call in calls:
        yield PartStart(at, ToolCallPart(call.id, call.name, "", signature=SIGNATURE))
    for at, call in calls:  # interleaved, as some engines send them
        yield from (PartDelta(at, piece) for piece in scripted.pieces(call.arguments))
    for at, _ in calls:
        yield PartEnd(at)
    usage = Usage(
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cache_read_tokens=reply.cache_read_tokens,
        reasoning_tokens=reply.reasoning_tokens,
    )
    yield Finish(reply.finish, usage)


class Speaker(Emulator):
    """`decoded` keeps every request as the dialect read it."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[ChatRequest] = []

    async def handle(self, request: Request, out: Out) -> None:
        try:
            if request.path.endswith("/responses"):
                await self._answer(openai_responses.DIALECT, openai_responses.DIALECT.decode_request(request.body), out)
            elif (found := _GEMINI.fullmatch(request.path)) is not None:
                await self._gemini(request, found["model"], found["verb"], out)
            else:
                await out.json(404, {"error": {"message": request.path}})
        except BadRequest as error:
            body = ErrorBody(400, "invalid_request", "invalid_request", error.message, error.param, "req-1")
            dialect: Any = openai_responses.DIALECT if request.path.endswith("/responses") else gemini.DIALECT
            await out.whole(400, dialect.encode_error(body))

    async def _gemini(self, request: Request, model: str, verb: str, out: Out) -> None:
        match verb:
            case "countTokens":
                counted = counting.decode_count_request(request.body, model=model)
                self.decoded.append(counted)
                tokens = scripted.answer(prompt_of(counted)).input_tokens
                await out.whole(200, counting.encode_count_response(tokens))
            case "embedContent" | "batchEmbedContents":
                batch = verb.startswith("batch")
                asked = embeddings.decode_embed_request(request.body, model=model, batch=batch)
                vectors = tuple(tuple(vector(text, asked.dimensions or 8)) for text in asked.input)
                response = EmbeddingResponse(model, vectors, Usage(input_tokens=len(vectors)))
                await out.whole(200, embeddings.encode_embed_response(response, batch=batch))
            case _:
                stream = verb == "streamGenerateContent"
                decoded = gemini.DIALECT.decode_request(request.body, model=model, stream=stream)
                await self._answer(gemini.DIALECT, decoded, out)

    async def _answer(self, dialect: Any, request: ChatRequest, out: Out) -> None:
        self.decoded.append(request)
        script = scripted.script_of(prompt_of(request))
        events = list(events_of(request))
        if not request.stream:
            await out.whole(200, dialect.encode_response(collect(events), request))
            return
        encoder = dialect.event_encoder(request)
        await out.start(200, dialect.stream_media_type)
        for number, event in enumerate(events):
            if "die" in script and number == len(events) // 2:
                error = ErrorBody(503, "upstream_failed", "overloaded", "the upstream died", None, "req-1")
                await out.chunk(encoder.fail(error))
                await out.end()
                return
            await out.chunk(encoder.encode([event]))
        await out.chunk(encoder.close())
        await out.end()


def with_script(text: str, script: str) -> str:
    return f"{text}\nx-script: {script}"


__all__ = ["SIGNATURE", "Speaker", "events_of", "prompt_of", "with_script"]
