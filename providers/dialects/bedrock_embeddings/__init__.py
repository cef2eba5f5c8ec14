"""The bodies that InvokeModel takes for embeddings: Amazon Titan's and Nova's, one text at a time, and Cohere's, up to
96; and what Cohere's own clients send to `/v1/embed` and `/v2/embed`, which is the same with a model in it.

Source: Bedrock user guide "Amazon Titan Text Embeddings" and "Cohere Embed", Nova user guide "Complete embeddings
request and response schema", recorded answers of the first two, cohere-python 7.3 and its API reference "Embed", read
2026-11. What a Cohere or Nova model used is told in the header `x-amzn-bedrock-input-token-count` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from providers.dialects.base import Encoded, ErrorBody
from providers.dialects.embedding_tasks import COHERE_OF, GEMINI_OF, NEUTRAL_OF_NOVA, NOVA_OF
from providers.errors import BadRequest, ProviderError, Unsupported, WireError, for_status
from providers.neutral import EmbeddingRequest, EmbeddingResponse, Usage
from providers.wire import jsonio

COHERE_TEXTS_MAX = 96
TOKENS_HEADER = "x-amzn-bedrock-input-token-count"
_DEFAULT_INPUT_TYPE = "search_document"


class _TitanRequest(Struct, rename="camel"):
    input_text: str
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    normalize: bool | None = None
    embedding_types: list[Literal["float"]] | None = None


class _TitanAnswer(Struct, rename="camel"):
    embedding: list[float]
    input_text_token_count: int | None = None


class _NovaText(Struct, rename="camel"):
    value: str
    truncation_mode: Literal["START", "END", "NONE"] = "NONE"


class _NovaParams(Struct, rename="camel"):
    """Pictures, sound and film are other members, and are refused by name."""

    embedding_purpose: str
    text: _NovaText
    embedding_dimension: Literal[256, 384, 1024, 3072] | None = None


class _NovaRequest(Struct, rename="camel"):
    single_embedding_params: _NovaParams
    task_type: Literal["SINGLE_EMBEDDING"]


class _NovaVector(Struct, rename="camel"):
    embedding: list[float]


class _NovaAnswer(Struct):
    embeddings: Annotated[list[_NovaVector], Meta(min_length=1)]


class _CohereRequest(Struct):
    texts: Annotated[list[str], Meta(min_length=1, max_length=COHERE_TEXTS_MAX)]
    input_type: Literal["search_document", "search_query", "classification", "clustering"]
    truncate: Literal["NONE", "START", "END", "LEFT", "RIGHT"] | None = None
    embedding_types: list[Literal["float"]] | None = None
    output_dimension: Annotated[int, Meta(ge=1)] | None = None


class _OwnRequest(_CohereRequest, kw_only=True):
    """As Cohere's own clients send it. The older API has a default for what the texts are for."""

    model: str
    input_type: Literal["search_document", "search_query", "classification", "clustering"] = "search_document"
    images: list[str] | None = None
    inputs: list[Any] | None = None


class _ByType(Struct):
    floats: list[list[float]] = field(name="float")


class _CohereAnswer(Struct):
    embeddings: list[list[float]] | _ByType


class _Billed(Struct):
    input_tokens: float | None = None


class _MetaData(Struct):
    billed_units: _Billed | None = None


class _OwnAnswer(_CohereAnswer):
    meta: _MetaData | None = None


class Titan:
    """See `providers.dialects.base.EmbeddingDialect`."""

    name = "bedrock_titan_embed"

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        asked = _decoded(body, _TitanRequest)
        extension = {} if asked.normalize is None else {self.name: {"normalize": asked.normalize}}
        return EmbeddingRequest(model or "", (asked.input_text,), asked.dimensions, extensions=extension)

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        """The body of the first text; the adapter asks once for each. Raises: Unsupported."""
        (text,) = _texts(request, "Titan")
        body: dict[str, Any] = {"inputText": text, **request.extensions.get(self.name, {})}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        return Encoded(body, _foreign(request, self.name, strict, ("task",) if request.task else ()))

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        answer = _read(body, _TitanAnswer)
        return EmbeddingResponse("", (tuple(answer.embedding),), Usage(input_tokens=answer.input_text_token_count))

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes:
        vector = list(response.vectors[0])
        tokens = response.usage.input_tokens or 0
        said = {"embedding": vector, "embeddingsByType": {"float": vector}, "inputTextTokenCount": tokens}
        return msgspec.json.encode(said)

    def encode_error(self, error: ErrorBody) -> bytes:
        return msgspec.json.encode({"message": error.message})

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return for_status(status, body[:500].decode("utf-8", "replace"), headers=headers, body=body)


class Nova(Titan):
    """Nova's multimodal embeddings, of texts. A text that is too long is refused there, as we send it: the neutral form
    does not cut."""

    name = "bedrock_nova_embed"

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        params = jsonio.plain(jsonio.split_object(body).get("singleEmbeddingParams"))
        if isinstance(params, dict) and (others := params.keys() & {"image", "audio", "video"}):
            raise BadRequest(f"{min(others)}: texts alone are embedded here", param="singleEmbeddingParams")
        asked = _decoded(body, _NovaRequest).single_embedding_params
        task = NEUTRAL_OF_NOVA.get(asked.embedding_purpose, "RETRIEVAL_QUERY")
        mode = asked.text.truncation_mode
        extension = {} if mode == "NONE" else {self.name: {"truncationMode": mode}}
        return EmbeddingRequest(
            model or "", (asked.text.value,), asked.embedding_dimension, task=task, extensions=extension
        )

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        """The body of the first text; the adapter asks once for each. Raises: Unsupported."""
        (text,) = _texts(request, "Nova")
        said = {"truncationMode": "NONE", "value": text, **request.extensions.get(self.name, {})}
        params: dict[str, Any] = {"embeddingPurpose": NOVA_OF.get(request.task or "", "GENERIC_INDEX"), "text": said}
        if request.dimensions is not None:
            params["embeddingDimension"] = request.dimensions
        body = {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": params}
        return Encoded(body, _foreign(request, self.name, strict))

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        return EmbeddingResponse("", (tuple(_read(body, _NovaAnswer).embeddings[0].embedding),), Usage())

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes:
        vector = {"embeddingType": "TEXT", "embedding": list(response.vectors[0])}
        return msgspec.json.encode({"embeddings": [vector]})


class Cohere(Titan):
    """As Bedrock's Cohere models take it."""

    name = "bedrock_cohere_embed"

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        asked = _decoded(body, _CohereRequest)
        extension = {} if asked.truncate is None else {self.name: {"truncate": asked.truncate}}
        texts, task = tuple(asked.texts), GEMINI_OF[asked.input_type]
        return EmbeddingRequest(model or "", texts, asked.output_dimension, task=task, extensions=extension)

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        """Raises: Unsupported."""
        kind = COHERE_OF.get(request.task or "", _DEFAULT_INPUT_TYPE)
        body: dict[str, Any] = {"texts": _texts(request, "Cohere"), "input_type": kind}
        body |= request.extensions.get(self.name, {})
        if request.dimensions is not None:
            body |= {"output_dimension": request.dimensions, "embedding_types": ["float"]}
        return Encoded(body, _foreign(request, self.name, strict))

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        found = _read(body, _CohereAnswer).embeddings
        vectors = found.floats if isinstance(found, _ByType) else found
        return EmbeddingResponse("", tuple(map(tuple, vectors)), Usage())

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes:
        said = {
            "id": "",
            "response_type": "embeddings_floats",
            "texts": list(request.input),
            "embeddings": [list(vector) for vector in response.vectors],
        }
        return msgspec.json.encode(said)


class CohereOwn(Cohere):
    """As Cohere's clients speak it. version: of the API that they asked; the older one answers with bare vectors."""

    name = "cohere_embed"

    def __init__(self, version: str = "2") -> None:
        self._version = version

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        asked = _decoded(body, _OwnRequest)
        if asked.images or asked.inputs:
            raise Unsupported(("images",), self.name)
        if asked.embedding_types is not None and self._version == "1":
            raise BadRequest("embedding_types: ask for them at /v2/embed", param="embedding_types")
        extensions = {} if asked.truncate is None else {self.name: {"truncate": asked.truncate}}
        texts, task = tuple(asked.texts), GEMINI_OF[asked.input_type]
        return EmbeddingRequest(model or asked.model, texts, asked.output_dimension, task=task, extensions=extensions)

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        encoded = super().encode_request(request, model=model, strict=strict)
        return Encoded({"model": model, **encoded.body, "embedding_types": ["float"]}, encoded.dropped)

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        answer = _read(body, _OwnAnswer)
        billed = answer.meta.billed_units.input_tokens if answer.meta and answer.meta.billed_units else None
        vectors = answer.embeddings.floats if isinstance(answer.embeddings, _ByType) else answer.embeddings
        tokens = None if billed is None else int(billed)
        return EmbeddingResponse("", tuple(map(tuple, vectors)), Usage(input_tokens=tokens))

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes:
        vectors: Any = [list(vector) for vector in response.vectors]
        typed = self._version == "2"
        said = {
            "id": "",
            "response_type": "embeddings_by_type" if typed else "embeddings_floats",
            "texts": list(request.input),
            "embeddings": {"float": vectors} if typed else vectors,
            "meta": {
                "api_version": {"version": self._version},
                "billed_units": {"input_tokens": response.usage.input_tokens or 0},
            },
        }
        return msgspec.json.encode(said)


TITAN, NOVA, COHERE = Titan(), Nova(), Cohere()


def _texts(request: EmbeddingRequest, where: str) -> list[str]:
    texts = [text for text in request.input if isinstance(text, str)]
    if len(texts) != len(request.input):
        raise Unsupported(("token ids as input",), where)
    return texts


def _foreign(request: EmbeddingRequest, name: str, strict: bool, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    dropped = more + tuple(key for other, fields in request.extensions.items() if other != name for key in fields)
    if dropped and strict:
        raise Unsupported(dropped, name)
    return dropped


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"not an embedding request: {error}") from error


def _read(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"not an embedding answer: {error}", body=body[:4096]) from error
