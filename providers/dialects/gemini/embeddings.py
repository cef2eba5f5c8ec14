"""embedContent and batchEmbedContents: texts to vectors, both ways.

Source: Gemini API v1beta discovery and google-genai 3.4, read 2026-11. Token ids and base64 vectors have no place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from providers.dialects.base import EmbeddingDialect, Encoded, ErrorBody
from providers.dialects.gemini import errors, wire
from providers.dialects.gemini.request import checked, read_object
from providers.errors import BadRequest, ProviderError, Unsupported, WireError
from providers.neutral import EmbeddingRequest, EmbeddingResponse, Usage


class _Config(Struct, rename="camel"):
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None


class _One(Struct, rename="camel"):
    content: wire.Content | None = None
    model: str | None = None
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None
    embed_content_config: _Config | None = None


class _Vector(Struct):
    values: list[float]


class _Answer(Struct, rename="camel"):
    embedding: _Vector | None = None
    embeddings: list[_Vector] | None = None
    usage_metadata: wire.UsageMetadata | None = None


_decoder = msgspec.json.Decoder(_Answer, strict=False)


def decode_embed_request(body: bytes, *, model: str, batch: bool) -> EmbeddingRequest:
    """batch: the verb is batchEmbedContents. Raises: BadRequest."""
    fields = read_object(body)
    if batch:
        ones = checked(fields.get("requests", []), list[_One], "requests")
    else:
        ones = [checked(fields, _One, "body")]
    if not ones:
        raise BadRequest("requests is empty", param="requests")
    first = _settings(ones[0])
    if any(_settings(one) != first for one in ones):
        # Each could in theory be embedded another way; nobody behind us takes that in one call.
        raise BadRequest(
            "all requests of a batch must have the same taskType and outputDimensionality", param="requests"
        )
    texts = tuple(_text(one, f"requests[{number}]" if batch else "content") for number, one in enumerate(ones))
    task, title, dimensions = first
    extension = {wire.NAME: {"title": title}} if title is not None else {}
    return EmbeddingRequest(model, texts, dimensions, task=task, extensions=extension)


def _settings(one: _One) -> tuple[str | None, str | None, int | None]:
    config = one.embed_content_config or _Config()
    return (
        one.task_type or config.task_type,
        one.title or config.title,
        one.output_dimensionality if one.output_dimensionality is not None else config.output_dimensionality,
    )


def _text(one: _One, where: str) -> str:
    parts = (one.content.parts if one.content is not None else None) or []
    if not parts or any(part.text is None for part in parts):
        raise BadRequest(f"{where}: content must be text", param=where)
    return "".join(part.text or "" for part in parts)


def encode_embed_request(request: EmbeddingRequest, *, model: str) -> dict[str, Any]:
    """A batchEmbedContents body, whatever the number of texts. Raises: Unsupported for token ids."""
    ours = request.extensions.get(wire.NAME, {})
    shared: dict[str, Any] = {"model": f"models/{model}"}
    if request.task is not None:
        shared["taskType"] = request.task
    if request.dimensions is not None:
        shared["outputDimensionality"] = request.dimensions
    if "title" in ours:
        shared["title"] = ours["title"]
    requests: list[dict[str, Any]] = []
    for text in request.input:
        if not isinstance(text, str):
            raise Unsupported(("token ids as input",), "Gemini")
        requests.append({**shared, "content": {"parts": [{"text": text}]}})
    return {"requests": requests}


def decode_embed_response(body: bytes, *, model: str) -> EmbeddingResponse:
    """Raises: WireError."""
    try:
        answer = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not an embedding response: {error}", body=body[:4096]) from None
    vectors = answer.embeddings if answer.embeddings is not None else [answer.embedding] if answer.embedding else None
    if vectors is None:
        raise WireError("an embedding response without vectors", body=body[:4096])
    used = answer.usage_metadata
    usage = Usage(input_tokens=used.prompt_token_count if used is not None else None)
    return EmbeddingResponse(model, tuple(tuple(vector.values) for vector in vectors), usage)


def encode_embed_response(response: EmbeddingResponse, *, batch: bool) -> bytes:
    vectors = [{"values": list(vector)} for vector in response.vectors]
    body: dict[str, Any] = {"embeddings": vectors} if batch else {"embedding": vectors[0]}
    if response.usage.input_tokens is not None:
        body["usageMetadata"] = {"promptTokenCount": response.usage.input_tokens}
    return msgspec.json.encode(body)


class GeminiEmbeddings:
    """See `providers.dialects.base.EmbeddingDialect`. batch: the client's verb is batchEmbedContents; what a provider
    is sent is one in any case."""

    def __init__(self, *, batch: bool) -> None:
        self.name = "gemini_batch_embed_contents" if batch else "gemini_embed_content"
        self._batch = batch

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        return decode_embed_request(body, model=model or "", batch=self._batch)

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        foreign = {n: fields for n, fields in request.extensions.items() if n != wire.NAME}
        dropped = tuple(field for fields in foreign.values() for field in fields)
        if dropped and strict:
            raise Unsupported(dropped, "Gemini")
        return Encoded(encode_embed_request(request, model=model), dropped)

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        return decode_embed_response(body, model="")

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes:
        return encode_embed_response(response, batch=self._batch)

    def encode_error(self, error: ErrorBody) -> bytes:
        return errors.encode_error(error)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.decode_error(status, headers, body)


ONE: EmbeddingDialect = GeminiEmbeddings(batch=False)
BATCH: EmbeddingDialect = GeminiEmbeddings(batch=True)
