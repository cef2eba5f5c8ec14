"""The Gemini API (Google AI Studio): generateContent behind an API key.

Source: Gemini API v1beta discovery rev. 20260529 and google-genai 3.4, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from providers.auth.bearer import header
from providers.base import (
    Call,
    Capabilities,
    DialectProvider,
    EmbeddingAnswer,
    EmbeddingCall,
    Operation,
    UpstreamAnswer,
    read_whole,
)
from providers.dialects import gemini
from providers.dialects.base import Dialect
from providers.dialects.gemini import counting, embeddings, forwarding
from providers.errors import Broken
from providers.transport.base import HttpRequest
from providers.wire import jsonio


class Gemini(DialectProvider):
    """Options: `api_version` (v1beta)."""

    name = "gemini"
    default_base_url = "https://generativelanguage.googleapis.com"
    capabilities = Capabilities(operations=frozenset({"chat", "embeddings"}))
    dialects: ClassVar[Mapping[Operation, Dialect]] = {"chat": gemini.DIALECT}
    model_in_body = False

    def path(self, call: Call, model: str) -> str:
        return f"{self._root}/{_resource(model)}:{forwarding.verb(call.request.stream)}"

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        if call.dialect == "gemini" and forwarding.must_be_encoded(call.body, call.request, model):
            call = replace(call, body=b"")
        return await super().send(call, model)

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        return forwarding.with_output_limit(body, call.output_limit)

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        return replace(request, headers=request.headers + header(self.endpoint.credential, "x-goog-api-key"))

    async def embed(self, call: EmbeddingCall, model: str) -> EmbeddingAnswer:
        """See `providers.base.Embedder`. A batch whatever the number of texts: its answer has one form."""
        dialect = embeddings.BATCH
        encoded = dialect.encode_request(call.request, model=model, strict=call.strict)
        path = f"{self._root}/{_resource(model)}:batchEmbedContents"
        response = await self.exchange("POST", path, jsonio.encode(encoded.body), None, gemini.DIALECT)
        content = await read_whole(response)
        return EmbeddingAnswer(dialect.decode_response(content), encoded.dropped, dialect.name, content)

    async def count_tokens(self, call: Call, model: str) -> int:
        """See `providers.base.TokenCounter`."""
        body = jsonio.encode(counting.encode_count_request(call.request, model=model))
        response = await self.exchange(
            "POST", f"{self._root}/{_resource(model)}:countTokens", body, None, gemini.DIALECT
        )
        return counting.decode_count_response(await read_whole(response))

    async def models(self) -> tuple[str, ...]:
        response = await self.exchange("GET", f"{self._root}/models?pageSize=1000", b"", None, gemini.DIALECT)
        try:
            found = msgspec.json.decode(await response.read(8 * 1024 * 1024), type=_ModelList)
        except msgspec.MsgspecError as error:
            raise Broken(f"gemini: /models is not a list of models: {error}") from error
        finally:
            await response.aclose()
        return tuple(model.name.removeprefix("models/") for model in found.models)

    @property
    def _root(self) -> str:
        return f"/{self.endpoint.options.get('api_version', 'v1beta')}"


def _resource(model: str) -> str:
    """tunedModels/x stays what it is; every other name is a model's."""
    kind, _, name = model.rpartition("/")
    return f"{kind if kind == 'tunedModels' else 'models'}/{quote(name, safe='')}"


class _Model(msgspec.Struct):
    name: str


class _ModelList(msgspec.Struct):
    models: list[_Model] = []
