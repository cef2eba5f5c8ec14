"""OpenAI, Groq, Cerebras, Azure v1 and vLLM as they look on the wire: chat, legacy completions, embeddings, models.

Source: the SDKs' response models and the field tables of each provider's reference, read 2026-11. What flavours add:
- openai: refuses unknown fields; azure: a first chunk without choices but with `prompt_filter_results`;
- groq: refuses logprobs, logit_bias, n > 1 and message names; reasoning in `reasoning`; usage in `x_groq` of the last
  chunk even unasked; rate headers on every answer;
- cerebras: `time_info` and usage on the last chunk; an error object in place of a chunk; `GET /v1/tcp_warming`;
- vllm: takes any field; reasoning in `reasoning_content`; no rate headers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.emulators import responses, scripted
from tests.emulators.scripted import Prompt, Reply, Tool
from tests.emulators.server import Emulator, Out, Request, play_transport_fault

Flavour = Literal["openai", "azure", "groq", "cerebras", "vllm"]

SSE = "text/event-stream; charset=utf-8"
MODELS = ("echo-1", "reason-1", "gpt-4o-mini", "text-embedding-3-small")

CHAT_FIELDS = frozenset(
    re.findall(
        r"\w+",
        """
    model messages stream stream_options tools tool_choice functions function_call parallel_tool_calls
    response_format reasoning_effort max_completion_tokens max_tokens temperature top_p frequency_penalty
    presence_penalty logit_bias seed stop n logprobs top_logprobs user metadata service_tier modalities audio
    prediction store verbosity web_search_options safety_identifier prompt_cache_key prompt_cache_retention
""",
    )
)
GROQ_REFUSES = ("logprobs", "top_logprobs", "logit_bias")

STATUS_ERRORS: Mapping[str, tuple[int, str, str | None]] = {
    "400": (400, "invalid_request_error", None),
    "401": (401, "invalid_request_error", "invalid_api_key"),
    "402": (402, "payment_required_error", "payment_required"),
    "403": (403, "permission_error", "country_not_supported"),
    "404": (404, "invalid_request_error", "model_not_found"),
    "408": (408, "timeout_error", "request_timeout"),
    "413": (413, "invalid_request_error", "request_too_large"),
    "422": (422, "invalid_request_error", None),
    "429": (429, "requests", "rate_limit_exceeded"),
    "429-retry-after": (429, "requests", "rate_limit_exceeded"),
    "429-retry-after-ms": (429, "tokens", "rate_limit_exceeded"),
    "429-retry-after-date": (429, "requests", "rate_limit_exceeded"),
    "429-quota": (429, "insufficient_quota", "insufficient_quota"),
    "498": (498, "requests", "capacity_exceeded"),
    "500": (500, "server_error", None),
    "503": (503, "service_unavailable", None),
    "529": (529, "overloaded_error", None),
    "context": (400, "invalid_request_error", "context_length_exceeded"),
    "content-filter": (400, "invalid_request_error", "content_filter"),
    "tool-use-failed": (400, "invalid_request_error", "tool_use_failed"),
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
class Frame:
    """One event of a stream and how many tokens it stands for: what is billed if the client leaves behind it."""

    data: bytes
    output_tokens: int = 0


class OpenAIEmulator(Emulator):
    name = "openai"
    asynchronous_filter = False
    """Azure's other mode: text at once, what the filter found of it later."""

    def __init__(self, flavour: Flavour = "openai", *, api_key: str | None = "sk-test", **server: Any) -> None:
        """api_key: what the client must send; None takes any."""
        super().__init__(**server)
        self.flavour = flavour
        self.api_key = api_key

    async def handle(self, request: Request, out: Out) -> None:
        path = request.path.removeprefix("/openai")
        if request.method == "GET" and path.endswith("/tcp_warming"):
            await out.whole(204, b"")
            return
        if not self._authorised(request):
            await self._error(out, 401, "Incorrect API key provided", "invalid_request_error", "invalid_api_key")
            return
        match request.method, path.rsplit("/v1/", 1)[-1]:
            case "GET", "models":
                data = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "test"} for name in MODELS]
                await out.json(200, {"object": "list", "data": data})
            case "POST", "chat/completions":
                await self._chat(request, out)
            case "POST", "responses" if self.flavour in ("openai", "azure"):
                await self._responses(request, out)
            case "POST", "completions":
                await self._completions(request, out)
            case "POST", "embeddings":
                await self._embeddings(request, out)
            case _:
                await self._error(out, 404, f"Unknown request URL: {request.method} {path}", "invalid_request_error")

    def _authorised(self, request: Request) -> bool:
        sent = request.headers.get("api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        return bool(sent) if self.api_key is None else sent == self.api_key

    async def _chat(self, request: Request, out: Out) -> None:
        body = request.json()
        if problem := self._problem(body):
            await self._error(out, 400, problem[0], "invalid_request_error", param=problem[1])
            return
        prompt = prompt_of(body)
        reply = self.cache.answer(prompt)
        count = int(body.get("n") or 1)
        whole = json.dumps(self._whole(body, reply, count), ensure_ascii=False).encode()
        frames = list(self._frames(body, reply, count))
        await self._serve_reply(request, out, prompt, reply, count, whole, frames, bool(body.get("stream")))

    async def _responses(self, request: Request, out: Out) -> None:
        body = request.json()
        if problem := responses.problem_of(body):
            await self._error(out, 400, problem[0], "invalid_request_error", param=problem[1])
            return
        prompt = responses.prompt_of(body)
        reply = self.cache.answer(prompt)
        answer = responses.response_of(body, reply)
        events = responses.stream_events(answer)

        def bend(fault: str | None) -> tuple[bytes, list[Frame]]:
            told = {**answer, **responses.TOLD_OTHERWISE.get(fault or "", {})}
            bent = responses.bent(fault, events) or events
            return json.dumps(told, ensure_ascii=False).encode(), [Frame(e.sse, e.output_tokens) for e in bent]

        await self._serve_reply(request, out, prompt, reply, 1, *bend(None), bool(body.get("stream")), bend)

    async def _completions(self, request: Request, out: Out) -> None:
        body = request.json()
        given = body.get("prompt") or ""
        prompts = given if isinstance(given, list) and given and isinstance(given[0], str) else [given]
        texts = tuple(text if isinstance(text, str) else " ".join(map(str, text)) for text in prompts)
        limit = body.get("max_tokens", 16)
        stop = body.get("stop") or ()
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        prompt = Prompt(str(body.get("model")), texts[-1], texts, max_output_tokens=limit, stop=stops)
        reply = self.cache.answer(prompt)
        count = int(body.get("n") or 1) * len(prompts)
        head = {"id": "cmpl-test1", "object": "text_completion", "created": 1700000000, "model": body.get("model")}
        choices = [
            {"index": number, "text": reply.text, "logprobs": None, "finish_reason": reply.finish}
            for number in range(count)
        ]
        usage = usage_of(reply, count)
        whole = json.dumps({**head, "choices": choices, "usage": usage}, ensure_ascii=False).encode()
        frames = [
            Frame(_sse({**head, "choices": [{"index": n, "text": p, "logprobs": None, "finish_reason": None}]}), 1)
            for p in scripted.pieces(reply.text)
            for n in range(count)
        ]
        frames += [Frame(_sse({**head, "choices": [{**choice, "text": ""}]})) for choice in choices]
        if (body.get("stream_options") or {}).get("include_usage"):
            frames.append(Frame(_sse({**head, "choices": [], "usage": usage})))
        frames.append(Frame(b"data: [DONE]\n\n"))
        await self._serve_reply(request, out, prompt, reply, count, whole, frames, bool(body.get("stream")))

    async def _embeddings(self, request: Request, out: Out) -> None:
        body = request.json()
        given = body["input"]
        inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
        tokens = sum(scripted.count(i) if isinstance(i, str) else len(i) for i in inputs)
        data = []
        for number, entry in enumerate(inputs):
            values = vector(entry, int(body.get("dimensions") or 8))
            packed: Any = values
            if body.get("encoding_format") == "base64":
                packed = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            data.append({"object": "embedding", "index": number, "embedding": packed})
        self._count(Reply(input_tokens=tokens), 1, str(body.get("model")), 0)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await out.json(200, {"object": "list", "data": data, "model": body.get("model"), "usage": usage})

    async def _serve_reply(
        self,
        request: Request,
        out: Out,
        prompt: Prompt,
        reply: Reply,
        count: int,
        whole: bytes,
        frames: list[Frame],
        stream: bool,
        bend: Callable[[str | None], tuple[bytes, list[Frame]]] | None = None,
    ) -> None:
        """bend: plays the faults of `responses.BENT`, which for chats are played here."""
        fault = self.playing(scripted.fault_of(prompt.model, request.headers, prompt))
        if fault is not None and fault in STATUS_ERRORS:
            status, kind, code = STATUS_ERRORS[fault]
            await self._error(out, status, _message(fault), kind, code, headers=RETRY_HEADERS.get(fault))
            return
        if bend is not None and fault in responses.BENT:
            whole, frames = bend(fault)
        elif fault == "no-usage":
            frames = [_without_usage(frame) for frame in frames]
            whole = json.dumps({k: v for k, v in json.loads(whole).items() if k != "usage"}).encode()
        elif fault == "no-end":
            frames = [f for f in frames if b"[DONE]" not in f.data and b'"usage": {' not in f.data]
            frames = [f for f in frames if b'"finish_reason": null' in f.data]
        elif fault == "unknown-finish":
            whole, *rest = (_renamed(data) for data in (whole, *(frame.data for frame in frames)))
            frames = [Frame(data, frame.output_tokens) for data, frame in zip(rest, frames, strict=True)]
        elif fault == "unknown-event":
            news = {**_chunk(prompt.model, {}), "object": "chat.completion.brand_new", "choices": [], "news": {}}
            frames.insert(len(frames) // 2, Frame(_sse(news)))
        elif fault == "huge-chunk":
            big = "x" * (2 * 1024 * 1024)
            frames.insert(1, Frame(_sse(_chunk(prompt.model, {"content": big})), 1))
        elif fault == "bad-frame":
            frames.insert(len(frames) // 2, Frame(b'data: {"id": "chatcmpl-test1", "choices": [{"delta": {"con\n\n'))
        elif fault == "stream-error":
            error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
            if self.flavour == "cerebras":
                torn: Mapping[str, Any] = {"error": {**error, "code": "internal"}, "status_code": 500}
            elif self.flavour == "groq":
                torn = {**_chunk(prompt.model, {}), "x_groq": {"id": "req_1", "error": "over_capacity"}}
            else:
                torn = {"error": error}
            frames = [*frames[: len(frames) // 2], Frame(_sse(torn))]
        elif fault == "200-error-body":
            error = {"message": "upstream failed", "type": "server_error", "param": None, "code": None}
            await out.json(200, {"error": error})
            return
        elif fault == "truncated-json":
            await out.whole(200, whole[: len(whole) // 2])
            return
        elif fault is not None:
            sliced = [frame.data for frame in frames] if stream else [whole]
            tokens = sum(frame.output_tokens for frame in frames)
            if fault in ("stall", "cut-mid-frame", "reset"):
                tokens = sum(frame.output_tokens for frame in frames[: max(1, len(frames) // 2)])
            if fault not in ("slow-first-byte", "cut-before-head", "garbage", "redirect", "502-html"):
                self._count(reply, count, prompt.model, tokens)
            await play_transport_fault(fault, out, SSE if stream else "application/json", sliced)
            return
        if not stream:
            if reply.pace_ms:
                await out.pause(reply.pace_ms / 1000)
            self._count(reply, count, prompt.model, reply.output_tokens * count)
            await out.whole(200, whole, self._headers())
            return
        await self._stream(out, reply, count, prompt.model, frames)

    async def _stream(self, out: Out, reply: Reply, count: int, model: str, frames: list[Frame]) -> None:
        self._count(reply, count, model, 0)
        await out.start(200, SSE, self._headers())
        for frame in frames:
            if reply.pace_ms:
                await out.pause(reply.pace_ms / 1000)
            self.stats.output_tokens += frame.output_tokens
            await out.chunk(frame.data)
        await out.end()

    def _count(self, reply: Reply, count: int, model: str, output_tokens: int) -> None:
        self.stats.answers += 1
        self.stats.by_model[model] += 1
        self.stats.input_tokens += reply.input_tokens
        self.stats.output_tokens += output_tokens
        self.stats.reasoning_tokens += reply.reasoning_tokens * count
        self.stats.cache_read_tokens += reply.cache_read_tokens
        self.stats.cache_write_tokens += reply.cache_write_tokens

    def _problem(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """What this flavour refuses, and the field at fault."""
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            return "messages is required", "messages"
        if self.flavour in ("openai", "azure"):
            for field in body:
                if field not in CHAT_FIELDS:
                    return f"Unrecognized request argument supplied: {field}", field
            if "reason" in str(body.get("model")) and "max_tokens" in body:
                return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"
        if self.flavour not in ("openai", "azure"):
            for message in body["messages"]:
                if any(part.get("type") == "file" for part in message.get("content") or () if isinstance(part, dict)):
                    return "Unknown part type: file", "messages"
        if self.flavour == "groq":
            for field in GROQ_REFUSES:
                if field in body:
                    return f"property '{field}' is unsupported", field
            if body.get("n", 1) != 1:
                return "'n' : number must be at most 1", "n"
            if any("name" in message for message in body["messages"] if message.get("role") != "function"):
                return "'messages.0' : property 'name' is unsupported", "messages"
        return None

    def _headers(self) -> dict[str, str]:
        if self.flavour == "vllm":
            return {}
        headers = {"x-request-id": "req_test"}
        if self.flavour == "groq":
            headers |= {"x-ratelimit-limit-requests": "14400", "x-ratelimit-reset-requests": "2m59.56s"}
        if self.flavour == "cerebras":
            headers["inference-id"] = "chatcmpl-test1"
        return headers

    async def _error(
        self,
        out: Out,
        status: int,
        message: str,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.stats.errors += 1
        error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
        if code == "tool_use_failed":
            error["failed_generation"] = "<tool-use>{"
        if code == "content_filter":
            error["innererror"] = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}
        body: Any = {"error": error}
        if self.flavour == "cerebras":
            body = error  # the bare object
        await out.json(status, body, {**self._headers(), **(headers or {})})

    def _whole(self, body: Mapping[str, Any], reply: Reply, count: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": reply.refusal or None}
        if reply.reasoning:
            message[self._reasoning_field] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = [_call(call, body) for call in reply.tool_calls]
        elif reply.text == "" and not reply.refusal:
            message["content"] = ""
        logprobs = _logprobs(scripted.pieces(reply.text), body)
        choices = [
            {"index": n, "message": message, "logprobs": logprobs, "finish_reason": reply.finish} for n in range(count)
        ]
        answer = {
            "id": "chatcmpl-test1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": body.get("model"),
            "choices": choices,
            "usage": usage_of(reply, count),
            "system_fingerprint": "fp_test",
        }
        if self.flavour == "azure":
            answer["prompt_filter_results"] = PROMPT_FILTERED
            for choice in choices:
                choice["content_filter_results"] = filter_result(reply.finish)
        return answer

    @property
    def _reasoning_field(self) -> str:
        return "reasoning" if self.flavour in ("groq", "cerebras") else "reasoning_content"

    def _frames(self, body: Mapping[str, Any], reply: Reply, count: int) -> Iterator[Frame]:
        model = body.get("model")
        asked = bool((body.get("stream_options") or {}).get("include_usage"))
        if self.flavour == "azure":
            first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
            yield Frame(_sse({**first, "prompt_filter_results": PROMPT_FILTERED}))
        extra: dict[str, Any] = {"x_groq": {"id": "req_1"}} if self.flavour == "groq" else {}
        if asked:
            extra["usage"] = None
        for number in range(count):
            yield Frame(_sse({**_chunk(model, {"role": "assistant", "content": ""}, number), **extra}))
        extra.pop("x_groq", None)
        for delta, logprobs, tokens in self._deltas(body, reply):
            for number in range(count):
                yield Frame(_sse({**_chunk(model, delta, number, logprobs), **extra}), tokens)
        for number in range(count):
            last = {**_chunk(model, {}, number, finish=reply.finish), **extra}
            if number == count - 1 and self.flavour == "groq":
                last["x_groq"] = {"id": "req_1", "usage": usage_of(reply, count)}
            if self.flavour == "azure":
                last["choices"][0]["content_filter_results"] = filter_result(reply.finish)
            if self.asynchronous_filter:
                # The asynchronous filter: what it found comes behind the text, by offsets, with no delta.
                found = {"content_filter_results": filter_result(reply.finish), "content_filter_offsets": OFFSETS}
                choice = {"index": number, "finish_reason": None, **found}
                yield Frame(_sse({**_chunk(model, {}), "id": "", "choices": [choice]}))
            if number == count - 1 and self.flavour == "cerebras":
                last |= {"usage": usage_of(reply, count), "time_info": {"queue_time": 0.0, "total_time": 0.1}}
            yield Frame(_sse(last))
        if asked and self.flavour != "cerebras":
            yield Frame(_sse({**_chunk(model, {}), "choices": [], "usage": usage_of(reply, count)}))
        yield Frame(b"data: [DONE]\n\n")

    def _deltas(self, body: Mapping[str, Any], reply: Reply) -> Iterator[tuple[dict[str, Any], Any, int]]:
        for piece in scripted.pieces(reply.reasoning):
            yield {self._reasoning_field: piece}, None, 1
        for piece in scripted.pieces(reply.text):
            yield {"content": piece}, _logprobs([piece], body), 1
        for piece in scripted.pieces(reply.refusal):
            yield {"refusal": piece}, None, 1
        for position, call in enumerate(reply.tool_calls):
            started = _call(call, body)
            kind = started["type"]
            started[kind] = {**started[kind], "input" if kind == "custom" else "arguments": ""}
            yield {"tool_calls": [{"index": position, **started}]}, None, 4
        # Fragments of parallel calls take turns, as some engines send them.
        rests = [scripted.pieces(call.arguments) for call in reply.tool_calls]
        for turn in range(max(map(len, rests), default=0)):
            for position, rest in enumerate(rests):
                if turn < len(rest):
                    kind = _call(reply.tool_calls[position], body)["type"]
                    inner = {"input" if kind == "custom" else "arguments": rest[turn]}
                    named = {"type": kind} if self.flavour == "cerebras" else {}
                    yield {"tool_calls": [{"index": position, **named, kind: inner}]}, None, 1


_SAFE = {"filtered": False, "severity": "safe"}
PROMPT_FILTERED = [
    {
        "prompt_index": 0,
        "content_filter_results": {
            **dict.fromkeys(("hate", "self_harm", "sexual", "violence"), _SAFE),
            "jailbreak": {"detected": False, "filtered": False},
        },
    }
]
OFFSETS = {"check_offset": 0, "start_offset": 0, "end_offset": 20}


def filter_result(finish: str) -> dict[str, Any]:
    """What Azure's filter says of an answer. Source: content-filter page and recorded answers, read 2026-11."""
    violence = {"filtered": True, "severity": "high"} if finish == "content_filter" else _SAFE
    return {**dict.fromkeys(("hate", "self_harm", "sexual"), _SAFE), "violence": violence}


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """What the scripted model is told of a chat request."""
    texts: list[str] = []
    results: list[str] = []
    last_user = ""
    images = documents = 0
    for message in body["messages"]:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = " ".join(part["text"] for part in parts if part.get("type") == "text")
        images += sum(part.get("type") == "image_url" for part in parts)
        documents += sum(part.get("type") == "file" for part in parts)
        texts.append(text)
        match message["role"]:
            case "user":
                last_user = text
                results = []
            case "tool" | "function":
                results.append(text)
            case "assistant":
                results = []
    tools = []
    for tool in body.get("tools") or ():
        kind = tool.get("type", "function")
        inner = tool.get(kind) or {}
        tools.append(Tool(inner.get("name", kind), inner.get("parameters") or {}, takes_text=kind == "custom"))
    choice = body.get("tool_choice")
    forced = None
    if choice == "required":
        forced = "*"
    elif isinstance(choice, dict):
        forced = (choice.get(choice.get("type", "function")) or {}).get("name") or "*"
    shape = body.get("response_format") or {}
    stop = body.get("stop") or ()
    return Prompt(
        model=str(body.get("model")),
        last_user=last_user,
        texts=tuple(texts),
        tools=tuple(tools),
        forced_tool=forced,
        tools_forbidden=choice == "none",
        parallel_tools=body.get("parallel_tool_calls") is not False,
        tool_results=tuple(results),
        images=images,
        documents=documents,
        schema=(shape.get("json_schema") or {}).get("schema"),
        json_mode=shape.get("type") == "json_object",
        reasoning=body.get("reasoning_effort") not in (None, "none"),
        max_output_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def usage_of(reply: Reply, count: int = 1) -> dict[str, Any]:
    output = reply.output_tokens * count
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": output,
        "total_tokens": reply.input_tokens + output,
        "prompt_tokens_details": {
            "cached_tokens": reply.cache_read_tokens,
            "cache_write_tokens": reply.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens * count},
    }


def vector(entry: object, dimensions: int) -> list[float]:
    """The same unit-range numbers for the same input, exact in 32-bit floats."""
    digest = hashlib.sha256(json.dumps(entry).encode()).digest()
    return [(digest[i % len(digest)] - 128) / 128 for i in range(dimensions)]


def _chunk(
    model: object, delta: Mapping[str, Any], index: int = 0, logprobs: Any = None, finish: str | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    head = {"id": "chatcmpl-test1", "object": "chat.completion.chunk", "created": 1700000000, "model": model}
    return {**head, "system_fingerprint": "fp_test", "choices": [choice]}


def _call(call: scripted.ToolCall, body: Mapping[str, Any]) -> dict[str, Any]:
    for tool in body.get("tools") or ():
        if tool.get("type") == "custom" and (tool.get("custom") or {}).get("name") == call.name:
            return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(pieces: list[str], body: Mapping[str, Any]) -> Any:
    if not body.get("logprobs"):
        return None
    content = []
    for piece in pieces:
        token = {"token": piece, "logprob": -0.25, "bytes": list(piece.encode())}
        rivals = [
            {"token": f"{piece}{n}", "logprob": -1.5 - n, "bytes": None} for n in range(body.get("top_logprobs") or 0)
        ]
        content.append({**token, "top_logprobs": rivals})
    return {"content": content, "refusal": None}


def _renamed(data: bytes) -> bytes:
    return data.replace(b'"finish_reason": "stop"', b'"finish_reason": "brand_new"')


def _without_usage(frame: Frame) -> Frame:
    """Hosts that tell it with the last piece of the answer would lose that piece too."""
    if b'"usage": {' not in frame.data:
        return frame
    chunk = {name: value for name, value in json.loads(frame.data[6:]).items() if name != "usage"}
    chunk.get("x_groq", {}).pop("usage", None)
    return Frame(_sse(chunk) if chunk["choices"] else b"", frame.output_tokens)


def _message(fault: str) -> str:
    if fault == "context":
        return "This model's maximum context length is 128 tokens. However, your messages resulted in 4096 tokens."
    return f"scripted: {scripted.FAULTS[fault]}"


def _sse(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _served(flavour: Flavour) -> Callable[..., Emulator]:
    return lambda **server: OpenAIEmulator(flavour, api_key=None, **server)


SERVED: dict[str, Callable[..., Emulator]] = {
    "openai": _served("openai"),
    "azure": _served("azure"),
    "groq": _served("groq"),
    "cerebras": _served("cerebras"),
    "vllm": _served("vllm"),
}
"""What `python -m tests.emulators` starts of this module; keys are not checked there."""
