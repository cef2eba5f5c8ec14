"""The one table from error kind to what a client sees."""

import pytest

from billing.errors import JournalUnavailable
from gateway import errors as ours
from gateway.ingress.errors import as_body, headers_for
from providers import errors as theirs


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ours.BodyTooLarge("big"), 413, "body_too_large"),
        (ours.Unauthenticated("who", code="key_expired"), 401, "key_expired"),
        (ours.Forbidden("no", code="model_not_allowed"), 403, "model_not_allowed"),
        (ours.ModelNotFound("what"), 404, "model_not_found"),
        (ours.UnpricedModel("free?"), 403, "model_not_priced"),
        (ours.RateLimited("slow", retry_after_s=2.5, scope="key", unit="requests"), 429, "rate_limit_exceeded"),
        (ours.QuotaExceeded("broke", scope="key", remaining_pusd=1, limit_pusd=2), 429, "insufficient_quota"),
        (ours.Unavailable("redis"), 503, "service_unavailable"),
        (JournalUnavailable("disk full"), 503, "service_unavailable"),
        (theirs.BadRequest("wrong type", param="messages[0]"), 400, "invalid_request"),
        (theirs.Rejected("no such voice", status=422, code="bad_voice"), 422, "bad_voice"),
        (theirs.ContextTooLong("long", status=400), 400, "context_length_exceeded"),
        (theirs.AuthFailed("our key", status=401), 502, "upstream_auth_failed"),
        (theirs.TimedOut("slow", "first_byte"), 504, "upstream_timeout"),
        (theirs.Unreachable("down"), 502, "upstream_unreachable"),
        (theirs.Throttled("busy", retry_after_s=3), 429, "upstream_rate_limited"),
    ],
)
def test_every_kind_has_a_status_and_a_stable_code(error: Exception, status: int, code: str) -> None:
    body = as_body(error, "req_1")
    assert (body.status, body.code, body.request_id) == (status, code, "req_1")
    assert body.message


def test_a_plan_that_failed_speaks_of_its_last_attempt() -> None:
    failure = ours.NoRouteLeft("a: down; b: down", attempts=["a", "b"], last=theirs.Unreachable("down"))
    assert as_body(failure, "").status == 502
    assert as_body(failure, "").message == "a: down; b: down"
    mine = ours.NoRouteLeft("a: too long", attempts=["a"], last=theirs.ContextTooLong("too long", status=400))
    assert (as_body(mine, "").status, as_body(mine, "").message) == (400, "too long")


def test_an_unforeseen_error_tells_nothing_of_us() -> None:
    body = as_body(RuntimeError("password=hunter2"), "req_1")
    assert body.status == 500
    assert "hunter2" not in body.message


def test_clients_are_told_when_to_come_back_and_when_not_to() -> None:
    limited = ours.RateLimited("slow", retry_after_s=2.5, scope="key", unit="requests")
    assert headers_for(limited) == [("retry-after", "3"), ("retry-after-ms", "2500"), ("x-amz-retry-after", "2500")]
    broke = ours.QuotaExceeded("broke", scope="key", remaining_pusd=0, limit_pusd=1)
    assert headers_for(broke) == [("x-should-retry", "false")]
    throttled = ours.NoRouteLeft("a", attempts=["a"], last=theirs.Throttled("busy", retry_after_s=0.2))
    assert ("retry-after-ms", "200") in headers_for(throttled)
    assert headers_for(theirs.Broken("500")) == []
