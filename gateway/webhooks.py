"""`POST /webhooks/stripe`: a payment service says that somebody has paid; who it is for may spend it at once.

What it says is believed for its signature alone. Answers: 200 booked, booked before, or not about money; 400 not
signed; 404 no signing secret is set; 422 money that can not be booked, which the service shows and tries again.
Source: Stripe, "Receive Stripe events in your webhook endpoint", read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from billing import payments
from billing.accounts import customer
from billing.db import writing
from billing.money import format_usd
from gateway import audit
from gateway.admin.services import Services
from gateway.config import ConfigError, Settings

log = structlog.get_logger(__name__)

# Stripe's events are below 256 KiB.
_BODY_BYTES_MAX = 1024 * 1024


def check_secret(settings: Settings) -> None:
    """Raises: ConfigError for a signing secret that cannot be one: then nobody could tell who says that they have
    paid."""
    if (said := settings.payments.stripe_webhook_secret) is None:
        return
    try:
        payments.StripeWebhook(said.reveal())
    except ValueError as error:
        fix = "copy the signing secret of the endpoint, whsec_..., from the payment service"
        raise ConfigError("payments.stripe_webhook_secret", str(error), fix=fix) from error


def webhook_routes(settings: Settings, services: Callable[[], Services]) -> list[HTTPRouteHandler]:
    """services: asked for at each request. Raises: as `check_secret`."""
    check_secret(settings)
    said = settings.payments.stripe_webhook_secret

    def office() -> Services:
        return services()  # Ours: Litestar would copy a bound method's object.

    @post("/webhooks/stripe", name="webhooks.stripe", status_code=200, request_max_body_size=_BODY_BYTES_MAX)
    async def stripe(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
        work = office()
        if said is None:
            return _refused(404, "no signing secret: set payments.stripe_webhook_secret to take payments here")
        webhook = payments.StripeWebhook(said.reveal())  # Anew: the secret may be rotated.
        now_ns = work.clock()
        body, signature = await request.body(), request.headers.get("stripe-signature", "")
        try:
            payment = webhook.receive(body, signature, now_ns // 10**9)
            if payment is None:
                return Response({"booked": False, "reason": "not a payment"})
            new = await _book(work, payment, now_ns)
        except payments.BadSignature as error:
            log.warning("payment message refused", reason=str(error))
            return _refused(400, str(error))
        except payments.NotUnderstood as error:
            log.error("payment not booked, look at it in the payment service", reason=str(error))
            return _refused(422, str(error))
        return Response({"booked": new, "reason": "" if new else "booked before"})

    return [stripe]


async def _book(work: Services, payment: payments.Payment, now_ns: int) -> bool:
    async with writing(work.engine) as db:
        new = await payments.book(db, payment)
        if new:
            after = {"amount_usd": format_usd(payment.amount_pusd), "payment": payment.id}
            subject = customer(payment.organisation_id)
            await audit.append(db, actor="stripe", action="ledger.top_up", subject=subject, at_ns=now_ns, after=after)
    # Also when it was booked before: the process that booked it may have died before it told the others.
    await work.keys.changed()
    return new


def _refused(status: int, reason: str) -> Response[dict[str, Any]]:
    return Response({"booked": False, "reason": reason}, status_code=status)
