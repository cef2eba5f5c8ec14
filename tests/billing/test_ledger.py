"""Double entry: nothing unbalanced, nothing twice, no balance too wide."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, ledger, schema
from billing.accounts import CASH, GRANTS, REVENUE, AccountKind, customer
from billing.db import create_engine, reading, writing
from billing.errors import InsufficientFunds, LedgerConflict
from billing.ledger import Transfer, post
from billing.money import MAX_AMOUNT_PUSD
from billing.rating import Charge
from tests.billing.make import AT_NS, record

NAMES = [CASH, REVENUE, GRANTS, customer("a"), customer("b")]


def transfer(transfer_id: str, debit: str, credit: str, amount_pusd: int) -> Transfer:
    return Transfer(id=transfer_id, debit=debit, credit=credit, amount_pusd=amount_pusd, at_ns=AT_NS, kind="test")


async def balances(engine: AsyncEngine) -> dict[str, int]:
    async with reading(engine) as db:
        return {balance.account: balance.balance_pusd for balance in await ledger.balances(db)}


@pytest.mark.parametrize("amount", [0, -1, MAX_AMOUNT_PUSD + 1])
def test_an_amount_that_can_not_be_moved(amount: int) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        transfer("t", CASH, REVENUE, amount)


def test_money_does_not_move_from_an_account_to_itself() -> None:
    with pytest.raises(ValueError, match="to itself"):
        transfer("t", CASH, CASH, 1)


@given(sale=st.integers(0, 10**15), cost=st.integers(0, 10**15), hold=st.integers(0, 10**15))
def test_the_postings_of_a_request_are_its_charge_and_its_cost(sale: int, cost: int, hold: int) -> None:
    posted = ledger.usage_transfers(record("r1", hold_pusd=hold), Charge(sale, cost))
    assert sum(t.amount_pusd for t in posted if t.credit == REVENUE) == sale
    assert sum(t.amount_pusd for t in posted if t.credit == accounts.payable_to("openai")) == cost
    assert sum(t.amount_pusd for t in posted if t.kind == "overrun") == max(0, sale - hold)
    assert len({t.id for t in posted}) == len(posted)


async def test_random_postings_balance_in_any_batches(fresh_engine: AsyncEngine) -> None:
    """Many small batches with repeats, against a plain dictionary."""
    expected: dict[str, int] = {}
    transfers = []
    for i in range(120):
        debit, credit = NAMES[i % 5], NAMES[(i * 7 + 1 + i // 5) % 5]
        if debit != credit:
            transfers.append(transfer(f"t{i}", debit, credit, 1 + i**7 % 10**17))
            expected[debit] = expected.get(debit, 0) + transfers[-1].amount_pusd
            expected[credit] = expected.get(credit, 0) - transfers[-1].amount_pusd
    fresh = 0
    for start in range(0, len(transfers), 7):
        async with writing(fresh_engine) as db:
            # Each batch says again what the one before said, and itself twice.
            batch = transfers[max(0, start - 7) : start + 7]
            fresh += await post(db, [*batch, *batch])
    assert fresh == len(transfers)
    assert await balances(fresh_engine) == expected
    async with reading(fresh_engine) as db:
        assert (await ledger.trial_balance(db)).sound


async def test_a_transfer_is_posted_once_and_never_changed(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        assert await post(db, [transfer("t", CASH, REVENUE, 5)]) == 1
        assert await post(db, [transfer("t", CASH, REVENUE, 5)]) == 0
    for other in (transfer("t", CASH, REVENUE, 6), transfer("t", REVENUE, CASH, 5), transfer("t", CASH, GRANTS, 5)):
        with pytest.raises(LedgerConflict) as caught:
            async with writing(fresh_engine) as db:
                await post(db, [transfer("before", CASH, REVENUE, 1), other])
        assert caught.value.transfer_id == "t"
    assert await balances(fresh_engine) == {CASH: 5, REVENUE: -5}, "a refused posting leaves nothing"


async def test_balances_beyond_64_bits_are_exact(fresh_engine: AsyncEngine) -> None:
    for i in range(5):
        async with writing(fresh_engine) as db:
            await post(db, [transfer(f"t{i}-{k}", CASH, customer("a"), MAX_AMOUNT_PUSD - k) for k in range(3)])
    total = 5 * (3 * MAX_AMOUNT_PUSD - 3)
    assert total > 2**66
    assert await balances(fresh_engine) == {CASH: total, customer("a"): -total}
    async with reading(fresh_engine) as db:
        assert await ledger.credit_left(db, "a") == total
        assert (await ledger.trial_balance(db)).sound


async def test_the_trial_balance_sees_a_balance_that_was_touched(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        await post(db, [transfer("t", CASH, REVENUE, 5)])
        table = schema.accounts
        await db.execute(update(table).where(table.c.id == CASH).values(balance_pusd=6))
        trial = await ledger.trial_balance(db)
    assert trial == ledger.TrialBalance(1, (CASH,))
    assert not trial.sound


async def test_writers_from_two_processes_do_not_lose_updates(fresh_database_url: str) -> None:
    engines = [create_engine(fresh_database_url) for _ in range(2)]

    async def write(engine: AsyncEngine, name: str) -> None:
        for i in range(25):
            async with writing(engine) as db:
                # In both orders: row locks taken as they come would deadlock.
                pair = (CASH, REVENUE) if i % 2 else (REVENUE, GRANTS)
                await post(db, [transfer(f"{name}-{i}", *pair, 3), transfer(f"{name}-{i}-b", GRANTS, CASH, 1)])

    await asyncio.gather(*(write(engine, f"w{n}") for n, engine in enumerate(engines)))
    async with reading(engines[0]) as db:
        assert (await ledger.trial_balance(db)).sound
    assert await balances(engines[0]) == {CASH: 22, REVENUE: 6, GRANTS: -28}
    for engine in engines:
        await engine.dispose()


async def test_an_account_outside_the_chart_is_refused(fresh_engine: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="chart of accounts: elsewhere"):
        async with writing(fresh_engine) as db:
            await post(db, [transfer("t", CASH, "elsewhere", 5)])
    assert await balances(fresh_engine) == {}


async def test_paying_in_granting_refunding_and_paying_out(fresh_engine: AsyncEngine) -> None:
    now: dict[str, Any] = {"at_ns": AT_NS}
    async with writing(fresh_engine) as db:
        assert await ledger.top_up(db, "a", 100, "payment-1", **now)
        assert not await ledger.top_up(db, "a", 100, "payment-1", **now), "a webhook that came twice"
        assert await ledger.grant(db, "a", 10, "welcome", note="first steps", **now)
        await post(db, [transfer("usage", customer("a"), REVENUE, 80)])
        assert await ledger.refund(db, "a", 5, "complaint-1", **now)
        assert await ledger.credit_left(db, "a") == 35
        with pytest.raises(InsufficientFunds) as caught:
            await ledger.pay_out(db, "a", 36, "payout-1", **now)
        assert (caught.value.wanted_pusd, caught.value.available_pusd) == (36, 35)
        assert await ledger.pay_out(db, "a", 35, "payout-1", **now)
        assert not await ledger.pay_out(db, "a", 35, "payout-1", **now)
        assert await ledger.credit_left(db, "a") == 0
        assert await ledger.credit_left(db, "nobody") == 0
        assert (await ledger.trial_balance(db)).sound
        found = {balance.account: balance for balance in await ledger.balances(db)}
    assert found[CASH].normal_pusd == 65
    assert found[REVENUE].normal_pusd == 75
    assert found[GRANTS].kind is AccountKind.EXPENSE


async def test_the_database_itself_refuses_what_the_code_would_not_write(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        await post(db, [transfer("t", CASH, REVENUE, 5)])
    row = {"id": "u", "debit": CASH, "credit": REVENUE, "amount_pusd": 1, "at_ns": 0, "kind": "test"}
    for wrong in ({"amount_pusd": 0}, {"credit": CASH}, {"debit": "nobody"}, {"id": "t"}):
        with pytest.raises(IntegrityError):
            async with writing(fresh_engine) as db:
                await db.execute(schema.transfers.insert().values({**row, **wrong}))
