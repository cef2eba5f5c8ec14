"""Tells metering services of finished requests, each in the service's own form, again until it has taken them.

A refusal of a batch is narrowed down to the requests that it is about, so that one bad event holds up no other.
Source: CloudEvents 1.0 JSON batch format; OpenMeter "Events ingestion"; Lago "Batch events" (at most 100, a known
transaction_id is refused as value_already_exist); Stripe "Create a billing meter event" (identifier unique for a day at
least, timestamp within 35 days); read 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec

from billing import exports
from billing.db import AsyncEngine, reading, writing
from billing.exports import Event
from gateway.tasks import every
from gateway.till import ExportSettings

if TYPE_CHECKING:
    import httpx

BATCH: Final = 100
# One chore run tells so many at most, then others have their turn.
BATCHES_MAX: Final = 50
_AT_ONCE: Final = 8
_TIMEOUT_S: Final = 20.0
_CLOUD_EVENTS: Final = "application/cloudevents-batch+json"
_HOSTS: Final = {
    "openmeter": "https://openmeter.cloud",
    "lago": "https://api.getlago.com",
    "stripe": "https://api.stripe.com",
}
# What may be otherwise next time. Other refusals are about the events themselves.
_LATER: Final = frozenset({401, 403, 404, 408, 409, 425, 429})


class Away(Exception):
    """The service took nothing, for a reason that is not in the events."""


class Refused(Exception):
    """The service takes these events never, as they are."""


async def export(
    engine: AsyncEngine, http: httpx.AsyncClient, name: str, settings: ExportSettings, clock: Callable[[], int]
) -> int:
    """Tell one service what it has not heard. Returns: how many requests it took."""
    taken = 0
    for _ in range(BATCHES_MAX):
        async with reading(engine) as db:
            events = await exports.due(db, name, now_ns=clock(), most=BATCH)
        if not events:
            break
        good, bad = await tell(http, settings, events)
        async with writing(engine) as db:
            await exports.done(db, name, [event.id for event in good])
            for problem in set(bad.values()):
                of_it = [event for event in events if bad.get(event.id) == problem]
                await exports.failed(db, name, of_it, problem, now_ns=clock())
        taken += len(good)
        if len(good) < len(events) and not good:
            break  # The service is away: the next run asks again.
    return taken


async def tell(
    http: httpx.AsyncClient, settings: ExportSettings, events: Sequence[Event]
) -> tuple[list[Event], dict[str, str]]:
    """Returns: what was taken, and of the others why not, by id."""
    if settings.kind == "stripe":
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(event: Event) -> tuple[list[Event], dict[str, str]]:
            async with gate:
                return await _narrow(http, settings, [event])

        answers = await every(*(one(event) for event in events))
        good = [event for taken, _ in answers for event in taken]
        return good, {event_id: problem for _, bad in answers for event_id, problem in bad.items()}
    return await _narrow(http, settings, events)


async def _narrow(
    http: httpx.AsyncClient, settings: ExportSettings, events: Sequence[Event]
) -> tuple[list[Event], dict[str, str]]:
    try:
        await _send(http, settings, events)
    except Away as error:
        return [], {event.id: str(error) for event in events}
    except Refused as error:
        if len(events) == 1:
            return [], {events[0].id: str(error)}
        middle = len(events) // 2
        left, bad = await _narrow(http, settings, events[:middle])
        right, worse = await _narrow(http, settings, events[middle:])
        return left + right, bad | worse
    return list(events), {}


async def _send(http: httpx.AsyncClient, settings: ExportSettings, events: Sequence[Event]) -> None:
    import httpx  # Whoever brings `http` has loaded it; a gateway that exports nothing has not.

    path, content, kind = _FORMS[settings.kind](settings, events)
    headers = {"authorization": f"Bearer {settings.token.reveal()}", "content-type": kind}
    if settings.kind == "stripe":
        headers["idempotency-key"] = events[0].id
    url = (settings.url or _HOSTS[settings.kind]).rstrip("/") + path
    try:
        answer = await http.post(url, content=content, headers=headers, timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Away(f"{type(error).__name__}: {error}") from error
    if answer.is_success:
        return
    said = f"answered {answer.status_code}: {answer.text[:300]}"
    if answer.status_code >= 500 or answer.status_code in _LATER or answer.is_redirect:
        raise Away(said)
    if _known(settings, answer, len(events)):
        return
    raise Refused(said)


def _known(settings: ExportSettings, answer: httpx.Response, count: int) -> bool:
    """Whether it refused one event because it has it already, from a try whose answer we did not hear."""
    if count != 1:
        return False
    if settings.kind == "lago":
        return answer.status_code == 422 and "value_already_exist" in answer.text
    return settings.kind == "stripe" and answer.status_code == 400 and "already exists with identifier" in answer.text


def _openmeter(settings: ExportSettings, events: Sequence[Event]) -> tuple[str, bytes, str]:
    body = [
        {
            "specversion": "1.0", "id": event.id, "source": "farebox", "type": settings.meter, "time": event.time,
            "subject": _customer(settings, event), "datacontenttype": "application/json", "data": _data(event),
        }
        for event in events
    ]  # fmt: skip
    return "/api/v1/events", msgspec.json.encode(body), _CLOUD_EVENTS


def _lago(settings: ExportSettings, events: Sequence[Event]) -> tuple[str, bytes, str]:
    body = [
        {
            "transaction_id": event.id, "external_subscription_id": _customer(settings, event), "code": settings.meter,
            "timestamp": f"{event.at_ns // 10**9}.{event.at_ns % 10**9 // 10**6:03d}", "properties": _data(event),
        }
        for event in events
    ]  # fmt: skip
    return "/api/v1/events/batch", msgspec.json.encode({"events": body}), "application/json"


def _stripe(settings: ExportSettings, events: Sequence[Event]) -> tuple[str, bytes, str]:
    (event,) = events  # It takes one at a time.
    value = event.charge_microusd if settings.value == "charge_microusd" else event.input_tokens + event.output_tokens
    form = {
        "event_name": settings.meter,
        "identifier": event.id,
        "timestamp": event.at_ns // 10**9,
        "payload[stripe_customer_id]": _customer(settings, event),
        "payload[value]": value,
        "payload[model]": event.model,
    }
    return "/v1/billing/meter_events", urlencode(form).encode(), "application/x-www-form-urlencoded"


_FORMS: Final[Mapping[str, Callable[[ExportSettings, Sequence[Event]], tuple[str, bytes, str]]]] = {
    "openmeter": _openmeter,
    "lago": _lago,
    "stripe": _stripe,
}


def _customer(settings: ExportSettings, event: Event) -> str:
    return settings.customers.get(event.organisation_id, event.organisation_id)


def _data(event: Event) -> dict[str, Any]:
    """Amounts as text: a JSON number would be rounded."""
    return {
        "organisation": event.organisation_id,
        "project": event.project_id,
        "key": event.key_id,
        "alias": event.alias,
        "provider": event.provider,
        "model": event.model,
        "outcome": event.outcome,
        "estimated": event.estimated,
        "requests": 1,
        "tokens": event.input_tokens + event.output_tokens,
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "charge_usd": event.charge_usd,
        "meters": event.quantities,
        "tags": event.tags,
    }
