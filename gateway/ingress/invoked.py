"""Bedrock's InvokeModel: one path for every family of models, whose own bodies it carries. The body tells which it is;
the answer goes back in that family's words, with what AWS adds: counts in headers, and in a stream's last chunk.

Source: Bedrock user guide ("Inference request parameters", "InvokeModel"), botocore 1.44 `bedrock-runtime`, recorded
streams, anthropic-python 2.12 `lib/bedrock`, langchain-aws 1.9, read 2026-11.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.exchange import Headers, Inbound
from gateway.ingress.endpoints import Operation
from providers.errors import BadRequest
from providers.wire import eventstream, jsonio
from providers.wire.eventstream import FrameSplitter, encode_event, encode_exception
from providers.wire.sse import SseDecoder

EVENT_STREAM_TYPE: Final = "application/vnd.amazon.eventstream"
METRICS: Final = "amazon-bedrock-invocationMetrics"
TIER: Final = "x-amzn-bedrock-service-tier"
_COUNTS: Final = (
    ("input_tokens", "inputTokenCount", "x-amzn-bedrock-input-token-count"),
    ("output_tokens", "outputTokenCount", "x-amzn-bedrock-output-token-count"),
    ("cache_read", "cacheReadInputTokenCount", "x-amzn-bedrock-cache-read-input-token-count"),
    ("cache_write", "cacheWriteInputTokenCount", "x-amzn-bedrock-cache-write-input-token-count"),
)

# Members that only such a body has, the dialect and the operation; none of them is ever streamed.
_WHOLE: Final[tuple[tuple[frozenset[str], str, Operation], ...]] = (
    (frozenset({"texts", "input_type"}), "bedrock_cohere_embed", "embeddings"),
    (frozenset({"taskType", "singleEmbeddingParams"}), "bedrock_nova_embed", "embeddings"),
    (frozenset({"query", "documents"}), "rerank", "rerank"),
)
# Prompts as one text, in the words of models that are gone or going: Titan Text, Llama, Mistral, Command, Claude 2.
_BARE_PROMPTS: Final = ("textGenerationConfig", "prompt", "message")

# What may end an InvokeModelWithResponseStream, by the type of the dialect's own error.
_EXCEPTIONS: Final = {
    "invalid_request_error": "validationException",
    "not_found_error": "validationException",
    "rate_limit_error": "throttlingException",
    "insufficient_quota": "throttlingException",
    "overloaded_error": "serviceUnavailableException",
    "timeout_error": "modelTimeoutException",
}


class Watch(Struct, frozen=True):
    """Tells how long a request has taken: AWS's answers say so. clock: unix nanoseconds."""

    clock: Callable[[], int]
    began_ns: int

    def ms(self) -> int:
        return (self.clock() - self.began_ns) // 1_000_000


class Counts(Struct, rename={"cache_read": "cache_read_input_tokens", "cache_write": "cache_creation_input_tokens"}):
    """Tokens as Anthropic counts them, which is how AWS does: input without what the cache gave."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None


def invoked(inbound: Inbound) -> Inbound:
    """The request with the dialect that its body is written in; Claude's still in its wrapping, which Vertex shares.

    Raises: BadRequest."""
    route, members = inbound.route, jsonio.split_object(inbound.body)
    tier = inbound.headers.get(TIER)
    if "anthropic_version" in members:
        if tier is not None:
            members.setdefault("service_tier", tier)
        return replace(inbound, body=jsonio.joined(members))
    if not route.stream:
        if "inputText" in members and "textGenerationConfig" not in members:
            return replace(inbound, route=replace(route, dialect="bedrock_titan_embed", operation="embeddings"))
        for marks, dialect, operation in _WHOLE:
            if marks <= members.keys():
                return replace(inbound, route=replace(route, dialect=dialect, operation=operation, version="2"))
    if "messages" not in members:
        if any(name in members for name in _BARE_PROMPTS):
            raise BadRequest(
                "this body is of a family of models whose prompts are one text; send messages, by Converse or in the "
                "form of Claude, Nova or OpenAI's models"
            )
        raise BadRequest("messages: Field required", param="messages")
    if "inferenceConfig" in members or "schemaVersion" in members or _has_blocks(members["messages"]):
        return replace(
            inbound, route=replace(route, dialect="bedrock_converse"), body=jsonio.joined(_of_nova(members, tier))
        )
    members |= {"model": route.model, "stream": bool(route.stream)}
    if route.stream:
        members["stream_options"] = {"include_usage": True}
    if tier is not None:
        members.setdefault("service_tier", tier)
    return replace(inbound, route=replace(route, dialect="openai_chat"), body=jsonio.joined(members))


def _has_blocks(messages: Any) -> bool:
    """Whether content is Converse's: blocks that are named by their one member, without a `type`."""
    found = jsonio.plain(messages)
    for message in found if isinstance(found, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and content:
            return isinstance(content[0], dict) and "type" not in content[0]
    return False


def _of_nova(members: dict[str, Any], tier: str | None) -> dict[str, Any]:
    """A Nova body as Converse says the same: the knobs that Converse has no place for are the model's own fields."""
    members.pop("schemaVersion", None)
    config = jsonio.plain(members.get("inferenceConfig"))
    own = {name: members.pop(name) for name in ("reasoningConfig",) if name in members}
    if isinstance(config, dict):
        if "max_new_tokens" in config:
            config.setdefault("maxTokens", config.pop("max_new_tokens"))
        if "topK" in config:
            own["inferenceConfig"] = {"topK": config.pop("topK")}
        members["inferenceConfig"] = config
    if own:
        members["additionalModelRequestFields"] = own
    if tier is not None:
        members.setdefault("serviceTier", {"type": tier})
    return members


# Answers.


def told_whole(dialect: str, body: bytes, watch: Watch) -> Headers:
    """What AWS says of a whole answer beside it."""
    found = _counts_of(dialect, body)
    headers = [("x-amzn-bedrock-invocation-latency", str(watch.ms()))]
    for ours, _, name in _COUNTS:
        if (count := getattr(found, ours)) is not None:
            headers.append((name, str(count)))
    return headers


def wrapping_for(dialect: str, watch: Watch) -> Chunks:
    match dialect:
        case "bedrock_converse":
            return ConverseChunks(watch)
        case "openai_chat":
            return ChatChunks(watch)
    return MessagesChunks(watch)


class Chunks:
    """Each event of a family's stream in a `chunk` frame. The last one carries AWS's metrics as well."""

    media_type = EVENT_STREAM_TYPE

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._first_ms: int | None = None

    def feed(self, data: bytes) -> bytes:
        out = b"".join(self._frames(data))
        if out and self._first_ms is None:
            self._first_ms = self._watch.ms()
        return out

    def close(self) -> bytes:
        return b""

    def _frames(self, data: bytes) -> Iterator[bytes]:
        raise NotImplementedError

    def _metrics(self, found: Counts) -> dict[str, int]:
        now_ms = self._watch.ms()
        told = {name: count for ours, name, _ in _COUNTS if (count := getattr(found, ours)) is not None}
        return {**told, "invocationLatency": now_ms, "firstByteLatency": self._first_ms or now_ms}


class MessagesChunks(Chunks):
    """Claude's events; an error event is the exception frame that ends such a stream."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch)
        self._sse = SseDecoder()
        self._counts = Counts()

    def _frames(self, data: bytes) -> Iterator[bytes]:
        for frame in self._sse.feed(data):
            match frame.event:
                case "error":
                    yield _exception(frame.data)
                    continue
                case "message_start" | "message_delta":
                    self._counts = _later(self._counts, _counts_of("anthropic_messages", frame.data))
                case "message_stop":
                    yield _chunk(_with(frame.data, self._metrics(self._counts)))
                    continue
            if frame.data:
                yield _chunk(frame.data)


class ChatChunks(Chunks):
    """OpenAI's chunks, without the line that ends them elsewhere."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch)
        self._sse = SseDecoder()

    def _frames(self, data: bytes) -> Iterator[bytes]:
        for frame in self._sse.feed(data):
            if not frame.data or frame.data == b"[DONE]":
                continue
            if frame.data.startswith(b'{"error"'):
                yield _exception(frame.data)
            elif (found := _counts_of("openai_chat", frame.data)).input_tokens is not None:
                yield _chunk(_with(frame.data, self._metrics(found)))
            else:
                yield _chunk(frame.data)


class ConverseChunks(Chunks):
    """Nova's events are those of ConverseStream, each an object under its name."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch)
        self._splitter = FrameSplitter()

    def _frames(self, data: bytes) -> Iterator[bytes]:
        for raw in self._splitter.feed(data):
            frame = eventstream.parse(raw)
            if frame.message_type != "event":
                yield raw  # an exception is the same on both paths
                continue
            members = jsonio.split_object(frame.payload)
            members.pop("p", None)  # AWS's padding
            inner: dict[str, Any] = {frame.event_type: msgspec.Raw(jsonio.joined(members))}
            if frame.event_type == "metadata":
                inner[METRICS] = self._metrics(_counts_of("bedrock_converse", frame.payload))
            yield _chunk(msgspec.json.encode(inner))


def _chunk(event: bytes) -> bytes:
    return encode_event("chunk", msgspec.json.encode({"bytes": base64.b64encode(event).decode()}))


def _with(event: bytes, metrics: dict[str, int]) -> bytes:
    return jsonio.joined({**jsonio.split_object(event), METRICS: metrics})


def _exception(data: bytes) -> bytes:
    error: dict[str, Any] = msgspec.json.decode(data)["error"]
    name = _EXCEPTIONS.get(error["type"], "internalServerException")
    return encode_exception(name, msgspec.json.encode({"message": error["message"]}))


class _Started(Struct):
    usage: Counts | None = None


class _Messages(Struct):
    """A whole message, or the event that starts or ends a streamed one."""

    message: _Started | None = None
    usage: Counts | None = None


class _Details(Struct):
    cached_tokens: int | None = None


class _ChatUsage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Chat(Struct):
    usage: _ChatUsage | None = None


class _ConverseUsage(Struct, rename="camel"):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None


class _Converse(Struct):
    usage: _ConverseUsage | None = None


def _counts_of(dialect: str, data: bytes) -> Counts:
    """Of a whole answer or one event. What we wrote ourselves, so that it parses."""
    match dialect:
        case "anthropic_messages":
            found = msgspec.json.decode(data, type=_Messages)
            return found.usage or (found.message.usage if found.message else None) or Counts()
        case "openai_chat":
            chat = msgspec.json.decode(data, type=_Chat).usage or _ChatUsage()
            cached = chat.prompt_tokens_details.cached_tokens if chat.prompt_tokens_details else None
            return Counts(chat.prompt_tokens, chat.completion_tokens, cached)
        case "bedrock_converse":
            told = msgspec.json.decode(data, type=_Converse).usage or _ConverseUsage()
            return Counts(
                told.input_tokens, told.output_tokens, told.cache_read_input_tokens, told.cache_write_input_tokens
            )
    return Counts()


def _later(before: Counts, after: Counts) -> Counts:
    """A running total: what the later event does not repeat, stands."""
    names = Counts.__struct_fields__
    return Counts(*(told if (told := getattr(after, n)) is not None else getattr(before, n) for n in names))
