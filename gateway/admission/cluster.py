"""Redis Cluster: a pipelined connection to each master, and the map that tells whose a key is.

A script's keys all have their organisation's hash tag, so each organisation lives on one master, and what `limits.lua`
says of one server holds for it. What is particular here is a master that another one takes over from: it may lack the
last writes of the first. Its life has another name, so every counter is made anew, after a roll call (`muster.py`); and
nothing is sent to it before the connection to the first has answered, or is cut: a reservation that the old master
grants after the roll call would be in nobody's sum.

Source: Redis Cluster specification, CLUSTER SLOTS and CLUSTER INFO, read 2026-11.
"""

from __future__ import annotations

import asyncio
import binascii
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import hiredis
import structlog
from msgspec import Struct

from gateway.admission.link import REPLY_S, Address, Arg, Command, Link, Reply, Server, lines_of
from gateway.errors import LimitsAway, Unavailable

log = structlog.get_logger(__name__)

SLOTS: Final = 16_384
# How long nodes have to say how they see the cluster, once a map is known. Nobody waits for it but who has no master to
# ask.
LOOK_S: Final = 1.0
# Between two looks: every caller of a lost master would begin one.
LOOK_AGAIN_S: Final = 0.1
# How often one command is sent on to another master.
HOPS: Final = 5
# How long a master that lost keys may take to answer what was sent to it before.
PARTING_S: Final = 0.5


class Map(Struct, frozen=True):
    """Ranges of slots, in order, each with its master. nodes: all there are, to be asked next time."""

    epoch: int = -1
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    masters: tuple[Address, ...] = ()
    nodes: tuple[Address, ...] = ()

    @property
    def slots(self) -> int:
        """How many have a master."""
        return sum(self.ends) - sum(self.starts) + len(self.starts)

    def master_of(self, slot: int) -> Address | None:
        at = bisect_right(self.starts, slot) - 1
        return self.masters[at] if at >= 0 and slot <= self.ends[at] else None


def slot_of(key: str) -> int:
    """By the part in the first braces, if there is any in them."""
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    hashed = tag if opened and closed and tag else key
    return binascii.crc_hqx(hashed.encode(), 0) % SLOTS


class ClusterLink:
    """As `Link`, and used the same way. Finds the cluster by any of the addresses it is given."""

    def __init__(self, seeds: Sequence[Address], server: Server, *, reply_s: float = REPLY_S) -> None:
        """server: how every node is greeted."""
        self._seeds = tuple(seeds)
        self._server = server
        self._reply_s = reply_s
        self._map = Map()
        # What a master has said of single slots since the map was read.
        self._moved: dict[int, Address] = {}
        self._links: dict[Address, Link] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked_s = float("-inf")
        self._parting: asyncio.Task[None] | None = None

    @property
    def masters(self) -> tuple[Address, ...]:
        """Those known now, for people."""
        return tuple(dict.fromkeys(self._map.masters))

    async def call(self, *command: Arg, near: str | None = None) -> Reply:
        """near: a key, whose master is asked; without, the command's first argument is one."""
        return await self.call_booted(lambda _: command, near=str(command[1]) if near is None else near)

    async def call_booted(self, command: Command, *, near: str) -> Reply:
        """Raises: as `Link.call_booted`. A command that was sent on had not been done."""
        slot, asking = slot_of(near), None
        for _ in range(HOPS):
            link = await self._link_of(slot) if asking is None else self._link_at(asking)
            try:
                return await link.call_booted(command, asking=asking is not None)
            except hiredis.ReplyError as error:
                kind, _, where = str(error).partition(" ")
                asking = None
                if kind == "MOVED":
                    link.check()  # It may be nobody's master any more.
                    self._moved[slot] = _address(where.rpartition(" ")[2], self._map.master_of(slot))
                elif kind == "ASK":
                    asking = _address(where.rpartition(" ")[2], self._map.master_of(slot))
                    continue
                self._look_soon()
                if kind == "TRYAGAIN":
                    raise LimitsAway("rate limit store is being moved to another server") from error
                if kind != "MOVED":
                    raise
            except Unavailable:
                self._look_soon()
                raise
        raise LimitsAway("rate limit store sends its callers round")

    async def listen(self, channel: str, heard: Callable[[bytes], None], began: Callable[[], None]) -> None:
        """What is published on one node is heard on all."""
        try:
            await (await self._link_of(slot_of(channel))).listen(channel, heard, began)
        finally:
            self._look_soon()

    async def ping(self) -> None:
        """Whether any master is there: the organisations of one that is away have to wait, others do not.

        Raises: Unavailable."""
        if not self._map.masters:
            await self._look()
        asked = (self._link_at(address).ping() for address in self.masters)
        if not any(said is None for said in await asyncio.gather(*asked, return_exceptions=True)):
            self._look_soon()
            raise LimitsAway("rate limit store is away")

    async def aclose(self) -> None:
        """Whoever still waits gets Unavailable."""
        running = [task for task in (self._looking, self._parting) if task is not None]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for link in self._links.values():
            await link.aclose()
        self._links.clear()

    def _link_at(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(self._server.at(address), reply_s=self._reply_s)
        return link

    async def _link_of(self, slot: int) -> Link:
        """An open connection to the slot's master. Raises: Unavailable."""
        looked = False
        while True:
            # Done, its callback runs only later: to wait for it would give way to nobody.
            if self._parting is not None and not self._parting.done():
                await asyncio.shield(self._parting)
                continue
            address = self._moved.get(slot) or self._map.master_of(slot)
            if address is None:
                if looked:
                    raise LimitsAway("rate limit store has no server for these keys")
                await self._look()
                looked = True
                continue
            link = self._link_at(address)
            if link.is_open:
                return link
            try:
                await link.open()
            except Unavailable:
                self._moved.pop(slot, None)
                if looked:
                    self._look_soon()
                    raise
                await self._look()
                looked = True
            # Either way once more from the top: meanwhile the slot may have gone elsewhere.

    def _look_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._looking is None and loop.time() - self._looked_s >= LOOK_AGAIN_S:
            self._looking = loop.create_task(self._look_around(), name="look at the Redis cluster")
            self._looking.add_done_callback(self._have_looked)

    def _have_looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        self._looked_s = asyncio.get_running_loop().time()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the Redis cluster cannot be read", reason=repr(error))

    async def _look(self) -> None:
        self._look_soon()
        if self._looking is not None:
            await asyncio.wait({self._looking})

    async def _look_around(self) -> None:
        """Ask every node that was ever named, and believe the latest: one that was cut off tells an old story, and of
        two as late the one that has heard of fewer masters. As long as no map is known, the first answer is waited for
        as any command is: there is nobody else to ask."""
        asked = [
            asyncio.ensure_future(self._view_of(address)) for address in dict.fromkeys((*self._map.nodes, *self._seeds))
        ]
        try:
            done, waiting = await asyncio.wait(asked, timeout=LOOK_S)
            while waiting and not (self._map.masters or any(view.masters for view in _told(done))):
                more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= more
        finally:
            for task in asked:
                task.cancel()
        whole = [view for view in _told(done) if view.epoch >= self._map.epoch]
        if whole:
            self._adopt(max(whole, key=lambda view: (view.epoch, view.slots)))

    async def _view_of(self, address: Address) -> Map | None:
        """None: it does not answer, or is not in touch with most of the others, and we know more."""
        link = self._link_at(address)
        with suppress(Unavailable, hiredis.ReplyError):
            said = lines_of(await link.call("CLUSTER", "INFO"))
            if said.get("cluster_state") == "ok" or not self._map.masters:
                return map_of(int(said.get("cluster_current_epoch", 0)), await link.call("CLUSTER", "SLOTS"), address)
        return None

    def _adopt(self, new: Map) -> None:
        old, self._map = self._map, new
        self._moved.clear()
        before = {(old.master_of(start), new.master_of(start)) for start in (*old.starts, *new.starts)}
        lost = {was for was, now in before if was is not None and was != now}
        for address in self._links.keys() - {*new.nodes, *self._seeds, *lost}:
            self._links.pop(address).drop()
        parting = [self._part(address, gone=address not in new.masters) for address in lost & self._links.keys()]
        if parting:
            log.warning("keys have another Redis server now", lost_by=[f"{host}:{port}" for host, port in lost])
            earlier = self._parting
            self._parting = asyncio.get_running_loop().create_task(_all_of(parting, earlier), name="leave a master")
            self._parting.add_done_callback(self._have_parted)

    def _have_parted(self, task: asyncio.Task[None]) -> None:
        if self._parting is task:
            self._parting = None

    async def _part(self, address: Address, *, gone: bool) -> None:
        """Until it has answered all that was sent to it."""
        link = self._links[address]
        answered = False
        if link.is_open:
            with suppress(Unavailable, hiredis.ReplyError, TimeoutError):
                async with asyncio.timeout(PARTING_S):
                    await link.ping()
                    answered = True
        if gone or not answered:
            link.drop()


def _told(done: Iterable[asyncio.Future[Map | None]]) -> list[Map]:
    said = [task.result() for task in done if not task.cancelled() and task.exception() is None]
    return [view for view in said if view is not None]


async def _all_of(parting: Sequence[Any], earlier: asyncio.Task[None] | None) -> None:
    if earlier is not None:
        await asyncio.wait({earlier})
    await asyncio.gather(*parting)


def map_of(epoch: int, slots: Reply, asked: Address) -> Map:
    """From the reply to CLUSTER SLOTS. asked: who gave it, whose host stands for one that is left out."""
    found = sorted((start, end, [_node(node, asked) for node in nodes]) for start, end, *nodes in slots)
    known = [(start, end, nodes) for start, end, nodes in found if nodes and nodes[0] is not None]
    return Map(
        epoch,
        tuple(start for start, _, _ in known),
        tuple(end for _, end, _ in known),
        tuple(nodes[0] for _, _, nodes in known if nodes[0] is not None),
        tuple(dict.fromkeys(node for _, _, nodes in known for node in nodes if node is not None)),
    )


def _node(told: Sequence[Any], asked: Address) -> Address | None:
    """None: it is there, under a name that it does not know itself ("?")."""
    host = asked[0] if not told[0] else told[0].decode()
    return None if host == "?" else (host, int(told[1]))


def _address(said: str, told_by: Address | None) -> Address:
    """Of a redirection, "host:port"; without a host it is the one that answered."""
    host, _, port = said.rpartition(":")
    return host or (told_by[0] if told_by is not None else "localhost"), int(port)
