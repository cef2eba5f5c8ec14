"""What an embedding is for, in Gemini's words (which are the neutral ones) and in Cohere's.

Source: Gemini API `TaskType`, cohere-python 7.3 `EmbedInputType`, read 2026-11."""

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
