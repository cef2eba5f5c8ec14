"""What the front office works with, handed over by the composition root once the process is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import httpx

from billing.db import AsyncEngine
from billing.prices import PriceBook
from gateway.admin.auth.oidc import SignOn
from gateway.admin.auth.passwords import Passwords
from gateway.admin.reading import Reader
from gateway.admission.key_admin import KeyAdmin
from gateway.catalogue.changes import Changes
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.guardrails.watch import Watch
from gateway.routing.catalog import Catalog
from gateway.routing.health import Outlook
from gateway.routing.offer import Offer
from providers.transport.base import Transport


class Understood(Protocol):
    """A command line that was read. words: as `keys create`. travels: it may be sent from elsewhere; changes: it is one
    for the audit log; said: its arguments."""

    @property
    def words(self) -> str: ...
    @property
    def travels(self) -> bool: ...
    @property
    def changes(self) -> bool: ...
    def said(self) -> dict[str, Any]: ...


class CommandLine(Protocol):
    """The `farebox` command, from the room above: `gateway.cli.hosted`."""

    def understand(self, argv: Sequence[str]) -> Any:
        """Returns: an Understood. Raises: ValueError."""

    def run(
        self, call: Any, engine: AsyncEngine, keys: KeyAdmin, actor: str, files: Mapping[str, bytes], width: int,
        color: bool,
    ) -> AsyncIterator[bytes]: ...  # fmt: skip


@dataclass(frozen=True)
class Switchyard:
    """Who can be asked: changes of it, what is in force in this process, how its deployments fare here. transport: for
    calls that try one."""

    changes: Changes
    offer: Offer
    outlook: Callable[[list[str]], Outlook]
    transport: Transport


@dataclass(frozen=True)
class Services:
    """engine: for changes and sign-in. reader: for reports. clock: unix nanoseconds.

    reload_prices: makes this process charge by prices set a moment ago. engine_key: bearer token of the local engine.
    http: for control calls to the local engine; belongs to whoever made it, as engine and reader do.
    watch: the guardrails of this process. commands: None where no command line can be sent here. tails: how many may
    look at requests as they end."""

    settings: Settings
    engine: AsyncEngine
    reader: Reader
    keys: KeyAdmin
    catalog: Callable[[], Catalog]
    prices: Callable[[], PriceBook]
    reload_prices: Callable[[], Awaitable[None]]
    passwords: Passwords
    http: httpx.AsyncClient
    engine_key: str | None
    clock: Callable[[], int]
    watch: Watch
    commands: CommandLine | None = None
    tails: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(20))
    switchyard: Switchyard | None = None

    @property
    def yard(self) -> Switchyard:
        """Raises: Unavailable."""
        if self.switchyard is None:
            raise Unavailable("no gateway is running in this process")
        return self.switchyard

    @cached_property
    def sign_on(self) -> SignOn:
        return SignOn(self.settings.admin.oidc, self.http)
