"""Engines that come and go by themselves: each joins a provider that the operator has opened to replicas, renews its
lease, and leaves. An alias' deployment there is one deployment for each replica that holds the model.

Leases stand in one Redis hash that every gateway reads, timed by Redis' own clock. A replica that was killed is gone
with its lease, one that leaves at once. With Redis away, or emptied, nobody is struck off before a lease has passed:
whom nobody hears of may still be at work, and breakers know better."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

import hiredis
import msgspec
import structlog
from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.admission.store import AnyLink, LimitStore, link_to
from gateway.errors import Unavailable
from gateway.offered import DeploymentSettings

log = structlog.get_logger(__name__)

LEASES: Final = "fbx:replicas"
LOOK_S: Final = 1.0
# Renewals in one lease: two may be lost.
RENEWALS: Final = 3
# Until every gateway has looked again: so long who leaves goes on answering.
QUIET_S: Final = 2.5 * LOOK_S
# So long without a look at most, or for half a lease, and Redis was away, or we stood still ourselves.
_GAP_S: Final = 4 * LOOK_S
_FORGOTTEN_S: Final = 3600.0

ReplicaName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", max_length=100)]


class Said(Struct, frozen=True, forbid_unknown_fields=True):
    """What a replica says of itself. base_url: where the gateways reach it, with its version (`.../v1`). models: what
    it serves; none: whatever it is asked for. kv_events, kv_events_replay: where it tells of its prefix cache
    (`tcp://host:port`), on the host of base_url; None: it does not."""

    base_url: Annotated[str, Meta(max_length=2000)]
    models: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=100)] = ()
    kv_events: Annotated[str, Meta(max_length=300)] | None = None
    kv_events_replay: Annotated[str, Meta(max_length=300)] | None = None


class Replica(Struct, frozen=True):
    name: ReplicaName
    base_url: str
    models: tuple[str, ...] = ()
    kv_events: str | None = None
    kv_events_replay: str | None = None

    def serves(self, model: str) -> bool:
        return not self.models or model in self.models


Fleet = Mapping[str, tuple[Replica, ...]]
"""Provider -> its replicas, by name."""
NOBODY: Final[Fleet] = {}


class _Lease(Struct, frozen=True, array_like=True):
    """at_ms: Redis' time of the last renewal. left: it has said good-bye."""

    at_ms: int
    base_url: str
    models: tuple[str, ...]
    left: bool = False
    kv_events: str | None = None
    kv_events_replay: str | None = None

    def of(self, name: str) -> Replica:
        return Replica(name, self.base_url, self.models, self.kv_events, self.kv_events_replay)


class Replicas:
    """One a gateway process. wanted: whether any provider has replicas now. changed: told of every other fleet, before
    the one who joined or left is answered. clock: monotonic seconds."""

    def __init__(
        self,
        redis: LimitStore,
        lease_s: float,
        wanted: Callable[[], bool],
        changed: Callable[[Fleet], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._link = link_to(redis)
        self.lease_s = lease_s
        self._wanted = wanted
        self._changed = changed
        self._clock = clock
        self._looking = asyncio.Lock()
        # When each lease was renewed, when Redis was last read, and since when without a gap: by our own clock.
        self._heard: dict[tuple[str, str], tuple[Replica, float]] = {}
        self._looked = self._back = clock()
        self.fleet: Fleet = NOBODY

    @property
    def renew_s(self) -> float:
        return self.lease_s / RENEWALS

    @property
    def _gap_s(self) -> float:
        return min(max(self.renew_s, _GAP_S), max(1.5 * LOOK_S, self.lease_s / 2))

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self._wanted() or self._heard:
                    with suppress(Unavailable, hiredis.ReplyError):
                        await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            await self._link.aclose()

    async def join(self, provider: str, name: str, said: Said) -> None:
        """Begin or renew a lease. Raises: Unavailable."""
        at_ms, events = await _redis_ms(self._link), (said.kv_events, said.kv_events_replay)
        await self._write(provider, name, _Lease(at_ms, said.base_url, said.models, False, *events))

    async def leave(self, provider: str, name: str) -> None:
        """Nothing more is sent there from here; others know within LOOK_S. Raises: Unavailable."""
        await self._write(provider, name, _Lease(await _redis_ms(self._link), "", (), left=True))

    async def _write(self, provider: str, name: str, lease: _Lease) -> None:
        try:
            await self._link.call("HSET", LEASES, f"{provider}@{name}", msgspec.msgpack.encode(lease))
            await self.look()
        except hiredis.ReplyError as error:
            raise Unavailable("leases of replicas cannot be written; look at Redis") from error

    async def look(self) -> None:
        """Raises: Unavailable, hiredis.ReplyError."""
        async with self._looking:
            leases, now_ms = await _leases(self._link)
            now = self._clock()
            if now - self._looked > self._gap_s:
                self._back = now  # Nobody could renew, by us at least: those we know have a lease from here.
            self._looked = now
            for key, lease in leases.items():
                age_s = (now_ms - lease.at_ms) / 1000
                if not lease.left and age_s < self.lease_s:
                    if key not in self._heard:
                        log.info("replica has joined", provider=key[0], replica=key[1], base_url=lease.base_url)
                    self._heard[key] = lease.of(key[1]), now - max(0.0, age_s)
                elif lease.left:
                    self._strike(key, "replica has left")
            for key, (_, heard) in list(self._heard.items()):
                if now - max(heard, self._back) >= self.lease_s:
                    self._strike(key, "replica is gone: its lease ran out")
            if (fleet := _fleet(each for _, each in sorted(self._known()))) != self.fleet:
                self.fleet = fleet
                await self._changed(fleet)

    def _known(self) -> Iterator[tuple[tuple[str, str], tuple[str, Replica]]]:
        return ((key, (key[0], replica)) for key, (replica, _) in self._heard.items())

    def _strike(self, key: tuple[str, str], why: str) -> None:
        if self._heard.pop(key, None) is not None:
            log.info(why, provider=key[0], replica=key[1])


async def fleet_now(link: AnyLink, lease_s: float) -> Fleet:
    """Whose leases stand, for somebody who asks once. Raises: Unavailable, hiredis.ReplyError."""
    leases, now_ms = await _leases(link)
    standing = {key: each for key, each in leases.items() if not each.left and now_ms - each.at_ms < lease_s * 1000}
    return _fleet((provider, each.of(name)) for (provider, name), each in sorted(standing.items()))


def placed(said: DeploymentSettings, fleet: Fleet) -> Iterator[DeploymentSettings]:
    """A deployment at a provider with replicas, once for each that serves its model."""
    for replica in fleet.get(said.provider, ()):
        if replica.serves(said.model):
            yield replace(said, account=replica.name)


def _fleet(replicas: Iterable[tuple[str, Replica]]) -> Fleet:
    fleet: dict[str, tuple[Replica, ...]] = {}
    for provider, replica in replicas:
        fleet[provider] = (*fleet.get(provider, ()), replica)
    return fleet


async def _leases(link: AnyLink) -> tuple[dict[tuple[str, str], _Lease], int]:
    """All of them, and Redis' time in milliseconds."""
    now_ms = await _redis_ms(link)
    flat: Any = await link.call("HGETALL", LEASES)
    leases: dict[tuple[str, str], _Lease] = {}
    for key, packed in zip(flat[::2], flat[1::2], strict=True):
        provider, _, name = key.decode().partition("@")
        with suppress(msgspec.MsgspecError):  # of another version
            leases[provider, name] = msgspec.msgpack.decode(packed, type=_Lease)
    if old := [f"{p}@{n}" for (p, n), each in leases.items() if now_ms - each.at_ms > _FORGOTTEN_S * 1000]:
        await link.call("HDEL", LEASES, *old)
    return leases, now_ms


async def _redis_ms(link: AnyLink) -> int:
    seconds, micros = await link.call("TIME", near=LEASES)
    return int(seconds) * 1000 + int(micros) // 1000
