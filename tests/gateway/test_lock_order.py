"""Everybody who writes, beside each other on a real PostgreSQL: nobody waits for somebody who waits for him.

The server ends a deadlock by failing one of the two, so each failure here is one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import count

import httpx
import pytest
from sqlalchemy import Table, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import accounts, alerts, days, ledger, migrate, partitions, payments, sample, worker
from billing.accounts import Budget, Scope, Window
from billing.alerts import Channel, Kind, Rule
from billing.db import create_engine, reading, take_turn, writing
from billing.errors import InsufficientFunds
from billing.partitions import NS_PER_DAY
from billing.pricelist import set_plan
from billing.rating import Charge
from billing.schema import alert_states, plan_members
from billing.usage import UsageRecord
from gateway import audit, identity
from gateway.admin.auth import memberships, people, sign_on
from gateway.admin.auth.memberships import Held
from gateway.admin.auth.oidc import Provider, SignOnFailed
from gateway.admin.auth.roles import Role
from gateway.admin.scim import store as scim
from gateway.admin.scim.wire import ScimError
from gateway.admission.key_admin import KeyAdmin, KeyChanges
from gateway.admission.principal import ProjectRouting
from gateway.admission.project_routing import ProjectRoutings
from gateway.batches.lines import Line
from gateway.batches.store import DONE, Store
from gateway.bodies.store import Bodies
from gateway.guardrails.policy import Pii
from gateway.guardrails.store import GuardrailAdmin, NewRule
from gateway.schema import batch_lines, loss_modes, project_routing, rate_limits, stored_responses
from gateway.signing_in import AdminSettings, GrantSettings, OidcSettings
from gateway.stored import Store as Answers
from gateway.stored import Stored
from tests.billing.make import BOOK, record

NOW_NS = time.time_ns()  # A fresh database has days from now on.
TODAY = NOW_NS // NS_PER_DAY
ORGANISATIONS = [f"org_{n}" for n in range(4)]
PEOPLE = [f"ann{n}@house.test" for n in range(4)]
CHARGE = Charge(sale_pusd=10, cost_pusd=8)
HOUSE = AdminSettings(grants=(GrantSettings(group="A", role="admin"), GrantSettings(group="B", role="finance")))
OIDC = OidcSettings(name="house", issuer="https://house.test", client_id="us")
ROUNDS = 6
ON_POSTGRESQL = pytest.mark.parametrize("fresh_database_url", ["postgresql"], indirect=True)
# Source: PostgreSQL error codes, class 55 (lock_not_available), read 2026-11.
_LOCK_TIMEOUT = "55P03"

Deed = Callable[[random.Random], Awaitable[object]]


@pytest.fixture
async def engine(fresh_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(fresh_database_url, pool_size=16)
    async with writing(engine) as db:
        for each in ORGANISATIONS:
            await accounts.create_organisation(db, each, each, at_ns=0)
            await accounts.set_budget(db, Budget(Scope.ORGANISATION, each, Window.TOTAL, 10), at_ns=0)
    yield engine
    await engine.dispose()


class Everybody:
    """One deed each. `numbers`: so that no two things have one name."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.numbers = count()

    def records(self, chance: random.Random) -> list[UsageRecord]:
        """Of several organisations and providers, some new; of the hour that is and of days that are sealed."""
        made = []
        for _ in range(5):
            number = next(self.numbers)
            made.append(
                record(
                    f"r{number}", at_ns=NOW_NS - chance.randrange(4) * NS_PER_DAY, provider="openai",
                    organisation_id=chance.choice([*ORGANISATIONS, f"org_{number}"]), deployment=f"d{number % 3}",
                )
            )  # fmt: skip
        return made

    async def ship(self, chance: random.Random) -> None:
        records = self.records(chance)
        async with writing(self.engine) as db:
            await worker._write(db, [(each, chance.choice([CHARGE, None])) for each in records], ("lago",))

    async def import_settled(self, chance: random.Random) -> None:
        def beside(new: object) -> list[ledger.Transfer]:
            return [ledger.adjustment(each, 5, f"i{next(self.numbers)}", at_ns=1, note="settled") for each in whom]

        whom = chance.sample(ORGANISATIONS, 2)
        async with writing(self.engine) as db:
            await worker.book(db, [(each, CHARGE) for each in self.records(chance)], beside)

    async def price(self, _: random.Random) -> None:
        async with writing(self.engine) as db:
            await worker.post_unpriced(db, BOOK, at_ns=NOW_NS)
            await self.trace(db, "prices.import")

    async def pay(self, chance: random.Random) -> None:
        async with writing(self.engine) as db:
            move = chance.choice([ledger.top_up, ledger.grant, ledger.refund])
            whom = chance.choice(ORGANISATIONS)
            await move(db, whom, 100, f"p{next(self.numbers)}", at_ns=NOW_NS)
            await self.trace(db, "ledger.top_up")

    async def grant(self, chance: random.Random) -> None:
        for _ in range(2):
            async with writing(self.engine) as db:
                ident, whom = f"g{next(self.numbers)}", chance.choice(ORGANISATIONS)
                await payments.grant_until(db, whom, 100, ident, NOW_NS + 1 + chance.randrange(9), at_ns=NOW_NS)

    async def take_out(self, chance: random.Random) -> None:
        whom, name = chance.choice(ORGANISATIONS), f"o{next(self.numbers)}"
        async with writing(self.engine) as db:
            await ledger.adjust(db, whom, chance.choice([-1, 2]), name, at_ns=NOW_NS, note="why")
        with suppress(InsufficientFunds):
            async with writing(self.engine) as db:
                await ledger.pay_out(db, whom, 1, name, at_ns=NOW_NS)

    async def expire(self, _: random.Random) -> None:
        async with writing(self.engine) as db:
            await payments.expire_grants(db, at_ns=NOW_NS + 100)

    async def seal(self, chance: random.Random) -> None:
        work = chance.choice([days.seal_due, days.rebuild])
        await work(self.engine, now_ns=NOW_NS + NS_PER_DAY)

    async def make_and_drop(self, _: random.Random) -> None:
        await _unless_busy(partitions.make_days(self.engine, now_ns=NOW_NS, ahead=4))
        await _unless_busy(partitions.drop_day(self.engine, TODAY + 4))

    async def clear_a_sample(self, _: random.Random) -> None:
        number = next(self.numbers)
        name = f"sample_{number}"
        async with writing(self.engine) as db:
            await accounts.create_organisation(db, name, name, at_ns=0)
            rows = [record(f"s{number}.{n}", organisation_id=name, at_ns=NOW_NS - n * NS_PER_DAY) for n in range(3)]
            await worker.book(db, [(each, CHARGE) for each in rows])
        async with writing(self.engine) as db:
            await sample.remove(db, name, [])

    async def alert(self, chance: random.Random) -> None:
        async with writing(self.engine) as db:
            await alerts.evaluate(db, now_ns=NOW_NS)
        rule = Rule(f"rule{next(self.numbers)}", Kind.BUDGET, chance.choice([1, 99_999]), Channel.WEBHOOK,
                    "https://example.com", next(self.numbers))  # fmt: skip
        async with writing(self.engine) as db:
            await alerts.add_rule(db, rule)
            await self.trace(db, "alerts.create")

    async def forget_alert(self, _: random.Random) -> None:
        async with reading(self.engine) as db:
            rules = await alerts.rules(db)
        if rules:
            async with writing(self.engine) as db:
                await alerts.remove_rule(db, rules[0].id)
                await self.trace(db, "alerts.remove")

    async def provision(self, chance: random.Random) -> None:
        async with scim.changing(self.engine, HOUSE, "scim (test)", NOW_NS) as change:
            found = await scim.users(change.db)
            for name in PEOPLE[len(found) :]:
                fresh = f"{next(self.numbers)}{name}"
                found.append(await scim.create_user(change, {"userName": fresh}))
            one = chance.choice(found)
            group = next((each for each in await scim.groups(change.db) if each.name == chance.choice("AB")), None)
            match chance.randrange(4):
                case 0:
                    name = f"{next(self.numbers)}@house.test"
                    await scim.replace_user(change, one.id, {"userName": name, "active": chance.random() < 0.5})
                case 1:
                    await scim.delete_user(change, one.id)
                case _:
                    some = [{"value": each.id} for each in chance.sample(found, 3)]
                    name = group.name if group is not None else chance.choice("AB")
                    try:
                        await scim.put_group(change, group and group.id, {"displayName": name, "members": some})
                    except ScimError as error:
                        assert error.kind == "uniqueness"

    async def sign_in(self, chance: random.Random) -> None:
        """And change somebody, as an administrator does."""
        async with reading(self.engine) as db:
            known = await people.users(db)
        if not known:
            return
        at_ns, one = NOW_NS + 10 * next(self.numbers), chance.choice(known)
        async with writing(self.engine) as db:
            await people.begin_session(db, one.id, at_ns=at_ns, lasts_ns=1)
            await self.trace(db, "session.begin")
        async with writing(self.engine) as db:
            await people.set_role(db, one.id, chance.choice([Role.ADMIN, Role.FINANCE]))
            await people.set_disabled(db, one.id, chance.choice([None, 1]))
            await people.revoke_tokens(db, one.id, at_ns=at_ns)
            await self.trace(db, "users.update")

    async def sign_on(self, chance: random.Random) -> None:
        """And lose, or get, a group."""
        async with httpx.AsyncClient() as http, reading(self.engine) as db:
            known = await scim.users(db)
            there = Provider(OIDC, http)
        if known:
            await _sign_on(self.engine, there, chance.choice(known).name, chance.choice(["A", "B", "C"]))

    async def trace(self, db: AsyncConnection, action: str) -> None:
        await audit.append(db, actor="olga", action=action, subject="it", at_ns=NOW_NS)


async def _unless_busy(work: Awaitable[object]) -> None:
    """Those who change tables give up rather than keep everybody waiting."""
    try:
        await work
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_TIMEOUT:
            raise


@ON_POSTGRESQL
async def test_nobody_waits_for_one_who_waits_for_him(engine: AsyncEngine) -> None:
    all_ = Everybody(engine)
    deeds: list[Deed] = [
        all_.ship, all_.ship, all_.ship, all_.import_settled, all_.price, all_.pay, all_.grant, all_.take_out,
        all_.expire, all_.seal, all_.make_and_drop, all_.clear_a_sample, all_.alert, all_.forget_alert, all_.provision,
        all_.provision, all_.sign_in, all_.sign_on,
    ]  # fmt: skip

    async def keep_at(deed: Deed, chance: random.Random) -> None:
        for _ in range(ROUNDS):
            await deed(chance)

    async with asyncio.TaskGroup() as group:
        for number, deed in enumerate(deeds):
            group.create_task(keep_at(deed, random.Random(number)))
    async with reading(engine) as db:
        assert (await ledger.trial_balance(db)).sound
        assert (await audit.verify(db)).broken_at is None


@ON_POSTGRESQL
async def test_a_migration_keeps_no_trace_waiting(engine: AsyncEngine) -> None:
    """Whoever waits to write his trace has locked what he changed, and a migration may want just that."""
    async with writing(engine) as migrating:
        await take_turn(migrating, migrate._TURN)
        async with asyncio.timeout(60), writing(engine) as db:
            await audit.append(db, actor="olga", action="keys.create", subject="it", at_ns=NOW_NS)


@ON_POSTGRESQL
async def test_who_has_to_wait_has_nothing_that_others_want(engine: AsyncEngine) -> None:
    """One by one, what the above meets by chance."""
    first, second = (accounts.customer(each) for each in ORGANISATIONS[:2])
    async with writing(engine) as db:
        # Expires before the other, though its account comes after.
        await payments.grant_until(db, ORGANISATIONS[1], 100, "soon", NOW_NS + 1, at_ns=NOW_NS)
        await payments.grant_until(db, ORGANISATIONS[0], 100, "late", NOW_NS + 2, at_ns=NOW_NS)
        await alerts.add_rule(db, Rule("rule", Kind.BUDGET, 1, Channel.WEBHOOK, "https://example.com", 1))
        await alerts.evaluate(db, now_ns=NOW_NS)
        ann = await people.create_user(db, "ann", Role.ADMIN, at_ns=1)
        gone = [await people.begin_session(db, ann.id, at_ns=1, lasts_ns=1) for _ in range(2)]

    async def expire() -> None:
        async with writing(engine) as db:
            await payments.expire_grants(db, at_ns=NOW_NS + 9)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group, writing(engine) as db:
        await ledger.lock(db, [first])
        group.create_task(expire())
        await until_one_waits(engine)
        await ledger.lock(db, [accounts.GRANTS, second])

    async def forget() -> None:
        async with writing(engine) as db:
            await alerts.remove_rule(db, "rule")

    states = select(alert_states).order_by(alert_states.c.subject.desc()).with_for_update()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group, writing(engine) as db:
        await alerts.rules(db, hold=True)
        await db.execute(states.limit(1))
        group.create_task(forget())
        await until_one_waits(engine)
        await db.execute(states)

    async with asyncio.timeout(60), writing(engine) as db:
        await people.end_session(db, gone[0])
        async with writing(engine) as other:  # Clears out what has expired, but for that one.
            await people.begin_session(other, ann.id, at_ns=NOW_NS)

    async with asyncio.timeout(60), scim.changing(engine, HOUSE, "scim (test)", NOW_NS) as change:
        await scim.create_user(change, {"userName": "bob"})
        async with writing(engine) as db:
            await audit.append(db, actor="olga", action="keys.create", subject="it", at_ns=NOW_NS)


@ON_POSTGRESQL
async def test_who_signs_on_without_a_group_waits_for_a_new_name_before_the_audit_does(engine: AsyncEngine) -> None:
    async with scim.changing(engine, HOUSE, "scim (test)", NOW_NS) as change:
        ann = await scim.create_user(change, {"userName": "ann@house.test"})
    async with httpx.AsyncClient() as http:
        there = Provider(OIDC, http)
        await _sign_on(engine, there, "ann@house.test", "A")
        renaming = scim.changing(engine, HOUSE, "scim (test)", NOW_NS)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group, renaming as change:
            await scim.replace_user(change, ann.id, {"userName": "anna@house.test"})
            group.create_task(_sign_on(engine, there, "ann@house.test", "C"))
            await until_one_waits(engine)
    async with reading(engine) as db:
        assert await memberships.rows(db, user_id=ann.id) == []


async def _sign_on(engine: AsyncEngine, there: Provider, name: str, group: str) -> None:
    """As a callback does, once it knows what the provider says."""
    claims = {"sub": name, "email": name, "email_verified": True, "groups": [group]}
    with suppress(SignOnFailed):  # Somebody else's name by now, or in no group that is granted anything.
        async with writing(engine) as db:
            user_id = await sign_on._person(db, HOUSE, there, claims, NOW_NS)
            await people.begin_session(db, user_id, at_ns=NOW_NS, lasts_ns=1)
            await audit.append(db, actor=user_id, action="session.begin", subject=user_id, at_ns=NOW_NS)


async def until_one_waits(engine: AsyncEngine, so_many: int = 1) -> None:
    waits = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while True:
        async with reading(engine) as db:
            if (await db.execute(waits)).scalar_one() >= so_many:
                return
        await asyncio.sleep(0.01)


@ON_POSTGRESQL
async def test_an_answer_that_comes_late_to_a_cancelled_batch_stands(engine: AsyncEngine) -> None:
    """It has been paid for: who drops what still waits leaves alone what its runner, whose lease is up, just ends."""
    store, lines = Store(engine), batch_lines.c
    batch = {
        "id": "batch_1", "project_id": "proj", "key_id": "key_1", "endpoint": "/v1/chat/completions",
        "input_file_id": "", "status": "in_progress", "total": 2, "created_at_ns": 1, "expires_at_ns": 99,
    }  # fmt: skip
    async with writing(engine) as db:
        await accounts.create_project(db, "proj", ORGANISATIONS[0], "proj", at_ns=0)
    await store.add_batch(batch, [Line("a", b"{}"), Line("b", b"{}")])
    (late,) = await store.take("one", 1, 5, 1)
    await store.ask_to_cancel("batch_1", 2)
    async with writing(engine) as db:
        await db.execute(
            update(batch_lines).where(lines.number == late.number).values(state=DONE, good=True, result=b"whole")
        )
        async with asyncio.timeout(60):
            await store.end_overdue(10, lambda code, *_: code.encode())
    async with reading(engine) as db:
        found = (await db.execute(select(lines.custom_id, lines.good, lines.result).order_by(lines.number))).all()
    assert [tuple(row) for row in found] == [("a", True, b"whole"), ("b", False, b"batch_cancelled")]


@ON_POSTGRESQL
async def test_two_who_write_one_row_at_once_both_succeed_and_the_later_counts(engine: AsyncEngine) -> None:
    """Each writer waits for one who has written the same row and not committed yet."""
    keys, whose = KeyAdmin(engine, None, b"pepper"), ORGANISATIONS[0]
    async with writing(engine) as db:
        await accounts.create_project(db, "proj", whose, "proj", at_ns=0)
        ann = await people.create_user(db, "ann", Role.MEMBER, at_ns=1)
    held = Held(ann.id, "project", "proj", "manual", Role.FINANCE, None)
    routing = ProjectRoutings(engine, lambda: asyncio.sleep(0))
    answers = Answers(engine)

    async def plan() -> None:
        async with writing(engine) as db:
            await set_plan(db, whose, "new")

    async def place() -> None:
        async with writing(engine) as db:
            await memberships.put(db, held, at_ns=2)

    said: list[tuple[Table, dict[str, object], str, object, Callable[[], Awaitable[object]]]] = [
        (
            rate_limits,
            {"scope": "organisation", "scope_id": whose, "unit": "requests", "window_ms": 60_000},
            "amount", 7, lambda: keys.set_rate_limit(Scope.ORGANISATION, whose, "requests", 8, actor="a", now_ns=1),
        ),
        (
            loss_modes, {"scope": "project", "scope_id": "proj"},
            "mode", "strict", lambda: keys.set_losses("project", "proj", "lenient", actor="a", now_ns=1),
        ),
        (
            project_routing, {"project_id": "proj", "cache_prompts": True},
            "second_pusd", 7, lambda: routing.set("proj", ProjectRouting(8, True), actor="a", now_ns=1),
        ),
        (plan_members, {"organisation_id": whose}, "plan", "old", plan),
        (
            identity.memberships,
            {"user_id": ann.id, "scope": "project", "scope_id": "proj", "source": "manual", "created_at_ns": 1},
            "role", "member", place,
        ),
        (
            stored_responses,
            {"project_id": "proj", "id": "resp_1", "body": b"", "created_at_ns": 1, "expires_at_ns": 9},
            "conversation", b"old", lambda: answers.keep("proj", Stored("resp_1", b"new", b""), 2),
        ),
    ]  # fmt: skip
    for table, row, name, first, write in said:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group, writing(engine) as db:
            await db.execute(insert(table).values(row | {name: first}))
            group.create_task(_done(write))
            await until_one_waits(engine)
        async with reading(engine) as db:
            (now,) = (await db.execute(select(table.c[name]))).scalars().all()
        assert now != first, table.name


@ON_POSTGRESQL
async def test_what_was_before_the_second_of_two_writers_is_what_the_first_made(engine: AsyncEngine) -> None:
    """Both have begun when the first is let through."""
    keys, whose = KeyAdmin(engine, None, b"pepper"), ORGANISATIONS[0]
    async with writing(engine) as db:
        await accounts.create_project(db, "proj", whose, "proj", at_ns=0)
    key = (await keys.create_key(project_id="proj", name="0", actor="a", now_ns=1)).key_id

    async def nobody() -> None:
        return

    routing, bodies = ProjectRoutings(engine, nobody), Bodies(engine, nobody)
    guards = GuardrailAdmin(engine, nobody)
    guard = (await guards.create(NewRule("0", Pii()), actor="a", now_ns=1)).id
    said: dict[str, Callable[[int], Awaitable[object]]] = {
        "key.update": lambda n: keys.update_key(key, KeyChanges(name=f"{n}"), actor="a", now_ns=n),
        "key.rotate": lambda n: keys.rotate_key(key, 1, actor="a", now_ns=n),
        "organisation.limit": lambda n: keys.set_rate_limit(
            Scope.ORGANISATION, whose, "requests", n, actor="a", now_ns=n
        ),
        "organisation.budget": lambda n: keys.set_budget(Scope.ORGANISATION, whose, Window.DAY, n, actor="a", now_ns=n),
        "project.losses": lambda n: keys.set_losses(
            "project", "proj", "strict" if n == 1 else "lenient", actor="a", now_ns=n
        ),
        "project.routing": lambda n: routing.set("proj", ProjectRouting(n, False), actor="a", now_ns=n),
        "bodies.set": lambda n: bodies.set("proj", n, (), actor="a", now_ns=n),
        "guardrails.update": lambda n: guards.replace(guard, NewRule(f"{n}", Pii()), actor="a", now_ns=n),
    }
    for action, write in said.items():
        async with asyncio.timeout(60), asyncio.TaskGroup() as group, writing(engine) as db:
            await take_turn(db, audit._TURN)
            for n in (1, 2):
                group.create_task(_done(lambda write=write, n=n: write(n)))  # type: ignore[misc]
                await until_one_waits(engine, n)
        async with reading(engine) as db:
            first, second = await audit.newest(db, audit.Wanted(action=action), limit=2)
        assert second["before"] == {name: first["after"][name] for name in second["before"]}, action


async def _done(write: Callable[[], Awaitable[object]]) -> None:
    await write()
