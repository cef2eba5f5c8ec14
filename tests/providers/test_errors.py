"""The one table from statuses, codes and texts to error kinds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.dialects.openai_common.errors import decode_error, from_object
from providers.errors import (
    AuthFailed,
    Broken,
    ContentFiltered,
    ContextTooLong,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    for_status,
    retry_after_s,
    says_context_too_long,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, Broken),
        (400, Rejected),
        (401, AuthFailed),
        (402, AuthFailed),
        (403, AuthFailed),
        (404, Rejected),
        (405, Rejected),
        (408, Broken),
        (409, Broken),
        (413, Rejected),
        (418, Rejected),
        (422, Rejected),
        (424, Broken),
        (429, Throttled),
        (498, Overloaded),
        (500, Broken),
        (502, Broken),
        (503, Overloaded),
        (504, Broken),
        (529, Overloaded),
        (599, Broken),
    ],
)
def test_status_alone(status: int, kind: type[ProviderError]) -> None:
    error = for_status(status, "text", headers={"retry-after": "3"}, code="c", body=b"b")
    assert type(error) is kind
    assert (error.status, error.code, error.body, error.retry_after_s) == (status, "c", b"b", 3.0)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4097 tokens. However, you requested 5000 tokens",
        "Please reduce the length of the messages or completion.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Input is too long for requested model.",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "the request exceeds the available context size. try increasing the context size",
        "Requested input length 9000 exceeds maximum input length 8191",
        "Too many input tokens",
    ],
)
def test_texts_that_mean_too_long(message: str) -> None:
    assert says_context_too_long(message)
    assert type(for_status(400, message)) is ContextTooLong
    assert type(decode_error(400, {}, json.dumps({"error": {"message": message}}).encode())) is ContextTooLong


@pytest.mark.parametrize("message", ["max_tokens is too large: 9", "Invalid context id", "temperature is too long"])
def test_texts_that_do_not(message: str) -> None:
    assert type(for_status(400, message)) is Rejected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "2", "retry-after-ms": "150"}, 0.15),
        ({"x-ms-retry-after-ms": "150"}, 0.15),
        ({"x-amz-retry-after": "2500"}, 2.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "99999999999"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 10:00:07 GMT"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 10:00:07 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 7.0),
        ({"retry-after": "Mon, 23 Nov 2026 09:00:00 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 23 Nov 2026 10:00:07 GMT", "date": "yesterday"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "code"),
    [
        (
            400,
            {"error": {"message": "m", "type": "t", "code": "content_filter"}},
            ContentFiltered,
            "m",
            "content_filter",
        ),
        (
            400,
            {"error": {"message": "m", "code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            ContentFiltered,
            "m",
            "x",
        ),
        (400, {"error": {"message": "m", "code": "tool_use_failed"}}, Broken, "m", "tool_use_failed"),
        (429, {"error": {"message": "m", "code": "insufficient_quota"}}, AuthFailed, "m", "insufficient_quota"),
        (400, {"error": "plain"}, Rejected, "plain", None),
        (422, {"detail": [{"loc": ["x"]}]}, Rejected, '[{"loc":["x"]}]', None),
        (
            400,
            {"object": "error", "message": "m", "type": "BadRequestError", "code": 400},
            Rejected,
            "m",
            "BadRequestError",
        ),
        (404, [{"error": {"message": "m", "code": 404}}], Rejected, "m", None),
        (500, {}, Broken, "{}", None),
        (500, None, Broken, "null", None),
        (500, "text", Broken, '"text"', None),
        (500, {"error": None}, Broken, '{"error":null}', None),
    ],
)
def test_bodies_of_the_family(
    status: int, body: Any, kind: type[ProviderError], message: str, code: str | None
) -> None:
    error = decode_error(status, {}, json.dumps(body).encode())
    assert (type(error), error.message, error.code) == (kind, message, code)
    assert error.status == status


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"error": {"message": "m", "type": "server_error"}}, Broken),
        ({"error": {"message": "m", "type": "rate_limit_error"}}, Throttled),
        ({"error": {"message": "m", "type": "overloaded_error"}}, Overloaded),
        ({"error": {"message": "m", "type": "invalid_request_error"}}, Rejected),
        ({"error": {"message": "prompt is too long", "type": "invalid_request_error"}}, ContextTooLong),
        ({"error": {"message": "m", "code": 503}}, Overloaded),
        ({"error": {"message": "m"}, "status_code": 429}, Throttled),
        ({"error": "over_capacity"}, Broken),
        ({"message": "m", "code": "over_capacity"}, Overloaded),
    ],
)
def test_errors_inside_a_stream(found: Any, kind: type[ProviderError]) -> None:
    assert type(from_object(found)) is kind


@given(st.integers(300, 599), st.binary(max_size=100))
def test_no_body_makes_it_raise(status: int, body: bytes) -> None:
    error = decode_error(status, {}, body)
    assert error.status == status
    assert error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["error", "message", "code", "type", "param", "detail", "innererror"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_no_object_makes_it_raise(found: Any) -> None:
    assert from_object(found, status=400).message
    assert from_object(found).message
