"""Azure: Azure OpenAI and Foundry models on `/openai/v1` or by deployment, Claude on Foundry by Anthropic's path.

A model is the name of a deployment. Without the option `api_version` the v1 surface is used; with it the older
`/openai/deployments/{name}/...?api-version=` form. Source: learn.microsoft.com api-version-lifecycle and content-filter
pages, openai-python 3.54 lib/azure, anthropic-python 2.12 lib/foundry, read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from msgspec.structs import replace

from providers.auth.entra import FOUNDRY_SCOPE, SCOPE, entra_token
from providers.auth.refreshed import RefreshedToken
from providers.base import Call, Capabilities, Endpoint, Operation, UpstreamAnswer, read_whole
from providers.dialects.base import Dialect
from providers.dialects.rerank import Flavour
from providers.errors import ProviderError, Throttled, Unsupported
from providers.neutral import ChatRequest
from providers.openai_like import PATHS, OpenAILike
from providers.transport.base import HttpRequest, HttpResponse, Timeouts, Transport
from providers.wire import jsonio

Surface = Literal["chat", "responses", "claude"]

# Where a 429 comes without headers (seen on the Responses API), its text still tells.
_WAIT = re.compile(r"(?:retry|try again) (?:after|in) (\d{1,5}) ?(milli)?s", re.IGNORECASE)


class AzureAI(OpenAILike):
    """Options: `resource` (its name, in place of base_url), `api_version`, `output_limit` (the field that bounds a
    chat's output, for Foundry models that know `max_tokens` alone), `claude` (deployments that hold a Claude under a
    name that does not begin so), `authority` and `scope` (a sovereign or private cloud's Entra, and what its tokens
    are for).

    Credential: `api_key`, or what `providers.auth.entra` takes."""

    name = "azure_ai"
    lists_models = False
    capabilities = Capabilities(operations=frozenset(PATHS))
    output_limit: ClassVar[str] = "max_completion_tokens"
    serves_responses: ClassVar[bool] = True
    rerank_flavour: ClassVar[Flavour] = "cohere"
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "top_k": (-1, 0),
        "min_p": (0,),
        "repetition_penalty": (1,),
        "background": (False,),  # the gateway's own work: nobody of ours would fetch it there
    }

    def __init__(self, endpoint: Endpoint, transport: Transport, timeouts: Timeouts | None = None) -> None:
        super().__init__(endpoint, transport, timeouts)
        self._version = str(endpoint.options.get("api_version") or "")
        self._claudes = frozenset(endpoint.options.get("claude") or ())
        self._token = self._claude_token = None
        if "api_key" not in endpoint.credential.fields:
            self._token = self._entra_token(SCOPE, transport)
            self._claude_token = self._entra_token(FOUNDRY_SCOPE, transport)

    def base_url_of(self, endpoint: Endpoint) -> str | None:
        resource = str(endpoint.options.get("resource") or "")
        if endpoint.base_url or not resource:
            # Portals show the address with one of these behind it.
            return re.sub(r"/(?:openai(?:/v1)?|models|anthropic)/?$", "", endpoint.base_url or "")
        if not re.fullmatch(r"[A-Za-z0-9-]+", resource):
            raise ValueError(f"azure_ai: {resource!r} is no resource name")
        return f"https://{resource}.services.ai.azure.com"

    def speaks_responses(self, call: Call, model: str) -> bool:
        return self._surface(call, model) == "responses"

    def dialect_for(self, call: Call, model: str) -> Dialect:
        if self._surface(call, model) == "claude":
            if call.operation != "chat":
                raise Unsupported((call.operation,), self.name)
            return _claude(call)
        return super().dialect_for(call, model)

    def path(self, call: Call, model: str) -> str:
        match self._surface(call, model):
            case "claude":
                return "/anthropic/v1/messages"
            case "responses":
                return "/openai/v1/responses"
        return self.place(self._operation(call), model)

    def place(self, operation: Operation, model: str) -> str:
        if operation == "rerank":
            return "/providers/cohere/v2/rerank"
        if self._version:
            return f"/openai/deployments/{quote(model, safe='')}{PATHS[operation]}?api-version={quote(self._version)}"
        return f"/openai/v1{PATHS[operation]}"

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        if (
            call.dialect == "anthropic_messages"
            and self._surface(call, model) == "claude"
            and _has_foreign_seals(call.request)
        ):
            call = replace(call, body=b"")
        return await super().send(call, model)

    def forward(self, call: Call, model: str) -> dict[str, Any]:
        if self._surface(call, model) == "claude":
            return jsonio.split_object(call.body) | {"model": model}
        return super().forward(call, model)

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        match self._surface(call, model):
            case "claude":
                return body if call.output_limit is None else {**body, "max_tokens": call.output_limit}
            case "responses":
                return super().adjust(body, call, model)
        body = super().adjust(body, call, model)
        if (field := self.endpoint.options.get("output_limit")) and self.output_limit in body:
            body[str(field)] = body.pop(self.output_limit)
        return body

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes,
        call: Call | None,
        dialect: Dialect | None,
        content_type: str = "application/json",
    ) -> HttpResponse:
        try:
            return await super().exchange(method, path, body, call, dialect, content_type)
        except Throttled as error:
            if error.retry_after_s is None:
                error.retry_after_s = _told_wait_s(error)
            raise

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        is_claude = request.url.startswith(f"{self.base_url}/anthropic/")
        headers = list(request.headers)
        if is_claude and all(name != "anthropic-version" for name, _ in headers):
            headers.append(("anthropic-version", "2023-06-01"))
        token = self._claude_token if is_claude else self._token
        if token is not None:
            headers.append(("authorization", f"Bearer {await token.get()}"))
        else:
            key = self.endpoint.credential.fields["api_key"]
            headers.append(("api-key", key))
            if is_claude:
                headers.append(("x-api-key", key))
            elif request.url.startswith(f"{self.base_url}/contentsafety/"):
                headers.append(("ocp-apim-subscription-key", key))
        return replace(request, headers=tuple(headers))

    async def analyze_text(self, body: Mapping[str, Any]) -> bytes:
        """text:analyze of Content Safety, which an AI Services resource has beside its models.

        Source: learn.microsoft.com REST reference "Text Operations - Analyze Text" 2024-09-01, read 2026-11.
        Raises: a ProviderError kind."""
        path = "/contentsafety/text:analyze?api-version=2024-09-01"
        return await read_whole(await self.exchange("POST", path, jsonio.encode(body), None, None))

    async def models(self) -> tuple[str, ...]:
        """The data plane lists what could be deployed, not what is: that would mislead more than nothing."""
        return ()

    async def aclose(self) -> None:
        for token in (self._token, self._claude_token):
            if token is not None:
                await token.aclose()

    def _entra_token(self, scope: str, transport: Transport) -> RefreshedToken:
        options = self.endpoint.options
        authority = str(options.get("authority") or "")
        if authority and not re.fullmatch(r"(https://)?[A-Za-z0-9.:-]+/?", authority):
            raise ValueError(f"azure_ai: authority {authority!r} is no https address of an Entra host")
        # Whom the gateway trusts on the way to providers it trusts here; other transports have no such list.
        ca_file = getattr(transport, "ca_file", None)
        return entra_token(
            self.endpoint.credential, str(options.get("scope") or scope), authority=authority, ca_file=ca_file
        )

    def _surface(self, call: Call, model: str) -> Surface:
        if model.startswith("claude") or model in self._claudes:
            return "claude"
        # Only the v1 surface has responses.
        return "responses" if not self._version and super().speaks_responses(call, model) else "chat"


def _told_wait_s(error: ProviderError) -> float | None:
    found = _WAIT.search(error.message)
    return None if found is None else int(found[1]) / (1000 if found[2] else 1)


def _has_foreign_seals(request: ChatRequest) -> bool:
    """Imported on use: few resources hold a Claude."""
    from providers.dialects.anthropic_messages import carries_foreign_seals

    return carries_foreign_seals(request)


def _claude(call: Call) -> Dialect:
    """Imported on use, as above."""
    from providers.dialects.anthropic_messages import AnthropicMessages

    return AnthropicMessages(call.request.model)
