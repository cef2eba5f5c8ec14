"""Which status and code a client sees for each kind of error: the one table. The dialect writes the envelope."""

from __future__ import annotations

from math import ceil

from msgspec.structs import replace

from billing.errors import JournalUnavailable, UnknownPrice
from gateway import errors as ours
from gateway.admission.headers import refusal_headers
from providers import errors as theirs
from providers.dialects.base import ErrorBody

# kind of ours -> (status, the gateway's stable word)
_STATUS: dict[type[Exception], tuple[int, str]] = {
    ours.BodyTooLarge: (413, "invalid_request"),
    ours.HeadTooLarge: (431, "invalid_request"),
    ours.TooSlow: (408, "invalid_request"),
    ours.Unsupported: (400, "invalid_request"),
    ours.InvalidRequest: (400, "invalid_request"),
    ours.Unauthenticated: (401, "authentication"),
    ours.Forbidden: (403, "permission"),
    ours.ModelNotFound: (404, "not_found"),
    ours.NotFound: (404, "not_found"),
    ours.UnpricedModel: (403, "permission"),
    ours.Blocked: (400, "invalid_request"),
    ours.RateLimited: (429, "rate_limited"),
    ours.QuotaExceeded: (429, "quota_exceeded"),
    ours.Unavailable: (503, "unavailable"),
    ours.NoRouteLeft: (502, "upstream"),
    theirs.BadRequest: (400, "invalid_request"),
    theirs.Unsupported: (400, "invalid_request"),
    theirs.ContextTooLong: (400, "invalid_request"),
    theirs.ContentFiltered: (400, "invalid_request"),
    theirs.Rejected: (400, "invalid_request"),
    theirs.Throttled: (429, "rate_limited"),
    theirs.Overloaded: (503, "unavailable"),
    theirs.TimedOut: (504, "upstream"),
    theirs.AuthFailed: (502, "upstream"),
    theirs.Unreachable: (502, "upstream"),
    theirs.Interrupted: (502, "upstream"),
    theirs.Broken: (502, "upstream"),
    theirs.WireError: (502, "upstream"),
    JournalUnavailable: (503, "unavailable"),
    # Brackets within brackets, thousands deep: nobody's request, and no parser of ours goes there.
    RecursionError: (400, "invalid_request"),
    UnknownPrice: (403, "permission"),
}

_CODES: dict[type[Exception], str] = {
    theirs.BadRequest: "invalid_request",
    theirs.Unsupported: "unsupported",
    theirs.ContextTooLong: "context_length_exceeded",
    theirs.ContentFiltered: "content_filter",
    theirs.Rejected: "upstream_rejected",
    theirs.Throttled: "upstream_rate_limited",
    theirs.Overloaded: "upstream_overloaded",
    theirs.TimedOut: "upstream_timeout",
    theirs.AuthFailed: "upstream_auth_failed",
    theirs.Unreachable: "upstream_unreachable",
    theirs.Interrupted: "upstream_interrupted",
    theirs.Broken: "upstream_broken",
    theirs.WireError: "upstream_broken",
    JournalUnavailable: "service_unavailable",
    RecursionError: "json_too_deep",
    UnknownPrice: "model_not_priced",
}

_PLAINER: dict[type[Exception], str] = {RecursionError: "the JSON is nested too deeply"}

# Saying these again cannot help within the next minutes; SDKs that honour the header stop at once.
_FINAL = (ours.QuotaExceeded, ours.Blocked, ours.Forbidden, ours.Unauthenticated, ours.UnpricedModel, ours.Unsupported)


def as_body(error: Exception, request_id: str) -> ErrorBody:
    """The error in the gateway's stable words. An unforeseen kind is a 500 that tells the client nothing of us."""
    if isinstance(error, ours.NoRouteLeft) and isinstance(error.last, theirs.ProviderError):
        inner = as_body(error.last, request_id)
        # The client's own mistakes come back as their own kind; every other failure is told with all attempts.
        message = error.message if inner.status >= 500 or inner.status == 429 else inner.message
        return replace(inner, message=message)
    for kind in type(error).__mro__:
        if kind in _STATUS:
            status, word = _STATUS[kind]
            if isinstance(error, theirs.Rejected) and error.status is not None and 400 <= error.status < 500:
                status = error.status
                word = "not_found" if status == 404 else word
            code = _CODES.get(kind) or getattr(error, "code", None) or "internal_error"
            if isinstance(error, theirs.Rejected) and error.code:
                code = error.code
            message = getattr(error, "message", None) or _PLAINER.get(kind) or str(error)
            param, inner_error = getattr(error, "param", None), getattr(error, "inner", None)
            return ErrorBody(status, word, code, message, param, request_id, wait_s(error), inner_error)
    message = "internal error; quote the request id to the operator"
    return ErrorBody(500, "internal", "internal_error", message, None, request_id)


def wait_s(error: Exception) -> float | None:
    """When to try again, where anybody knows."""
    wait: float | None = getattr(error, "retry_after_s", None)
    return None if wait is None or isinstance(error, _FINAL) else wait


def headers_for(error: Exception, dialect: str = "", now_ns: int = 0) -> list[tuple[str, str]]:
    """Headers that tell a client when to try again and what is left, in the forms that the dialect's SDKs read."""
    while isinstance(error, ours.NoRouteLeft) and error.last is not None:
        error = error.last
    if isinstance(error, _FINAL):
        return [("x-should-retry", "false")]
    if (wait := wait_s(error)) is None:
        return []
    wait_ms = max(1, ceil(wait * 1000))
    return [
        ("retry-after", str(max(1, ceil(wait)))),
        ("retry-after-ms", str(wait_ms)),
        ("x-amz-retry-after", str(wait_ms)),
        *(refusal_headers(error, dialect, now_ns) if isinstance(error, ours.RateLimited) else ()),
    ]
