"""Anthropic's API as it looks on the wire: messages, count_tokens, models; strict about what it takes.

Source: anthropic-python 2.12 types, "Messages", "Streaming" and "Errors" references, read 2026-11. Also the Claude that
answers behind the Bedrock emulator's InvokeModel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.emulators import scripted
from tests.emulators.scripted import Prompt, Reply, Tool
from tests.emulators.server import Emulator, Out, Request, play_transport_fault

SSE = "text/event-stream; charset=utf-8"
MODELS = ("claude-sonnet-4-5", "claude-opus-4-6", "claude-reason-1")
FIELDS = frozenset(
    re.findall(
        r"\w+",
        """
    model max_tokens messages system stream temperature top_p top_k stop_sequences tools tool_choice thinking
    output_config metadata service_tier cache_control container context_management speed mcp_servers diagnostics
    inference_geo
""",
    )
)
STOP_REASON = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
STATUS_ERRORS: Mapping[str, tuple[int, str]] = {
    "400": (400, "invalid_request_error"),
    "401": (401, "authentication_error"),
    "402": (402, "billing_error"),
    "403": (403, "permission_error"),
    "404": (404, "not_found_error"),
    "408": (408, "timeout_error"),
    "413": (413, "request_too_large"),
    "422": (422, "invalid_request_error"),
    "429": (429, "rate_limit_error"),
    "429-retry-after": (429, "rate_limit_error"),
    "429-retry-after-ms": (429, "rate_limit_error"),
    "429-retry-after-date": (429, "rate_limit_error"),
    "429-quota": (400, "invalid_request_error"),
    "498": (529, "overloaded_error"),
    "500": (500, "api_error"),
    "503": (503, "overloaded_error"),
    "529": (529, "overloaded_error"),
    "context": (400, "invalid_request_error"),
    "content-filter": (400, "invalid_request_error"),
    "tool-use-failed": (500, "api_error"),
}
RETRY_HEADERS: Mapping[str, Mapping[str, str]] = {
    "429-retry-after": {"retry-after": "7"},
    "429-retry-after-ms": {"retry-after-ms": "1500", "retry-after": "2"},
    "429-retry-after-date": {
        "date": "Mon, 23 Nov 2026 10:00:00 GMT",
        "retry-after": "Mon, 23 Nov 2026 10:00:07 GMT",
    },
}


@dataclass(frozen=True)
class StreamEvent:
    """One event of a stream and how many tokens it stands for: what is billed if the client leaves behind it."""

    value: Mapping[str, Any]
    output_tokens: int = 0

    @property
    def sse(self) -> bytes:
        data = json.dumps(self.value, ensure_ascii=False)
        return f"event: {self.value['type']}\ndata: {data}\n\n".encode()


class AnthropicEmulator(Emulator):
    name = "anthropic"

    def __init__(self, *, api_key: str | None = "sk-ant-test", **server: Any) -> None:
        """api_key: what the client must send; None takes any."""
        super().__init__(**server)
        self.api_key = api_key

    async def handle(self, request: Request, out: Out) -> None:
        if not self._authorised(request):
            await self._error(out, 401, "authentication_error", "invalid x-api-key")
            return
        if "anthropic-version" not in request.headers:
            await self._error(out, 400, "invalid_request_error", "anthropic-version: header is required")
            return
        match request.method, request.path:
            case "GET", "/v1/models":
                data = [model_object(name) for name in MODELS]
                ends = {"first_id": MODELS[0], "last_id": MODELS[-1]}
                await out.json(200, {"data": data, "has_more": False, **ends})
            case "POST", "/v1/messages/count_tokens":
                reply = scripted.answer(prompt_of(request.json()))
                await out.json(200, {"input_tokens": reply.input_tokens})
            case "POST", "/v1/messages":
                body = request.json()
                if problem := problem_of(body):
                    await self._error(out, 400, "invalid_request_error", problem)
                    return
                await self.messages(request, out, str(body["model"]), stream=bool(body.get("stream")))
            case _:
                await self._error(out, 404, "not_found_error", "Not found")

    def _authorised(self, request: Request) -> bool:
        sent = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        return bool(sent) if self.api_key is None else sent == self.api_key

    async def messages(self, request: Request, out: Out, model: str, *, stream: bool) -> None:
        """The answer to a body that was found good; clouds that host a Claude name the model in the path."""
        prompt = prompt_of(request.json(), model)
        reply = self.cache.answer(prompt)
        fault = self.playing(scripted.fault_of(prompt.model, request.headers, prompt))
        if fault is not None and fault in STATUS_ERRORS:
            status, kind = STATUS_ERRORS[fault]
            await self._error(out, status, kind, message_of(fault), RETRY_HEADERS.get(fault))
            return
        if fault == "unknown-finish":
            reply = replace(reply, finish="brand_new")  # type: ignore[arg-type]
        events = list(stream_events(prompt.model, reply))
        whole = json.dumps(whole_message(prompt.model, reply), ensure_ascii=False).encode()
        if fault == "200-error-body":
            await out.json(200, error_object("api_error", "upstream failed"))
        elif fault == "truncated-json":
            await out.whole(200, whole[: len(whole) // 2])
        elif stream and (twisted := twisted_stream(fault, events)) is not None:
            await self._stream(out, reply, prompt.model, twisted)
        elif fault is not None and fault not in STREAM_ONLY:
            frames = [event.sse for event in events] if stream else [whole]
            self._count(reply, prompt.model, reply.output_tokens)
            await play_transport_fault(fault, out, SSE if stream else "application/json", frames)
        elif stream:
            await self._stream(out, reply, prompt.model, events)
        else:
            self._count(reply, prompt.model, reply.output_tokens)
            await out.whole(200, without_usage(whole) if fault == "no-usage" else whole, {"request-id": "req_test1"})

    async def _stream(self, out: Out, reply: Reply, model: str, events: list[StreamEvent]) -> None:
        self._count(reply, model, 0)
        await out.start(200, SSE, {"request-id": "req_test1"})
        for event in events:
            if reply.pace_ms:
                await out.pause(reply.pace_ms / 1000)
            self.stats.output_tokens += event.output_tokens
            await out.chunk(event.sse if event.value["type"] != "torn" else event.value["bytes"])
        await out.end()

    def _count(self, reply: Reply, model: str, output_tokens: int) -> None:
        self.stats.answers += 1
        self.stats.by_model[model] += 1
        self.stats.input_tokens += reply.input_tokens
        self.stats.output_tokens += output_tokens
        self.stats.reasoning_tokens += reply.reasoning_tokens
        self.stats.cache_read_tokens += reply.cache_read_tokens
        self.stats.cache_write_tokens += reply.cache_write_tokens

    async def _error(
        self, out: Out, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.stats.errors += 1
        body = {**error_object(kind, message), "request_id": "req_test1"}
        await out.json(status, body, {"request-id": "req_test1", **(headers or {})})


# Twists of a stream; a whole answer has no such thing, or another one.
STREAM_ONLY = ("no-usage", "no-end", "huge-chunk", "bad-frame", "stream-error", "unknown-event", "unknown-finish")


def without_usage(whole: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(whole).items() if name != "usage"}).encode()


def message_of(fault: str) -> str:
    match fault:
        case "context":
            return "prompt is too long: 210000 tokens > 200000 maximum"
        case "429-quota":
            return "Your credit balance is too low to access the Anthropic API."
        case _:
            return f"scripted: {scripted.FAULTS[fault]}"


def error_object(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def model_object(name: str) -> dict[str, Any]:
    dates = {"created_at": "2026-01-01T00:00:00Z"}
    return {"type": "model", "id": name, "display_name": name.title(), "lifecycle": "active", **dates}


def twisted_stream(fault: str | None, events: list[StreamEvent]) -> list[StreamEvent] | None:
    """The events as this fault bends them; None when it is not of this kind."""
    half = len(events) // 2
    match fault:
        case "no-usage":
            return [StreamEvent(bare(event.value), event.output_tokens) for event in events]
        case "unknown-event":
            return [*events[:half], StreamEvent({"type": "brand_new", "news": {}}), *events[half:]]
        case "no-end":
            return [event for event in events if event.value["type"] not in ("message_delta", "message_stop")]
        case "huge-chunk":
            big = {"type": "text_delta", "text": "x" * (2 * 1024 * 1024)}
            at = next(i for i, e in enumerate(events) if e.value["type"] == "content_block_delta")
            index = events[at].value["index"]
            value = {"type": "content_block_delta", "index": index, "delta": big}
            return [*events[:at], StreamEvent(value, 1), *events[at:]]
        case "bad-frame":
            torn = {
                "type": "torn",
                "bytes": b'event: content_block_delta\ndata: {"type": "content_block_delta", "del\n\n',
            }
            return [*events[:half], StreamEvent(torn), *events[half:]]
        case "stream-error":
            return [*events[:half], StreamEvent(error_object("overloaded_error", "Overloaded"))]
        case _:
            return None


def bare(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event without what it tells of usage."""
    value = {name: member for name, member in event.items() if name != "usage"}
    if "message" in value:
        value["message"] = bare(value["message"])
    return value


def problem_of(body: Mapping[str, Any], *, in_cloud: bool = False) -> str | None:
    """What Anthropic refuses: a few of its rules, those that a translation breaks most easily.

    in_cloud: on Bedrock and Vertex the path names the model, and the body what else is a header."""
    for field in body:
        if field not in FIELDS and not (in_cloud and field in ("anthropic_version", "anthropic_beta")):
            return f"{field}: Extra inputs are not permitted"
    for field in ("messages", "max_tokens", *(() if in_cloud else ("model",))):
        if field not in body:
            return f"{field}: Field required"
    if (thinking := body.get("thinking")) and thinking["type"] == "enabled":
        if not 1024 <= thinking["budget_tokens"] < body["max_tokens"]:
            return "`max_tokens` must be greater than `thinking.budget_tokens`"
        if body.get("temperature", 1) != 1:
            return "`temperature` may only be set to 1 when thinking is enabled"
    if body.get("temperature", 0) > 1:
        return "temperature: range: 0..1"
    for number, message in enumerate(body["messages"]):
        if message["role"] not in ("user", "assistant", "system"):
            return f"messages.{number}.role: Input should be 'user', 'assistant' or 'system'"
        if not message["content"]:
            return f"messages.{number}: content must not be empty"
        for block in message["content"] if isinstance(message["content"], list) else ():
            if problem := _problem_of_block(block):
                return f"messages.{number}.content: {problem}"
    return _unanswered_calls(body["messages"])


def _problem_of_block(block: Mapping[str, Any]) -> str | None:
    match block["type"]:
        case "text" if not block["text"]:
            return "text content blocks must be non-empty"
        case "tool_use" if not re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]) or not isinstance(block["input"], dict):
            return "tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"
        case "tool_use" if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", block["name"]):
            return "tool_use.name: String should match pattern"
        case "thinking" if block["signature"] != SIGNATURE:
            return "Invalid `signature` in `thinking` block"
    return None


def _unanswered_calls(messages: list[Any]) -> str | None:
    for number, message in enumerate(messages):
        content = message["content"] if isinstance(message["content"], list) else []
        calls = {block["id"] for block in content if block["type"] == "tool_use"}
        if not calls:
            continue
        following = messages[number + 1]["content"] if number + 1 < len(messages) else []
        answered = {b["tool_use_id"] for b in following if isinstance(b, dict) and b["type"] == "tool_result"}
        if calls - answered:
            return (
                f"`tool_use` ids were found without `tool_result` blocks immediately after: {sorted(calls - answered)}"
            )
    return None


SIGNATURE = "c2NyaXB0ZWQgc2lnbmF0dXJl"


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block["text"] for block in content or () if block.get("type") == "text")


def prompt_of(body: Mapping[str, Any], model: str | None = None) -> Prompt:
    """What the scripted model is told of a request."""
    texts = [_text_of(body["system"])] if body.get("system") else []
    marks = [1] if _is_marked(body.get("system")) else []
    results: list[str] = []
    last_user = ""
    images = documents = 0
    for message in body["messages"]:
        content = message["content"]
        blocks = content if isinstance(content, list) else []
        text = _text_of(content)
        texts.append(text)
        if _is_marked(content):
            marks.append(len(texts))
        images += sum(block["type"] == "image" for block in blocks)
        documents += sum(block["type"] == "document" for block in blocks)
        if message["role"] == "user":
            results = [_text_of(block.get("content")) for block in blocks if block["type"] == "tool_result"]
            texts += results
            last_user = text or last_user
        elif message["role"] == "assistant":
            results = []
    if "cache_control" in body:  # the API puts the mark behind the last block that can have one
        marks.append(len(texts))
    choice = body.get("tool_choice") or {}
    tools = tuple(Tool(tool["name"], tool.get("input_schema") or {}) for tool in body.get("tools") or ())
    shape = (body.get("output_config") or {}).get("format") or {}
    return Prompt(
        model=model if model is not None else str(body["model"]),
        last_user=last_user,
        texts=tuple(texts),
        tools=tools,
        forced_tool={"any": "*", "tool": choice.get("name")}.get(choice.get("type", "")),
        tools_forbidden=choice.get("type") == "none",
        parallel_tools=not choice.get("disable_parallel_tool_use"),
        tool_results=tuple(results),
        images=images,
        documents=documents,
        schema=shape.get("schema"),
        reasoning=(body.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
        max_output_tokens=body.get("max_tokens"),
        stop=tuple(body.get("stop_sequences") or ()),
        cache_marks=tuple(marks),
    )


def _is_marked(content: Any) -> bool:
    return isinstance(content, list) and any("cache_control" in block for block in content)


def usage_of(reply: Reply) -> dict[str, Any]:
    written = reply.cache_write_tokens
    return {
        "input_tokens": reply.input_tokens - reply.cache_read_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": reply.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written - written // 2,
            "ephemeral_1h_input_tokens": written // 2,
        },
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.reasoning_tokens},
        "service_tier": "standard",
        "inference_geo": "not_available",
    }


def _stop_of(reply: Reply) -> dict[str, Any]:
    reason = "stop_sequence" if reply.stop_sequence is not None else STOP_REASON.get(reply.finish, reply.finish)
    return {"stop_reason": "refusal" if reply.refusal else reason, "stop_sequence": reply.stop_sequence}


def whole_message(model: str, reply: Reply) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": SIGNATURE})
    if reply.text or reply.refusal:
        content.append({"type": "text", "text": reply.text or reply.refusal})
    content += [
        {"type": "tool_use", "id": _id(call), "name": call.name, "input": json.loads(call.arguments)}
        for call in reply.tool_calls
    ]
    head = {"id": "msg_test1", "type": "message", "role": "assistant", "model": model}
    return {**head, "content": content, **_stop_of(reply), "usage": usage_of(reply)}


def _id(call: scripted.ToolCall) -> str:
    return f"toolu_{call.id}"


def stream_events(model: str, reply: Reply) -> Iterator[StreamEvent]:
    start = whole_message(model, reply) | {"content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = usage_of(reply) | {"output_tokens": 1}
    del start["usage"]["output_tokens_details"]
    yield StreamEvent({"type": "message_start", "message": start})
    yield StreamEvent({"type": "ping"})
    for index, (block, deltas) in enumerate(_blocks(reply)):
        yield StreamEvent({"type": "content_block_start", "index": index, "content_block": block})
        for delta, tokens in deltas:
            yield StreamEvent({"type": "content_block_delta", "index": index, "delta": delta}, tokens)
        yield StreamEvent({"type": "content_block_stop", "index": index})
    usage = {name: count for name, count in usage_of(reply).items() if name.endswith(("tokens", "details"))}
    yield StreamEvent({"type": "message_delta", "delta": _stop_of(reply), "usage": usage})
    yield StreamEvent({"type": "message_stop"})


def _blocks(reply: Reply) -> Iterator[tuple[dict[str, Any], list[tuple[dict[str, Any], int]]]]:
    if reply.reasoning:
        deltas: list[tuple[dict[str, Any], int]] = [
            ({"type": "thinking_delta", "thinking": piece}, 1) for piece in scripted.pieces(reply.reasoning)
        ]
        deltas.append(({"type": "signature_delta", "signature": SIGNATURE}, 0))
        yield {"type": "thinking", "thinking": "", "signature": ""}, deltas
    if text := reply.text or reply.refusal:
        yield {"type": "text", "text": ""}, [({"type": "text_delta", "text": p}, 1) for p in scripted.pieces(text)]
    for call in reply.tool_calls:
        block = {"type": "tool_use", "id": _id(call), "name": call.name, "input": {}}
        arguments = [] if call.arguments == "{}" else scripted.pieces(call.arguments)
        pieces = [({"type": "input_json_delta", "partial_json": piece}, 1) for piece in arguments]
        first = ({"type": "input_json_delta", "partial_json": ""}, 4 + (not arguments))
        yield block, [first, *pieces]
