"""Settings of the till: payments that come in, mail, alerts, metering services, how long usage is kept; and of what
leaves for other services: webhooks of alerts and guardrails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from gateway.config_parts import Secret
from gateway.sections import Section


class PaymentSettings(Section, frozen=True):
    stripe_webhook_secret: Secret | None = None
    """The endpoint's signing secret (`whsec_...`). None: `POST /webhooks/stripe` is not there."""


class MailSettings(Section, frozen=True):
    """The server that alerts by e-mail go out through."""

    host: str | None = None
    port: Annotated[int, Meta(ge=1, le=65_535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password: Secret | None = None
    sender: str = "farebox@localhost"


class AlertSettings(Section, frozen=True):
    signing_secret: Secret | None = None
    """Signs what webhooks get (`Farebox-Signature`). None: they are not signed."""
    private_targets: bool = False
    """Whether a webhook may point into this network. Off: an admin cannot have the gateway ask around inside."""


class GuardrailSettings(Section, frozen=True):
    """Of guardrails that ask a service of your own; the guardrails themselves are set while the gateway runs."""

    signing_secret: Secret | None = None
    """Signs what a webhook is asked (`Farebox-Signature`). None: it is not signed."""
    private_targets: bool = False
    """Whether such a webhook may stand in this network. Off: an admin cannot have the gateway ask around inside."""
    reports_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long it is kept what guardrails said of a request."""


class ExportSettings(Section, frozen=True):
    """One event for each finished request, with its id, so that a service which gets it twice counts it once."""

    kind: Literal["openmeter", "lago", "stripe"]
    token: Secret
    url: str | None = None
    """Where events go, if not to the service itself."""
    meter: str = "llm_usage"
    """Type, code or event name that the service knows them by."""
    value: Literal["tokens", "charge_microusd"] = "tokens"
    """What a Stripe meter adds up. The others get everything that is known of a request."""
    customers: dict[str, str] = field(default_factory=dict)
    """What the service calls an organisation, if not by our id: organisation -> customer or subscription."""


class RetentionSettings(Section, frozen=True):
    days: Annotated[int, Meta(ge=2, le=36_500)] | None = None
    """How long single requests are kept. None: for ever. Hours, days, ledger and invoices stay in any case."""
    archive: Path | None = None
    """A folder that each day is written to, one file a day, before its rows go."""
    archive_form: Literal["csv", "parquet"] = "csv"
    """Parquet needs the extra: pip install 'farebox[parquet]'."""
