"""The Gemini API and Vertex AI as they look on the wire: generateContent in all its verbs, each as strict as it is.

Source: Gemini API v1beta discovery rev. 20260529, Vertex AI v1 discovery rev. 20260509, recorded streams (CRLF lines,
no end marker), read 2026-11. What flavours differ in:
- gemini: `x-goog-api-key`; calls have ids; `serviceTier` in the body; a bad key is a 400 with API_KEY_INVALID;
- vertex: OAuth bearer; no ids, and a field it does not know is an error; `trafficType`; Claude by rawPredict, and the
  models of others by `endpoints/openapi`.
Both: Gemini 3 refuses a model turn whose first call is not signed, and each call it makes is.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.emulators import anthropic as claude
from tests.emulators import scripted
from tests.emulators.openai import OpenAIEmulator, vector
from tests.emulators.scripted import Prompt, Reply, Tool
from tests.emulators.server import Emulator, Out, Request, play_transport_fault

Flavour = Literal["gemini", "vertex"]

SSE = "text/event-stream"
JSON = "application/json; charset=UTF-8"
MODELS = ("gemini-2.5-flash", "gemini-3-pro-preview", "gemini-embedding-001")
RESPONSE_ID = "resp-emulated-1"

_PATH = re.compile(
    r"/(?P<version>v1|v1beta|v1beta1)/(?:projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/)?"
    r"(?:publishers/(?P<publisher>[^/]+)/)?(?P<kind>models|endpoints|tunedModels)/(?P<model>[^:]+):(?P<verb>\w+)"
)
_OPENAPI = re.compile(r"/v1\w*/projects/[^/]+/locations/[^/]+/endpoints/openapi/chat/completions")
_TOP = frozenset({"contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "generationConfig"})
FIELDS: Mapping[Flavour, frozenset[str]] = {
    "gemini": _TOP | {"model", "cachedContent", "serviceTier", "store"},
    "vertex": _TOP | {"cachedContent", "labels", "modelArmorConfig"},
}
_PART_FIELDS = frozenset(
    {
        *("text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode"),
        *("codeExecutionResult", "thought", "thoughtSignature", "videoMetadata", "mediaResolution"),
    }
)

# status, google.rpc code word, message, details
_Error = tuple[int, str, str, list[dict[str, Any]]]


def _info(reason: str) -> list[dict[str, Any]]:
    domain = "googleapis.com"
    return [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": domain}]


STATUS_ERRORS: Mapping[str, _Error] = {
    "400": (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", []),
    "401": (
        401,
        "UNAUTHENTICATED",
        "Request had invalid authentication credentials.",
        _info("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    ),
    "403": (403, "PERMISSION_DENIED", "Permission denied on resource project p.", _info("CONSUMER_INVALID")),
    "404": (404, "NOT_FOUND", "models/nope is not found for API version v1beta.", []),
    "408": (408, "CANCELLED", "The request timed out.", []),
    "413": (413, "INVALID_ARGUMENT", "Request payload size exceeds the limit.", []),
    "422": (422, "INVALID_ARGUMENT", "Unprocessable.", []),
    "429": (429, "RESOURCE_EXHAUSTED", "Resource exhausted, please try again later.", []),
    "429-retry-after": (429, "RESOURCE_EXHAUSTED", "Resource exhausted, please try again later.", []),
    "429-retry-after-ms": (
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota. Please retry in 1.5s.",
        [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "PerMinute"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"},
        ],
    ),
    "429-retry-after-date": (429, "RESOURCE_EXHAUSTED", "Too many requests.", []),
    "500": (500, "INTERNAL", "An internal error has occurred.", []),
    "503": (503, "UNAVAILABLE", "The model is overloaded. Please try again later.", []),
    "context": (
        400,
        "INVALID_ARGUMENT",
        "The input token count (4096) exceeds the maximum number of tokens allowed (128).",
        [],
    ),
}
RETRY_HEADERS: Mapping[str, Mapping[str, str]] = {
    "429-retry-after": {"retry-after": "7"},
    "429-retry-after-date": {
        "date": "Mon, 23 Nov 2026 10:00:00 GMT",
        "retry-after": "Mon, 23 Nov 2026 10:00:07 GMT",
    },
}


@dataclass(frozen=True)
class Chunk:
    """One GenerateContentResponse of a stream and how many tokens it stands for."""

    value: dict[str, Any]
    output_tokens: int = 0


# Faults that bend the answer itself; all others are played on its way.
BENT = ("no-usage", "no-end", "huge-chunk", "stream-error", "unknown-finish", "unknown-event")


class GeminiEmulator(Emulator):
    name = "gemini"

    def __init__(self, flavour: Flavour = "gemini", *, key: str = "test-key", **server: Any) -> None:
        """key: the API key (gemini, or vertex in express mode) or the access token (vertex)."""
        super().__init__(**server)
        self.flavour = flavour
        self.key = key
        self._claudes = claude.AnthropicEmulator(api_key=None)
        self._others = OpenAIEmulator("vllm", api_key=None)
        for hosted in (self._claudes, self._others):
            hosted.stats, hosted.cache = self.stats, self.cache

    async def handle(self, request: Request, out: Out) -> None:
        if not self._authorised(request):
            await self._refuse_key(out)
            return
        if request.method == "GET" and request.path.endswith("/models"):
            listed = [{"name": f"models/{name}", "version": "001", "displayName": name} for name in MODELS]
            await out.json(200, {"models": listed})
            return
        if self.flavour == "vertex" and _OPENAPI.fullmatch(request.path):
            await self._others._chat(request, out)
            return
        found = _PATH.fullmatch(request.path)
        if found is None or (self.flavour == "gemini" and found["project"] is not None):
            await self._error(out, (404, "NOT_FOUND", f"no such path: {request.path}", []))
            return
        if found["publisher"] == "anthropic":
            await self._claude(request, out, found["model"], found["verb"])
            return
        match found["verb"]:
            case "generateContent" | "streamGenerateContent":
                await self._generate(request, out, found["model"], found["verb"] == "streamGenerateContent")
            case "countTokens":
                await self._count_tokens(request, out, found["model"])
            case "predict" if self.flavour == "vertex":
                await self._predict(request, out)
            case "batchEmbedContents" if self.flavour == "vertex":
                await self._error(out, (404, "NOT_FOUND", "no such method", []))
            case "embedContent" | "batchEmbedContents":
                await self._embed(request, out, found["verb"] == "batchEmbedContents")
            case verb:
                await self._error(out, (404, "NOT_FOUND", f"no such verb: {verb}", []))

    def _authorised(self, request: Request) -> bool:
        sent = request.headers.get("x-goog-api-key") or request.query.get("key")
        if self.flavour == "vertex" and sent is None:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        return sent == self.key

    async def _refuse_key(self, out: Out) -> None:
        if self.flavour == "gemini":
            message = "API key not valid. Please pass a valid API key."
            await self._error(out, (400, "INVALID_ARGUMENT", message, _info("API_KEY_INVALID")))
        else:
            await self._error(out, STATUS_ERRORS["401"])

    async def _generate(self, request: Request, out: Out, model: str, stream: bool) -> None:
        body = camel_keys(request.json())  # google-genai itself mixes both spellings in one body
        if problem := self._problem(body, model):
            await self._error(out, (400, "INVALID_ARGUMENT", problem, []))
            return
        prompt = prompt_of(body, model)
        reply = self.cache.answer(prompt)
        count = int((body.get("generationConfig") or {}).get("candidateCount") or 1)
        chunks = list(self._chunks(body, model, reply, count))
        whole = self._whole(body, model, reply, count)
        fault = self.playing(scripted.fault_of(model, request.headers, prompt))
        if fault is not None and fault in STATUS_ERRORS:
            await self._error(out, STATUS_ERRORS[fault], RETRY_HEADERS.get(fault), as_array=stream)
            return
        if fault == "content-filter":
            whole = {**whole, "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
            whole["usageMetadata"] = {"promptTokenCount": reply.input_tokens, "totalTokenCount": reply.input_tokens}
            del whole["candidates"]
            chunks, fault = [Chunk(whole)], None
        elif fault == "no-usage":
            whole = {key: value for key, value in whole.items() if key != "usageMetadata"}
            chunks = [Chunk({k: v for k, v in c.value.items() if k != "usageMetadata"}) for c in chunks]
        elif fault == "unknown-finish":
            for value in (whole, chunks[-1].value):
                value["candidates"][0]["finishReason"] = "BRAND_NEW"
        elif fault == "unknown-event":
            chunks.insert(len(chunks) // 2, Chunk({"brandNew": {"news": 1}, "modelVersion": model}))
        elif fault == "no-end":
            chunks = [chunk for chunk in chunks if "finishReason" not in chunk.value["candidates"][0]]
        elif fault == "huge-chunk":
            big = self._envelope(model, [_candidate([{"text": "x" * (2 * 1024 * 1024)}])])
            chunks.insert(1, Chunk(big, 1))
        elif fault == "stream-error":
            status, word, message, _ = STATUS_ERRORS["503"]
            chunks = chunks[: len(chunks) // 2]
            chunks.append(Chunk({"error": {"code": status, "message": message, "status": word}}))
        elif fault == "200-error-body":
            await out.json(200, {"error": {"code": 500, "message": "upstream failed", "status": "INTERNAL"}})
            return
        elif fault == "truncated-json":
            data = json.dumps(whole).encode()
            await out.whole(200, data[: len(data) // 2])
            return
        frames = self._frames(chunks, request.query.get("alt") == "sse")
        if fault == "bad-frame":
            frames.insert(len(frames) // 2, b'data: {"candidates": [{"content": {"pa\r\n\r\n')
        elif fault not in (None, *BENT):
            assert fault is not None
            sliced = frames if stream else [json.dumps(whole, ensure_ascii=False).encode()]
            self._bill(reply, count, model, sum(chunk.output_tokens for chunk in chunks))
            if not await play_transport_fault(fault, out, SSE if stream else JSON, sliced):
                raise ValueError(f"Google has no such fault: {fault}")
            return
        if not stream:
            self._bill(reply, count, model, reply.output_tokens * count)
            await out.whole(200, json.dumps(whole, ensure_ascii=False).encode(), {"content-type": JSON})
            return
        self._bill(reply, count, model, 0)
        await out.start(200, SSE if request.query.get("alt") == "sse" else JSON)
        tokens = [chunk.output_tokens for chunk in chunks]
        for number, frame in enumerate(frames):
            if reply.pace_ms:
                await out.pause(reply.pace_ms / 1000)
            self.stats.output_tokens += tokens[number] if number < len(tokens) else 0
            await out.chunk(frame)
        await out.end()

    def _frames(self, chunks: list[Chunk], sse: bool) -> list[bytes]:
        texts = [json.dumps(chunk.value, ensure_ascii=False).encode() for chunk in chunks]
        if sse:
            return [b"data: " + text + b"\r\n\r\n" for text in texts]
        return [(b"[" if n == 0 else b",\r\n") + text for n, text in enumerate(texts)] + [b"]"]

    def _problem(self, body: Mapping[str, Any], model: str) -> str | None:
        """What this flavour refuses, in Google's words."""
        for field in body:
            if field not in FIELDS[self.flavour]:
                return f'Invalid JSON payload received. Unknown name "{field}": Cannot find field.'
        if not isinstance(body.get("systemInstruction") or {}, dict):
            return "Invalid value at 'system_instruction' (type.googleapis.com/google.ai.generativelanguage.v1.Content)"
        contents = body.get("contents")
        if not contents:
            return "* GenerateContentRequest.contents: contents is not specified"
        for number, content in enumerate(contents):
            unsigned = None
            for part in content.get("parts") or ():
                for field in part:
                    if field not in _PART_FIELDS:
                        return f"Invalid JSON payload received. Unknown name \"{field}\" at 'contents[{number}].parts'"
                told = (part.get("functionResponse") or {}).get("response") or {}
                if not isinstance(told, dict):
                    return f"Invalid value at 'contents[{number}].parts[0].function_response.response' (Map)"
                call = part.get("functionCall") or part.get("functionResponse") or {}
                if self.flavour == "vertex" and "id" in call:
                    return "Invalid JSON payload received. Unknown name \"id\" at 'function_call': Cannot find field."
                if "functionCall" in part and unsigned is None:
                    unsigned = "thoughtSignature" not in part
            if unsigned and "gemini-3" in model:
                return f"Function call is missing a thought_signature in functionCall parts, position {number}."
        return None

    async def _count_tokens(self, request: Request, out: Out, model: str) -> None:
        body = camel_keys(request.json())
        prompt = prompt_of(body.get("generateContentRequest") or body, model)
        await out.json(200, {"totalTokens": scripted.answer(prompt).input_tokens})

    async def _predict(self, request: Request, out: Out) -> None:
        body = request.json()
        size = int(body.get("parameters", {}).get("outputDimensionality") or 8)
        found = []
        for instance in body["instances"]:
            statistics = {"token_count": scripted.count(instance["content"]), "truncated": False}
            values = vector(instance["content"], size)
            found.append({"embeddings": {"values": values, "statistics": statistics}})
        await out.json(200, {"predictions": found, "deployedModelId": "", "metadata": {"billableCharacterCount": 1}})

    async def _embed(self, request: Request, out: Out, batch: bool) -> None:
        body = request.json()
        vectors = []
        tokens = 0
        for entry in body["requests"] if batch else [body]:
            text = "".join(part["text"] for part in entry["content"]["parts"])
            tokens += scripted.count(text)
            size = entry.get("embedContentConfig", entry).get("outputDimensionality") or 8
            vectors.append({"values": vector(text, int(size))})
        usage = {"promptTokenCount": tokens}
        await out.json(
            200,
            {"embeddings": vectors, "usageMetadata": usage}
            if batch
            else {"embedding": vectors[0], "usageMetadata": usage},
        )

    async def _claude(self, request: Request, out: Out, model: str, verb: str) -> None:
        """Anthropic's Messages as Vertex takes it: no model in the body, a version in its place."""
        body = request.json()
        if model == "count-tokens":
            reply = scripted.answer(claude.prompt_of(body))
            await out.json(200, {"input_tokens": reply.input_tokens})
            return
        if "model" in body or "anthropic_version" not in body:
            await self._error(out, (400, "INVALID_ARGUMENT", "anthropic_version: Field required", []))
        elif problem := claude.problem_of(body, in_cloud=True):
            await out.json(400, claude.error_object("invalid_request_error", problem))
        else:
            await self._claudes.messages(request, out, model, stream=verb == "streamRawPredict")

    async def _error(
        self, out: Out, error: _Error, headers: Mapping[str, str] | None = None, as_array: bool = False
    ) -> None:
        self.stats.errors += 1
        status, word, message, details = error
        body: Any = {"error": {"code": status, "message": message, "status": word}}
        if details:
            body["error"]["details"] = details
        # Vertex wraps the error of a stream in an array.
        await out.json(status, [body] if as_array and self.flavour == "vertex" else body, headers)

    def _bill(self, reply: Reply, count: int, model: str, output_tokens: int) -> None:
        self.stats.answers += 1
        self.stats.by_model[model] += 1
        self.stats.input_tokens += reply.input_tokens
        self.stats.output_tokens += output_tokens
        self.stats.reasoning_tokens += reply.reasoning_tokens * count
        self.stats.cache_read_tokens += reply.cache_read_tokens

    def _envelope(self, model: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        return {"candidates": candidates, "modelVersion": model, "responseId": RESPONSE_ID}

    def _whole(self, body: Mapping[str, Any], model: str, reply: Reply, count: int) -> dict[str, Any]:
        parts = [{"text": reply.reasoning, "thought": True}] if reply.reasoning and _shows_thoughts(body) else []
        if reply.text or reply.refusal:
            parts.append({"text": reply.text or reply.refusal})
        parts += self._calls(model, reply)
        candidates = [
            _candidate(parts, number, _finish(reply)) | _logprobs(body, scripted.pieces(reply.text))
            for number in range(count)
        ]
        return self._envelope(model, candidates) | {"usageMetadata": self._usage(reply, count)}

    def _chunks(self, body: Mapping[str, Any], model: str, reply: Reply, count: int) -> Iterator[Chunk]:
        usage = {"promptTokenCount": reply.input_tokens, "totalTokenCount": reply.input_tokens}
        parts: list[tuple[dict[str, Any], int]] = []
        if _shows_thoughts(body):
            parts += [({"text": piece, "thought": True}, 1) for piece in scripted.pieces(reply.reasoning)]
        parts += [({"text": piece}, 1) for piece in scripted.pieces(reply.text or reply.refusal)]
        for number in range(count):
            for part, tokens in parts:
                candidate = _candidate([part], number) | ({} if "thought" in part else _logprobs(body, [part["text"]]))
                yield Chunk(self._envelope(model, [candidate]) | {"usageMetadata": usage}, tokens)
        calls = self._calls(model, reply)
        for number in range(count):
            # Parallel calls come in one chunk; a last chunk of text holds an empty one.
            last: list[dict[str, Any]] = calls or [{"text": ""}]
            if not calls and reply.reasoning:
                last = [{"text": "", "thoughtSignature": _signature("text")}]
            final = self._envelope(model, [_candidate(last, number, _finish(reply))])
            rest = 0
            if number == count - 1:
                final["usageMetadata"] = self._usage(reply, count)
                rest = (reply.output_tokens - sum(tokens for _, tokens in parts)) * count  # calls, hidden thoughts
            yield Chunk(final, rest)

    def _calls(self, model: str, reply: Reply) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for number, call in enumerate(reply.tool_calls):
            inner: dict[str, Any] = {"name": call.name, "args": json.loads(call.arguments)}
            if self.flavour == "gemini":
                inner["id"] = call.id
            part: dict[str, Any] = {"functionCall": inner}
            if number == 0 and (reply.reasoning or "gemini-3" in model):
                part["thoughtSignature"] = _signature(call.name)
            parts.append(part)
        return parts

    def _usage(self, reply: Reply, count: int) -> dict[str, Any]:
        output = reply.output_tokens * count
        thought = reply.reasoning_tokens * count
        usage: dict[str, Any] = {
            "promptTokenCount": reply.input_tokens,
            "totalTokenCount": reply.input_tokens + output,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": reply.input_tokens}],
        }
        if output - thought:  # a zero is left out
            usage["candidatesTokenCount"] = output - thought
        if thought:
            usage["thoughtsTokenCount"] = thought
        if reply.cache_read_tokens:
            usage["cachedContentTokenCount"] = reply.cache_read_tokens
        if self.flavour == "vertex":
            usage["trafficType"] = "ON_DEMAND"
        return usage


def _candidate(parts: list[dict[str, Any]], index: int = 0, finish: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
    if finish is not None:
        found["finishReason"] = finish
    if index:
        found["index"] = index  # a zero is left out
    return found


def _logprobs(body: Mapping[str, Any], pieces: list[str]) -> dict[str, Any]:
    config = body.get("generationConfig") or {}
    if not config.get("responseLogprobs"):
        return {}
    chosen = [{"token": piece, "tokenId": 7, "logProbability": -0.25} for piece in pieces]
    tops = [
        {"candidates": [{"token": f"{piece}{n}", "tokenId": n, "logProbability": -1.5 - n} for n in range(rivals)]}
        for rivals in (int(config.get("logprobs") or 0),)
        for piece in pieces
    ]
    return {"logprobsResult": {"chosenCandidates": chosen, "topCandidates": tops}, "avgLogprobs": -0.25}


def _finish(reply: Reply) -> str:
    return {"length": "MAX_TOKENS", "content_filter": "SAFETY"}.get(reply.finish, "STOP")


def _shows_thoughts(body: Mapping[str, Any]) -> bool:
    thinking = (body.get("generationConfig") or {}).get("thinkingConfig") or {}
    return bool(thinking.get("includeThoughts"))


def _signature(name: str) -> str:
    return base64.b64encode(f"signature of {name}".encode()).decode()


def camel_keys(value: Any) -> Any:
    """Field names in camelCase, but inside what a client may name freely."""
    if isinstance(value, list):
        return [camel_keys(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    free = {"args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema"}
    named = {re.sub(r"_([a-z])", lambda m: m[1].upper(), key): inner for key, inner in value.items()}
    return {key: inner if key in free else camel_keys(inner) for key, inner in named.items()}


def prompt_of(body: Mapping[str, Any], model: str) -> Prompt:
    """What the scripted model is told of a request. Field names in camelCase."""
    texts: list[str] = []
    results: list[str] = []
    last_user, images, documents = "", 0, 0
    system = body.get("systemInstruction") or {}
    texts += [part["text"] for part in system.get("parts") or () if "text" in part]
    for content in body.get("contents") or ():
        parts = content.get("parts") or []
        text = " ".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
        images += sum((part.get("inlineData") or {}).get("mimeType", "").startswith("image/") for part in parts)
        held = [part.get("inlineData") or part.get("fileData") or {} for part in parts]
        documents += sum(each.get("mimeType") == "application/pdf" for each in held)
        texts.append(text)
        answered = [_said(part["functionResponse"]) for part in parts if "functionResponse" in part]
        if content.get("role") == "model":
            results = []
        elif answered:
            results += answered
        else:
            last_user, results = text, []
    tools = []
    for tool in body.get("tools") or ():
        for entry in tool.get("functionDeclarations") or ():
            schema = entry.get("parametersJsonSchema") or entry.get("parameters") or {}
            tools.append(Tool(entry["name"], schema))
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    allowed = calling.get("allowedFunctionNames") or []
    forced = (allowed[0] if allowed else "*") if calling.get("mode") == "ANY" else None
    config = body.get("generationConfig") or {}
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    thinking = config.get("thinkingConfig") or {}
    return Prompt(
        model=model,
        last_user=last_user,
        texts=tuple(texts),
        tools=tuple(tools),
        forced_tool=forced,
        tools_forbidden=calling.get("mode") == "NONE",
        tool_results=tuple(results),
        images=images,
        documents=documents,
        schema=schema,
        json_mode=config.get("responseMimeType") == "application/json" and schema is None,
        reasoning=thinking.get("thinkingBudget", 0) not in (0, None) or bool(thinking.get("thinkingLevel")),
        max_output_tokens=config.get("maxOutputTokens"),
        stop=tuple(config.get("stopSequences") or ()),
    )


def _said(response: Mapping[str, Any]) -> str:
    value = response.get("response") or {}
    return str(value["output"]) if set(value) == {"output"} else json.dumps(value)
