"""Vertex AI: Gemini by generateContent, Claude by rawPredict, everyone else's models by the OpenAI-compatible endpoint.

The model's name tells which: `gemini-...`, `google/...` and a tuned `endpoints/123`; `claude-...` and `anthropic/...`;
any other `publisher/model` (`meta/llama-4-maverick-17b-128e-instruct-maas`).
Source: Vertex AI v1 discovery rev. 20260509, anthropic-python 2.12 lib/vertex, openai-python 3.54 providers/vertex,
read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from msgspec.structs import replace

from providers.auth.bearer import header
from providers.auth.google import google_token
from providers.base import (
    Call,
    Capabilities,
    DialectProvider,
    EmbeddingAnswer,
    EmbeddingCall,
    Endpoint,
    Operation,
    UpstreamAnswer,
    each_at_once,
    read_whole,
)
from providers.dialects import gemini, load, vertex_predict
from providers.dialects.base import Dialect
from providers.dialects.gemini import embeddings, forwarding
from providers.errors import Unsupported
from providers.neutral import ChatRequest, EmbeddingResponse, FilePart
from providers.neutral.content import is_document
from providers.transport.base import HttpRequest, Timeouts, Transport
from providers.wire import jsonio

Surface = Literal["gemini", "claude", "openai"]

_LOCATION = re.compile(r"[a-z0-9-]+")
_TIER_HEADERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "flex": (("x-vertex-ai-llm-shared-request-type", "flex"),),
    "priority": (("x-vertex-ai-llm-shared-request-type", "priority"),),
    "provisioned": (("x-vertex-ai-llm-request-type", "dedicated"),),
}


class Vertex(DialectProvider):
    """Options: `project`, `location` (or the endpoint's region; "global" by default), `api_version` (v1).

    Credential: see `providers.auth.google`; or `api_key` for express mode: no project, and Gemini alone.
    """

    name = "vertex"
    lists_models = False
    capabilities = Capabilities(operations=frozenset({"chat", "embeddings"}))
    dialects: ClassVar[Mapping[Operation, Dialect]] = {"chat": gemini.DIALECT}
    model_in_body = False

    def __init__(self, endpoint: Endpoint, transport: Transport, timeouts: Timeouts | None = None) -> None:
        super().__init__(endpoint, transport, timeouts)
        self._express = "api_key" in endpoint.credential.fields
        self._project = str(endpoint.options.get("project") or "")
        if not self._project and not self._express:
            raise ValueError("vertex: the option `project` is missing")
        self._token = None if self._express else google_token(endpoint.credential)

    def base_url_of(self, endpoint: Endpoint) -> str | None:
        return endpoint.base_url or _host(_location(endpoint))

    def dialect_for(self, call: Call, model: str) -> Dialect:
        if call.operation != "chat":
            raise Unsupported((call.operation,), self.name)
        match self._surface(model):
            case "claude":
                return _claude(call)
            case "openai":
                if _holds_documents(call.request):
                    raise Unsupported(("file_input",), self.name)
                return load("openai_chat")
        return gemini.DIALECT

    def path(self, call: Call, model: str) -> str:
        stream = call.request.stream
        match self._surface(model):
            case "openai":
                return f"{self._root}/endpoints/openapi/chat/completions"
            case "claude":
                resource = f"publishers/anthropic/models/{quote(_bare(model), safe='@')}"
                return f"{self._root}/{resource}:{'streamRawPredict' if stream else 'rawPredict'}"
        if model.startswith("endpoints/"):
            return f"{self._root}/endpoints/{quote(_bare(model), safe='')}:{forwarding.verb(stream)}"
        root = f"/{self._version}" if self._express else self._root
        return f"{root}/publishers/google/models/{quote(_bare(model), safe='')}:{forwarding.verb(stream)}"

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        surface = self._surface(model)
        if (
            surface == "gemini"
            and call.dialect == "gemini"
            and forwarding.must_be_encoded(call.body, call.request, model)
        ) or (surface == "claude" and call.dialect == "anthropic_messages" and _has_foreign_seals(call.request)):
            call = replace(call, body=b"")
        return await super().send(call, model)

    async def embed(self, call: EmbeddingCall, model: str) -> EmbeddingAnswer:
        """See `providers.base.Embedder`. The newer models take one text by embedContent, the older ones many by
        predict, as google-genai tells them apart."""
        root = f"/{self._version}" if self._express else self._root
        place = f"{root}/publishers/google/models/{quote(_bare(model), safe='')}"
        if not ("gemini" in model or "maas" in model):
            encoded = vertex_predict.encode_request(call.request, strict=call.strict)
            response = await self.exchange(
                "POST", f"{place}:predict", jsonio.encode(encoded.body), None, gemini.DIALECT
            )
            return EmbeddingAnswer(vertex_predict.decode_response(await read_whole(response)), encoded.dropped)
        batch = embeddings.BATCH.encode_request(call.request, model=_bare(model), strict=call.strict)

        async def ask(one: dict[str, Any]) -> EmbeddingResponse:
            settings = {key: value for key, value in one.items() if key not in ("model", "content")}
            body = {"content": one["content"], **({"embedContentConfig": settings} if settings else {})}
            response = await self.exchange("POST", f"{place}:embedContent", jsonio.encode(body), None, gemini.DIALECT)
            return embeddings.ONE.decode_response(await read_whole(response))

        return EmbeddingAnswer(await each_at_once(batch.body["requests"], ask), batch.dropped)

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        match self._surface(model):
            case "claude":
                body = {key: value for key, value in body.items() if key != "model"}
                body.setdefault("anthropic_version", "vertex-2023-10-16")
                return body if call.output_limit is None else {**body, "max_tokens": call.output_limit}
            case "openai":
                return _openai_body(body, call, model)
        # What the Gemini API says in the body is a header here, and a field that Vertex does not know is an error.
        body = {key: value for key, value in body.items() if key not in ("serviceTier", "service_tier", "store")}
        return forwarding.with_output_limit(forwarding.without_ids(body), call.output_limit)

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        return _TIER_HEADERS.get(call.request.service_tier or "", ())

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        if self._token is None:
            return replace(request, headers=request.headers + header(self.endpoint.credential, "x-goog-api-key"))
        bearer = ("authorization", f"Bearer {await self._token.get()}")
        return replace(request, headers=(*request.headers, bearer))

    async def aclose(self) -> None:
        if self._token is not None:
            await self._token.aclose()

    def _surface(self, model: str) -> Surface:
        publisher, _, name = model.rpartition("/")
        if publisher.endswith("anthropic") or (not publisher and name.startswith("claude")):
            surface: Surface = "claude"
        elif not publisher or publisher.endswith("google") or publisher == "endpoints":
            surface = "gemini"
        else:
            surface = "openai"
        if self._express and surface != "gemini":
            raise Unsupported((f"{model} with an API key",), self.name)
        return surface

    @property
    def _version(self) -> str:
        return str(self.endpoint.options.get("api_version", "v1"))

    @property
    def _root(self) -> str:
        location = _location(self.endpoint)
        return f"/{self._version}/projects/{quote(self._project, safe=':')}/locations/{location}"


def _bare(model: str) -> str:
    return model.rpartition("/")[2]


def _location(endpoint: Endpoint) -> str:
    """Raises: ValueError for a location that would change the host's name."""
    location = str(endpoint.options.get("location") or endpoint.region or "global")
    if not _LOCATION.fullmatch(location):
        raise ValueError(f"vertex: {location!r} is no location")
    return location


def _host(location: str) -> str:
    """The global endpoint, the two multi-regions, or a region's own."""
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


def _openai_body(body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
    body = {key: value for key, value in body.items() if key not in ("max_tokens", "max_completion_tokens")}
    if call.request.max_output_tokens is not None:
        body["max_tokens"] = call.request.max_output_tokens
    if call.request.stream:
        options = jsonio.plain(body.get("stream_options")) or {}
        body["stream_options"] = {**options, "include_usage": True}
    return {**body, "model": model}


def _has_foreign_seals(request: ChatRequest) -> bool:
    """Imported on use: most deployments on Vertex are Gemini."""
    from providers.dialects.anthropic_messages import carries_foreign_seals

    return carries_foreign_seals(request)


def _claude(call: Call) -> Dialect:
    """Imported on use, as above."""
    from providers.dialects.anthropic_messages import AnthropicMessages

    return AnthropicMessages(call.request.model)


def _holds_documents(request: ChatRequest) -> bool:
    """The open models there are asked in the OpenAI dialect, and read none."""
    return any(isinstance(part, FilePart) and is_document(part) for m in request.messages for part in m.content)
