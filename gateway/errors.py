"""What the gateway says no with. Facts are attributes; `ingress/errors.py` turns a kind into a status."""

from __future__ import annotations

from collections.abc import Sequence


class GatewayError(Exception):
    """The family. `code` is stable and part of the API; `message` goes to the client and never holds a secret."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(GatewayError):
    code = "invalid_request"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class HeadTooLarge(InvalidRequest):
    """Request line and headers."""

    code = "headers_too_large"


class TooSlow(InvalidRequest):
    """The request did not arrive in time."""

    code = "request_timeout"


class Unauthenticated(GatewayError):
    """No key, or one that we do not know, or that is expired or revoked."""

    code = "invalid_api_key"


class Forbidden(GatewayError):
    """A good key that may not do this."""

    code = "permission_denied"


class ModelNotFound(GatewayError):
    code = "model_not_found"


class NotFound(GatewayError):
    """No such path or resource."""

    code = "not_found"


class Unsupported(GatewayError):
    """The request asks for something that no deployment behind the alias can do. `features` names each."""

    code = "unsupported"

    def __init__(self, message: str, features: Sequence[str] = (), **facts: str | None) -> None:
        super().__init__(message, **facts)
        self.features = tuple(features)


class UnpricedModel(GatewayError):
    """No price stands for this model, so it cannot be paid for, so it is not run."""

    code = "model_not_priced"


class Blocked(GatewayError):
    """A guardrail stopped the request, or nobody could be asked whether it may pass."""

    code = "content_filter"


class RateLimited(GatewayError):
    """A limit of requests, tokens or parallel requests is reached. `scope` says whose, `unit` which."""

    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        scope: str,
        unit: str,
        scope_id: str = "",
        limit: int | None = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.scope = scope
        self.scope_id = scope_id
        self.unit = unit


class QuotaExceeded(GatewayError):
    """A budget does not cover the request's worst case. `remaining_pusd` is what it would cover."""

    code = "insufficient_quota"

    def __init__(self, message: str, *, scope: str, remaining_pusd: int, limit_pusd: int, scope_id: str = "") -> None:
        super().__init__(message)
        self.scope = scope
        self.scope_id = scope_id
        self.remaining_pusd = remaining_pusd
        self.limit_pusd = limit_pusd


class Unavailable(GatewayError):
    """Something of ours is away (Redis, SQL, journal disk). Nothing was sent and nothing is owed."""

    code = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LimitsAway(Unavailable):
    """The store of limits is not there, or refuses: what may still be granted is a choice (`admission.store_away`)."""


class NoRouteLeft(GatewayError):
    """Every deployment of the plan failed. `attempts` tells of each, `tries` in short: deployment, how it ended, after
    how many milliseconds; `last` is the ProviderError of the last one."""

    code = "upstream_failed"

    def __init__(
        self,
        message: str,
        *,
        attempts: Sequence[str],
        last: Exception | None = None,
        tries: Sequence[tuple[str, str, int]] = (),
    ) -> None:
        super().__init__(message)
        self.tries = tuple(tries)
        self.attempts = tuple(attempts)
        self.last = last
