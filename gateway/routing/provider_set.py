"""The providers' adapters, each built on first use, over transports that all of them share.

The set of endpoints may change while requests run: `adopt` swaps it, and an adapter that is no longer named serves the
requests that began with it, for as long as a request may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from gateway.config import ConfigError, Settings
from gateway.offered import DeploymentSettings
from gateway.routing.catalog import LOCAL, account_of
from gateway.routing.replicas import NOBODY, Fleet
from providers.base import Credential, Endpoint, Provider
from providers.registry import create
from providers.transport.base import Timeouts, Transport


class ProviderSet:
    """Closing the set closes the adapters; the transport belongs to whoever made it. clock: monotonic seconds."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        transport: Transport,
        timeouts: Timeouts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._timeouts = timeouts
        self._clock = clock
        self._endpoints: dict[str, Endpoint] = {}
        self._built: dict[str, Provider] = {}
        self._keys: dict[str, str] = {}
        self._made = 0
        # Key -> when nothing that began with it can be under way any more.
        self._leaving: dict[str, float] = {}
        self.adopt(endpoints)

    def adopt(self, endpoints: Mapping[str, Endpoint]) -> Mapping[str, str]:
        """From now on these. Returns: name -> key for `get`. An endpoint that is as it was keeps its key and adapter;
        a changed one gets a new key, and requests that hold the old one finish there."""
        keys = {}
        for name, endpoint in endpoints.items():
            key = self._keys.get(name)
            if key is None or self._endpoints[key] != endpoint:
                key = name if name not in self._endpoints else f"{name}#{self._made}"
                self._made += 1
            keys[name] = key
            self._endpoints[key] = endpoint
        until = self._clock() + self._timeouts.total_s
        for key in set(self._keys.values()) - set(keys.values()):
            self._leaving[key] = until
        self._keys = keys
        return dict(keys)

    def get(self, name: str) -> Provider:
        if (provider := self._built.get(name)) is None:
            provider = self._built[name] = create(self._endpoints[name], self._transport, self._timeouts)
        return provider

    async def sweep(self) -> None:
        """Close whom nobody can be using any more."""
        now = self._clock()
        for key in [key for key, until in self._leaving.items() if until <= now]:
            del self._leaving[key]
            del self._endpoints[key]
            if (built := self._built.pop(key, None)) is not None:
                await built.aclose()

    async def aclose(self) -> None:
        for provider in self._built.values():
            await provider.aclose()


def endpoints_from(settings: Settings, engine_key: str | None, fleet: Fleet = NOBODY) -> dict[str, Endpoint]:
    """By provider, and by `provider@account` where a deployment has a credential of its own; of a provider with
    replicas by `provider@replica` alone. Secrets are read here.

    Blocks where a secret manager is asked for the first time. Raises: ConfigError for a secret that cannot be had."""
    endpoints = {
        name: Endpoint(said.kind or name, said.base_url, said.region, Credential(said.reveal()), said.options)
        for name, said in settings.providers.items()
        if said.enabled
    }
    for name, said in settings.providers.items():
        if said.enabled and said.replicas:
            usual = endpoints.pop(name)
            for each in fleet.get(name, ()):
                endpoints[account_of(name, each.name)] = replace(usual, base_url=each.base_url)
    for placed in (*settings.deployments, *(d for model in settings.models for d in model.deployments)):
        if placed.account is not None and placed.provider in endpoints:
            name = account_of(placed.provider, placed.account)
            endpoints[name] = _of_account(endpoints[placed.provider], placed, endpoints.get(name))
    if settings.local.enabled and settings.local.base_url:
        fields = {"api_key": engine_key} if engine_key else {}
        endpoints[LOCAL] = Endpoint(LOCAL, settings.local.base_url, credential=Credential(fields))
    return endpoints


def _of_account(usual: Endpoint, placed: DeploymentSettings, said: Endpoint | None) -> Endpoint:
    """Raises: ConfigError for one name with two credentials."""
    fields = {name: secret.reveal() for name, secret in placed.credential.items()}
    endpoint = Endpoint(usual.provider, usual.base_url, usual.region, Credential(fields), usual.options)
    if not fields:
        if said is None:
            raise ConfigError(
                f"{placed.place}.credential", "the account has none", fix="give it where it is first named"
            )
        return said
    if said is not None and said != endpoint:
        raise ConfigError(
            f"{placed.place}.account", "two credentials go by this name", fix="name one of them otherwise"
        )
    return endpoint


async def endpoints_read(settings: Settings, engine_key: str | None) -> dict[str, Endpoint]:
    """`endpoints_from` without holding up anybody else. Raises: ConfigError."""
    return await asyncio.to_thread(endpoints_from, settings, engine_key)
