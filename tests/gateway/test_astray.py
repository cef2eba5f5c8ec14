"""The wrong path or method: told in the client's own dialect, without loading the front office."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.ingress.astray import astray

CHAT = "/v1/chat/completions"


def asked(method: str, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    reply = astray(method, path, {name.replace("_", "-"): value for name, value in headers.items()}, "req_1")
    assert isinstance(reply.body, bytes)
    return reply.status, dict(reply.headers), json.loads(reply.body) if reply.body else None


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE"])
def test_only_the_method_is_wrong(method: str) -> None:
    status, headers, body = asked(method, CHAT)
    assert (status, headers["allow"]) == (405, "POST, OPTIONS")
    assert body["error"]["code"] == "method_not_allowed"
    assert "send POST" in body["error"]["message"]


def test_options_say_what_is_served() -> None:
    assert asked("OPTIONS", CHAT)[:2] == (204, {"x-request-id": "req_1", "allow": "POST, OPTIONS"})
    assert asked("OPTIONS", "/v1/models")[1]["allow"] == "GET, OPTIONS"
    assert asked("OPTIONS", "/v1/files/file-1")[1]["allow"] == "GET, DELETE, OPTIONS"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (CHAT + "/", CHAT),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/models/", "/v1/models"),
        ("/v1beta/models/m:generateContent/", "/v1beta/models/m:generateContent"),
        ("/messages/batches/", "/messages/batches"),
    ],
)
def test_a_near_miss_is_told_what_was_meant(path: str, meant: str) -> None:
    status, headers, body = asked("POST", path)
    assert status == 404
    assert headers["x-should-retry"] == "false"
    assert f"did you mean {meant}?" in json.dumps(body)


def test_each_dialect_words_it() -> None:
    assert asked("POST", "/v1/nothing")[2]["error"]["code"] == "unknown_url"
    told = asked("POST", "/v1/nothing", anthropic_version="2023-06-01")[2]
    assert (told["type"], told["error"]["type"], told["request_id"]) == ("error", "not_found_error", "req_1")
    assert asked("POST", "/v1beta/nothing")[2]["error"]["status"] == "NOT_FOUND"
    assert asked("POST", "/v1/x", x_goog_api_key="k")[2]["error"]["status"] == "NOT_FOUND"
    assert asked("POST", "/model/m/nothing")[2]["__type"] == "ResourceNotFoundException"
    assert asked("GET", "/v1beta/models/m:generateContent")[2]["error"]["status"]
    assert asked("PATCH", "/v1beta/interactions")[0] == 405
    # May be an id, or an operation that OpenAI has and we have not: its clients take 404 for that.
    assert asked("POST", "/v1/responses/compact")[0] == 404


def test_before_the_data_plane_is_up_a_right_request_may_be_said_again() -> None:
    status, headers, body = asked("POST", CHAT)
    assert (status, headers["retry-after"]) == (503, "1")
    assert "again" in body["error"]["message"]
