"""Money that a payment service reports: signed as Stripe's own library signs, booked once, for the right account."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import stripe
from litestar import Litestar
from msgspec.structs import replace
from sqlalchemy import select

from billing import ledger
from billing.accounts import create_organisation
from billing.db import reading, writing
from gateway.config import ConfigError, Settings, load
from gateway.config_parts import Secret
from gateway.schema import audit
from gateway.till import PaymentSettings
from gateway.webhooks import webhook_routes
from tests.gateway.admin.world import NOW_NS, USD, World, world

SECRET = "whsec_" + "k" * 32
NOW_S = NOW_NS // 10**9


def event(session: str = "cs_1", organisation: str = "org_1", cents: int = 2500, **changes: Any) -> bytes:
    said = {"id": session, "object": "checkout.session", "client_reference_id": organisation, "amount_total": cents,
            "currency": "usd", "payment_status": "paid"}  # fmt: skip
    kind = changes.pop("type", "checkout.session.completed")
    body = {
        "id": f"evt_{session}",
        "object": "event",
        "type": kind,
        "created": NOW_S,
        "data": {"object": said | changes},
    }
    return json.dumps(body).encode()


def signature(payload: bytes, secret: str = SECRET, at_s: int = NOW_S) -> str:
    """By Stripe's own library."""
    return f"t={at_s},v1={stripe.WebhookSignature._compute_signature(f'{at_s}.{payload.decode()}', secret)}"


def with_secret(settings: Settings, secret: str | None) -> Settings:
    said = None if secret is None else Secret(secret, {})
    return replace(settings, payments=PaymentSettings(stripe_webhook_secret=said))


@pytest.fixture
async def made(fresh_database_url: str, tmp_path: Any) -> AsyncIterator[World]:
    async with world(fresh_database_url, tmp_path) as built:
        async with writing(built.engine) as db:
            await create_organisation(db, "org_2", "Other", at_ns=1)
        yield built


def client(made: World, secret: str | None = SECRET) -> httpx.AsyncClient:
    app = Litestar(
        webhook_routes(with_secret(made.services.settings, secret), lambda: made.services),
        openapi_config=None,
        logging_config=None,
    )
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://farebox.test")


async def send(http: httpx.AsyncClient, payload: bytes, header: str | None = None) -> httpx.Response:
    headers = {"stripe-signature": signature(payload) if header is None else header}
    return await http.post("/webhooks/stripe", content=payload, headers=headers)


async def left(made: World, organisation_id: str = "org_1") -> int:
    async with reading(made.engine) as db:
        return await ledger.credit_left(db, organisation_id)


async def test_a_payment_is_booked_once_however_often_and_at_once_it_is_said(made: World) -> None:
    before = await left(made)
    payload = event()
    # Stripe's library takes what we take.
    assert stripe.Webhook.construct_event(payload, signature(payload), SECRET, tolerance=10**9)["id"] == "evt_cs_1"  # type: ignore[no-untyped-call]
    async with client(made) as http:
        answers = await asyncio.gather(*(send(http, payload) for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert sorted(answer.json()["booked"] for answer in answers) == [False] * 4 + [True]
        # The bank's word, later, for the same session.
        again = event(type="checkout.session.async_payment_succeeded")
        assert (await send(http, again)).json() == {"booked": False, "reason": "booked before"}
        assert (await send(http, event("cs_2", "org_2", cents=100))).json()["booked"]
    assert await left(made) == before + 25 * USD
    assert await left(made, "org_2") == USD
    async with reading(made.engine) as db:
        assert (await ledger.trial_balance(db)).sound
        said = (await db.execute(select(audit.c.subject, audit.c.after).where(audit.c.actor == "stripe"))).all()
    assert [(row.subject, row.after["amount_usd"]) for row in said] == [
        ("customer:org_1", "25.00"), ("customer:org_2", "1.00"),
    ]  # fmt: skip


async def test_what_is_not_signed_now_by_the_right_one_books_nothing(made: World) -> None:
    before, payload = await left(made), event()
    good = signature(payload)
    bad = {
        "nothing": "", "no time": good.partition(",")[2], "somebody else": signature(payload, "whsec_" + "x" * 32),
        "old": signature(payload, at_s=NOW_S - 301), "from the future": signature(payload, at_s=NOW_S + 301),
        "another body": signature(event("cs_9")), "cut": good[:-2], "v0 alone": good.replace("v1=", "v0="),
    }  # fmt: skip
    async with client(made) as http:
        for name, header in bad.items():
            answer = await send(http, payload, header)
            assert (answer.status_code, answer.json()["booked"]) == (400, False), name
        assert await left(made) == before
        # While the secret is being replaced, one of two signatures is enough.
        both = good + "," + signature(payload, "whsec_" + "x" * 32).partition(",")[2]
        assert (await send(http, payload, both)).json()["booked"]


@pytest.mark.parametrize(
    ("payload", "status", "reason"),
    [
        (event(type="customer.created"), 200, "not a payment"),
        (event(payment_status="unpaid"), 200, "not a payment"),
        (event(organisation="org_nobody"), 422, "does not exist"),
        (event(organisation=""), 422, "names no organisation"),
        (event(currency="eur"), 422, "not an amount in usd"),
        (event(cents=0), 422, "not an amount"),
        (event(cents=10**15), 422, "more than one booking holds"),
        (b"{}", 422, "not an event"),
        (b"\xff", 422, "not an event"),
    ],
)
async def test_what_is_signed_and_no_money_for_us(made: World, payload: bytes, status: int, reason: str) -> None:
    before = await left(made)
    header = signature(payload) if payload != b"\xff" else _raw(payload)
    async with client(made) as http:
        answer = await send(http, payload, header)
    assert (answer.status_code, answer.json()["booked"]) == (status, False)
    assert reason in answer.json()["reason"]
    assert await left(made) == before


def _raw(payload: bytes) -> str:
    import hashlib
    import hmac

    return f"t={NOW_S},v1={hmac.new(SECRET.encode(), f'{NOW_S}.'.encode() + payload, hashlib.sha256).hexdigest()}"


async def test_without_a_secret_nobody_can_pay_in_and_a_bad_one_stops_the_start(made: World) -> None:
    async with client(made, secret=None) as http:
        answer = await send(http, event())
    assert answer.status_code == 404
    assert "payments.stripe_webhook_secret" in answer.json()["reason"]
    with pytest.raises(ConfigError, match="signing secret"):
        client(made, secret="short")
    settings = load(environ={"FAREBOX_PAYMENTS__STRIPE_WEBHOOK_SECRET": "env:NOT_SET"}, flags={})
    assert [error.path for error in settings.missing_secrets()] == ["payments.stripe_webhook_secret"]
