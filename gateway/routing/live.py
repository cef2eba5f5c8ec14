"""The settings in force: the file's and the database's as one, followed while the gateway runs.

A file that was edited and a version that was written are taken up whole or not at all: what has faults is told in the
log and in the admin API, and what stood before goes on. Only what is offered is followed (providers, deployments,
models); every other setting waits for a restart, and the log says which one does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog
from msgspec.structs import replace

from billing.db import AsyncEngine, at_once, reading, writing
from gateway.catalogue import store
from gateway.catalogue.declared import declare
from gateway.catalogue.document import EMPTY, Credentials, Document, merged
from gateway.catalogue.faults import Fault, faults, file_faults, without
from gateway.config import ConfigError, Settings, Source, own_environment
from gateway.config_parts import Secret
from gateway.envelope import CannotOpen
from gateway.kept import key_ring
from gateway.observe.metrics import METRICS
from gateway.references import VALUES
from gateway.routing.provider_set import endpoints_from
from gateway.routing.replicas import NOBODY, Fleet
from providers.base import Endpoint

log = structlog.get_logger(__name__)

FOLLOWED: Final = ("providers", "deployments", "models")


class Live:
    """`settings` is what is in force, `file` its part from the file, `document` its part from the database.

    adopt: takes the endpoints of what comes into force, secrets revealed, and gives their keys (`ProviderSet.adopt`);
    None: nobody is called from here, and no secret is read."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        source: Source | None = None,
        adopt: Callable[[Mapping[str, Endpoint]], Mapping[str, str]] | None = None,
        engine_key: str | None = None,
    ) -> None:
        self._engine = engine
        self._source = source
        self._adopt = adopt
        self._engine_key = engine_key
        self._stamp = None if source is None else source.stamp()
        self._started = False
        self._refused: tuple[int, object] | None = None
        self.file = settings
        self.settings = settings
        self.document: Document = EMPTY
        self.number = 0
        self.fleet: Fleet = NOBODY
        self.keys: Mapping[str, str] = {}
        self.faults: tuple[Fault, ...] = ()
        """Of the newest version or file, while it is not the one in force."""

    async def follow(self) -> bool:
        """Look for what is new, and take it up. Returns: whether anything changed. Raises: SQLAlchemyError; at the
        first call ConfigError, for a secret of the file that cannot be had."""
        number = await at_once(self._engine, store.newest_number, read_only=True)
        stamp = None if self._source is None else self._source.stamp()
        if self._started and number == self.number and stamp == self._stamp:
            return False
        if self._refused == (number, stamp):
            return False  # Looked at already.
        try:
            file = self.file if stamp == self._stamp else await asyncio.to_thread(self._read_file)
            document, credentials = await self._read()
            found = [] if file is self.file else file_faults(file)
            found += faults(file, document, credentials)
            if found and not self._started:
                document, found = self._start_without(file, document, credentials, found), []
            if found:
                self._refuse(found, number, stamp)
                return False
            if file is not self.file:
                await self._declare(file)
            await self._into_force(file, document, credentials)
        except (ConfigError, CannotOpen, msgspec.MsgspecError) as error:
            if not self._started:
                raise
            at = getattr(error, "path", "catalogue")
            fix = getattr(error, "fix", "") or "mend it; the next look takes it up"
            self._refuse([Fault(at, getattr(error, "problem", str(error)), fix)], number, stamp)
            return False
        if self._started:
            log.info("catalogue in force", version=number, providers=len(self.settings.providers),
                     aliases=len(self.settings.models))  # fmt: skip
        self._started, self.number, self._stamp, self.faults, self._refused = True, number, stamp, (), None
        METRICS.catalogue(number, refused=False)
        return True

    async def refresh(self) -> bool:
        """Read the secrets anew that may have been rotated where they are kept. Returns: whether any was."""
        if self._adopt is None:
            return False
        await asyncio.to_thread(VALUES.refresh)
        try:
            endpoints = await asyncio.to_thread(endpoints_from, self.settings, self._engine_key, self.fleet)
        except ConfigError as error:
            log.warning("credentials not read anew, the last ones stand", reason=error.problem, at=error.path)
            return False
        before, self.keys = self.keys, self._adopt(endpoints)
        return before != self.keys

    async def join(self, fleet: Fleet) -> bool:
        """Go by these replicas from now on. Returns: whether they could be taken up."""
        if self._adopt is not None:
            try:
                endpoints = await asyncio.to_thread(endpoints_from, self.settings, self._engine_key, fleet)
            except ConfigError as error:
                log.error("replicas not taken up, the last ones stand", reason=error.problem, at=error.path)
                return False
            self.keys = self._adopt(endpoints)
        self.fleet = fleet
        return True

    async def _into_force(self, file: Settings, document: Document, credentials: Credentials) -> None:
        settings = merged(file, document, credentials)
        if self._adopt is not None:
            endpoints = await asyncio.to_thread(endpoints_from, settings, self._engine_key, self.fleet)
            self.keys = self._adopt(endpoints)
        self.file, self.document, self.settings = file, document, settings

    async def _read(self) -> tuple[Document, Credentials]:
        async with reading(self._engine) as db:
            try:
                document = (await store.newest(db)).document
                if self._adopt is None:
                    return document, {
                        each.name: dict.fromkeys(each.fields, Secret("unread", {})) for each in await store.stored(db)
                    }
                if not await store.any_stored(db):
                    return document, {}
                ring = await asyncio.to_thread(key_ring, self.file)
                return document, await store.opened(db, ring, own_environment({}))
            except (CannotOpen, ConfigError, msgspec.MsgspecError) as error:
                if self._started:
                    raise
                # Better most of the providers than none: those of the file need no ring.
                log.error("the database's catalogue cannot be read, so it is left out", reason=str(error))
                return EMPTY, {}

    def _read_file(self) -> Settings:
        """What the file offers now, beside what this process was told at its start. Raises: ConfigError."""
        assert self._source is not None
        now = self._source.read()
        waiting = [
            name
            for name in Settings.__struct_fields__
            if name not in (*FOLLOWED, "redis_url", "local", "server")
            and getattr(now, name) != getattr(self.file, name)
        ]
        if waiting:
            log.warning("settings changed that wait for a restart", settings=waiting)
        said: dict[str, Any] = {name: getattr(now, name) for name in FOLLOWED}
        return replace(self.file, **said)

    async def _declare(self, file: Settings) -> None:
        async with writing(self._engine) as db:
            await declare(db, file, time.time_ns())

    def _start_without(
        self, file: Settings, document: Document, credentials: Credentials, found: list[Fault]
    ) -> Document:
        """There is nothing older to stand by, so what has no fault is started with."""
        while found:
            for fault in found:
                log.error("left out of the catalogue", at=fault.path, problem=fault.problem, fix=fault.todo)
            document = without(document, found)
            found = faults(file, document, credentials)
        return document

    def _refuse(self, found: list[Fault], number: int, stamp: object) -> None:
        self.faults, self._refused = tuple(found), (number, stamp)
        METRICS.catalogue(self.number, refused=True)
        for fault in found:
            log.error("catalogue refused, the old one stands", version=number, at=fault.path, problem=fault.problem,
                      fix=fault.todo)  # fmt: skip
