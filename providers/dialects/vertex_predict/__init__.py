"""Embeddings as Vertex's `:predict` carries them. Egress alone: no client of ours speaks it.

Source: Vertex AI "Get text embeddings" and aiplatform v1 discovery rev. 20260509, read 2026-11."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from providers.dialects.base import Encoded
from providers.errors import Unsupported, WireError
from providers.neutral import EmbeddingRequest, EmbeddingResponse, Usage

_GEMINI = "gemini"


class _Statistics(Struct, frozen=True):
    token_count: float | None = None


class _Embeddings(Struct):
    values: list[float]
    statistics: _Statistics = _Statistics()


class _Prediction(Struct):
    embeddings: _Embeddings


class _Answer(Struct):
    predictions: list[_Prediction]


def encode_request(request: EmbeddingRequest, *, strict: bool) -> Encoded:
    """Raises: Unsupported."""
    ours = request.extensions.get(_GEMINI, {})
    dropped = tuple(key for name, fields in request.extensions.items() if name != _GEMINI for key in fields)
    if dropped and strict:
        raise Unsupported(dropped, "Vertex")
    shared = {name: value for name, value in (("task_type", request.task), ("title", ours.get("title"))) if value}
    instances = []
    for text in request.input:
        if not isinstance(text, str):
            raise Unsupported(("token ids as input",), "Vertex")
        instances.append({"content": text, **shared})
    body: dict[str, Any] = {"instances": instances}
    if request.dimensions is not None:
        body["parameters"] = {"outputDimensionality": request.dimensions}
    return Encoded(body, dropped)


def decode_response(body: bytes) -> EmbeddingResponse:
    """Raises: WireError."""
    try:
        found = msgspec.json.decode(body, type=_Answer).predictions
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"not an embedding answer: {error}", body=body[:4096]) from error
    counts = [each.embeddings.statistics.token_count for each in found]
    tokens = None if None in counts else int(sum(count or 0 for count in counts))
    return EmbeddingResponse("", tuple(tuple(each.embeddings.values) for each in found), Usage(input_tokens=tokens))
