"""What can go wrong in the engine, as kinds with facts; only `openai_wire` turns them into status and envelope."""

from __future__ import annotations


class EngineError(Exception):
    """Root of the engine's errors. `code` is stable and machine-readable; the message is for people."""

    status = 500
    type = "server_error"
    code = "engine_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(EngineError):
    """The request cannot be served as written; sending it again will not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unsupported(InvalidRequest):
    """The request is legal in the dialect, but asks for something that this engine does not do."""

    code = "unsupported"


class ContextLengthExceeded(InvalidRequest):
    """The prompt leaves no room for one output token."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_model_len: int, param: str) -> None:
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens, and the prompt takes {prompt_tokens}. "
            "Leave room for at least one output token.",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.max_model_len = max_model_len


class BodyTooLarge(InvalidRequest):
    """The request body is over the configured bound; it was not read to its end."""

    status = 413
    code = "request_too_large"


class ModelNotFound(InvalidRequest):
    """The name in the request is not the model served here."""

    status = 404
    code = "model_not_found"


class RouteNotFound(InvalidRequest):
    """No such path, or not with this method."""

    status = 404
    code = "not_found"


class QueueFull(EngineError):
    """More requests wait than the configured bound. Nothing of the request was kept; it may be sent again later."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_s = 1


class NotReady(EngineError):
    """The core is loading, restarting or draining; the request was not started and may be sent elsewhere."""

    status = 503
    type = "service_unavailable_error"
    code = "engine_not_ready"
    retry_after_s = 1


class CoreDied(EngineError):
    """The core process ended or stopped making progress while the request ran. It may be sent again."""

    status = 503
    type = "service_unavailable_error"
    code = "engine_restarted"
    retry_after_s = 2


class BadLogits(EngineError):
    """The model produced NaN or infinity for this request; the others in the batch are not touched."""

    code = "bad_logits"


class ConstraintFailed(EngineError):
    """The grammar of this request became too costly to follow; a simpler one may do."""

    status = 400
    type = "invalid_request_error"
    code = "constraint_failed"


class DeadlineExceeded(EngineError):
    """The request was not done within the time that it allowed itself; it holds nothing any more."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class ModelUnavailable(EngineError):
    """The model cannot be found, fetched or read; start-up ends with this message."""

    code = "model_unavailable"


class Unauthorized(InvalidRequest):
    """The engine was given a key, and the request does not show it."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
