"""Three masters with a replica each: everything finds its server, and one that is killed is taken over from."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import schema
from billing.db import create_engine, writing
from gateway.admission.cluster import SLOTS, slot_of
from gateway.admission.gate import Gate
from gateway.admission.key_admin import KeyAdmin
from gateway.admission.keys import KeyStore
from gateway.admission.principal import Budget, Principal
from gateway.admission.store import link_to, store_from
from gateway.answers import Answers, Place
from gateway.errors import QuotaExceeded, Unauthenticated, Unavailable
from gateway.routing.warm_log import WarmLog
from gateway.routing.warmth import Cache, Warmth
from tests.clusters import Nodes, cluster
from tests.gateway.admission.support import NOW_MS, NOW_NS, PEPPER, PROJECT, sheet, until
from tests.gateway.admission.test_gate import EMPTY, ROW

# Generous: what is waited for happens, however slow the machine is.
WITHIN_S = 60.0
HELD = EMPTY + 1_000
LIMIT = 60 * HELD

pytestmark = pytest.mark.parametrize("fresh_database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with cluster(tmp_path) as nodes:
        yield nodes


def one_on_each(shards: int) -> list[str]:
    """Organisations that live on different masters."""
    found: dict[int, str] = {}
    for number in range(1_000):
        name = f"org_{number}"
        found.setdefault(slot_of(f"fb:{{{name}}}:muster") * shards // SLOTS, name)
    return [found[at] for at in range(shards)]


def customer(organisation: str) -> Principal:
    budget = Budget("organisation", organisation, LIMIT)
    return Principal(f"key_{organisation}", "public", "test", organisation, PROJECT, None, (), (budget,))


async def admit(gate: Gate, who: Principal, name: str) -> Any:
    return await gate.admit(
        who, name, "small", input_bytes=0, images=0, max_output_tokens=100, candidates=1, deployment_max_output=1_000,
        context_window=8_192, sheets=[sheet()], end_user=None, now_ms=NOW_MS,
    )  # fmt: skip


class Books:
    """What the clients of all gateways hold and were charged, and the journal that they share."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._journal: list[dict[str, Any]] = []
        self._shipping = asyncio.Lock()
        self.held: dict[str, dict[str, int]] = {}
        self.charged: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.waited = 0
        self.worst = 0

    async def ship(self) -> None:
        async with self._shipping:
            rows, self._journal = self._journal, []
            if rows:
                async with writing(self._engine) as db:
                    await db.execute(insert(schema.usage_records), rows)

    def admitted(self, organisation: str, request_id: str, hold: int) -> None:
        held = self.held.setdefault(organisation, {})
        held[request_id] = hold
        self.worst = max(self.worst, sum(held.values()) + self.charged.get(organisation, 0) - LIMIT)

    def settled(self, organisation: str, request_id: str, charge: int) -> None:
        del self.held[organisation][request_id]
        self.charged[organisation] = self.charged.get(organisation, 0) + charge
        mine = {
            "id": request_id,
            "organisation_id": organisation,
            "charge_pusd": charge,
            "key_id": f"key_{organisation}",
        }
        self._journal.append(ROW | mine)


async def client(gate: Gate, who: Principal, books: Books, numbers: Iterator[int], chance: random.Random) -> None:
    """Asks until the budget is used up."""
    organisation = who.organisation_id
    while True:
        request_id = f"r{next(numbers)}"
        try:
            admission = await admit(gate, who, request_id)
        except QuotaExceeded:
            books.refused[organisation] = books.refused.get(organisation, 0) + 1
            if not books.held[organisation]:
                return
            await asyncio.sleep(0.01)
            continue
        except Unavailable:
            books.waited += 1
            await asyncio.sleep(0.02)
            continue
        books.admitted(organisation, request_id, admission.hold_pusd)
        await asyncio.sleep(chance.uniform(0.0, 0.03))
        charge = chance.randrange(HELD // 2, HELD)
        books.settled(organisation, request_id, charge)
        await gate.settle(admission, 10, charge)


async def test_a_master_is_killed_and_replaced_in_mid_run(nodes: Nodes, fresh_database_url: str) -> None:
    """Its replica was cut off for a while, so it lacks reservations and charges that clients have been granted."""
    engine = create_engine(fresh_database_url)
    books, numbers, chance = Books(engine), iter(range(10**9)), random.Random(4)
    customers = [customer(organisation) for organisation in one_on_each(3)]
    victim = customers[1].organisation_id
    store = store_from(nodes.url)
    async with (
        Gate(engine, store, shipped=books.ship) as one,
        Gate(engine, store, shipped=books.ship) as other,
        asyncio.TaskGroup() as group,
    ):
        running = [
            group.create_task(client(gate, who, books, numbers, chance))
            for gate in (one, other)
            for who in customers
            for _ in range(3)
        ]
        await until(lambda: all(books.charged.get(who.organisation_id, 0) > 3 * HELD for who in customers), WITHIN_S)
        key = f"fb:{{{victim}}}:muster"
        replica = nodes.replicas[nodes.masters.index(await nodes.master_of(key))]
        replica.signal(signal.SIGSTOP)
        before = books.charged[victim]
        await until(lambda: books.charged[victim] > before + 4 * HELD, WITHIN_S)
        await nodes.kill(key=key)
        replica.signal(signal.SIGCONT)
        assert books.charged[victim] < LIMIT - 8 * HELD, "nothing was left to be overdrawn"
        await nodes.start()
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*running)
        assert nodes.takeovers == 1
        assert books.worst <= 0
        assert set(books.refused) == {who.organisation_id for who in customers}
        await until(lambda: one.pending_count + other.pending_count == 0, WITHIN_S)
        for who in customers:
            ((_, left),) = await one.available_pusd(who, NOW_MS)
            assert left == LIMIT - books.charged[who.organisation_id], who.organisation_id
        found = {where.port: [key async for key in where.client.scan_iter("fb:{*")] for where in nodes.masters}
        assert all(found.values()), "each master had an organisation"
    await engine.dispose()


async def test_changes_answers_and_warm_prefixes_find_their_server(nodes: Nodes, engine: AsyncEngine) -> None:
    store = store_from(nodes.url)
    admin = KeyAdmin(engine, store, PEPPER)
    made = await admin.create_key(project_id=PROJECT, name="test", actor="tests", now_ns=NOW_NS)
    assert made.plain is not None
    async with KeyStore(engine, store, PEPPER) as keys, KeyStore(engine, store, PEPPER) as others:
        for each in (keys, others):
            await each.principal(made.plain, "127.0.0.1", NOW_MS)
        await admin.revoke_key(made.key_id, actor="tests", now_ns=NOW_NS)

        async def is_gone(each: KeyStore) -> bool:
            try:
                await each.principal(made.plain or "", "127.0.0.1", NOW_MS + 1)
            except Unauthenticated:
                return True
            return False

        for each in (keys, others):
            await until(lambda each=each: is_gone(each), WITHIN_S)  # type: ignore[misc]
        # Whichever node is killed, a message published at another is heard.
        await nodes.kill()
        await nodes.start()

        async def is_heard() -> bool:
            again = await admin.create_key(project_id=PROJECT, name="again", actor="tests", now_ns=NOW_NS)
            drops = keys._drops, others._drops
            await admin.revoke_key(again.key_id, actor="tests", now_ns=NOW_NS)
            await asyncio.sleep(0.02)
            return keys._drops > drops[0] and others._drops > drops[1]

        await until(is_heard, WITHIN_S)
    answers = Answers(store, b"secret")
    for number in range(9):
        place = Place(f"fbx:answer:{number}", 60)
        await answers.keep(place, "d", "application/json", b"{}")
        kept = await answers.find(place)
        assert kept is not None
        assert kept.body == b"{}"
    await answers.aclose()
    caches = {"a": Cache(10_000)}
    learned = Warmth()
    tells = WarmLog(store, Warmth(), lambda: caches, time.monotonic, "one")
    hears = WarmLog(store, learned, lambda: caches, time.monotonic, "two")
    running = [asyncio.create_task(each.run()) for each in (tells, hears)]
    tells.tell("a", (1, 2, 3))
    await until(lambda: len(learned) == 3, WITHIN_S)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_server_that_has_handed_over_is_not_written_to(nodes: Nodes, fresh_database_url: str) -> None:
    """An organisation's keys go to a replica and back while both run: each time they are of another life."""
    store, key = store_from(nodes.url), "fb:{org_1}:muster"
    link = link_to(store)
    boots = []

    async def boot() -> Any:
        return await link.call_booted(lambda boot: ("SET", key, boots.append(boot) or boot), near=key)  # type: ignore[func-returns-value]

    await boot()
    at = nodes.masters.index(await nodes.master_of(key))
    for _ in range(2):
        was = nodes.masters[at]
        await nodes.take_over(at)
        await was.until(lambda was=was: is_replica(was))
        await until(lambda: answers(boot), WITHIN_S)
        assert await nodes.masters[at].client.get(key) == boots[-1].encode()
    assert len({boots[0], boots[-1]}) == 2, "the first server is back, in another life"
    await link.aclose()


async def is_replica(node: Any) -> bool:
    said = await node.info("replication")
    return bool(said["role"] == "slave" and said["master_link_status"] == "up")


async def answers(ask: Any) -> bool:
    try:
        await ask()
    except Unavailable:
        return False
    return True
