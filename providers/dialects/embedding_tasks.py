"""What an embedding is for, in Gemini's words (which are the neutral ones), in Cohere's and in Amazon Nova's.

Source: Gemini API `TaskType`, cohere-python 7.3 `EmbedInputType`, Nova user guide `embeddingPurpose`, read 2026-11."""

from __future__ import annotations

from collections.abc import Mapping

COHERE_OF: Mapping[str, str] = {
    "RETRIEVAL_DOCUMENT": "search_document",
    "RETRIEVAL_QUERY": "search_query",
    "QUESTION_ANSWERING": "search_query",
    "FACT_VERIFICATION": "search_query",
    "CODE_RETRIEVAL_QUERY": "search_query",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
}
GEMINI_OF: Mapping[str, str] = {
    "search_document": "RETRIEVAL_DOCUMENT",
    "search_query": "RETRIEVAL_QUERY",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}
NOVA_OF: Mapping[str, str] = {
    "RETRIEVAL_DOCUMENT": "GENERIC_INDEX",
    "RETRIEVAL_QUERY": "TEXT_RETRIEVAL",
    "QUESTION_ANSWERING": "TEXT_RETRIEVAL",
    "FACT_VERIFICATION": "TEXT_RETRIEVAL",
    "CODE_RETRIEVAL_QUERY": "TEXT_RETRIEVAL",
    "CLASSIFICATION": "CLASSIFICATION",
    "CLUSTERING": "CLUSTERING",
}
NEUTRAL_OF_NOVA: Mapping[str, str] = {
    "GENERIC_INDEX": "RETRIEVAL_DOCUMENT",
    "CLASSIFICATION": "CLASSIFICATION",
    "CLUSTERING": "CLUSTERING",
}
"""Whatever else is a search: in texts, in pictures, in all."""
