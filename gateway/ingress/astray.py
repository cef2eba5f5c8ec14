"""Requests that reached the right server by the wrong path or method, told so as their dialect tells errors: a client
whose base URL lacks `/v1` reads what is wrong where its SDK shows messages.

They are answered here and not in the front office, which most processes never load.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from gateway.exchange import Reply
from gateway.ingress.endpoints import Route, match
from gateway.ingress.models import wants_models
from gateway.observe.redact import redact_text
from providers.dialects import load
from providers.dialects.base import ErrorBody

_METHODS: Final = ("GET", "POST", "DELETE")


def astray(method: str, path: str, headers: Mapping[str, str], request_id: str) -> Reply:
    """405 with `Allow` where the method alone is wrong, else 404; 503 where nothing is wrong, and the data plane is not
    up. path: raw. headers: lower-case names."""
    served = {each: route for each in _METHODS if (route := _route_of(each, path)) is not None}
    if method not in ("HEAD", "OPTIONS", *served) and all(route.item is not None for route in served.values()):
        served = {}  # Nobody can tell an id from the name of an operation that is not served (`/responses/compact`).
    fields = [("x-request-id", request_id)]
    if served:
        fields.append(("allow", ", ".join([*served, "OPTIONS"])))
        if method == "OPTIONS":
            return Reply(HTTPStatus.NO_CONTENT, fields, b"")
        dialect = next(iter(served.values())).error_dialect
        if method in served:
            message = "the gateway is starting or stopping; try again"
            said = ErrorBody(503, "unavailable", "service_unavailable", message, None, request_id, 1.0)
            fields = [("x-request-id", request_id), ("content-type", "application/json"), ("retry-after", "1")]
            return Reply(503, fields, load(dialect).encode_error(said), said)
        message = f"{method} is not served at {_shown(path)}: send {' or '.join(served)}"
        said = ErrorBody(405, "invalid_request", "method_not_allowed", message, None, request_id)
    else:
        dialect, meant = _dialect_of(path, headers), _meant(path)
        message = f"no such path: {method} {_shown(path)}" + (f"; did you mean {meant}?" if meant else "")
        said = ErrorBody(404, "not_found", "unknown_url", message, None, request_id)
    fields += [("content-type", "application/json"), ("x-should-retry", "false")]
    return Reply(said.status, fields, load(dialect).encode_error(said), said)


def _route_of(method: str, path: str) -> Route | None:
    return match(method, path) or (Route("openai_chat", "models") if wants_models(method, path) else None)


def _shown(path: str) -> str:
    """As far as it is no credential that somebody put there."""
    return redact_text(path[:200])


def _meant(path: str) -> str | None:
    """The path without what clients add by mistake: a slash at the end, a version twice."""
    for tried in (path.rstrip("/"), path.replace("/v1/v1/", "/v1/").rstrip("/"), f"/v1{path}".rstrip("/")):
        if tried != path and any(_route_of(method, tried) for method in _METHODS):
            return _shown(tried)
    return None


def _dialect_of(path: str, headers: Mapping[str, str]) -> str:
    """Whose client that probably is."""
    if "anthropic-version" in headers or "/messages" in path or path.startswith("/anthropic"):
        return "anthropic_messages"
    if "x-goog-api-key" in headers or path.startswith(("/v1beta", "/v1alpha")) or ":generateContent" in path:
        return "gemini"
    if path.startswith("/model/"):
        return "bedrock_converse"
    return "openai_chat"
