"""Any host of the OpenAI dialect at a base URL of the operator's: vLLM, SGLang, TGI, Ollama, llama.cpp, and gateways.

Such engines mostly accept fields they do not know, so a client's extras are kept. `base_url` includes the version
(".../v1"), as every client of these engines is told to write it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar

import msgspec

from providers.auth.bearer import bearer
from providers.base import (
    Call,
    Capabilities,
    DialectProvider,
    EmbeddingAnswer,
    EmbeddingCall,
    Endpoint,
    MediaCall,
    Operation,
    RerankAnswer,
    RerankCall,
    UpstreamAnswer,
    read_whole,
)
from providers.dialects import load, openai_chat, openai_completions, openai_embeddings, openai_media, rerank
from providers.dialects.base import Dialect
from providers.dialects.rerank import Flavour
from providers.errors import Broken, Unsupported
from providers.transport.base import HttpRequest, HttpResponse, Timeouts, Transport
from providers.wire import jsonio

PATHS: Mapping[Operation, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "rerank": "/rerank",
    **{operation: openai_media.PATHS[operation] for operation in openai_media.OPERATIONS},
}


class OpenAILike(DialectProvider):
    """Hosts of the family subclass this one; they differ in what they refuse and where they live."""

    name = "openai_like"
    capabilities = Capabilities(operations=frozenset(PATHS), file_input=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = {
        "chat": openai_chat.DIALECT,
        "completions": openai_completions.DIALECT,
    }
    output_limit: ClassVar[str] = "max_tokens"
    """The field that bounds a chat's output. Engines took `max_completion_tokens` up at different times; all of them
    know the older name, which legacy completions know alone."""
    serves_responses: ClassVar[bool] = False
    """Whether /responses is there too. Engines have it in parts, so their operator says so: `responses: true` in the
    endpoint's options."""

    models_path: ClassVar[str] = "/models"
    rerank_flavour: ClassVar[Flavour] = "jina"
    """How reranking is asked for there. `rerank: "tei"` in the endpoint's options: as Text Embeddings Inference does,
    whose base URL has no version."""

    def __init__(self, endpoint: Endpoint, transport: Transport, timeouts: Timeouts | None = None) -> None:
        """options: `files`, whether messages may hold documents there."""
        super().__init__(endpoint, transport, timeouts)
        takes_files = endpoint.options.get("files", self.capabilities.file_input)
        self.capabilities = msgspec.structs.replace(self.capabilities, file_input=bool(takes_files))

    def place(self, operation: Operation, model: str) -> str:
        """Path of an operation whose answer does not stream."""
        return PATHS[operation]

    def speaks_responses(self, call: Call, model: str) -> bool:
        """Its own clients alone are served by it; others by chat, which every model behind such a host knows."""
        return call.dialect == "openai_responses" and bool(
            self.endpoint.options.get("responses", self.serves_responses)
        )

    def path(self, call: Call, model: str) -> str:
        return "/responses" if self.speaks_responses(call, model) else PATHS[self._operation(call)]

    def dialect_for(self, call: Call, model: str) -> Dialect:
        if self.speaks_responses(call, model):
            return load("openai_responses")
        return self.dialects[self._operation(call)]

    def send(self, call: Call, model: str) -> Coroutine[Any, Any, UpstreamAnswer]:
        if self.speaks_responses(call, model) and _carries_foreign_seals(call.body):
            call = msgspec.structs.replace(call, body=b"")
        return super().send(call, model)

    def forward(self, call: Call, model: str) -> dict[str, Any]:
        body = super().forward(call, model)
        if call.request.stream and not self.speaks_responses(call, model):
            # Usage comes only when asked for, in the last chunk; a stream without it cannot be billed.
            options = jsonio.plain(body.get("stream_options")) or {}
            body["stream_options"] = {**options, "include_usage": True}
        return body

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        if self.speaks_responses(call, model):
            return body if call.output_limit is None else {**body, "max_output_tokens": call.output_limit}
        # One bound under one name, the one that the hold rests on, whatever a client or the gateway put in.
        body.pop("max_tokens", None)
        body.pop("max_completion_tokens", None)
        if call.request.max_output_tokens is not None:
            field = "max_tokens" if self._operation(call) == "completions" else self.output_limit
            body[field] = call.request.max_output_tokens
        return body

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        headers = request.headers + bearer(self.endpoint.credential)
        return HttpRequest(request.method, request.url, headers, request.body)

    async def tokenize(self, call: Call, model: str) -> list[int]:
        """The prompt as the engine's own template and vocabulary write it. vLLM, SGLang and our engine have this beside
        the API, not in it. Source: vllm serving/openai_compatible_server, Tokenizer API, read 2026-11.

        Raises: a ProviderError; Broken where nothing of the kind is there."""
        said = openai_chat.DIALECT.encode_request(call.request, model=model, strict=False).body
        asked = {name: said[name] for name in ("messages", "tools") if name in said} | {"model": model}
        path, base_url = "/tokenize", self.base_url.removesuffix("/v1")
        headers = (("user-agent", "farebox"), ("content-type", "application/json"))
        request = HttpRequest("POST", base_url + path, headers, jsonio.encode(asked))
        response = await self._transport.send(await self.authorize(request), self.timeouts)
        content = await read_whole(response)
        try:
            return msgspec.json.decode(content, type=_Tokenized).tokens
        except msgspec.DecodeError as error:
            raise Broken(f"{path} answered {response.status} without tokens", status=response.status) from error

    async def embed(self, call: EmbeddingCall, model: str) -> EmbeddingAnswer:
        """See `providers.base.Embedder`."""
        if "embeddings" not in self.capabilities.operations:
            raise Unsupported(("embeddings",), self.name)
        dialect = openai_embeddings.DIALECT
        dropped: tuple[str, ...] = ()
        if call.dialect == dialect.name and call.body:
            body = jsonio.split_object(call.body)
            body["model"] = model
        else:
            encoded = dialect.encode_request(call.request, model=model, strict=call.strict)
            body, dropped = encoded.body, encoded.dropped
        # The family has one error envelope, so the chat dialect reads it.
        path = self.place("embeddings", model)
        response = await self.exchange("POST", path, jsonio.joined(body), None, openai_chat.DIALECT)
        content = await read_whole(response)
        return EmbeddingAnswer(dialect.decode_response(content), dropped, dialect.name, content)

    async def rerank(self, call: RerankCall, model: str) -> RerankAnswer:
        """See `providers.base.Reranker`."""
        if "rerank" not in self.capabilities.operations:
            raise Unsupported(("rerank",), self.name)
        flavour: Flavour = self.endpoint.options.get("rerank") or self.rerank_flavour
        encoded = rerank.DIALECT.encode_request(call.request, model=model, flavour=flavour, strict=call.strict)
        path = self.place("rerank", model)
        response = await self.exchange("POST", path, jsonio.encode(encoded.body), None, openai_chat.DIALECT)
        return RerankAnswer(rerank.DIALECT.decode_response(await read_whole(response), call.request), encoded.dropped)

    async def pass_on(self, call: MediaCall, model: str) -> HttpResponse:
        """See `providers.base.Medium`."""
        if call.operation not in self.capabilities.operations:
            raise Unsupported((call.operation,), self.name)
        body = openai_media.with_model(call.body, call.content_type, call.operation, model)
        path = self.place(call.operation, model)
        return await self.exchange("POST", path, body, None, openai_chat.DIALECT, call.content_type)

    async def models(self) -> tuple[str, ...]:
        response = await self.exchange("GET", self.models_path, b"", None, openai_chat.DIALECT)
        try:
            found = msgspec.json.decode(await response.read(8 * 1024 * 1024), type=_ModelList)
        except msgspec.MsgspecError as error:
            raise Broken(f"{self.name}: {self.models_path} is not a list of models: {error}") from error
        finally:
            await response.aclose()
        return tuple(model.id for model in found.data)

    def _operation(self, call: Call) -> Operation:
        """A legacy completion goes to its own path where there is one, and as a chat where there is none."""
        if call.operation == "completions" and "completions" not in self.dialects:
            return "chat"
        return call.operation


def _carries_foreign_seals(body: bytes) -> bool:
    """Imported on use: most hosts of the family have no such API."""
    from providers.dialects.openai_responses import carries_foreign_seals

    return carries_foreign_seals(body)


class _Tokenized(msgspec.Struct):
    tokens: list[int]


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]
