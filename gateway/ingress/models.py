"""`GET /v1/models` in the list format of whoever asks: OpenAI's, Anthropic's or Gemini's, told apart by header; and
Bedrock's two lists, on paths of their own.

Source: openai 3.54, anthropic 2.12, google-genai 3.4 models and botocore 1.44 `bedrock`, read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from gateway.admission import Principal
from gateway.errors import ModelNotFound
from gateway.routing.catalog import UNKNOWN_CONTEXT_WINDOW, UNKNOWN_MAX_OUTPUT_TOKENS, Catalog, permits

_PATH = re.compile(r"(?:/openai|(?:/openai)?/v1(?:beta)?)/models(?:/(?P<id>[^:]+))?|/models(?:/(?P<bare>[^:]+))?")
# When the list was made is no fact about a model, and SDKs only need some date: the day this format was settled.
_CREATED = 1_763_856_000
_CREATED_RFC3339 = "2025-11-23T00:00:00Z"


# azure-ai-inference asks what an endpoint holds; that an alias is meant by it, its users say in each request.
_INFO = "/models/info"
_MANY = {"model_name": "farebox", "model_type": "chat-completion", "model_provider_name": "farebox"}
_BEDROCK = ("/inference-profiles", "/foundation-models")


def wants_models(method: str, path: str) -> bool:
    return method == "GET" and (path in _BEDROCK or _PATH.fullmatch(path) is not None)


def list_models(catalog: Catalog, principal: Principal, headers: Mapping[str, str], path: str) -> bytes:
    """One model or all that this key may use. Raises: ModelNotFound."""
    if path in _BEDROCK:
        permitted = [alias for alias in sorted(catalog.aliases) if permits(principal.models, alias)]
        return msgspec.json.encode(_BEDROCK_LISTS[path](permitted))
    found = _PATH.fullmatch(path)
    wanted = unquote((found["id"] or found["bare"] or "") if found else "")
    aliases = [alias for alias in sorted(catalog.aliases) if permits(principal.models, alias)]
    if "x-goog-api-key" in headers or "/v1beta/" in path:
        one, many = _gemini, _gemini_list
        wanted = wanted.removeprefix("models/")
    elif "anthropic-version" in headers:
        one, many = _anthropic, _anthropic_list
    else:
        one, many = _openai, _openai_list
    if path == _INFO and wanted not in aliases:
        return msgspec.json.encode(_MANY)
    if not wanted:
        return msgspec.json.encode(many([one(alias, catalog) for alias in aliases]))
    if wanted not in aliases:
        raise ModelNotFound(f"no model {wanted!r} here for this key", param="model")
    return msgspec.json.encode(one(wanted, catalog))


def _openai(alias: str, catalog: Catalog) -> dict[str, Any]:
    owner = catalog.aliases[alias][0].provider
    return {"id": alias, "object": "model", "created": _CREATED, "owned_by": owner}


def _openai_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": models}


def _anthropic(alias: str, catalog: Catalog) -> dict[str, Any]:
    first = catalog.aliases[alias][0]
    return {
        "type": "model",
        "id": alias,
        "display_name": alias,
        "created_at": _CREATED_RFC3339,
        "lifecycle": "active",
        "max_input_tokens": first.context_window or UNKNOWN_CONTEXT_WINDOW,
        "max_tokens": first.max_output_tokens or UNKNOWN_MAX_OUTPUT_TOKENS,
    }


def _anthropic_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [model["id"] for model in models]
    return {
        "data": models,
        "has_more": False,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def _gemini(alias: str, catalog: Catalog) -> dict[str, Any]:
    first = catalog.aliases[alias][0]
    return {
        "name": f"models/{alias}",
        "displayName": alias,
        "inputTokenLimit": first.context_window or UNKNOWN_CONTEXT_WINDOW,
        "outputTokenLimit": first.max_output_tokens or UNKNOWN_MAX_OUTPUT_TOKENS,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent"],
    }


def _gemini_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    return {"models": models}


def _inference_profiles(aliases: list[str]) -> dict[str, Any]:
    """Claude Code's Bedrock mode takes its models from here."""
    return {
        "inferenceProfileSummaries": [
            {
                "inferenceProfileId": alias,
                "inferenceProfileName": alias,
                "inferenceProfileArn": f"arn:aws:bedrock:::inference-profile/{alias}",
                "models": [{"modelArn": f"arn:aws:bedrock:::foundation-model/{alias}"}],
                "status": "ACTIVE",
                "type": "SYSTEM_DEFINED",
            }
            for alias in aliases
        ]
    }


def _foundation_models(aliases: list[str]) -> dict[str, Any]:
    return {
        "modelSummaries": [
            {
                "modelId": alias,
                "modelName": alias,
                "modelArn": f"arn:aws:bedrock:::foundation-model/{alias}",
                "inferenceTypesSupported": ["ON_DEMAND"],
                "outputModalities": ["TEXT"],
                "responseStreamingSupported": True,
            }
            for alias in aliases
        ]
    }


_BEDROCK_LISTS = {"/inference-profiles": _inference_profiles, "/foundation-models": _foundation_models}
