"""The configured providers' adapters, each built once, on first use, over transports that all of them share."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.config import Settings
from gateway.routing.catalog import LOCAL
from providers.base import Credential, Endpoint, Provider
from providers.registry import create
from providers.transport.base import Timeouts, Transport


class ProviderSet:
    """Closing the set closes the adapters; the transport belongs to whoever made it."""

    def __init__(self, endpoints: Mapping[str, Endpoint], transport: Transport, timeouts: Timeouts) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._timeouts = timeouts
        self._built: dict[str, Provider] = {}

    def get(self, name: str) -> Provider:
        if (provider := self._built.get(name)) is None:
            provider = self._built[name] = create(self._endpoints[name], self._transport, self._timeouts)
        return provider

    async def aclose(self) -> None:
        for provider in self._built.values():
            await provider.aclose()


def endpoints_from(settings: Settings, engine_key: str | None) -> dict[str, Endpoint]:
    """Secrets are read here, once. Raises: ConfigError for one that cannot be had."""
    endpoints = {
        name: Endpoint(said.kind or name, said.base_url, said.region, Credential(said.reveal()), said.options)
        for name, said in settings.providers.items()
        if said.enabled
    }
    if settings.local.enabled and settings.local.base_url:
        fields = {"api_key": engine_key} if engine_key else {}
        endpoints[LOCAL] = Endpoint(LOCAL, settings.local.base_url, credential=Credential(fields))
    return endpoints
