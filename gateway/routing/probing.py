"""Providers asked whether they are there, by requests that cost nothing: before a client has to find out.

One gateway of all asks: the key that it takes in Redis lasts as long as the pause between two probes, so it is lease
and timetable in one, and n gateways ask no more than one does. What it found stands in one hash that all of them read.
With Redis away nobody asks, and only requests find out, as without probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import hiredis
import msgspec
import structlog
from msgspec import Struct

from gateway.admission.store import AnyLink, LimitStore, link_to
from gateway.errors import Unavailable
from gateway.exchange import Providers
from gateway.observe.metrics import METRICS
from gateway.offered import ProviderSettings
from gateway.routing.catalog import Catalog, account_of
from gateway.routing.fallback import ended
from gateway.routing.health import Health, HealthTable, Outlook, Standing
from gateway.tasks import cancel
from providers.base import Probed
from providers.errors import AuthFailed, BadRequest, ProviderError, Rejected, Throttled, TimedOut

log = structlog.get_logger(__name__)

FOUND: Final = "fbx:probes"
TURN: Final = "fbx:probe:"
LOOK_S: Final = 1.0
# A list of models is no work: who takes longer is not well.
PATIENCE_S: Final = 5.0
# One lost packet is no outage. A refused credential is one at once: it does not mend itself.
MISSES: Final = 2
# What was found is believed for so many pauses: then whoever should have asked again is not well itself.
BELIEVED: Final = 3.0
JITTER: Final = 0.1
_FORGOTTEN_S: Final = 3600.0


class Finding(Struct, frozen=True, array_like=True):
    """What the last probe of a provider (or of `provider@account`) found. at_ms: unix time. problem: empty where it was
    well. misses: in a row. took_ms: the probe."""

    at_ms: int
    every_s: float
    problem: str
    misses: int
    took_ms: int

    @property
    def is_absent(self) -> bool:
        return self.misses >= MISSES

    def left_s(self, now_ms: int) -> float:
        """For how long it is still believed."""
        return self.at_ms / 1000 + BELIEVED * self.every_s - now_ms / 1000

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.problem}, {self.misses} in a row" if self.problem else f"well in {self.took_ms} ms"


class Prober:
    """One a gateway process. settings, catalog: in force now. clock: the health table's."""

    def __init__(
        self,
        redis: LimitStore,
        providers: Providers,
        settings: Callable[[], Mapping[str, ProviderSettings]],
        catalog: Callable[[], Catalog],
        health: HealthTable,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._link = link_to(redis)
        self._providers = providers
        self._settings = settings
        self._catalog = catalog
        self._health = health
        self._clock = clock
        self._chance = chance
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._refused: set[str] = set()
        self.findings: Mapping[str, Finding] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with suppress(Unavailable, hiredis.ReplyError):
                    await self.look()
                await asyncio.sleep(LOOK_S * (1 + JITTER * self._chance()))
        finally:
            await cancel(*self._asking.values())
            await self._link.aclose()

    async def look(self) -> None:
        """Read what others found, and begin what is due. Raises: Unavailable, hiredis.ReplyError."""
        wanted = self._wanted()
        if not wanted:
            if self.findings:
                self._believe({}, wanted)
            return
        self._believe(await findings(self._link), wanted)
        for name, said in wanted.items():
            assert said.probe_s is not None
            before = self.findings.get(name)
            due = before is None or _now_ms() - before.at_ms >= (1 - JITTER) * said.probe_s * 1000
            if due and name not in self._asking and await self._takes_turn(name, said.probe_s):
                task = asyncio.create_task(self._ask(name, said, before), name=f"probe {name}")
                self._asking[name] = task
                task.add_done_callback(lambda _, name=name: self._asking.pop(name, None))  # type: ignore[misc]

    def _wanted(self) -> dict[str, ProviderSettings]:
        """By provider, and by `provider@account`, whose credential is another one."""
        settings = self._settings()
        named = {name: settings.get(name.partition("@")[0]) for name in self._catalog().endpoints}
        return {name: said for name, said in named.items() if said is not None and said.probe_s is not None}

    async def _takes_turn(self, name: str, every_s: float) -> bool:
        lasts_ms = int(every_s * 1000 * (1 - JITTER + 2 * JITTER * self._chance()))
        return await self._link.call("SET", TURN + name, "1", "NX", "PX", lasts_ms) is not None

    async def _ask(self, name: str, said: ProviderSettings, before: Finding | None) -> None:
        began = self._clock()
        problem, misses = "", 0
        try:
            if not await self._answers(name, said):
                return
        except ProviderError as error:
            if not isinstance(error, Throttled | BadRequest | Rejected) or isinstance(error, AuthFailed):
                problem = ended(error)
                misses = (before.misses if before else 0) + (MISSES if isinstance(error, AuthFailed) else 1)
        took_ms = round((self._clock() - began) * 1000)
        METRICS.probed(name, problem or "ok")
        found = Finding(_now_ms(), said.probe_s or 0.0, problem, misses, took_ms)
        if (before is not None and before.is_absent) != found.is_absent:
            log.warning("provider is away" if found.is_absent else "provider is back", provider=name, problem=problem)
        self._take(name, found)
        with suppress(Unavailable, hiredis.ReplyError):
            await self._link.call("HSET", FOUND, name, msgspec.msgpack.encode(found))

    async def _answers(self, name: str, said: ProviderSettings) -> bool:
        """False: there is nothing to ask for. Raises: ProviderError."""
        try:
            provider = self._providers.get(self._catalog().endpoints[name])
        except (KeyError, ValueError):  # It has left the catalogue, or cannot be made, which is told elsewhere.
            return False
        if not isinstance(provider, Probed) or (said.probe_path is None and not provider.lists_models):
            if name not in self._refused:
                self._refused.add(name)
                log.error("provider cannot be probed: it has no list of models to ask for", provider=name,
                          fix="set its probe_path to one that costs nothing, or leave probe_s out")  # fmt: skip
            return False
        try:
            async with asyncio.timeout(PATIENCE_S):
                await provider.probe(said.probe_path)
        except TimeoutError as error:
            raise TimedOut(f"no answer within {PATIENCE_S:g} s", "total") from error
        return True

    def _believe(self, found: Mapping[str, Finding], wanted: Mapping[str, ProviderSettings]) -> None:
        """What stands in Redis; of providers that are probed no more nothing is believed."""
        for name in self.findings.keys() - wanted.keys():
            for health in self._of(name):
                health.found = ""
                health.breaker.back(self._clock())
        self.findings = {name: each for name, each in self.findings.items() if name in wanted}
        for name in wanted:
            if (new := found.get(name)) is not None and new != self.findings.get(name):
                self._take(name, new)

    def _take(self, name: str, found: Finding) -> None:
        if (known := self.findings.get(name)) is not None and known.at_ms > found.at_ms:
            return
        self.findings = {**self.findings, name: found}
        now, left_s = self._clock(), found.left_s(_now_ms())
        for health in self._of(name):
            health.found = found.told if left_s > 0 else ""
            if found.is_absent and left_s > 0:
                health.breaker.missed(now + left_s)
            else:
                health.breaker.back(now)

    def _of(self, name: str) -> Iterator[Health]:
        """Of its deployments that the catalogue lists, whether or not anybody has called them."""
        groups = self._catalog().aliases.values()
        for each in {d.id for group in groups for d in group if account_of(d.provider, d.account) == name}:
            yield self._health.of(each)


async def findings(link: AnyLink) -> dict[str, Finding]:
    """All that probes found, of providers gone since long as well. Raises: Unavailable, hiredis.ReplyError."""
    flat: Any = await link.call("HGETALL", FOUND)
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    found: dict[str, Finding] = {}
    for name, packed in pairs:
        with suppress(msgspec.MsgspecError):  # of another version
            found[name.decode()] = msgspec.msgpack.decode(packed, type=Finding)
    old = [name for name, each in found.items() if each.left_s(_now_ms()) < -_FORGOTTEN_S]
    if old:
        await link.call("HDEL", FOUND, *old)
    return found


def outlook_of(found: Mapping[str, Finding], catalog: Catalog, alias: str) -> Outlook:
    """What somebody who has called nobody knows of an alias' deployments: what probes found."""
    now_ms = _now_ms()
    standings = {}
    for each in catalog.deployments(alias):
        finding = found.get(account_of(each.provider, each.account))
        if finding is not None and (left_s := finding.left_s(now_ms)) > 0:
            absent = finding.is_absent
            standings[each.id] = Standing(
                "absent" if absent else "closed", left_s if absent else 0.0, found=finding.told
            )
    return Outlook(standings)


def _now_ms() -> int:
    """Findings are told from gateway to gateway, so by the clock on the wall."""
    return time.time_ns() // 1_000_000
