"""Money that comes in: a payment service's signed word for it, and grants that expire. Speaks no HTTP.

Source: Stripe, "Receive webhook events: verify signatures manually" and "Checkout Session object", read 2026-11.
"""

import hashlib
import hmac
from itertools import pairwise
from typing import Any, Final

import msgspec
from sqlalchemy import insert, select, update

from billing import accounts, ledger, schema
from billing.db import AsyncConnection, add_up, wide_sum
from billing.errors import BillingError
from billing.money import MAX_AMOUNT_PUSD, PUSD_PER_USD

# Older messages may be somebody's recording.
TOLERANCE_S: Final = 300
_SECRET_CHARS_MIN: Final = 16
_PUSD_PER_CENT: Final = PUSD_PER_USD // 100
_PAID: Final = ("checkout.session.completed", "checkout.session.async_payment_succeeded")


class BadSignature(BillingError):
    """Not from the payment service, or not from now. Nothing is posted; answer 400."""


class NotUnderstood(BillingError):
    """From the payment service, and still not money that we can book. An operator has to look at it."""


class Payment(msgspec.Struct, frozen=True):
    """id: the payment service's own; however often it is said, it is booked once."""

    id: str
    organisation_id: str
    amount_pusd: int
    at_ns: int


class _Session(msgspec.Struct):
    id: str
    client_reference_id: str | None = None
    amount_total: int | None = None
    currency: str | None = None
    payment_status: str | None = None
    metadata: dict[str, Any] | None = None


class _Data(msgspec.Struct):
    object: msgspec.Raw


class _Event(msgspec.Struct):
    type: str
    created: int
    data: _Data


class StripeWebhook:
    """Reads webhook messages. Made at the start: without a secret there is no start."""

    def __init__(self, secret: str) -> None:
        """secret: the endpoint's signing secret (`whsec_...`). Raises: ValueError if there is none to speak of."""
        if len(secret) < _SECRET_CHARS_MIN:
            raise ValueError("the webhook needs its signing secret: without one anybody could say that they have paid")
        self._secret = secret.encode()

    def __repr__(self) -> str:
        return "StripeWebhook(hidden)"

    def receive(self, payload: bytes, signature: str, now_s: int) -> Payment | None:
        """payload: the body, byte by byte as it came. signature: the header `Stripe-Signature`.

        Returns: what was paid; None for a message about something else, to be answered 200 all the same.
        Raises: BadSignature; NotUnderstood for a payment in another currency or for nobody."""
        self._verify(payload, signature, now_s)
        try:
            event = msgspec.json.decode(payload, type=_Event)
            if event.type not in _PAID:
                return None
            session = msgspec.json.decode(event.data.object, type=_Session)
        except msgspec.DecodeError as error:
            raise NotUnderstood(f"not an event of the form we know: {error}") from error
        if session.payment_status != "paid":
            return None  # A bank transfer on its way: async_payment_succeeded will say so.
        organisation_id = session.client_reference_id or (session.metadata or {}).get("organisation_id")
        if not isinstance(organisation_id, str) or not organisation_id:
            raise NotUnderstood(f"{session.id} names no organisation in client_reference_id or metadata")
        if session.currency != "usd" or not session.amount_total or session.amount_total < 0:
            raise NotUnderstood(f"{session.id} is {session.amount_total} {session.currency}, not an amount in usd")
        if session.amount_total * _PUSD_PER_CENT > MAX_AMOUNT_PUSD:
            raise NotUnderstood(f"{session.id} is {session.amount_total} cents, more than one booking holds")
        return Payment(session.id, organisation_id, session.amount_total * _PUSD_PER_CENT, event.created * 10**9)

    def _verify(self, payload: bytes, signature: str, now_s: int) -> None:
        pairs = [part.strip().partition("=") for part in signature.split(",")]
        stamps = [value for name, _, value in pairs if name == "t"]
        if len(stamps) != 1 or not stamps[0].isdecimal() or len(stamps[0]) > 12:
            raise BadSignature("no time in the signature")
        right = hmac.new(self._secret, stamps[0].encode() + b"." + payload, hashlib.sha256).hexdigest().encode()
        # While a secret is being replaced there are two.
        given = [value.encode("utf-8", "replace") for name, _, value in pairs if name == "v1"]
        if not any([hmac.compare_digest(right, one) for one in given]):  # noqa: C419 - all are compared, in equal time
            raise BadSignature("signed by somebody else")
        if abs(now_s - int(stamps[0])) > TOLERANCE_S:
            raise BadSignature(f"signed {now_s - int(stamps[0])} s ago")


async def book(db: AsyncConnection, payment: Payment) -> bool:
    """Returns: was it new? Raises: NotUnderstood if there is no such organisation."""
    organisations = schema.organisations.c
    known = await db.execute(select(organisations.id).where(organisations.id == payment.organisation_id))
    if known.scalar() is None:
        raise NotUnderstood(f"{payment.id} is for {payment.organisation_id!r}, which does not exist")
    return await ledger.top_up(
        db, payment.organisation_id, payment.amount_pusd, payment.id, at_ns=payment.at_ns, note="card payment"
    )


async def grant_until(
    db: AsyncConnection,
    organisation_id: str,
    amount_pusd: int,
    grant_id: str,
    expires_at_ns: int,
    *,
    at_ns: int,
    note: str | None = None,
) -> bool:
    """Credit that nobody paid for and that is taken back where it was not used by then. Returns: was it new?"""
    if expires_at_ns <= at_ns:
        raise ValueError("a grant that has expired already")
    new = await ledger.grant(db, organisation_id, amount_pusd, grant_id, at_ns=at_ns, note=note)
    if new:
        row = {"id": grant_id, "organisation_id": organisation_id, "amount_pusd": amount_pusd}
        times = {"granted_at_ns": at_ns, "expires_at_ns": expires_at_ns}
        await db.execute(insert(schema.grants).values(**row, **times))
    return new


async def expire_grants(db: AsyncConnection, *, at_ns: int) -> int:
    """Take back what is left of grants that have expired. Call it now and then; saying it again changes nothing.

    Grants are used up before a customer's own money, those that expire first before the others. A charge that is
    shipped after the grant's expiry was booked falls to the customer's own money. Returns: pUSD taken back."""
    table = schema.grants
    due = (
        (
            await db.execute(
                select(table)
                .where(table.c.expired_at_ns.is_(None), table.c.expires_at_ns <= at_ns)
                .order_by(table.c.expires_at_ns, table.c.id)
                .with_for_update()
            )
        )
        .mappings()
        .all()
    )
    if not due:
        return 0
    # All at once: one after the other they would be locked in the order of expiry, and others have theirs.
    await ledger.lock(db, {accounts.GRANTS, *(accounts.customer(row["organisation_id"]) for row in due)})
    taken = 0
    for row in due:
        left = (await _left_of_grants(db, row["organisation_id"], row["expires_at_ns"]))[row["id"]]
        credit = await ledger.credit_left(db, row["organisation_id"])
        amount = max(0, min(left, credit))
        if amount:
            transfer = ledger.Transfer(
                id=f"expiry:{row['id']}",
                debit=accounts.customer(row["organisation_id"]),
                credit=accounts.GRANTS,
                amount_pusd=amount,
                at_ns=row["expires_at_ns"],
                kind="expiry",
            )
            await ledger.post(db, [transfer])
        await db.execute(update(table).where(table.c.id == row["id"]).values(expired_at_ns=at_ns))
        taken += amount
    return taken


async def _left_of_grants(db: AsyncConnection, organisation_id: str, until_ns: int) -> dict[str, int]:
    """What of each grant is unused at that time. Between two instants at which a grant begins or ends the same ones
    are alive, so only the sum of charges in between matters."""
    table = schema.grants.c
    query = select(schema.grants).where(table.organisation_id == organisation_id, table.granted_at_ns < until_ns)
    grants = (await db.execute(query.order_by(table.expires_at_ns, table.id))).mappings().all()
    left = {row["id"]: int(row["amount_pusd"]) for row in grants}
    instants = sorted({t for row in grants for t in (row["granted_at_ns"], row["expires_at_ns"])} | {until_ns})
    for start_ns, end_ns in pairwise(instants):
        if end_ns > until_ns:
            break
        used = await _charged(db, organisation_id, start_ns, end_ns)
        for row in grants:
            if row["granted_at_ns"] <= start_ns and end_ns <= row["expires_at_ns"]:
                covered = min(used, left[row["id"]])
                left[row["id"]] -= covered
                used -= covered
    return left


async def _charged(db: AsyncConnection, organisation_id: str, since_ns: int, until_ns: int) -> int:
    table = schema.transfers.c
    query = select(*wide_sum(table.amount_pusd)).where(
        table.debit == accounts.customer(organisation_id),
        table.kind.in_(("charge", "overrun")),
        table.at_ns >= since_ns,
        table.at_ns < until_ns,
    )
    return add_up(*(await db.execute(query)).one())
