"""Anthropic itself. Source: Messages API reference and anthropic-python 2.12, read 2026-11.

The 2.x SDK sends its key as a bearer token, older ones as `x-api-key`; the API takes both. The client's own
`anthropic-version` and `anthropic-beta` go on unchanged: they say what its SDK can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from providers.auth.bearer import bearer, header
from providers.base import Call, Capabilities, DialectProvider, Operation, UpstreamAnswer
from providers.dialects import anthropic_messages
from providers.dialects.base import Dialect
from providers.errors import Broken
from providers.transport.base import HttpRequest
from providers.wire import jsonio

DEFAULT_VERSION = "2023-06-01"
_MAX_LIST_BYTES = 8 * 1024 * 1024


class Anthropic(DialectProvider):
    """options: `auth` "bearer" to send the key as a bearer token; `version` for clients that name none."""

    name = "anthropic"
    capabilities = Capabilities(logprobs=False, candidates=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = {"chat": anthropic_messages.DIALECT}
    default_base_url = "https://api.anthropic.com"

    def path(self, call: Call, model: str) -> str:
        return self._versioned("/messages")

    def dialect_for(self, call: Call, model: str) -> Dialect:
        super().dialect_for(call, model)
        return anthropic_messages.AnthropicMessages(call.request.model)

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        return await super().send(forwardable(call), model)

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        if call.output_limit is not None:
            body["max_tokens"] = call.output_limit
        return body

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        if any(name == "anthropic-version" for name, _ in call.forward_headers):
            return ()
        return (("anthropic-version", str(self.endpoint.options.get("version", DEFAULT_VERSION))),)

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        credential = self.endpoint.credential
        as_bearer = self.endpoint.options.get("auth") == "bearer"
        added = bearer(credential) if as_bearer else header(credential, "x-api-key")
        if not any(name == "anthropic-version" for name, _ in request.headers):
            added += (("anthropic-version", DEFAULT_VERSION),)
        return replace(request, headers=request.headers + added)

    async def count_tokens(self, call: Call, model: str) -> int:
        """Input tokens of this request, as the provider counts them. Raises: as `send`."""
        encoded = anthropic_messages.encode_count_request(call.request, model=model, strict=call.strict)
        dialect = anthropic_messages.DIALECT
        path = self._versioned("/messages/count_tokens")
        response = await self.exchange("POST", path, jsonio.encode(encoded.body), call, dialect)
        try:
            return anthropic_messages.decode_token_count(await response.read(_MAX_LIST_BYTES))
        finally:
            await response.aclose()

    async def models(self) -> tuple[str, ...]:
        path = self._versioned("/models?limit=1000")
        response = await self.exchange("GET", path, b"", None, anthropic_messages.DIALECT)
        try:
            found = msgspec.json.decode(await response.read(_MAX_LIST_BYTES), type=_ModelList)
        except msgspec.MsgspecError as error:
            raise Broken(f"{self.name}: /v1/models is not a list of models: {error}") from error
        finally:
            await response.aclose()
        return tuple(model.id for model in found.data)

    def _versioned(self, path: str) -> str:
        """The SDKs' base URL has no version; one that was configured with it is taken as meant."""
        return path if self.base_url.endswith("/v1") else f"/v1{path}"


def forwardable(call: Call) -> Call:
    """The call, without its bytes where they cannot go on as they are: other models' seals in them, or a thinking
    budget that the smaller output limit no longer holds. Then the neutral request is encoded."""
    reasoning = call.request.reasoning
    shrunk = call.output_limit is not None and reasoning is not None and reasoning.budget_tokens is not None
    if shrunk or anthropic_messages.carries_foreign_seals(call.request):
        return replace(call, body=b"")
    return call


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]
