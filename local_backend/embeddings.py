"""The HTTP face of an encoder: /v1/embeddings and /v1/rerank.

Source: OpenAI API reference, embeddings; Jina's and Cohere's rerank, as vLLM serves it; read 2026-11.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from tokenizers import Tokenizer as HfTokenizer

from local_backend.client import CoreClient
from local_backend.config import Settings
from local_backend.encoder_config import read_encoder_config
from local_backend.errors import ContextLengthExceeded, InvalidRequest, ModelUnavailable, NotReady, Unsupported
from local_backend.http_face import Exchange, Face
from local_backend.messages import Sampling, Terms
from local_backend.openai_bodies import decode_body

MAX_TEXTS = 2048
NO_SAMPLING = Sampling(max_tokens=1)


class EmbeddingsBody(Struct):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class RerankBody(Struct):
    """POST /v1/rerank."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


class EncoderServer(Face):
    """A model that makes vectors of texts, or scores of pairs of texts."""

    def __init__(self, settings: Settings, served_name: str, model_dir: Path, core: CoreClient) -> None:
        self.config = read_encoder_config(model_dir)
        self.tokenizer = read_tokenizer(model_dir / "tokenizer.json")
        vectors = not self.config.labels
        capabilities = {"operations": ["embeddings", "rerank"] if vectors else ["rerank"]}
        routes = {
            "/v1/embeddings": self.embeddings,
            "/v1/rerank": self.rerank,
            "/v1/chat/completions": self.refuse,
            "/v1/completions": self.refuse,
        }
        super().__init__(settings, served_name, core, self.config.max_position, capabilities, routes)

    async def refuse(self, exchange: Exchange) -> None:
        """An encoder says nothing."""
        raise Unsupported(f"{self.served_name!r} is an encoder: it serves {self.capabilities['operations']}, no text")

    async def embeddings(self, exchange: Exchange) -> None:
        """A vector for each text."""
        body, exchange.ignored = decode_body(await exchange.body(), EmbeddingsBody)
        self._check_model(body.model)
        if self.config.labels:
            raise Unsupported(f"{self.served_name!r} scores pairs of texts; it makes no vectors")
        if body.encoding_format not in (None, "float", "base64"):
            raise InvalidRequest("encoding_format is float or base64", param="encoding_format")
        if body.dimensions not in (None, self.config.hidden_size):
            raise Unsupported(f"this model's vectors have {self.config.hidden_size} dimensions", param="dimensions")
        texts = [self._tokens(text, f"input[{at}]") for at, text in enumerate(_texts(body.input))]
        vectors = await self._run(exchange, texts)
        data = [
            {"object": "embedding", "index": at, "embedding": _written(vector, body.encoding_format)}
            for at, vector in enumerate(vectors)
        ]
        tokens = sum(map(len, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await exchange.reply({"object": "list", "data": data, "model": body.model, "usage": usage})

    async def rerank(self, exchange: Exchange) -> None:
        """Documents by how well they answer the query: by cosine, or by the score of a cross-encoder, from 0 to 1."""
        body, exchange.ignored = decode_body(await exchange.body(), RerankBody)
        self._check_model(body.model)
        documents = [_document(document, at) for at, document in enumerate(body.documents)]
        if not documents or len(documents) >= MAX_TEXTS:
            raise InvalidRequest(f"give 1 to {MAX_TEXTS - 1} documents", param="documents")
        if self.config.labels:
            pairs = [self._tokens(body.query, f"documents[{at}]", text) for at, text in enumerate(documents)]
            scores = [_score(vector) for vector in await self._run(exchange, pairs)]
        else:
            pairs = [self._tokens(body.query, "query")]
            pairs += [self._tokens(text, f"documents[{at}]") for at, text in enumerate(documents)]
            query, *others = (np.frombuffer(vector, np.float32) for vector in await self._run(exchange, pairs))
            scores = [_cosine(query, other) for other in others]
        order = sorted(range(len(documents)), key=lambda at: (-scores[at], at))[: body.top_n]
        results: list[dict[str, Any]] = [{"index": at, "relevance_score": scores[at]} for at in order]
        if body.return_documents:
            results = [result | {"document": {"text": documents[result["index"]]}} for result in results]
        tokens = sum(map(len, pairs))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await exchange.reply({"id": f"rerank-{exchange.id}", "model": body.model, "results": results, "usage": usage})

    async def _run(self, exchange: Exchange, texts: list[list[int]]) -> list[bytes]:
        if self.draining:
            raise NotReady("the engine is shutting down")
        tenant = exchange.headers.get(b"x-farebox-tenant", b"").decode("latin-1")[:256]
        flight = self.core.submit([(text, NO_SAMPLING) for text in texts], "", Terms(tenant=tenant))
        try:
            return await exchange.unless_gone(flight.vectors())
        finally:
            self.core.release(flight.ids)

    def _tokens(self, text: str | list[int], param: str, second: str | None = None) -> list[int]:
        """Raises InvalidRequest if there is nothing, ContextLengthExceeded if there is too much."""
        if not text:
            raise InvalidRequest("an empty text has no meaning to find", param=param, code="empty_prompt")
        if isinstance(text, list):
            if wrong := [id_ for id_ in text if not 0 <= id_ < self.config.vocab_size]:
                raise InvalidRequest(f"token id {wrong[0]} is not in the vocabulary", param=param)
            ids = text
        else:
            ids = self.tokenizer.encode(text, second).ids
        if len(ids) > (longest := self._max_model_len()):
            raise ContextLengthExceeded(len(ids), longest, param)
        return ids


def read_tokenizer(path: Path) -> HfTokenizer:
    """Without the cutting and padding that some files ask for. Raises ModelUnavailable."""
    try:
        tokenizer = HfTokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception for anything wrong with the file
        raise ModelUnavailable(f"cannot read {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _texts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The four forms of the input as a list of texts or token lists."""
    if isinstance(given, str):
        return [given]
    ids = [text for text in given if isinstance(text, int)]
    if ids and len(ids) == len(given):
        return [ids]
    texts = [text for text in given if not isinstance(text, int)]
    if not texts or len(texts) != len(given) or len(texts) > MAX_TEXTS:
        raise InvalidRequest(f"give a text, token ids, or a list of 1 to {MAX_TEXTS} of either", param="input")
    return texts


def _document(document: str | dict[str, Any], at: int) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest("a document is a text, or an object with its text", param=f"documents[{at}]")
    return text


def _written(vector: bytes, form: str | None) -> str | list[float]:
    return base64.b64encode(vector).decode() if form == "base64" else np.frombuffer(vector, np.float32).tolist()


def _score(vector: bytes) -> float:
    """Of a cross-encoder: with one label the odds of it, with several those of the last."""
    scores = np.frombuffer(vector, np.float32).astype(float)
    if len(scores) == 1:
        return 1.0 / (1.0 + math.exp(-scores[0]))
    odds = np.exp(scores - scores.max())
    return float(odds[-1] / odds.sum())


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
