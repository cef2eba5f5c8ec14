"""One package per wire format, each four maps against the neutral form. `providers.dialects.base` is the contract."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from providers.dialects.base import Dialect

NAMES = (
    "openai_chat",
    "openai_completions",
    "openai_responses",
    "anthropic_messages",
    "gemini",
    "gemini_interactions",  # for clients alone
    "bedrock_converse",
    "rerank",  # which is no chat: loaded for the words of its errors
)


@cache
def load(name: str) -> Dialect:
    """The dialect of that name, imported on first use. Raises: KeyError for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise KeyError(name)
    dialect: Dialect = import_module(f"providers.dialects.{name}").DIALECT
    return dialect
