"""Bedrock as it looks on the wire: Converse, InvokeModel for Claude, both streamed, count-tokens, the control plane.

Requests are checked by botocore's validator against the official service model, signatures by botocore's signer; frames
are written here, since botocore has no encoder. From recorded streams: each payload has a padding member `p`, text
blocks come without a contentBlockStart, `metadata` is last. Source: botocore 1.44 service models, read 2026-11.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from tests.emulators import anthropic as claude
from tests.emulators import scripted
from tests.emulators.openai import vector
from tests.emulators.ranking import ranked
from tests.emulators.scripted import Prompt, Reply, Tool
from tests.emulators.server import Emulator, Out, Request, play_transport_fault

EVENT_STREAM = "application/vnd.amazon.eventstream"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "AKIDTEST", "secret-test-key"
MODELS = ("anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon.nova-pro-v1:0", "openai.gpt-oss-120b-1:0")
PROFILE_ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123def456"
PROFILES = (
    {"inferenceProfileId": f"us.{MODELS[0]}", "type": "SYSTEM_DEFINED", "status": "ACTIVE"},
    {"inferenceProfileId": "abc123def456", "inferenceProfileArn": PROFILE_ARN, "type": "APPLICATION"},
)
# The one guardrail of the account, and the word that it forbids.
GUARDRAIL, FORBIDDEN = "gr1", "forbidden"
BLOCKED = "Sorry, the guardrail says no."
STOP_REASON = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}
STATUS_ERRORS: Mapping[str, tuple[int, str]] = {
    "400": (400, "ValidationException"),
    "401": (403, "UnrecognizedClientException"),
    "402": (400, "ServiceQuotaExceededException"),
    "403": (403, "AccessDeniedException"),
    "404": (404, "ResourceNotFoundException"),
    "408": (408, "ModelTimeoutException"),
    "413": (413, "RequestEntityTooLargeException"),
    "422": (424, "ModelErrorException"),
    "429": (429, "ThrottlingException"),
    "429-retry-after": (429, "ThrottlingException"),
    "429-retry-after-ms": (429, "ThrottlingException"),
    "429-quota": (429, "ThrottlingException"),
    "498": (429, "ModelNotReadyException"),
    "500": (500, "InternalServerException"),
    "503": (503, "ServiceUnavailableException"),
    "529": (503, "ServiceUnavailableException"),
    "context": (400, "ValidationException"),
    "content-filter": (400, "ValidationException"),
    "tool-use-failed": (424, "ModelErrorException"),
}
RETRY_HEADERS: Mapping[str, Mapping[str, str]] = {
    "429-retry-after": {"retry-after": "7"},
    "429-retry-after-ms": {"x-amz-retry-after": "1500"},
}


@dataclass(frozen=True)
class Frame:
    """One frame of a stream and how many tokens it stands for."""

    data: bytes
    output_tokens: int = 0


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    block = b"".join(
        bytes((len(name),)) + name.encode() + b"\x07" + struct.pack(">H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    head = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    head += struct.pack(">I", zlib.crc32(head)) + block + payload
    return head + struct.pack(">I", zlib.crc32(head))


def event(name: str, payload: Mapping[str, Any]) -> bytes:
    body = json.dumps({**payload, "p": "abcdefghijklm"[: len(name)]}, ensure_ascii=False).encode()
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, body)


def exception(name: str, payload: Mapping[str, Any]) -> bytes:
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps(payload).encode())


class BedrockEmulator(Emulator):
    name = "bedrock"

    def __init__(self, *, api_key: str | None = None, service: str = "bedrock", **server: Any) -> None:
        """api_key: a bearer key to take beside signatures by the test keys. A presigned bearer is taken unverified."""
        super().__init__(**server)
        self.api_key = api_key
        self._service = service

    async def handle(self, request: Request, out: Out) -> None:
        if problem := self._unauthorised(request):
            await self._error(out, 403, "AccessDeniedException", problem)
            return
        if request.method == "GET":
            await self._control(request, out)
            return
        found = re.fullmatch(r"/model/([^/]+)/([a-z-]+)", request.raw_path)
        if found is None:
            await self._error(out, 404, "UnknownOperationException", "unknown path")
            return
        model = request.path.removeprefix("/model/").rsplit("/", 1)[0]
        match found[2]:
            case "converse" | "converse-stream" as verb:
                await self._converse(request, out, model, stream=verb == "converse-stream")
            case "invoke" | "invoke-with-response-stream" as verb:
                await self._invoke(request, out, model, stream=verb != "invoke")
            case "count-tokens":
                body = request.json()["input"]["converse"]
                await out.json(200, {"inputTokens": scripted.answer(prompt_of(body, model)).input_tokens})
            case _:
                await self._error(out, 404, "UnknownOperationException", "unknown operation")

    async def _embed(self, body: dict[str, Any], out: Out, model: str) -> None:
        if "titan" in model:
            if not {"inputText"} <= set(body) <= {"inputText", "dimensions", "normalize"}:
                await self._error(out, 400, "ValidationException", "Malformed input request: extraneous key")
                return
            tokens = scripted.count(body["inputText"])
            values = vector(body["inputText"], body.get("dimensions", 8))
            answer: dict[str, Any] = {"embedding": values, "inputTextTokenCount": tokens}
        elif "nova" in model:
            params = body.get("singleEmbeddingParams", {})
            whole = {"embeddingPurpose", "text"} <= set(params) <= {"embeddingPurpose", "text", "embeddingDimension"}
            if body.get("taskType") != "SINGLE_EMBEDDING" or not whole or "truncationMode" not in params["text"]:
                await self._error(out, 400, "ValidationException", "Malformed input request")
                return
            if params.get("embeddingDimension", 256) not in (256, 384, 1024, 3072):
                await self._error(out, 400, "ValidationException", "embeddingDimension is not a valid enum value")
                return
            tokens = scripted.count(params["text"]["value"])
            values = vector(params["text"]["value"], params.get("embeddingDimension", 8))
            answer = {"embeddings": [{"embeddingType": "TEXT", "embedding": values}]}
        else:
            if body.get("input_type") not in ("search_document", "search_query", "classification", "clustering"):
                await self._error(out, 400, "ValidationException", "input_type: required")
                return
            if len(body["texts"]) > 96:
                await self._error(out, 400, "ValidationException", "texts: at most 96")
                return
            tokens = sum(scripted.count(text) for text in body["texts"])
            found = [vector(text, body.get("output_dimension", 8)) for text in body["texts"]]
            by_type = {"embeddings": {"float": found}, "response_type": "embeddings_by_type"}
            plain = {"embeddings": found, "response_type": "embeddings_floats"}
            answer = {"id": "emb-1", "texts": body["texts"], **(by_type if "embedding_types" in body else plain)}
        self.stats.answers += 1
        self.stats.input_tokens += tokens
        await out.json(200, answer, {"x-amzn-bedrock-input-token-count": str(tokens)})

    async def _rerank(self, body: dict[str, Any], out: Out, model: str) -> None:
        """Cohere's model wants the version of its API in the body, Amazon's knows no such field."""
        wanted = {"query", "documents", "api_version"} if model.startswith("cohere.") else {"query", "documents"}
        if not wanted <= set(body) <= wanted | {"top_n", "max_tokens_per_doc"}:
            await self._error(out, 400, "ValidationException", "Malformed input request")
            return
        found = ranked(body["query"], body["documents"], body.get("top_n"))
        self.stats.answers += 1
        results = [{"index": at, "relevance_score": score} for at, score in found]
        await out.json(200, {"results": results}, {"x-amzn-bedrock-invocation-latency": "12"})

    def _unauthorised(self, request: Request) -> str | None:
        sent = request.headers.get("authorization", "")
        if sent.startswith("Bearer "):
            minted = sent.startswith(f"Bearer {self._service}-api-key-")
            return None if minted or sent == f"Bearer {self.api_key}" else "Invalid API Key format"
        return (
            None if sent == signature_of(request, self.url, self._service) else "The request signature does not match"
        )

    async def _control(self, request: Request, out: Out) -> None:
        if request.path == "/foundation-models":
            found = [{"modelId": name, "modelArn": f"arn:aws:bedrock:::{name}"} for name in MODELS]
            await out.json(200, {"modelSummaries": found})
        elif request.path == "/inference-profiles":
            # One a page, so that whoever reads only the first page shows.
            at = int(request.query.get("nextToken", "0"))
            more = {"nextToken": str(at + 1)} if at + 1 < len(PROFILES) else {}
            await out.json(200, {"inferenceProfileSummaries": [PROFILES[at]], **more})
        else:
            await self._error(out, 404, "UnknownOperationException", "unknown path")

    async def _converse(self, request: Request, out: Out, model: str, *, stream: bool) -> None:
        body = request.json()
        if problem := problem_of(body, model):
            await self._error(out, 400, "ValidationException", problem)
            return
        prompt = prompt_of(body, model)
        reply = self._answer(request, prompt)
        told: dict[str, Any] = {"serviceTier": body.get("serviceTier") or {"type": "default"}}
        if "performanceConfig" in body:
            told["performanceConfig"] = body["performanceConfig"]
        if (guardrail := body.get("guardrailConfig")) is not None:
            if guardrail["guardrailIdentifier"] != GUARDRAIL:
                await self._error(out, 404, "ResourceNotFoundException", "the guardrail does not exist")
                return
            struck = FORBIDDEN in " ".join(prompt.texts)
            reply = blocked(reply) if struck else reply
            if guardrail.get("trace", "disabled") != "disabled":
                told["trace"] = guardrail_trace(struck)
        frames = list(stream_frames(reply, told))
        whole = json.dumps({**whole_answer(reply), **told}, ensure_ascii=False).encode()
        await self._serve_reply(request, out, prompt, reply, whole, frames, stream)

    def _answer(self, request: Request, prompt: Prompt) -> Reply:
        fault = scripted.fault_of(prompt.model, request.headers, prompt)
        reply = self.cache.answer(prompt)
        return replace(reply, finish="brand_new") if fault and fault.name == "unknown-finish" else reply  # type: ignore[arg-type]

    async def _invoke(self, request: Request, out: Out, model: str, *, stream: bool) -> None:
        body = request.json()
        if "rerank" in model:
            await self._rerank(body, out, model)
            return
        if "embed" in model:
            await self._embed(body, out, model)
            return
        problem = claude.problem_of(body, in_cloud=True)
        if body.get("anthropic_version") != "bedrock-2023-05-31" or "stream" in body:
            problem = "anthropic_version: Field required"
        if problem:
            await self._error(out, 400, "ValidationException", problem)
            return
        prompt = claude.prompt_of(body, model)
        reply = self._answer(request, prompt)
        if (ident := request.headers.get("x-amzn-bedrock-guardrailidentifier")) is not None:
            if ident != GUARDRAIL or "x-amzn-bedrock-guardrailversion" not in request.headers:
                await self._error(out, 400, "ValidationException", "the guardrail identifier or version is invalid")
                return
            reply = blocked(reply) if FORBIDDEN in " ".join(prompt.texts) else reply
        fault = scripted.fault_of(prompt.model, request.headers, prompt)
        silent = fault is not None and fault.name == "no-usage"
        frames = []
        for found in claude.stream_events(model, reply):
            value = dict(found.value)
            if silent:
                value = claude.bare(value)
            elif value["type"] == "message_stop":
                value["amazon-bedrock-invocationMetrics"] = {
                    "inputTokenCount": reply.input_tokens,
                    "outputTokenCount": reply.output_tokens,
                    "invocationLatency": 12,
                    "firstByteLatency": 1,
                }
            inner = base64.b64encode(json.dumps(value, ensure_ascii=False).encode()).decode()
            frames.append(Frame(event("chunk", {"bytes": inner}), found.output_tokens))
        whole = json.dumps(claude.whole_message(model, reply), ensure_ascii=False).encode()
        await self._serve_reply(request, out, prompt, reply, whole, frames, stream)

    async def _serve_reply(
        self, request: Request, out: Out, prompt: Prompt, reply: Reply, whole: bytes, frames: list[Frame], stream: bool
    ) -> None:
        fault = self.playing(scripted.fault_of(prompt.model, request.headers, prompt))
        if fault is not None and fault in STATUS_ERRORS:
            status, kind = STATUS_ERRORS[fault]
            extra = {"originalStatusCode": 500, "resourceName": prompt.model} if status == 424 else {}
            await self._error(out, status, kind, message_of(fault), RETRY_HEADERS.get(fault), extra)
        elif fault == "200-error-body":
            await out.json(200, {"message": "upstream failed", "__type": "InternalServerException"})
        elif fault == "truncated-json":
            await out.whole(200, whole[: len(whole) // 2])
        elif stream and (twisted := twisted_frames(fault, frames)) is not None:
            await self._stream(out, reply, prompt.model, twisted)
        elif fault is not None and fault not in claude.STREAM_ONLY:
            self._count(reply, prompt.model, reply.output_tokens)
            media_type, slices = (EVENT_STREAM, [f.data for f in frames]) if stream else ("application/json", [whole])
            await play_transport_fault(fault, out, media_type, slices)
        elif stream:
            await self._stream(out, reply, prompt.model, frames)
        else:
            self._count(reply, prompt.model, reply.output_tokens)
            whole = claude.without_usage(whole) if fault == "no-usage" else whole
            await out.whole(200, whole, {"x-amzn-requestid": "req-test-1"})

    async def _stream(self, out: Out, reply: Reply, model: str, frames: list[Frame]) -> None:
        self._count(reply, model, 0)
        await out.start(200, EVENT_STREAM, {"x-amzn-requestid": "req-test-1"})
        for piece in frames:
            if reply.pace_ms:
                await out.pause(reply.pace_ms / 1000)
            self.stats.output_tokens += piece.output_tokens
            await out.chunk(piece.data)
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
        self,
        out: Out,
        status: int,
        kind: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.stats.errors += 1
        told = {"x-amzn-ErrorType": f"{kind}:http://internal.amazon.com/coral/com.amazon.bedrock/", **(headers or {})}
        await out.json(status, {"message": message, **(extra or {})}, told)


def signature_of(request: Request, url: str, service: str) -> str | None:
    """The Authorization header that botocore makes for this request with the test keys."""
    sent = request.headers.get("authorization", "")
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=[^/]+/\d+/([^/]+)/[^/]+/aws4_request, SignedHeaders=(\S+), .*", sent
    )
    if found is None:
        return None
    signer = SigV4Auth(Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY), service, found[1])
    query = "&".join(f"{name}={value}" for name, value in request.query.items())
    again = AWSRequest(
        method=request.method,
        url=url + request.raw_path + (f"?{query}" if query else ""),
        data=request.body,
        headers={name: request.headers[name] for name in found[2].split(";")},
    )
    again.context["timestamp"] = request.headers["x-amz-date"]
    signature = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
    return f"AWS4-HMAC-SHA256 Credential={signer.scope(again)}, SignedHeaders={found[2]}, Signature={signature}"


def message_of(fault: str) -> str:
    if fault == "context":
        return "The model returned the following errors: Input is too long for requested model: prompt is too long"
    return f"scripted: {scripted.FAULTS[fault]}"


def twisted_frames(fault: str | None, frames: list[Frame]) -> list[Frame] | None:
    """The frames as this fault bends them; None when it is not of this kind."""
    half = len(frames) // 2
    match fault:
        case "no-usage":
            return [piece for piece in frames if b":event-type\x07\x00\x08metadata" not in piece.data]
        case "unknown-event":
            return [*frames[:half], Frame(event("brandNewEvent", {"news": {}})), *frames[half:]]
        case "no-end":
            return frames[: len(frames) - 3]
        case "bad-frame":
            torn = bytearray(frames[half].data)
            torn[-6] ^= 0xFF  # inside the payload: the checksum no longer matches
            return [*frames[:half], Frame(bytes(torn)), *frames[half + 1 :]]
        case "stream-error":
            return [
                *frames[:half],
                Frame(exception("throttlingException", {"message": "Too many tokens, please wait"})),
            ]
        case "huge-chunk":
            big = {"delta": {"text": "x" * (2 * 1024 * 1024)}, "contentBlockIndex": 0}
            return [frames[0], Frame(event("contentBlockDelta", big), 1), *frames[1:]]
        case _:
            return None


@cache
def service_model(name: str = "bedrock-runtime") -> ServiceModel:
    return ServiceModel(Loader().load_service_model(name, "service-2"))


def problem_of(body: Mapping[str, Any], model: str) -> str | None:
    """What Bedrock refuses: the service model's own rules, and those that a translation breaks most easily."""
    shape = service_model().operation_model("Converse").input_shape
    report = ParamValidator().validate({**body, "modelId": model}, shape)
    if report.has_errors():
        return str(report.generate_report())
    messages = body.get("messages") or []
    called = declared = False
    for number, message in enumerate(messages):
        # Source: ConversationRole of botocore 1.44 has "system" too, which stands between the turns and is none.
        before = messages[number - 1]["role"] if number else "assistant"
        if message["role"] == before:
            return "A conversation must alternate between user and assistant roles."
        if not message["content"]:
            return f"The content field in the Message object at messages.{number} is empty."
        for block in message["content"]:
            if block.get("text") == "":
                return f"The text field in the ContentBlock object at messages.{number} is blank."
            if use := block.get("toolUse"):
                called = True
                if not re.fullmatch(r"[a-zA-Z0-9_.:-]{1,64}", use["toolUseId"]):
                    return f"Value at 'toolUseId' failed to satisfy constraint: {use['toolUseId']}"
                if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", use["name"]):
                    return f"Value at 'toolUse.name' failed to satisfy constraint: {use['name']}"
    for tool in (body.get("toolConfig") or {}).get("tools") or ():
        declared = True
        if "toolSpec" in tool and not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["toolSpec"]["name"]):
            return "Value at 'toolSpec.name' failed to satisfy constraint"
        if "toolSpec" in tool and tool["toolSpec"]["inputSchema"]["json"].get("type") != "object":
            return "The value at toolConfig.tools.0.toolSpec.inputSchema.json.type must be one of: object."
    if called and not declared:
        return "The toolConfig field must be defined when using toolUse and toolResult content blocks."
    temperature = (body.get("inferenceConfig") or {}).get("temperature", 0)
    return "temperature must be at most 1" if temperature > 1 else None


def _text_of(blocks: Any) -> str:
    return " ".join(block["text"] for block in blocks or () if "text" in block)


def prompt_of(body: Mapping[str, Any], model: str) -> Prompt:
    """What the scripted model is told of a Converse request."""
    texts = [_text_of(body["system"])] if body.get("system") else []
    marks = [1] if any("cachePoint" in block for block in body.get("system") or ()) else []
    results: list[str] = []
    last_user = ""
    images = documents = 0
    for message in body["messages"]:
        text = _text_of(message["content"])
        texts.append(text)
        if any("cachePoint" in block for block in message["content"]):
            marks.append(len(texts))
        images += sum("image" in block for block in message["content"])
        documents += sum("document" in block for block in message["content"])
        if message["role"] == "user":
            found = [block["toolResult"] for block in message["content"] if "toolResult" in block]
            results = [_text_of(result["content"]) for result in found]
            texts += results
            last_user = text or last_user
        elif message["role"] == "assistant":
            results = []
    config = body.get("toolConfig") or {}
    specs = [tool["toolSpec"] for tool in config.get("tools") or () if "toolSpec" in tool]
    choice = config.get("toolChoice") or {}
    inference = body.get("inferenceConfig") or {}
    extra = body.get("additionalModelRequestFields") or {}
    schema = ((body.get("outputConfig") or {}).get("textFormat") or {}).get("structure", {}).get("jsonSchema")
    return Prompt(
        model=model,
        last_user=last_user,
        texts=tuple(texts),
        tools=tuple(Tool(spec["name"], spec["inputSchema"]["json"]) for spec in specs),
        forced_tool="*" if "any" in choice else (choice.get("tool") or {}).get("name"),
        tool_results=tuple(results),
        images=images,
        documents=documents,
        schema=json.loads(schema["schema"]) if schema else None,
        reasoning="reasoning_effort" in extra
        or extra.get("thinking", {}).get("type") in ("enabled", "adaptive")
        or extra.get("reasoningConfig", {}).get("type") == "enabled"
        or ("effort" in (body.get("outputConfig") or {}) and "claude" not in model),
        max_output_tokens=inference.get("maxTokens"),
        stop=tuple(inference.get("stopSequences") or ()),
        cache_marks=tuple(marks),
    )


def usage_of(reply: Reply) -> dict[str, Any]:
    read, written = reply.cache_read_tokens, reply.cache_write_tokens
    usage: dict[str, Any] = {
        "inputTokens": reply.input_tokens - read - written,
        "outputTokens": reply.output_tokens,
        "totalTokens": reply.input_tokens + reply.output_tokens,
        "cacheReadInputTokens": read,
        "cacheWriteInputTokens": written,
        "cacheReadInputTokenCount": read,  # as recorded: twice, under two names
        "cacheWriteInputTokenCount": written,
        "serverToolUsage": {},
    }
    if written:
        split = {"5m": written - written // 2, "1h": written // 2}
        usage["cacheDetails"] = [{"ttl": ttl, "inputTokens": count} for ttl, count in split.items()]
    return usage


def _stop_of(reply: Reply) -> str:
    return "stop_sequence" if reply.stop_sequence is not None else STOP_REASON.get(reply.finish, reply.finish)


def whole_answer(reply: Reply) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        text = {"text": reply.reasoning, "signature": claude.SIGNATURE}
        content.append({"reasoningContent": {"reasoningText": text}})
    if reply.text or reply.refusal:
        content.append({"text": reply.text or reply.refusal})
    for call in reply.tool_calls:
        use = {"toolUseId": f"tooluse_{call.id}", "name": call.name, "input": json.loads(call.arguments)}
        content.append({"toolUse": use})
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": _stop_of(reply),
        "usage": usage_of(reply),
        "metrics": {"latencyMs": 12},
    }


def blocked(reply: Reply) -> Reply:
    """As a guardrail leaves it: its own words, and nothing of the model's."""
    finish: Any = "guardrail_intervened"
    tokens = scripted.count(BLOCKED)
    return replace(reply, text=BLOCKED, reasoning="", tool_calls=(), finish=finish, output_tokens=tokens)


def guardrail_trace(struck: bool) -> dict[str, Any]:
    topics = [{"name": "secrets", "type": "DENY", "action": "BLOCKED"}] if struck else []
    return {"guardrail": {"inputAssessment": {GUARDRAIL: {"topicPolicy": {"topics": topics}}}}}


def stream_frames(reply: Reply, told: Mapping[str, Any]) -> Iterator[Frame]:
    yield Frame(event("messageStart", {"role": "assistant"}))
    for index, (start, deltas) in enumerate(_blocks(reply)):
        if start is not None:
            yield Frame(event("contentBlockStart", {"start": start, "contentBlockIndex": index}))
        for delta, tokens in deltas:
            yield Frame(event("contentBlockDelta", {"delta": delta, "contentBlockIndex": index}), tokens)
        yield Frame(event("contentBlockStop", {"contentBlockIndex": index}))
    yield Frame(event("messageStop", {"stopReason": _stop_of(reply)}))
    yield Frame(event("metadata", {"usage": usage_of(reply), "metrics": {"latencyMs": 12}, **told}))


Deltas = list[tuple[dict[str, Any], int]]


def _blocks(reply: Reply) -> Iterator[tuple[dict[str, Any] | None, Deltas]]:
    if reply.reasoning:
        deltas: Deltas = [({"reasoningContent": {"text": piece}}, 1) for piece in scripted.pieces(reply.reasoning)]
        yield None, [*deltas, ({"reasoningContent": {"signature": claude.SIGNATURE}}, 0)]
    if text := reply.text or reply.refusal:
        yield None, [({"text": piece}, 1) for piece in scripted.pieces(text)]
    for call in reply.tool_calls:
        start = {"toolUse": {"toolUseId": f"tooluse_{call.id}", "name": call.name}}
        if call.arguments == "{}":
            yield start, []
            continue
        pieces: Deltas = [({"toolUse": {"input": piece}}, 1) for piece in scripted.pieces(call.arguments)]
        yield start, [({"toolUse": {"input": ""}}, 4), *pieces]
