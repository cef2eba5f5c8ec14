"""Leases of replicas against a real Valkey: who stands, who is struck off, and when."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from gateway.errors import Unavailable
from gateway.routing.replicas import LEASES, LOOK_S, Fleet, Replicas, Said

LEASE_S = 30.0
HERE = Said("http://10.0.0.1:8000/v1", ("m",))


class Installation:
    """Two gateways' views, and a clock that tests turn."""

    def __init__(self, redis_url: str, lease_s: float = LEASE_S) -> None:
        self.now = 1000.0
        self.redis = Redis.from_url(redis_url)
        self.told: list[Fleet] = []
        self.one, self.two = (
            Replicas(Redis.from_url(redis_url), lease_s, lambda: True, self._changed, lambda: self.now) for _ in "ab"
        )

    async def _changed(self, fleet: Fleet) -> None:
        self.told.append(fleet)

    async def passes(self, seconds: float) -> None:
        """On our clock; both look as they go on."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + LOOK_S)
            await self.look()

    async def look(self) -> None:
        for each in (self.one, self.two):
            await each.look()

    def names(self) -> list[list[str]]:
        return [[replica.name for replica in each.fleet.get("own", ())] for each in (self.one, self.two)]


async def test_who_joins_is_known_to_all_and_who_leaves_is_gone_at_once(redis_url: str) -> None:
    place = Installation(redis_url)
    await place.one.join("own", "a", HERE)
    await place.two.join("own", "b", HERE)
    await place.look()
    assert place.names() == [["a", "b"], ["a", "b"]]
    assert place.told[-1]["own"][0].base_url == HERE.base_url
    await place.two.leave("own", "a")
    assert place.names()[1] == ["b"]
    await place.look()
    assert place.names() == [["b"], ["b"]]
    told = len(place.told)
    await place.one.join("own", "b", HERE)
    await place.look()
    assert len(place.told) == told, "a renewal is no news"


async def test_a_lease_that_is_not_renewed_runs_out(redis_url: str) -> None:
    place = Installation(redis_url)
    await place.one.join("own", "killed", HERE)
    await place.look()
    await place.redis.delete(LEASES)  # As if Redis' clock had gone on by a lease: it is not ours to turn.
    await place.passes(LEASE_S / 2)  # Not to the second: Redis' clock has gone on since it joined, on a busy machine.
    assert place.names() == [["killed"], ["killed"]]
    await place.passes(LEASE_S / 2)
    assert place.names() == [[], []]


async def test_redis_emptied_or_away_strikes_nobody_off_before_a_lease_has_passed(redis_url: str) -> None:
    place = Installation(redis_url)
    await place.one.join("own", "a", HERE)
    await place.look()
    await place.redis.delete(LEASES)
    await place.passes(LEASE_S / 2)
    await place.two.join("own", "a", HERE)  # It renews as ever.
    await place.passes(LEASE_S / 2 + 2)
    assert place.names() == [["a"], ["a"]]

    place.now += 10 * LEASE_S  # Nobody could look, nor renew.
    await place.redis.delete(LEASES)
    await place.look()
    assert place.names() == [["a"], ["a"]]
    await place.passes(LEASE_S)
    assert place.names() == [[], []]


async def test_a_gateway_that_stood_still_for_a_short_lease_strikes_nobody_off(redis_url: str) -> None:
    """They renew at us: while we take no request they cannot."""
    place = Installation(redis_url, lease_s=2.0)
    await place.one.join("own", "a", HERE)
    await place.look()
    await place.redis.delete(LEASES)
    place.now += 3.0
    await place.look()
    assert place.names() == [["a"], ["a"]]
    await place.passes(2.0)
    assert place.names() == [[], []]


async def test_without_redis_joining_is_refused(tmp_path: object) -> None:
    async def changed(_: Fleet) -> None: ...

    nowhere = Replicas(Redis.from_url(f"unix://{tmp_path}/none"), LEASE_S, lambda: True, changed, lambda: 0.0)
    with pytest.raises(Unavailable):
        await nowhere.join("own", "a", HERE)
