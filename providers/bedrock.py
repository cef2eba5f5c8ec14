"""AWS Bedrock: Converse for every model, and Claude's own Messages (InvokeModel) for clients that speak it.

Source: Bedrock user guide, botocore 1.44 `bedrock-runtime` and `bedrock` models, anthropic-python 2.12 `lib/bedrock`,
read 2026-11. Recorded streams: a chunk's payload is `{"bytes": base64(the model's own event)}`, and the last event also
carries `amazon-bedrock-invocationMetrics`.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from providers.auth.aws import Signer, guardrail_headers, host, region_of
from providers.base import (
    Call,
    Capabilities,
    DialectProvider,
    EmbeddingAnswer,
    EmbeddingCall,
    Endpoint,
    Operation,
    RerankAnswer,
    RerankCall,
    UpstreamAnswer,
    each_at_once,
    read_whole,
)
from providers.dialects import anthropic_messages, base, bedrock_converse, bedrock_embeddings, rerank
from providers.dialects.anthropic_messages import AnthropicMessages
from providers.dialects.bedrock_converse import BedrockConverse
from providers.dialects.bedrock_converse.errors import of_exception
from providers.dialects.claude import is_claude
from providers.dialects.peeled import PeeledDecoder, PeeledTap
from providers.errors import Broken, ProviderError, Unsupported, WireError
from providers.neutral import EmbeddingResponse, Usage
from providers.transport.base import HttpRequest, HttpResponse, Timeouts, Transport
from providers.wire import jsonio, sse
from providers.wire.eventstream import EventStreamDecoder

T = TypeVar("T")

BEDROCK_VERSION = "bedrock-2023-05-31"
_METRICS = "amazon-bedrock-invocationMetrics"
_TIERS = ("priority", "flex", "reserved")
_EMBEDDERS: Mapping[str, bedrock_embeddings.Titan] = {
    "cohere.embed": bedrock_embeddings.COHERE,
    "titan-embed-text": bedrock_embeddings.TITAN,
    "multimodal-embeddings": bedrock_embeddings.NOVA,
}
_MAX_PAGES = 50
_MAX_LIST_BYTES = 8 * 1024 * 1024


class MessagesOverBedrock(AnthropicMessages):
    """Claude's own dialect in AWS's envelope: event-stream frames round each event, AWS's errors round the rest."""

    stream_media_type = "application/vnd.amazon.eventstream"

    def event_decoder(self) -> base.EventDecoder:
        return PeeledDecoder(_ChunkPeel(), super().event_decoder())

    def tap(self, request_included_usage: bool) -> base.Tap:
        return PeeledTap(_ChunkPeel(), super().tap(request_included_usage))

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return bedrock_converse.DIALECT.decode_error(status, headers, body)


NATIVE = MessagesOverBedrock()


class Bedrock(DialectProvider):
    """credential: `access_key_id` and `secret_access_key` (and `session_token`), or `api_key` (a Bedrock API key), or
    nothing: then botocore's own chain finds keys.

    options: `auth` "minted" signs a short-term API key in place of each request; `profile` for botocore's chain;
    `role_arn` (and `external_id`) is a role to assume with the keys;
    `guardrail` {"id", "version", "trace"}, `service_tier` and `latency` for every request of this endpoint; `profiles`
    says which model an inference profile (or provisioned throughput) of one's own stands for: its ARN does not."""

    name = "bedrock"
    capabilities = Capabilities(
        operations=frozenset({"chat", "embeddings", "rerank"}), logprobs=False, candidates=False
    )
    dialects: ClassVar[Mapping[Operation, base.Dialect]] = {"chat": bedrock_converse.DIALECT}
    model_in_body = False
    heeds = "x-amzn-bedrock-"

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(endpoint, transport, timeouts)
        self._profiles: Mapping[str, str] = endpoint.options.get("profiles") or {}
        self.region = region_of(endpoint)
        self._signer = Signer(endpoint, service="bedrock", region=self.region, clock=clock)

    def base_url_of(self, endpoint: Endpoint) -> str | None:
        return endpoint.base_url or host("bedrock-runtime", region_of(endpoint))

    def known_as(self, model: str) -> str:
        return self._profiles.get(model, model)

    def dialect_for(self, call: Call, model: str) -> base.Dialect:
        if self._is_native(call, model):
            return MessagesOverBedrock(call.request.model)
        super().dialect_for(call, model)
        return BedrockConverse(call.request_id, model)

    def path(self, call: Call, model: str) -> str:
        stream = call.request.stream
        if self._is_native(call, model):
            verb = "invoke-with-response-stream" if stream else "invoke"
        else:
            verb = "converse-stream" if stream else "converse"
        return f"/model/{quote(model, safe='')}/{verb}"

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        reasoning = call.request.reasoning
        shrunk = call.output_limit is not None and reasoning is not None and reasoning.budget_tokens is not None
        if shrunk or (call.dialect == NATIVE.name and anthropic_messages.carries_foreign_seals(call.request)):
            call = replace(call, body=b"")  # its bytes cannot go on as they are: the neutral request is encoded
        answer = await super().send(call, model)
        if (ident := answer.headers.get("x-amzn-requestid")) and answer.dialect.name != NATIVE.name:
            answer.dialect = BedrockConverse(ident, model)
        return answer

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        if self._is_native(call, model):
            return _native_body(body, call)
        if call.output_limit is not None:
            config = dict(jsonio.plain(body.get("inferenceConfig")) or {})
            body["inferenceConfig"] = config | {"maxTokens": call.output_limit}
        for name, value in _in_converse(dict(call.forward_headers)).items():
            body.setdefault(name, value)
        options = self.endpoint.options
        if guardrail := options.get("guardrail"):
            # The operator's, so it wins over what a client may have sent.
            config = {"guardrailIdentifier": guardrail["id"], "guardrailVersion": str(guardrail["version"])}
            body["guardrailConfig"] = config | ({"trace": guardrail["trace"]} if "trace" in guardrail else {})
        if tier := options.get("service_tier"):
            body.setdefault("serviceTier", {"type": tier})
        if latency := options.get("latency"):
            body.setdefault("performanceConfig", {"latency": latency})
        return body

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes,
        call: Call | None,
        dialect: base.Dialect | None,
        content_type: str = "application/json",
    ) -> HttpResponse:
        """InvokeModel takes as headers what Converse takes in its body; the operator's come in `authorize`."""
        if call is not None:
            ours = {name for name, _ in self._option_headers(path)}
            told = list(call.forward_headers)
            if (tier := call.request.service_tier) in _TIERS:
                told.append(("x-amzn-bedrock-service-tier", str(tier)))
            kept = tuple(header for header in told if "/invoke" in path and header[0] not in ours)
            call = replace(call, forward_headers=kept)
        return await super().exchange(method, path, body, call, dialect, content_type)

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        return await self._signer.signed(replace(request, headers=request.headers + self._option_headers(request.url)))

    async def count_tokens(self, call: Call, model: str) -> int:
        """See `providers.base.TokenCounter`."""
        body = bedrock_converse.encode_count_request(call.request, model=model, strict=call.strict).body
        path = f"/model/{quote(model, safe='')}/count-tokens"
        response = await self.exchange("POST", path, jsonio.encode(body), call, bedrock_converse.DIALECT)
        return bedrock_converse.decode_token_count(await read_whole(response))

    async def apply_guardrail(
        self, ident: str, version: str, source: Literal["INPUT", "OUTPUT"], texts: Sequence[str]
    ) -> bytes:
        """ApplyGuardrail: AWS's own guardrail on texts that need not go to a model. Raises: a ProviderError kind."""
        path = f"/guardrail/{quote(ident, safe='')}/version/{quote(version, safe='')}/apply"
        body = {"source": source, "content": [{"text": {"text": text}} for text in texts]}
        return await read_whole(await self.exchange("POST", path, jsonio.encode(body), None, bedrock_converse.DIALECT))

    async def rerank(self, call: RerankCall, model: str) -> RerankAnswer:
        """See `providers.base.Reranker`. InvokeModel of cohere.rerank-* or amazon.rerank-*, on the host of the chats;
        AWS bills each hundred documents of a query, and its answer does not say so."""
        encoded = rerank.DIALECT.encode_request(call.request, model=model, flavour="bedrock", strict=call.strict)
        body = {**encoded.body, "api_version": 2} if "cohere" in self.known_as(model) else encoded.body
        response = await self._invoke(model, body)
        found = rerank.DIALECT.decode_response(await read_whole(response), call.request)
        return RerankAnswer(replace(found, search_units=-(-len(call.request.documents) // 100)), encoded.dropped)

    async def embed(self, call: EmbeddingCall, model: str) -> EmbeddingAnswer:
        """See `providers.base.Embedder`. By InvokeModel: Titan and Nova one text at a time, Cohere up to 96."""
        known = self.known_as(model)
        dialect = next((found for mark, found in _EMBEDDERS.items() if mark in known), None)
        if dialect is None:
            raise Unsupported((f"embeddings of {known}",), self.name)
        is_cohere = dialect is bedrock_embeddings.COHERE
        texts, size = call.request.input, bedrock_embeddings.COHERE_TEXTS_MAX if is_cohere else 1
        parts = [replace(call.request, input=texts[at : at + size]) for at in range(0, len(texts), size)]
        bodies = [dialect.encode_request(part, model=model, strict=call.strict) for part in parts]

        async def ask(encoded: base.Encoded) -> EmbeddingResponse:
            response = await self._invoke(model, encoded.body)
            found = dialect.decode_response(await read_whole(response))
            told = response.headers.get(bedrock_embeddings.TOKENS_HEADER, "")
            return replace(found, usage=Usage(input_tokens=int(told))) if told.isdigit() else found

        return EmbeddingAnswer(await each_at_once(bodies, ask), bodies[0].dropped)

    async def _invoke(self, model: str, body: dict[str, Any]) -> HttpResponse:
        path = f"/model/{quote(model, safe='')}/invoke"
        return await self.exchange("POST", path, jsonio.encode(body), None, bedrock_converse.DIALECT)

    async def models(self) -> tuple[str, ...]:
        """Foundation models that answer in text and on demand, and the inference profiles."""
        found = await self._list("/foundation-models?byOutputModality=TEXT", _FoundationModels)
        profiles: list[str] = []
        path = "/inference-profiles?maxResults=1000"
        for _ in range(_MAX_PAGES):
            page = await self._list(path, _InferenceProfiles)
            profiles += (profile.called for profile in page.inferenceProfileSummaries)
            if page.nextToken is None:
                break
            path = f"/inference-profiles?maxResults=1000&nextToken={quote(page.nextToken, safe='')}"
        return (*(model.modelId for model in found.modelSummaries), *profiles)

    async def aclose(self) -> None:
        await self._signer.aclose()

    def _is_native(self, call: Call, model: str) -> bool:
        return call.operation == "chat" and call.dialect == NATIVE.name and is_claude(self.known_as(model))

    def _option_headers(self, url: str) -> tuple[tuple[str, str], ...]:
        """InvokeModel takes as headers what Converse takes in its body."""
        if "/invoke" not in url:
            return ()
        options = self.endpoint.options
        wanted = (
            ("x-amzn-bedrock-service-tier", options.get("service_tier")),
            ("x-amzn-bedrock-performanceconfig-latency", options.get("latency")),
        )
        return guardrail_headers(options) + tuple((name, str(value)) for name, value in wanted if value)

    async def _list(self, path: str, kind: type[T]) -> T:
        """From the control plane, which is a host of its own unless a base URL was configured."""
        origin = self.endpoint.base_url or host("bedrock", self.region)
        request = await self.authorize(HttpRequest("GET", origin.rstrip("/") + path))
        response = await self._transport.send(request, self.timeouts)
        try:
            body = await response.read(_MAX_LIST_BYTES)
        finally:
            await response.aclose()
        if response.status != 200:
            raise bedrock_converse.DIALECT.decode_error(response.status, response.headers, body)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise Broken(f"{self.name}: {path} is not a list: {error}") from error


def _native_body(body: dict[str, Any], call: Call) -> dict[str, Any]:
    """Messages as InvokeModel takes them: model and streaming are in the path, version and betas in the body."""
    for name in ("model", "stream", "service_tier"):
        body.pop(name, None)
    body.setdefault("anthropic_version", BEDROCK_VERSION)
    betas = [b.strip() for n, v in call.forward_headers if n == "anthropic-beta" for b in v.split(",") if b.strip()]
    if betas:
        body.setdefault("anthropic_beta", betas)
    if call.output_limit is not None:
        body["max_tokens"] = call.output_limit
    return body


def _in_converse(headers: Mapping[str, str]) -> dict[str, Any]:
    """What a client of InvokeModel asked for in headers, where Converse says it. Raises: BadRequest."""
    said: dict[str, Any] = {}
    if ident := headers.get("x-amzn-bedrock-guardrailidentifier"):
        version = headers.get("x-amzn-bedrock-guardrailversion", "DRAFT")
        said["guardrailConfig"] = {"guardrailIdentifier": ident, "guardrailVersion": version}
        if trace := headers.get("x-amzn-bedrock-trace"):
            said["guardrailConfig"]["trace"] = trace.lower()
    if latency := headers.get("x-amzn-bedrock-performanceconfig-latency"):
        said["performanceConfig"] = {"latency": latency}
    if metadata := headers.get("x-amzn-bedrock-request-metadata"):
        said["requestMetadata"] = jsonio.split_object(metadata.encode())
    return said


class _Chunk(msgspec.Struct):
    bytes: str


_chunk = msgspec.json.Decoder(_Chunk)


class _ChunkPeel:
    """See `providers.dialects.peeled.Peel`: `chunk` frames to the SSE that Anthropic itself would send."""

    def __init__(self) -> None:
        self._frames = EventStreamDecoder()

    @property
    def pending(self) -> int:
        return self._frames.pending

    def feed(self, data: bytes) -> Iterator[bytes]:
        for frame in self._frames.feed(data):
            if frame.message_type != "event":
                raise of_exception(frame.event_type, frame.payload)
            if frame.event_type == "chunk":
                yield _as_sse(frame.payload)


def _as_sse(payload: bytes) -> bytes:
    try:
        data = base64.b64decode(_chunk.decode(payload).bytes, validate=True)
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(members["type"], type=str)
    except (msgspec.MsgspecError, binascii.Error, UnicodeDecodeError, KeyError) as error:
        raise WireError(f"a chunk that holds no Messages event: {error}", body=payload[:4096]) from error
    if members.pop(_METRICS, None) is not None:
        data = jsonio.joined(members)  # for AWS's own clients; Anthropic's would not know it
    return sse.encode(data, name)


class _FoundationModel(msgspec.Struct):
    modelId: str  # noqa: N815 - the wire's own name, as below


class _FoundationModels(msgspec.Struct):
    modelSummaries: list[_FoundationModel]  # noqa: N815


class _InferenceProfile(msgspec.Struct):
    inferenceProfileId: str  # noqa: N815
    inferenceProfileArn: str = ""  # noqa: N815
    type: str = ""

    @property
    def called(self) -> str:
        """One of the account's own is asked for by its ARN alone."""
        return self.inferenceProfileArn if self.type == "APPLICATION" else self.inferenceProfileId


class _InferenceProfiles(msgspec.Struct):
    inferenceProfileSummaries: list[_InferenceProfile]  # noqa: N815
    nextToken: str | None = None  # noqa: N815
