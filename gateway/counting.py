"""The way of a token count: asked of the provider where it counts, estimated where none does. It costs nothing."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping

import msgspec
import structlog

from gateway.admission import Principal
from gateway.admission.budget import FIRST_LIKELY, OVERHEAD_TOKENS, image_tokens
from gateway.desk import Desk
from gateway.exchange import Headers, Inbound, Providers, Reply, forwarded
from gateway.guardrails.texts import texts_of, with_texts
from gateway.metering import size_of
from providers.base import Call, TokenCounter
from providers.dialects import anthropic_messages, load
from providers.errors import BadRequest, ProviderError
from providers.neutral import ChatRequest

log = structlog.get_logger(__name__)


class Counting:
    def __init__(self, desk: Desk, providers: Providers, strict: bool) -> None:
        self._desk = desk
        self._providers = providers
        self._strict = strict

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        """The first deployment's own count; our estimate, called so in a header, where it has none or cannot now."""
        route = inbound.route
        request = _DECODE[route.dialect](inbound.body, route.model)
        if who.guard is not None:  # The provider counts what the answer's prompt will be: edited, or never sent.
            texts = await self._desk.looked_at(inbound, who, request.model, texts_of(request))
            request = with_texts(request, texts)
        leg = self._desk.plan(request.model, frozenset({"chat"}), who, inbound.now_ns).legs[0]
        provider = self._providers.get(leg.deployment.adapter)
        headers: Headers = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
        tokens = None
        if isinstance(provider, TokenCounter):
            call = Call(
                "chat",
                route.dialect,
                request,
                b"",
                inbound.request_id,
                forwarded(inbound.headers) if provider.name == "anthropic" else (),
                strict=False,  # what cannot be said there is not counted; the answer itself will refuse it by name
            )
            try:
                tokens = await provider.count_tokens(call, leg.deployment.model)
            except ProviderError as error:
                if not error.retryable:
                    raise
                log.warning("token count estimated", request_id=inbound.request_id, kind=type(error).__name__)
        if tokens is None:
            tokens = estimated_tokens(request)
            headers.append(("x-farebox-estimated", "true"))
        return Reply(200, headers, _ENCODE[route.dialect](tokens))


def estimated_tokens(request: ChatRequest) -> int:
    """Four bytes a token, as English has it, and what a template adds: a usual count, not a bound."""
    size = size_of(request)
    text = -(-size.text_bytes // int(FIRST_LIKELY))
    return text + size.images * image_tokens(request.model) + OVERHEAD_TOKENS // 16 * max(1, len(request.messages))


def _decode_responses(body: bytes, model: str | None) -> ChatRequest:
    return load("openai_responses").decode_request(body, model=model)


def _decode_gemini(body: bytes, model: str | None) -> ChatRequest:
    from providers.dialects.gemini.counting import decode_count_request  # Loaded by whoever speaks it, as `load` does.

    return decode_count_request(body, model=model or "")


def _encode_gemini(tokens: int) -> bytes:
    from providers.dialects.gemini.counting import encode_count_response

    return encode_count_response(tokens)


def _decode_bedrock(body: bytes, model: str | None) -> ChatRequest:
    """CountTokens wraps a Converse request, or the base64 of the body that InvokeModel would take.

    Source: botocore 1.44 `bedrock-runtime`, read 2026-11."""
    try:
        asked = msgspec.json.decode(body, type=_CountTokens).input
        if asked.invokeModel is not None:
            inner = base64.b64decode(asked.invokeModel.body, validate=True)
            return anthropic_messages.decode_count_request(inner, model=model)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error) as error:
        raise BadRequest(f"not a CountTokens request: {error}", param="input") from error
    if not bytes(asked.converse):
        raise BadRequest("input must hold converse or invokeModel", param="input")
    return load("bedrock_converse").decode_request(bytes(asked.converse), model=model, stream=False)


class _InvokeModel(msgspec.Struct):
    body: str


class _Input(msgspec.Struct):
    converse: msgspec.Raw = msgspec.Raw()
    invokeModel: _InvokeModel | None = None  # noqa: N815 - the wire's own name


class _CountTokens(msgspec.Struct):
    input: _Input


_DECODE: Mapping[str, Callable[[bytes, str | None], ChatRequest]] = {
    "anthropic_messages": lambda body, model: anthropic_messages.decode_count_request(body, model=model),
    "gemini": _decode_gemini,
    "bedrock_converse": _decode_bedrock,
    "openai_responses": _decode_responses,
}
_ENCODE: Mapping[str, Callable[[int], bytes]] = {
    "anthropic_messages": anthropic_messages.encode_token_count,
    "gemini": _encode_gemini,
    "bedrock_converse": lambda tokens: msgspec.json.encode({"inputTokens": tokens}),
    "openai_responses": lambda tokens: msgspec.json.encode({"object": "response.input_tokens", "input_tokens": tokens}),
}
