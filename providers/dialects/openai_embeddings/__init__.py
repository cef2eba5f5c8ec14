"""OpenAI embeddings, both ways: texts or token ids in, vectors out as numbers or as base64 of little-endian floats.

openai-python always asks for base64 and unpacks it itself. Source: openai-python 3.54 `types/embedding*`, read 2026-11.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from providers.dialects.base import EmbeddingDialect, Encoded, ErrorBody
from providers.dialects.openai_common import errors
from providers.dialects.openai_common.usage import UsageObject, usage_in
from providers.dialects.openai_common.validation import decoded
from providers.errors import BadRequest, ProviderError, Unsupported, WireError
from providers.neutral import EmbeddingRequest, EmbeddingResponse, Usage
from providers.wire import jsonio

NAME = "openai_embeddings"


class _Request(Struct):
    input: str | list[str | int | list[int]]
    model: str | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class _Embedding(Struct):
    embedding: str | list[float]
    index: int = 0


class _Answer(Struct):
    data: list[_Embedding] | None = None
    model: str | None = None
    usage: UsageObject | None = None
    error: Any = None


_request = msgspec.json.Decoder(_Request)
_answer = msgspec.json.Decoder(_Answer)
_KNOWN = frozenset(_Request.__struct_fields__)


class OpenAIEmbeddings:
    """See `providers.dialects.base.EmbeddingDialect`."""

    name = NAME

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        request = decoded(_request, body)
        name = model or request.model
        if not name:
            raise BadRequest("model is required", param="model")
        extra = {k: jsonio.plain(v) for k, v in jsonio.split_object(body).items() if k not in _KNOWN}
        return EmbeddingRequest(
            model=name,
            input=_inputs(request.input),
            dimensions=request.dimensions,
            encoding=request.encoding_format or "float",
            user=request.user,
            extensions={NAME: extra} if extra else {},
        )

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        body: dict[str, Any] = {"model": model, "input": list(request.input)}
        if request.encoding != "float":
            body["encoding_format"] = request.encoding
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        if request.user is not None:
            body["user"] = request.user
        dropped = ["task"] if request.task is not None else []
        dropped += [key for dialect, fields in request.extensions.items() if dialect != NAME for key in fields]
        if dropped and strict:
            raise Unsupported(tuple(dropped), NAME)
        return Encoded({**body, **request.extensions.get(NAME, {})}, tuple(dropped))

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        try:
            answer = _answer.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(f"not a list of embeddings: {error}", body=body[:4096]) from error
        if answer.error:
            raise errors.from_object(msgspec.json.decode(body), body=body)
        if answer.data is None:
            raise WireError("an answer without embeddings", body=body[:4096])
        return EmbeddingResponse(
            model=answer.model or "",
            vectors=tuple(_numbers(entry.embedding) for entry in sorted(answer.data, key=lambda e: e.index)),
            usage=usage_in(answer.usage) if answer.usage is not None else Usage(),
        )

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes:
        pack = _packed if request.encoding == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": pack(vector)}
            for index, vector in enumerate(response.vectors)
        ]
        tokens = response.usage.input_tokens or 0
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return msgspec.json.encode({"object": "list", "data": data, "model": response.model, "usage": usage})

    def encode_error(self, error: ErrorBody) -> bytes:
        return errors.encode_error(error)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.decode_error(status, headers, body)


def _inputs(given: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """A text, texts, one text's token ids, or several texts' token ids. Raises: BadRequest for none, or a mixture."""
    if isinstance(given, str):
        return (given,)
    numbers = tuple(entry for entry in given if isinstance(entry, int))
    if numbers and len(numbers) == len(given):
        return (numbers,)
    if numbers or not given:
        raise BadRequest("input is empty or mixes texts with token ids", param="input")
    return tuple(entry if isinstance(entry, str) else tuple(entry) for entry in given if not isinstance(entry, int))


def _numbers(given: str | list[float]) -> tuple[float, ...]:
    """Raises: WireError for base64 that is none, or whose length is not that of floats."""
    if isinstance(given, list):
        return tuple(given)
    try:
        raw = base64.b64decode(given, validate=True)
        return struct.unpack(f"<{len(raw) // 4}f", raw)
    except (binascii.Error, struct.error) as error:
        raise WireError(f"an embedding that is not base64 of floats: {error}") from error


def _packed(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


DIALECT: EmbeddingDialect = OpenAIEmbeddings()
