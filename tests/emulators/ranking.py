"""Rerankers as they look on the wire: Cohere v2, Jina and vLLM, Text Embeddings Inference; the scores are shared words.
Cohere's embeds as well.

Source: cohere-python 7.3, Jina and vLLM references, text-embeddings-inference OpenAPI 1.8, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from tests.emulators import scripted
from tests.emulators.openai import vector
from tests.emulators.server import Emulator, Out, Request, play_transport_fault

Flavour = Literal["cohere", "jina", "tei"]
_FIELDS: Mapping[Flavour, frozenset[str]] = {
    "cohere": frozenset({"model", "query", "documents", "top_n", "max_tokens_per_doc", "priority", "relevant_spans"}),
    "jina": frozenset({"model", "query", "documents", "top_n", "return_documents", "truncate_prompt_tokens"}),
    "tei": frozenset({"query", "texts", "raw_scores", "return_text", "truncate", "truncation_direction"}),
}


def ranked(query: str, documents: Sequence[str], top_n: int | None = None) -> list[tuple[int, float]]:
    """Place and score, best first: the share of the query's words that the document has."""
    words = set(query.lower().split())
    scores = [(at, len(words & set(text.lower().split())) / len(words)) for at, text in enumerate(documents)]
    return sorted(scores, key=lambda each: -each[1])[:top_n]


def tokens_of(query: str, documents: Sequence[str]) -> int:
    return sum(scripted.count(query) + scripted.count(text) for text in documents)


class RankingEmulator(Emulator):
    name = "ranking"

    def __init__(self, flavour: Flavour = "cohere", *, api_key: str = "sk-test", **server: Any) -> None:
        super().__init__(**server)
        self.flavour = flavour
        self.api_key = api_key

    async def handle(self, request: Request, out: Out) -> None:
        path = {"cohere": "/v2/rerank", "jina": "/v1/rerank", "tei": "/rerank"}[self.flavour]
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return await out.json(401, {"message": "invalid api token"})
        if (self.flavour, request.method, request.path) == ("cohere", "POST", "/v2/embed"):
            return await self._embed(request.json(), out)
        if (request.method, request.path) != ("POST", path):
            return await out.json(404, {"message": f"unknown path {request.path}"})
        body = request.json()
        if unknown := sorted(set(body) - _FIELDS[self.flavour]):
            return await out.json(400, {"id": "x", "message": f"invalid request: unknown field {unknown[0]}"})
        fault = self.playing(scripted.fault_of(str(body.get("model")), request.headers))
        if fault == "429":
            return await out.json(429, {"message": "You are using a Trial key, which is limited"})
        if body.get("model") == "wild-index":
            return await out.json(200, {"results": [{"index": 99, "relevance_score": 0.5}]})
        documents = body["texts"] if self.flavour == "tei" else body["documents"]
        found = ranked(body["query"], documents, body.get("top_n"))
        self.stats.answers += 1
        answer: Any = {"id": "rr-1", "results": [{"index": at, "relevance_score": score} for at, score in found]}
        if self.flavour == "cohere":
            units = -(-len(documents) // 100)
            answer["meta"] = {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}
        elif self.flavour == "jina":
            tokens = tokens_of(body["query"], documents)
            self.stats.input_tokens += tokens
            if fault != "no-usage":
                answer |= {"model": body["model"], "usage": {"total_tokens": tokens, "prompt_tokens": tokens}}
        else:
            answer = [{"index": at, "score": score} for at, score in found]
        if fault in ("stall", "cut-mid-frame", "502-html", "garbage"):
            await play_transport_fault(fault, out, "application/json", [str(answer).encode()])
            return None
        return await out.json(200, answer)

    async def _embed(self, body: dict[str, Any], out: Out) -> None:
        known = {"model", "texts", "input_type", "embedding_types", "output_dimension", "truncate", "priority"}
        if unknown := sorted(set(body) - known):
            return await out.json(400, {"id": "x", "message": f"invalid request: unknown field {unknown[0]}"})
        if "input_type" not in body or not 1 <= len(body["texts"]) <= 96:
            return await out.json(400, {"id": "x", "message": "invalid request: input_type and 1 to 96 texts"})
        tokens = sum(scripted.count(text) for text in body["texts"])
        self.stats.answers += 1
        self.stats.input_tokens += tokens
        found = [vector(text, body.get("output_dimension", 8)) for text in body["texts"]]
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}}
        answer = {"id": "emb-1", "embeddings": {"float": found}, "texts": body["texts"], "meta": meta}
        return await out.json(200, {**answer, "response_type": "embeddings_by_type"})


SERVED = {f"ranking-{flavour}": partial(RankingEmulator, flavour) for flavour in _FIELDS}
