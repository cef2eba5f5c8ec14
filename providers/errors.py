"""What can go wrong between us and a provider. Facts are attributes: whoever decides on a retry asks the kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

Phase = Literal["connect", "write", "first_byte", "between_bytes", "total"]


class ProviderError(Exception):
    """The family. `status` and `body` are the provider's own where it answered; `code` is its own error code.

    retryable: another try (there or elsewhere) may succeed. Never retried once an event has reached the client.
    """

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        body: bytes = b"",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.body = body
        self.retry_after_s = retry_after_s


class Unreachable(ProviderError):
    """No connection: refused, no route, DNS, TLS. Nothing was sent."""

    retryable = True


class TimedOut(ProviderError):
    """The provider was silent for longer than allowed in `phase`."""

    retryable = True

    def __init__(self, message: str, phase: Phase, **facts: object) -> None:
        super().__init__(message, **facts)  # type: ignore[arg-type]
        self.phase = phase


class Throttled(ProviderError):
    """429 and its kin: our quota there is used up for now. `retry_after_s` where the provider told."""

    retryable = True


class Overloaded(ProviderError):
    """The provider has no capacity (503, 529, model not ready)."""

    retryable = True


class AuthFailed(ProviderError):
    """Our credential was refused. An operator must act; the client cannot."""


class Rejected(ProviderError):
    """The provider says the client's request is wrong (400, 404, 413, 422). Goes back to the client as it is."""


class ContextTooLong(Rejected):
    """Rejected because the prompt does not fit the model's window: another model may take it."""


class ContentFiltered(Rejected):
    """Rejected by the provider's safety filter before any output. inner: what of it, in the OpenAI family's words."""

    inner: Mapping[str, Any] | None = None


class Broken(ProviderError):
    """The provider answered with something that is no valid answer: 5xx, wrong content type, malformed frame."""

    retryable = True


class Interrupted(ProviderError):
    """The stream ended or failed after its first event. `cause_kind` is what happened."""

    def __init__(self, message: str, cause_kind: str = "cut", **facts: object) -> None:
        super().__init__(message, **facts)  # type: ignore[arg-type]
        self.cause_kind = cause_kind


class Unsupported(ProviderError):
    """This dialect or provider has no way to say what the request asks. `features` names each, for the client."""

    def __init__(self, features: tuple[str, ...], where: str) -> None:
        super().__init__(f"{where} does not support {', '.join(features)}")
        self.features = features


class WireError(ProviderError):
    """Bytes that the format's reference rules out: Broken, found by a dialect, which cannot tell how far we are."""

    retryable = True


class BadRequest(ProviderError):
    """A client's body that its own dialect rules out. `param` names the field where it is known."""


# What a status means when the dialect's own error code says nothing finer. 402 is our account without money and 401/403
# our key: an operator must act. 498 is Groq's exhausted flex tier, 529 Anthropic's overload. Anything else: 4xx is the
# client's fault, the rest is theirs; a 3xx is Broken, since no redirect is followed with a credential in hand.
# Source: the providers' error pages and SDK retry rules, read 2026-11.
KIND_OF_STATUS: Mapping[int, type[ProviderError]] = {
    401: AuthFailed,
    402: AuthFailed,
    403: AuthFailed,
    408: Broken,
    409: Broken,
    424: Broken,
    425: Broken,
    429: Throttled,
    498: Overloaded,
    503: Overloaded,
    529: Overloaded,
}

# Nobody agrees on a code for "the prompt does not fit", so its texts are known by sight.
_CONTEXT_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size|limit)|maximum (?:context|input|prompt)|(?:prompt|input|request) is too long"
    r"|input length .* exceed|reduce the length of the (?:messages|prompt|input)|too many (?:input |total )?tokens"
    r"|exceeds? the (?:model's )?(?:maximum|available) (?:context|number of (?:input )?tokens)"
    r"|input token count .* exceeds",
    re.IGNORECASE,
)


def says_context_too_long(message: str) -> bool:
    return _CONTEXT_TOO_LONG.search(message) is not None


def for_status(
    status: int,
    message: str,
    *,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    param: str | None = None,
    body: bytes = b"",
) -> ProviderError:
    """The error kind of a non-2xx answer, by its status alone but for a prompt that is too long (400, 413, 422)."""
    kind = KIND_OF_STATUS.get(status)
    if kind is None:
        kind = Rejected if 400 <= status < 500 else Broken
        if status in (400, 413, 422) and says_context_too_long(message):
            kind = ContextTooLong
    wait = retry_after_s(headers) if headers else None
    return kind(message, status=status, code=code, param=param, body=body, retry_after_s=wait)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks us to wait, from whichever header it uses. headers: lower-case names.

    A date is measured against the answer's own `date`: our clock and theirs need not agree."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms", "x-amz-retry-after"):
        if (wait := _number(headers.get(name))) is not None:
            return wait / 1000
    text = headers.get("retry-after")
    if (wait := _number(text)) is not None:
        return wait
    if text is None or "date" not in headers:
        return None
    try:
        return max(0.0, (parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])).total_seconds())
    except (ValueError, TypeError):
        return None  # neither a number nor a date: as good as not said


def _number(text: str | None) -> float | None:
    try:
        wait = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return wait if 0 <= wait < 86_400 * 7 else None  # NaN and infinity fail the comparison
