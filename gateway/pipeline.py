"""The whole way of a request: authenticate, decode, plan, admit, call, relay, settle. Free of ASGI."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import structlog
from msgspec import Struct
from msgspec.structs import replace

from billing.errors import JournalUnavailable
from billing.journal import Journal
from billing.usage import Intent, Outcome
from gateway.admission import Admission, Gate, KeyStore, Principal
from gateway.errors import Forbidden, Unauthenticated
from gateway.ingress.endpoints import Route
from gateway.ingress.errors import as_body
from gateway.metering import outcome_of, size_of
from gateway.relay import Opened, open_stream, read_whole
from gateway.routing.catalog import UNKNOWN_CONTEXT_WINDOW, permits
from gateway.routing.fallback import first_arrival
from gateway.routing.offer import Offer
from gateway.routing.policy import Leg, RoutePlan, plan
from gateway.settlement import Ending, Settlement
from providers.base import Call, Provider
from providers.dialects import load
from providers.errors import Interrupted, ProviderError
from providers.neutral import ChatRequest

log = structlog.get_logger(__name__)
Headers = list[tuple[str, str]]


class Inbound(Struct, frozen=True):
    """One request as it came off the wire. headers: lower-case names. now_ns: unix time at arrival."""

    route: Route
    headers: Mapping[str, str]
    body: bytes
    key: str | None
    client_ip: str
    request_id: str
    now_ns: int


class Reply(Struct, frozen=True):
    """What goes back. A stream must be read to its end or closed: its settlement hangs on that."""

    status: int
    headers: Headers
    body: bytes | AsyncIterator[bytes]


class Providers(Protocol):
    def get(self, name: str) -> Provider:
        """The adapter of a configured provider, built on first use."""


class Pipeline:
    """Everything long-lived that a request needs, built once by `app.py`."""

    def __init__(
        self,
        keys: KeyStore,
        gate: Gate,
        journal: Journal,
        providers: Providers,
        offer: Offer,
        clock: Callable[[], int],
        strict: bool,
    ) -> None:
        self._keys = keys
        self._gate = gate
        self._journal = journal
        self._providers = providers
        self._offer = offer
        self._clock = clock
        self._strict = strict

    async def serve(self, inbound: Inbound) -> Reply:
        """Raises: GatewayError, ProviderError or BillingError, with nothing owed; the caller words it."""
        principal = await self.principal(inbound)
        call = self._decode(inbound)
        route_plan = self._plan(call, principal, inbound.now_ns)
        admission, call = await self._admit(call, principal, route_plan, inbound.now_ns)
        settlement = self._owe(call, principal, route_plan, admission, inbound)
        try:
            settlement.open()
        except JournalUnavailable:
            await self._gate.release(admission)
            raise
        try:
            if call.request.stream:
                return await self._stream(call, route_plan, admission, settlement)
            return await self._whole(call, route_plan, admission, settlement)
        except asyncio.CancelledError:
            # The client of a stream left before its first token: the prompt has been read, nothing else is known.
            await settlement.finish(Ending(Outcome.CLIENT_GONE))
            raise
        except BaseException as error:
            # Nothing has reached the client, so nothing is charged, whatever the provider may bill us for its failure.
            await settlement.finish(Ending(outcome_of(error), status=_status(error), produced=False))
            raise

    async def principal(self, inbound: Inbound) -> Principal:
        """Who asks. Raises: Unauthenticated, Forbidden."""
        if inbound.key is None:
            raise Unauthenticated("no API key; send it as `Authorization: Bearer fbx-...`", code="missing_api_key")
        return await self._keys.principal(inbound.key, inbound.client_ip, inbound.now_ns // 1_000_000)

    def _decode(self, inbound: Inbound) -> Call:
        route = inbound.route
        request = load(route.dialect).decode_request(inbound.body, model=route.model, stream=route.stream)
        return Call(
            operation="completions" if route.operation == "completions" else "chat",
            dialect=route.dialect,
            request=request,
            body=inbound.body,
            request_id=inbound.request_id,
            forward_headers=tuple((n, inbound.headers[n]) for n in _FORWARDED if n in inbound.headers),
            strict=self._strict,
        )

    def _plan(self, call: Call, principal: Principal, now_ns: int) -> RoutePlan:
        alias = call.request.model
        deployments = self._offer.catalog.deployments(alias)
        if not permits(principal.models, alias):
            raise Forbidden(f"this key may not use {alias!r}", code="model_not_allowed", param="model")
        return plan(
            call.request,
            call.operation,
            deployments,
            lambda d: self._providers.get(d.provider).capabilities,
            lambda d: self._offer.price_of(d, now_ns),
            random.random,
        )

    async def _admit(self, call: Call, who: Principal, route: RoutePlan, now_ns: int) -> tuple[Admission, Call]:
        request, stated = call.request, call.request.max_output_tokens
        size = size_of(request)
        most = max(leg.deployment.most_output(stated) for leg in route.legs)
        admission = await self._gate.admit(
            who,
            call.request_id,
            request.model,
            input_bytes=size.text_bytes + size.attachments,
            images=size.images,
            max_output_tokens=stated,
            candidates=request.candidates,
            deployment_max_output=most,
            context_window=max(leg.deployment.context_window or UNKNOWN_CONTEXT_WINDOW for leg in route.legs),
            sheets=[leg.sheet for leg in route.legs],
            end_user=request.user,
            now_ms=now_ns // 1_000_000,
        )
        limit = admission.max_output_tokens or (most if stated is None else min(stated, most))
        if limit != stated and (stated is not None or who.budgets):
            # A hard budget holds only if no answer can outgrow its hold. The client sees `length`.
            call = replace(call, request=replace(request, max_output_tokens=limit), output_limit=limit)
        return admission, call

    def _owe(self, call: Call, who: Principal, route: RoutePlan, admission: Admission, inbound: Inbound) -> Settlement:
        leg = route.legs[0]
        intent = Intent(
            id=call.request_id,
            at_ns=inbound.now_ns,
            organisation_id=who.organisation_id,
            project_id=who.project_id,
            key_id=who.key_id,
            end_user=call.request.user,
            alias=call.request.model,
            provider=leg.deployment.provider,
            model=leg.deployment.model,
            deployment=leg.deployment.id,
            price_id=leg.sheet.id,
            estimate=dict(admission.estimate),
            hold_pusd=admission.hold_pusd,
            dialect=call.dialect,
        )
        return Settlement(self._journal, self._gate, admission, intent, leg, self._clock)

    async def _whole(self, call: Call, route: RoutePlan, admission: Admission, settlement: Settlement) -> Reply:
        dropped: tuple[str, ...] = ()

        async def attempt(leg: Leg) -> tuple[bytes, Ending]:
            nonlocal dropped
            answer = await self._providers.get(leg.deployment.provider).send(call, leg.deployment.model)
            dropped = answer.dropped
            body, usage, reason = await read_whole(answer, call)
            return body, Ending(Outcome.COMPLETED, usage, reason, 200, output_bytes=len(body))

        arrival = await first_arrival(route, attempt)
        settlement.leg, settlement.attempts = arrival.leg, arrival.attempts
        body, ending = arrival.got
        amount_pusd = await settlement.finish(ending)
        headers = _headers(call, settlement, admission, dropped)
        headers.append(("content-type", "application/json"))
        headers.append(("x-farebox-cost-usd", _usd(amount_pusd)))
        return Reply(200, headers, body)

    async def _stream(self, call: Call, route: RoutePlan, admission: Admission, settlement: Settlement) -> Reply:
        async def attempt(leg: Leg) -> Opened:
            answer = await self._providers.get(leg.deployment.provider).send(call, leg.deployment.model)
            return await open_stream(answer, call)

        arrival = await first_arrival(route, attempt)
        settlement.leg, settlement.attempts = arrival.leg, arrival.attempts
        settlement.first_token()
        opened = arrival.got
        headers = _headers(call, settlement, admission, opened.answer.dropped)
        headers += [
            ("content-type", load(call.dialect).stream_media_type),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx in front would otherwise collect the whole answer first
        ]
        return Reply(200, headers, self._relay(opened, call.request, call.dialect, settlement))

    async def _relay(
        self, opened: Opened, request: ChatRequest, dialect: str, settlement: Settlement
    ) -> AsyncIterator[bytes]:
        """Client bytes. What follows the finish waits until the record is on disk: no last byte leaves unbilled."""
        stream, held = opened.stream, opened.head
        several = request.candidates > 1  # then one finish is not the last: the newest piece always waits for the next
        ending = Ending(Outcome.CLIENT_GONE)
        try:
            if not opened.ended:
                if stream.finish_reason is None and not several:
                    yield held
                    held = b""
                async for data in opened.chunks:
                    piece = stream.feed(data)
                    if several:
                        held, piece = piece, held
                    if stream.finish_reason is not None and not several:
                        held += piece
                    elif piece:
                        yield piece
                held += stream.close()
            ending = Ending(Outcome.COMPLETED)
        except ProviderError as error:
            cut = isinstance(error, Interrupted)
            log.warning("stream failed", request_id=settlement.id, kind=type(error).__name__, cut=cut)
            ending = Ending(outcome_of(error))
            held += load(dialect).event_encoder(request).fail(as_body(error, settlement.id))
        finally:
            # Also reached when the client has gone: the generator is closed, and with it the upstream.
            await opened.answer.aclose()
            amount_pusd = await settlement.finish(
                replace(
                    ending,
                    usage=stream.usage,
                    finish_reason=stream.finish_reason,
                    status=200,
                    output_bytes=stream.output_bytes,
                )
            )
        yield with_cost(held, amount_pusd) if dialect in _TELLS_COST else held


def with_cost(tail: bytes, amount_pusd: int) -> bytes:
    """Tell the price inside the usage object that a stream ends with, as OpenRouter does, where the client sees one.

    Inside a JSON string the quotes of `"usage":{` would be escaped, so a match is the real key."""
    for key in (b'"usage":{', b'"usage": {'):
        if key in tail:
            return tail.replace(key, key + b'"cost":' + _usd(amount_pusd).encode() + b",", 1)
    return tail


def _usd(amount_pusd: int) -> str:
    return f"{amount_pusd // 10**12}.{amount_pusd % 10**12:012d}"


def _status(error: BaseException) -> int | None:
    return as_body(error, "").status if isinstance(error, Exception) else None


def _headers(call: Call, settlement: Settlement, admission: Admission, dropped: tuple[str, ...]) -> Headers:
    deployment = settlement.leg.deployment
    headers = [
        ("x-request-id", call.request_id),
        ("x-farebox-provider", deployment.provider),
        ("x-farebox-model", deployment.model),
        ("x-farebox-attempts", str(settlement.attempts)),
        *admission.limit_headers(),
    ]
    if dropped:
        headers.append(("x-farebox-dropped", ", ".join(dropped)))
    if call.output_limit is not None:
        headers.append(("x-farebox-max-output-tokens", str(call.output_limit)))
    return headers


# OpenRouter's users know the place; in the other dialects strict clients would stumble, or the frames have checksums.
_TELLS_COST = frozenset({"openai_chat", "openai_completions", "openai_responses"})

# What the owner of a dialect wants to see unchanged (Claude Code's gateway contract and its like).
_FORWARDED = ("anthropic-version", "anthropic-beta", "openai-beta", "x-goog-api-client")
