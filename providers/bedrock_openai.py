"""Bedrock by the OpenAI dialects: chat and Responses, at either of its two inference hosts.

`bedrock-runtime` has them below /openai/v1. `bedrock-mantle`, which counts quotas of its own and has models that the
other lacks, serves each model below one of /v1 and /openai/v1 and refuses it below the other; and there are models that
know Responses alone (GPT-5.x). Which is which changes with every model that comes, and lists of it in clients have gone
stale each time, so it is learned: a request refused for its route costs nothing and is asked again by the next one.

Source: Bedrock user guide ("Endpoints supported", "Responses API", model cards), openai-python 3.54
`providers/bedrock.py`, refusals as users reported them (strands-agents/harness-sdk 3280 and 4267, BerriAI/litellm
33209, NousResearch/hermes-agent 52316), read 2026-11.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from msgspec import Struct

from providers.auth.aws import Signer, guardrail_headers, host, region_of
from providers.base import Call, Capabilities, Endpoint, Operation, UpstreamAnswer
from providers.dialects import openai_chat
from providers.dialects.base import Dialect
from providers.errors import ProviderError
from providers.openai_like import OpenAILike
from providers.transport.base import HttpRequest, Timeouts, Transport

_PREFIXES: Final = ("/v1", "/openai/v1")
# Seen below /openai/v1 of mantle; all others below /v1. A wrong guess costs one refused request a process.
_BELOW_OPENAI: Final = re.compile(r"openai\.gpt-\d|xai\.|google\.gemma-[4-9]")
_WRONG_ROUTE: Final = re.compile(r"isn't supported on this route|does not support the '[^']*' API")
_LEARNED_MAX: Final = 1_000


class Route(Struct, frozen=True):
    """Where at the host a model is asked. responses: by that API, else by chat."""

    prefix: str
    responses: bool


class _Routed(Call, frozen=True, kw_only=True):
    """A call on its way to one route: what others learn meanwhile does not change its second half."""

    route: Route


class BedrockOpenAI(OpenAILike):
    """credential and options `auth`, `profile`, `role_arn` and `external_id`: as for Bedrock.

    options: `host` "mantle" or "runtime" (the default), where no base URL tells. `guardrail` {"id", "version", "trace"}
    for every request, which the runtime host alone has."""

    name = "bedrock_openai"
    lists_models = False  # the runtime host has no list
    capabilities = Capabilities(file_input=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = {"chat": openai_chat.DIALECT}
    output_limit: ClassVar[str] = "max_completion_tokens"
    serves_responses: ClassVar[bool] = True
    models_path: ClassVar[str] = "/v1/models"
    # Such an answer is fetched later, from a path that we do not serve, and would be paid for by nobody.
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {"background": (False,)}

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.is_mantle = _is_mantle(endpoint)
        super().__init__(endpoint, transport, timeouts)
        service = "bedrock-mantle" if self.is_mantle else "bedrock"
        self._signer = Signer(endpoint, service=service, region=region_of(endpoint), clock=clock)
        self._learned: dict[tuple[str, bool], Route] = {}

    def base_url_of(self, endpoint: Endpoint) -> str | None:
        """The prefix that AWS' own pages write behind it is each model's."""
        if endpoint.base_url is None:
            region = region_of(endpoint)
            return f"https://bedrock-mantle.{region}.api.aws" if self.is_mantle else host("bedrock-runtime", region)
        return endpoint.base_url.rstrip("/").removesuffix("/v1").removesuffix("/openai")

    def path(self, call: Call, model: str) -> str:
        return _route(call).prefix + super().path(call, model)

    def speaks_responses(self, call: Call, model: str) -> bool:
        return _route(call).responses

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        return () if self.is_mantle else guardrail_headers(self.endpoint.options)

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        wants_responses = call.dialect == "openai_responses"
        routes = list(self._routes(wants_responses, model))
        for number, route in enumerate(routes, 1):
            routed = _Routed(**{name: getattr(call, name) for name in Call.__struct_fields__}, route=route)
            try:
                answer = await super().send(routed, model)
            except ProviderError as error:
                if number == len(routes) or _WRONG_ROUTE.search(error.message) is None:
                    raise
                continue
            self._learn((model, wants_responses), route)
            return answer
        raise AssertionError("there is always a route")

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        return await self._signer.signed(request)

    async def models(self) -> tuple[str, ...]:
        """Mantle's, whichever prefix they are served below; the runtime host tells none."""
        return await super().models() if self.is_mantle else ()

    async def aclose(self) -> None:
        await self._signer.aclose()

    def _is_heeded(self, header: str) -> bool:
        return not self.is_mantle and header.startswith(("x-amzn-bedrock-guardrail", "x-amzn-bedrock-trace"))

    def _routes(self, wants_responses: bool, model: str) -> tuple[Route, ...]:
        """In the order in which they are tried: the one that answered last alone."""
        if (learned := self._learned.get((model, wants_responses))) is not None:
            return (learned,)
        prefixes = _PREFIXES if self.is_mantle else _PREFIXES[1:]
        if _BELOW_OPENAI.match(model):
            prefixes = prefixes[::-1]
        return tuple(Route(prefix, api) for api in (wants_responses, not wants_responses) for prefix in prefixes)

    def _learn(self, asked: tuple[str, bool], route: Route) -> None:
        if len(self._learned) >= _LEARNED_MAX:  # clients may name any model of an open provider
            self._learned.clear()
        self._learned[asked] = route


def _route(call: Call) -> Route:
    assert isinstance(call, _Routed)
    return call.route


def _is_mantle(endpoint: Endpoint) -> bool:
    """Raises: ValueError."""
    hostname = urlsplit(endpoint.base_url or "").hostname or ""
    if hostname.startswith(("bedrock-mantle.", "bedrock-runtime.", "bedrock-runtime-fips.")):
        return hostname.startswith("bedrock-mantle.")
    chosen = endpoint.options.get("host", "runtime")
    if chosen not in ("runtime", "mantle"):
        raise ValueError(f"{endpoint.provider}: option host is runtime or mantle, not {chosen!r}")
    return bool(chosen == "mantle")
