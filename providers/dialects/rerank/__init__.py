"""Reranking as Cohere (v1 and v2), Jina, vLLM, Bedrock's models and Text Embeddings Inference write it, both ways.

All ask alike; answers differ in where usage stands. Source: cohere-python 7.3 `v2/raw_client.py` and `types/`, Jina and
vLLM `/rerank` references, Bedrock InvokeModel of cohere.rerank-v3-5 and amazon.rerank-v1, text-embeddings-inference
OpenAPI 1.8, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from providers.dialects.base import Encoded, ErrorBody
from providers.dialects.openai_common import errors
from providers.errors import BadRequest, ProviderError, Unsupported, WireError
from providers.neutral.rerank import Ranked, RerankRequest, RerankResponse
from providers.wire import jsonio

NAME = "rerank"
Flavour = Literal["cohere", "jina", "bedrock", "tei"]

# Fields of the clients' that a host may know as well. Whoever does not takes them for a mistake.
_KNOWN_EXTRAS: Mapping[Flavour, frozenset[str]] = {
    "cohere": frozenset({"max_tokens_per_doc", "priority", "relevant_spans"}),
    "jina": frozenset({"truncate_prompt_tokens", "user", "priority", "max_tokens_per_doc", "rank_fields"}),
    "bedrock": frozenset({"max_tokens_per_doc"}),
    "tei": frozenset({"raw_scores", "truncate", "truncation_direction"}),
}
MAX_DOCUMENTS = 10_000
"""What Cohere takes at most."""


class _Request(Struct):
    query: str
    documents: list[str | dict[str, Any]]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


class _Result(Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None  # Text Embeddings Inference


class _Billed(Struct):
    search_units: float | None = None
    input_tokens: float | None = None


class _Meta(Struct):
    billed_units: _Billed | None = None


class _Usage(Struct):
    total_tokens: int | None = None
    prompt_tokens: int | None = None


class _Answer(Struct):
    results: list[_Result] | None = None
    id: str | None = None
    meta: _Meta | None = None
    usage: _Usage | None = None


_request = msgspec.json.Decoder(_Request)
_KNOWN = frozenset(_Request.__struct_fields__)
_answer = msgspec.json.Decoder(_Answer | list[_Result], strict=False)


class Rerank:
    """No chat: a dialect of one request and one answer. version: of Cohere's path that the client asked on."""

    name = NAME

    def decode_request(self, body: bytes, *, model: str | None = None) -> RerankRequest:
        """Raises: BadRequest."""
        try:
            request = _request.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"not a rerank request: {error}") from error
        name = model or request.model
        if not name:
            raise BadRequest("model is required", param="model")
        if not 1 <= len(request.documents) <= MAX_DOCUMENTS:
            raise BadRequest(f"documents must hold 1 to {MAX_DOCUMENTS} texts", param="documents")
        extra = {k: jsonio.plain(v) for k, v in jsonio.split_object(body).items() if k not in _KNOWN}
        return RerankRequest(
            model=name,
            query=request.query,
            documents=tuple(_text(entry, number) for number, entry in enumerate(request.documents)),
            top_n=request.top_n,
            whole_documents=bool(request.return_documents),
            extensions={k: v for k, v in extra.items() if v is not None},
        )

    def encode_request(self, request: RerankRequest, *, model: str, flavour: Flavour, strict: bool = True) -> Encoded:
        """The documents are not asked back: we have them. Raises: Unsupported."""
        dropped = tuple(name for name in request.extensions if name not in _KNOWN_EXTRAS[flavour])
        if dropped and strict:
            raise Unsupported(dropped, f"reranking ({flavour})")
        kept = {name: value for name, value in request.extensions.items() if name not in dropped}
        if flavour == "tei":
            return Encoded({"query": request.query, "texts": list(request.documents), **kept}, dropped)
        body: dict[str, Any] = {"query": request.query, "documents": list(request.documents), **kept}
        if flavour != "bedrock":
            body["model"] = model  # there it stands in the path
        if flavour == "jina":
            body["return_documents"] = False  # its default is to send all of them back
        if request.top_n is not None:
            body["top_n"] = min(request.top_n, len(request.documents))
        return Encoded(body, dropped)

    def decode_response(self, body: bytes, request: RerankRequest) -> RerankResponse:
        """Raises: WireError; a ProviderError kind for an error object behind a 200."""
        try:
            answer = _answer.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(f"not a rerank answer: {error}", body=body[:4096]) from error
        if isinstance(answer, list):
            answer = _Answer(answer)
        if answer.results is None:
            raise errors.from_object(msgspec.json.decode(body), body=body)
        if any(not 0 <= found.index < len(request.documents) for found in answer.results):
            raise WireError("a rerank answer names a document that was not there", body=body[:4096])
        ranked = sorted((Ranked(r.index, _score(r)) for r in answer.results), key=lambda r: r.score, reverse=True)
        billed = (answer.meta.billed_units if answer.meta is not None else None) or _Billed()
        used = answer.usage or _Usage()
        tokens = next((n for n in (used.total_tokens, used.prompt_tokens, billed.input_tokens) if n is not None), None)
        return RerankResponse(
            tuple(ranked[: request.top_n]),
            answer.id,
            None if billed.search_units is None else int(billed.search_units),
            None if tokens is None else int(tokens),
        )

    def encode_response(
        self, response: RerankResponse, request: RerankRequest, *, version: str, request_id: str
    ) -> bytes:
        """What Cohere's clients read, and Jina's: usage stands in both places."""
        results: list[dict[str, Any]] = []
        for found in response.ranked:
            entry: dict[str, Any] = {"index": found.index, "relevance_score": found.score}
            if request.whole_documents:
                entry["document"] = {"text": request.documents[found.index]}
            results.append(entry)
        billed: dict[str, int] = {}
        if response.search_units is not None:
            billed["search_units"] = response.search_units
        if response.tokens is not None:
            billed["input_tokens"] = response.tokens
        body: dict[str, Any] = {
            "id": response.id or request_id,
            "model": request.model,
            "results": results,
            "meta": {"api_version": {"version": version}, "billed_units": billed},
        }
        if response.tokens is not None:
            body["usage"] = {"total_tokens": response.tokens, "prompt_tokens": response.tokens}
        return msgspec.json.encode(body)

    def encode_error(self, error: ErrorBody) -> bytes:
        """Cohere's clients read `message`, the OpenAI-like ones `error`."""
        said = {"id": error.request_id, "message": error.message, "error": errors.error_object(error)}
        return msgspec.json.encode(said)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.decode_error(status, headers, body)


def _text(document: str | dict[str, Any], number: int) -> str:
    """v1 takes objects as well; one without `text` is read as YAML there, which JSON is. Raises: BadRequest."""
    if isinstance(document, str):
        return document
    text = document.get("text")
    if isinstance(text, str):
        return text
    if not document:
        raise BadRequest(f"documents[{number}] is empty", param="documents")
    return msgspec.json.encode(document).decode()


def _score(result: _Result) -> float:
    score = result.relevance_score if result.relevance_score is not None else result.score
    if score is None:
        raise WireError("a ranked document without a score")
    return score


DIALECT = Rerank()
