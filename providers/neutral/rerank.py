"""Reranking: which of some documents answer a query best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field


class RerankRequest(Struct, frozen=True, omit_defaults=True):
    """documents: as text. whole_documents: the client wants them back beside their scores.

    extensions: fields that only some providers know, by the client's own names."""

    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    whole_documents: bool = False
    extensions: Mapping[str, Any] = field(default_factory=dict)


class Ranked(Struct, frozen=True):
    """index: the document's place in the request."""

    index: int
    score: float


class RerankResponse(Struct, frozen=True, omit_defaults=True):
    """ranked: best first. search_units, tokens: what it is billed by, None where the provider does not say."""

    ranked: tuple[Ranked, ...]
    id: str | None = None
    search_units: int | None = None
    tokens: int | None = None
