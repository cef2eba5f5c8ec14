"""The double-entry ledger: transfers between two accounts each, and the balances they make.

A transfer has one debit and one credit account, so an unbalanced posting can not be written. Its id is made from what
caused it: posting the same thing again changes nothing. Balances are kept in the same transaction, under row locks
taken in the order of account ids, so two writers can not wait for each other; so a transaction posts once, or has
locked (`lock`) all accounts that it will post to before, and locks no row of usage after.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from sqlalchemy import bindparam, select, update

from billing import accounts, schema
from billing.db import AsyncConnection, add_up, insert_many, wide_sum
from billing.errors import InsufficientFunds, LedgerConflict
from billing.money import MAX_AMOUNT_PUSD
from billing.rating import Charge
from billing.usage import UsageRecord

# Made once: to make them anew for each batch of rows costs more than to run them.
_ITS: Final = schema.accounts.c.id.in_(bindparam("names", expanding=True))
_STANDING: Final = select(schema.accounts.c.id).where(_ITS)
_LOCKED: Final = (
    select(schema.accounts.c.id, schema.accounts.c.balance_pusd)
    .where(_ITS)
    .order_by(schema.accounts.c.id)
    .with_for_update()
)
_MOVED: Final = (
    update(schema.accounts).where(schema.accounts.c.id == bindparam("of")).values(balance_pusd=bindparam("to"))
)
# Below the lowest limit on bound parameters of both databases.
_IDS_PER_QUERY = 500


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Money from one account to another. Raises: ValueError for an amount that is not 1 .. 2**63-1 pUSD."""

    id: str
    debit: str
    credit: str
    amount_pusd: int
    at_ns: int
    kind: str
    record_id: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.amount_pusd <= MAX_AMOUNT_PUSD:
            raise ValueError(f"transfer {self.id}: {self.amount_pusd} pUSD is not an amount that can be moved")
        if self.debit == self.credit:
            raise ValueError(f"transfer {self.id}: from {self.debit} to itself")


class AccountBalance(msgspec.Struct, frozen=True):
    """`balance_pusd` is debits minus credits: a customer's credit is negative there and positive in `normal_pusd`."""

    account: str
    kind: accounts.AccountKind
    balance_pusd: int

    @property
    def normal_pusd(self) -> int:
        """Counted on the side where the account grows."""
        debit_side = self.kind in (accounts.AccountKind.ASSET, accounts.AccountKind.EXPENSE)
        return self.balance_pusd if debit_side else -self.balance_pusd


class TrialBalance(msgspec.Struct, frozen=True):
    """All zero in a sound ledger."""

    debits_minus_credits_pusd: int  # Over all kept balances.
    differing: tuple[str, ...]  # Accounts whose kept balance is not the sum of their transfers.

    @property
    def sound(self) -> bool:
        return self.debits_minus_credits_pusd == 0 and not self.differing


def usage_transfers(record: UsageRecord, charge: Charge) -> list[Transfer]:
    """The postings of one finished request. What goes beyond its hold is owed too, and visible as its own entry."""
    customer = accounts.customer(record.organisation_id)
    covered = min(charge.sale_pusd, record.hold_pusd)
    entries = (
        ("charge", customer, accounts.REVENUE, covered),
        ("overrun", customer, accounts.REVENUE, charge.sale_pusd - covered),
        ("cost", accounts.INFERENCE_COST, accounts.payable_to(record.provider), charge.cost_pusd),
    )
    return [
        Transfer(
            id=f"{record.id}:{kind}",
            debit=debit,
            credit=credit,
            amount_pusd=amount,
            at_ns=record.at_ns,
            kind=kind,
            record_id=record.id,
        )
        for kind, debit, credit, amount in entries
        if amount  # A free model, or a request that was refused, moves nothing.
    ]


async def post(db: AsyncConnection, transfers: Sequence[Transfer]) -> int:
    """Write transfers and move balances, in the caller's transaction. Returns: how many were new.

    Raises: LedgerConflict if an id stands already for something else; roll back then."""
    # Locked before looking: of two that say the same payment at once, the second finds it booked.
    await lock(db, {side for transfer in transfers for side in (transfer.debit, transfer.credit)})
    known = await _known(db, [transfer.id for transfer in transfers])
    fresh: dict[str, Transfer] = {}
    for transfer in transfers:
        said = (transfer.debit, transfer.credit, transfer.amount_pusd)
        earlier = fresh.get(transfer.id)
        before = known.get(transfer.id) or (earlier and (earlier.debit, earlier.credit, earlier.amount_pusd))
        if before and before != said:
            raise LedgerConflict(transfer.id)
        if not before:
            fresh[transfer.id] = transfer
    await post_new(db, list(fresh.values()))
    return len(fresh)


async def post_new(db: AsyncConnection, transfers: Sequence[Transfer]) -> None:
    """As `post`, for transfers that the caller knows to be new. Raises: sqlalchemy.exc.IntegrityError if one is not."""
    if not transfers:
        return
    moved: defaultdict[str, int] = defaultdict(int)
    for transfer in transfers:
        moved[transfer.debit] += transfer.amount_pusd
        moved[transfer.credit] -= transfer.amount_pusd
    # Last before the commit is best, since hot accounts serialise all writers; but transfers refer to their accounts.
    await _move(db, moved)
    rows = [msgspec.structs.astuple(transfer) for transfer in transfers]
    await insert_many(db, schema.transfers, Transfer.__struct_fields__, rows)


async def _known(db: AsyncConnection, ids: Sequence[str]) -> dict[str, tuple[str, str, int]]:
    known = {}
    table = schema.transfers.c
    for start in range(0, len(ids), _IDS_PER_QUERY):
        query = select(table.id, table.debit, table.credit, table.amount_pusd).where(
            table.id.in_(ids[start : start + _IDS_PER_QUERY])
        )
        known.update({row.id: (row.debit, row.credit, row.amount_pusd) for row in await db.execute(query)})
    return known


async def _move(db: AsyncConnection, moved: dict[str, int]) -> None:
    locked = await lock(db, moved)
    await db.execute(_MOVED, [{"of": account, "to": balance + moved[account]} for account, balance in locked.items()])


async def lock(db: AsyncConnection, names: Collection[str]) -> dict[str, int]:
    """The balances of these accounts, in their order, locked until the transaction ends; made where there are none."""
    table, its = schema.accounts, {"names": list(names)}
    # Those that are missing first, while none is locked: who makes one may wait for somebody who is just making it,
    # and that one goes on to lock the others.
    if missing := set(names) - set((await db.execute(_STANDING, its)).scalars()):
        await db.execute(
            accounts.upsert(db, table).on_conflict_do_nothing(),
            [{"id": each, "kind": accounts.kind_of(each).value, "balance_pusd": 0} for each in sorted(missing)],
        )
    return {row.id: row.balance_pusd for row in await db.execute(_LOCKED, its)}


async def top_up(
    db: AsyncConnection,
    organisation_id: str,
    amount_pusd: int,
    transfer_id: str,
    *,
    at_ns: int,
    note: str | None = None,
) -> bool:
    """A customer has paid in. `transfer_id` is the payment's own (a webhook may say it twice). Returns: was it new?"""
    return await _single(
        db, f"topup:{transfer_id}", accounts.CASH, accounts.customer(organisation_id), amount_pusd, at_ns, "topup", note
    )


async def grant(
    db: AsyncConnection,
    organisation_id: str,
    amount_pusd: int,
    transfer_id: str,
    *,
    at_ns: int,
    note: str | None = None,
) -> bool:
    """Credit that nobody paid for. Returns: was it new?"""
    return await _single(
        db,
        f"grant:{transfer_id}",
        accounts.GRANTS,
        accounts.customer(organisation_id),
        amount_pusd,
        at_ns,
        "grant",
        note,
    )


async def refund(
    db: AsyncConnection,
    organisation_id: str,
    amount_pusd: int,
    transfer_id: str,
    *,
    at_ns: int,
    note: str | None = None,
) -> bool:
    """Take a sale back: the customer has it to spend again. Returns: was it new?"""
    customer = accounts.customer(organisation_id)
    return await _single(db, f"refund:{transfer_id}", accounts.REVENUE, customer, amount_pusd, at_ns, "refund", note)


async def adjust(
    db: AsyncConnection, organisation_id: str, amount_pusd: int, transfer_id: str, *, at_ns: int, note: str
) -> bool:
    """A correction by hand, in the customer's favour above zero. note: why; there is none without. Returns: was it new?

    Raises: ValueError without a reason."""
    return await post(db, [adjustment(organisation_id, amount_pusd, transfer_id, at_ns=at_ns, note=note)]) == 1


def adjustment(organisation_id: str, amount_pusd: int, transfer_id: str, *, at_ns: int, note: str) -> Transfer:
    """What `adjust` posts. Raises: as that."""
    if not note.strip():
        raise ValueError("a correction needs its reason")
    sides = (accounts.ADJUSTMENTS, accounts.customer(organisation_id))
    debit, credit = sides if amount_pusd > 0 else sides[::-1]
    return Transfer(
        id=f"adjustment:{transfer_id}",
        debit=debit,
        credit=credit,
        amount_pusd=abs(amount_pusd),
        at_ns=at_ns,
        kind="adjustment",
        note=note,
    )


async def pay_out(
    db: AsyncConnection,
    organisation_id: str,
    amount_pusd: int,
    transfer_id: str,
    *,
    at_ns: int,
    note: str | None = None,
) -> bool:
    """Hand unused credit back as money. Returns: was it new? Raises: InsufficientFunds if there is less than that."""
    customer = accounts.customer(organisation_id)
    if not await _known(db, [f"payout:{transfer_id}"]):
        # Both, in the order that everybody takes: with the customer's alone, two payments could wait for each other.
        available = -(await lock(db, (customer, accounts.CASH)))[customer]
        if available < amount_pusd:
            raise InsufficientFunds(customer, amount_pusd, available)
    return await _single(db, f"payout:{transfer_id}", customer, accounts.CASH, amount_pusd, at_ns, "payout", note)


async def _single(
    db: AsyncConnection, transfer_id: str, debit: str, credit: str, amount_pusd: int, at_ns: int, kind: str,
    note: str | None,
) -> bool:  # fmt: skip
    transfer = Transfer(
        id=transfer_id, debit=debit, credit=credit, amount_pusd=amount_pusd, at_ns=at_ns, kind=kind, note=note
    )
    return await post(db, [transfer]) == 1


async def credit_left(db: AsyncConnection, organisation_id: str) -> int:
    """What an organisation paid in or was given and has not spent, in pUSD; negative is owed. Credit limit apart."""
    query = select(schema.accounts.c.balance_pusd).where(schema.accounts.c.id == accounts.customer(organisation_id))
    balance = (await db.execute(query)).scalar_one_or_none()
    return 0 if balance is None else -balance


async def balances(db: AsyncConnection) -> list[AccountBalance]:
    """Every account, by name."""
    rows = await db.execute(select(schema.accounts).order_by(schema.accounts.c.id))
    return [AccountBalance(row.id, accounts.AccountKind(row.kind), row.balance_pusd) for row in rows]


async def trial_balance(db: AsyncConnection) -> TrialBalance:
    """Add everything up again. Reads all transfers: an audit, not a request."""
    table = schema.transfers.c
    sums: defaultdict[str, int] = defaultdict(int)
    for side, sign in ((table.debit, 1), (table.credit, -1)):
        for account, *parts in await db.execute(select(side, *wide_sum(table.amount_pusd)).group_by(side)):
            sums[account] += sign * add_up(*parts)
    kept = {balance.account: balance.balance_pusd for balance in await balances(db)}
    differing = sorted(account for account in sums.keys() | kept.keys() if sums[account] != kept.get(account, 0))
    return TrialBalance(sum(kept.values()), tuple(differing))
