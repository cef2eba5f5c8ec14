"""What can go wrong between us and a provider. Facts are attributes: whoever decides on a retry asks the kind."""

from __future__ import annotations

from typing import Literal

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
    """Rejected by the provider's safety filter before any output."""


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
    """Bytes that the format's reference rules out. An adapter turns it into Broken or Interrupted."""


class BadRequest(ProviderError):
    """A client's body that its own dialect rules out. `param` names the field where it is known."""
