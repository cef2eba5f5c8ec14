"""The way of a chat (and of a legacy completion): a whole answer or a stream, from the first leg that gives one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec.structs import replace

from billing.usage import Outcome
from gateway.admission import Principal
from gateway.answers import WHOLE, Answers, Kept, Place, asked_again, served
from gateway.continuing import Continuing, may_continue
from gateway.desk import Ask, Booking, Desk
from gateway.errors import GatewayError, InvalidRequest
from gateway.exchange import (
    Headers,
    Inbound,
    Providers,
    Reply,
    SayError,
    forwarded,
    in_usd,
    is_strict,
    queue_of,
    tags_of,
)
from gateway.guardrails.passing import asked_call, guarded_answer, visited, with_slack
from gateway.guardrails.watch import Watch
from gateway.marking import marked_call, wants_markers
from gateway.metering import outcome_of, size_of
from gateway.observe.metrics import METRICS
from gateway.relay import Opened, open_stream, read_whole, stream_of
from gateway.routing.catalog import Similar
from gateway.routing.explaining import DRY_RUN
from gateway.routing.fallback import Arrival, ended
from gateway.routing.known_blocks import KnownBlocks
from gateway.routing.policy import Leg, needed_features
from gateway.routing.preferences import NONE, Preferences, preferred, session_of
from gateway.routing.warmth import chain_of, kept_s
from gateway.settlement import Ending
from gateway.shadowing import Shadows
from gateway.similar import SIMILAR, TOLD
from providers.base import Answer, Call
from providers.dialects import load
from providers.errors import Interrupted, ProviderError
from providers.neutral import ChatRequest

if TYPE_CHECKING:
    from gateway.guardrails.guard import Guard
    from gateway.guardrails.visit import Visit

log = structlog.get_logger(__name__)

# OpenRouter's users know the place; in the other dialects strict clients would stumble, or the frames have checksums.
_TELLS_COST = frozenset({"openai_chat", "openai_completions", "openai_responses"})


class Chat:
    def __init__(
        self,
        desk: Desk,
        providers: Providers,
        answers: Answers,
        watch: Watch,
        strict: bool,
        say: SayError,
        shadows: Shadows,
        known: KnownBlocks,
    ) -> None:
        self._desk = desk
        self._watch = watch
        self._answers = answers
        self._providers = providers
        self._strict = strict
        self._say = say
        self._shadows = shadows
        self._known = known

    def serve(self, inbound: Inbound, who: Principal) -> Awaitable[Reply]:
        """Raises: GatewayError, ProviderError or BillingError, with nothing owed; the caller words it."""
        call = self._decode(inbound, who)
        if who.guard is None:
            return self._serve(inbound, who, call, None)
        return self._guarded(who.guard, inbound, who, call)

    async def _guarded(self, guard: Guard, inbound: Inbound, who: Principal, call: Call) -> Reply:
        with self._watch.visit(guard, who, inbound, call.request.model) as visit:
            return await self._serve(inbound, who, visited(call, visit), visit)

    async def _serve(self, inbound: Inbound, who: Principal, call: Call, visit: Visit | None) -> Reply:
        call, preferences = preferred(call, inbound.headers)
        said = inbound.headers
        ask = ask_of(call, preferences, session_of(call.request, said), tags_of(said), queue_of(said))
        terms = self._desk.terms_of(ask.alias)
        if among := self._desk.among(ask.alias, preferences, terms):
            held, tokens = await self._known.held(call, among, ask.size.text_bytes, salt_of(call.request, who))
            ask = replace(ask, held_tokens=held, input_tokens=tokens) if held else ask
        if DRY_RUN in inbound.headers:
            told = self._desk.explain(ask, who, inbound.now_ns)
            headers = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
            return Reply(200, headers, msgspec.json.encode(told))
        if inbound.tier is not None:
            ask = replace(ask, service_tier=inbound.tier)
        if visit is not None and visit.asks_about_input:
            ask = replace(ask, size=with_slack(ask.size))
        keeps = terms.keep_s
        place = self._answers.place(call, preferences, who, inbound.headers, keeps) if keeps is not None else None
        if place is not None and (kept := await self._answers.find(place)) is not None:
            booking = await self._desk.check_in(asked_again(ask), who, inbound.now_ns)
            async with booking.settlement.owed(self._say):
                return await served(booking, kept)
        likeness: Headers = []
        if place is not None and (similar := terms.similar) is not None:
            place, alike, likeness = await self._alike(place, call, preferences, who, inbound, similar)
            if alike is not None:
                booking = await self._desk.check_in(asked_again(ask), who, inbound.now_ns)
                async with booking.settlement.owed(self._say):
                    reply = await served(booking, alike, SIMILAR)
                return replace(reply, headers=[*reply.headers, *likeness])
        booking = await self._desk.check_in(ask, who, inbound.now_ns)
        call = _bounded(call, booking, who)
        async with booking.settlement.owed(self._say):
            if visit is not None and visit.asks_about_input:
                call = await asked_call(call, visit, ask.size)
            answer = self._stream if call.request.stream else self._whole
            reply = await answer(call, booking, inbound.now_ns // 10**9, place, visit)
        if likeness:
            reply = replace(reply, headers=[*reply.headers, *likeness])
        # What a client's guardrails watch over goes nowhere else.
        if (shadow := booking.plan.terms.shadow) is not None and visit is None:
            self._shadows.follow(shadow, inbound, self.serve)
        return reply

    async def _alike(
        self, place: Place, call: Call, preferences: Preferences, who: Principal, inbound: Inbound, terms: Similar
    ) -> tuple[Place, Kept | None, Headers]:
        """Where to keep this answer so that its question is found again, the answer to one that means the same, and
        what to tell of it."""
        similar = self._answers.similar
        question = None if similar is None else similar.question(call, preferences, who, inbound.headers, terms)
        if similar is None or question is None:
            return place, None, []
        if isinstance(question, str):
            return place, None, [(TOLD, f"skipped: {question}")]
        found = await similar.find(question)
        kept = None if found.name is None else await self._answers.find(Place(found.name, place.seconds), SIMILAR)
        if found.entry is not None:
            place = replace(place, then=partial(similar.keep, question, found.entry, place))
        return place, kept, found.headers

    def _decode(self, inbound: Inbound, who: Principal) -> Call:
        route = inbound.route
        request = load(route.dialect).decode_request(inbound.body, model=route.model, stream=route.stream)
        _check_tool_choice(request)
        return Call(
            operation="completions" if route.operation == "completions" else "chat",
            dialect=route.dialect,
            request=request,
            body=inbound.body,
            request_id=inbound.request_id,
            forward_headers=forwarded(inbound.headers),
            strict=is_strict(inbound, who, self._strict),
            tenant=who.project_id,
        )

    async def _send(self, call: Call, booking: Booking, leg: Leg) -> Answer:
        if booking.plan.terms.cache_prompts and wants_markers(leg.deployment):
            call = marked_call(call)
        answer = await self._providers.get(leg.deployment.adapter).send(call, leg.deployment.model)
        booking.heard(leg, answer.headers)
        return answer

    async def _whole(self, call: Call, booking: Booking, now_s: int, place: Place | None, visit: Visit | None) -> Reply:
        dropped: tuple[str, ...] = ()

        async def attempt(leg: Leg) -> tuple[bytes, Ending]:
            nonlocal dropped
            answer = await self._send(call, booking, leg)
            dropped = answer.dropped
            body, usage, reason = await read_whole(answer, call, now_s)
            return body, Ending(Outcome.COMPLETED, usage, reason, 200, output_bytes=len(body))

        arrival = await booking.dispatcher.first_arrival(booking.plan, attempt)
        booking.settlement.answered(arrival.leg, arrival.attempts, arrival.tries)
        body, ending = arrival.got
        if visit is not None and visit.watches_output:
            body, ending = await guarded_answer(body, ending, call, visit)
        amount_pusd = await booking.settlement.finish(ending)
        if place is not None and ending.finish_reason in WHOLE:
            await self._answers.keep(place, arrival.leg.deployment.id, "application/json", body)
        headers = booking.headers(dropped) + _limit_header(call)
        headers += [("content-type", "application/json"), ("x-farebox-cost-usd", in_usd(amount_pusd))]
        return Reply(200, headers, body)

    async def _stream(
        self, call: Call, booking: Booking, now_s: int, place: Place | None, visit: Visit | None
    ) -> Reply:
        continues = booking.plan.terms.continues and len(booking.plan.legs) > 1 and may_continue(call.request)

        async def attempt(leg: Leg) -> Opened:
            answer = await self._send(call, booking, leg)
            if visit is not None and visit.watches_output:
                guarded = visit.stream(answer.dialect.event_decoder(), load(call.dialect), call, now_s)
                return await open_stream(answer, guarded, guarded.said(answer.chunks()))
            stream = Continuing(answer.dialect, call, now_s) if continues else stream_of(answer, call, now_s)
            return await open_stream(answer, stream)

        arrival = await booking.dispatcher.first_arrival(
            booking.plan, attempt, streams=True, discard=lambda opened: opened.answer.aclose()
        )
        settlement, opened = booking.settlement, arrival.got
        settlement.answered(arrival.leg, arrival.attempts, arrival.tries, arrival.lost_pusd)
        settlement.first_token()
        if visit is not None and visit.watches_output:
            visit.streams()
        headers = booking.headers(opened.answer.dropped) + _limit_header(call)
        headers += [
            ("content-type", load(call.dialect).stream_media_type),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx in front would otherwise collect the whole answer first
        ]
        pieces = self._relay(arrival, call, booking, visit)
        if place is not None:
            media_type, leg = load(call.dialect).stream_media_type, arrival.leg
            pieces = self._answers.watched(
                place,
                leg.deployment.id,
                media_type,
                pieces,
                # What two deployments said between them is this request's answer and nobody else's.
                lambda: opened.stream.finish_reason in WHOLE and settlement.leg is leg,
            )
        return Reply(200, headers, pieces)

    async def _relay(
        self, arrival: Arrival[Opened], call: Call, booking: Booking, visit: Visit | None
    ) -> AsyncIterator[bytes]:
        """Client bytes. What follows the finish waits until the record is on disk: no last byte leaves unbilled."""
        settlement, opened = booking.settlement, arrival.got
        stream, held = opened.stream, opened.head
        several = call.request.candidates > 1  # then a finish may not be the last: the newest piece waits
        ending = Ending(Outcome.CLIENT_GONE)
        broken: list[Leg] = []
        try:
            while True:
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
                    break
                except ProviderError as error:
                    cut = isinstance(error, Interrupted)
                    log.warning("stream failed", request_id=settlement.id, kind=type(error).__name__, cut=cut)
                    arrival.journey.failed(error)
                    broken.append(arrival.leg)
                    settlement.broke(ended(error))
                    further = await self._carried_on(opened, booking, broken) if cut or error.retryable else None
                    if further is None:
                        ending = Ending(outcome_of(error))
                        held += opened.fail(self._say(error, settlement.id), call)
                        break
                    arrival, opened, held = further, further.got, further.got.head
        finally:
            # Also reached when the client has gone: the generator is closed, and with it the upstream.
            try:
                arrival.journey.end(stream.usage.output_tokens, stream.usage.cache_read_tokens)
                await opened.answer.aclose()
                if visit is not None:
                    visit.end(stream)
            finally:
                amount_pusd = await settlement.finish(
                    replace(
                        ending,
                        usage=stream.usage,
                        finish_reason=stream.finish_reason,
                        status=200,
                        output_bytes=stream.output_bytes,
                        estimated=bool(broken),
                    )
                )
        yield with_cost(held, amount_pusd) if call.dialect in _TELLS_COST else held

    async def _carried_on(self, opened: Opened, booking: Booking, broken: list[Leg]) -> Arrival[Opened] | None:
        """The same answer from a deployment that has not broken it yet. None: the client has to be told."""
        stream = opened.stream
        rest = tuple(leg for leg in booking.plan.legs if leg not in broken)
        if not isinstance(stream, Continuing) or not stream.can_resume or not rest:
            return None
        closing = stream.cut()
        call = stream.continued()

        async def attempt(leg: Leg) -> Opened:
            answer = await self._send(call, booking, leg)
            stream.resume(answer.dialect)
            return await open_stream(answer, stream)

        await opened.answer.aclose()
        try:
            plan = replace(booking.plan, legs=rest, promise=None)
            arrival = await booking.dispatcher.first_arrival(plan, attempt, streams=True)
        except (ProviderError, GatewayError) as error:
            log.warning("nobody carries the stream on", request_id=booking.settlement.id, problem=str(error))
            return None
        arrival.got.head = closing + arrival.got.head
        booking.settlement.carried_on(arrival.leg, arrival.attempts, arrival.tries)
        METRICS.continued()
        return arrival


def _check_tool_choice(request: ChatRequest) -> None:
    """Some dialects have no place for a choice among no tools: they would answer as if it had not been made.

    Raises: InvalidRequest."""
    choice = request.tool_choice
    if choice is None or choice.mode not in ("required", "named"):
        return
    if not request.tools:
        raise InvalidRequest("tool_choice asks for a tool, and the request has none", param="tool_choice")
    known = all(tool.raw is None for tool in request.tools)  # what only its own dialect knows may be named otherwise
    if choice.mode == "named" and known and choice.name not in {tool.name for tool in request.tools}:
        raise InvalidRequest(f"tool_choice names {choice.name!r}, which is none of the tools", param="tool_choice")


def ask_of(
    call: Call,
    preferences: Preferences = NONE,
    session: str | None = None,
    tags: tuple[str, ...] = (),
    queue_s: float | None = None,
) -> Ask:
    request = call.request
    return Ask(
        request_id=call.request_id,
        dialect=call.dialect,
        alias=request.model,
        needs=needed_features(request, call.operation),
        size=size_of(request),
        max_output_tokens=request.max_output_tokens,
        candidates=request.candidates,
        end_user=request.user,
        service_tier=request.service_tier,
        preferences=preferences,
        session=session,
        prompt=partial(chain_of, request),
        asked_s=kept_s(request),
        tags=tags,
        queue_s=queue_s,
    )


def salt_of(request: ChatRequest, who: Principal) -> str:
    """What sets this prompt's cached blocks apart in an engine of ours. See local_backend/server.py."""
    said = request.extensions.get("openai_chat", {}).get("cache_salt")
    return f"{who.project_id}\0{said if isinstance(said, str) else ''}"


def _bounded(call: Call, booking: Booking, who: Principal) -> Call:
    """The call with the output limit that its hold covers. The client sees `length` where it bites."""
    stated, most = call.request.max_output_tokens, booking.most_output
    limit = booking.admission.max_output_tokens or (most if stated is None else min(stated, most))
    if limit == stated or (stated is None and not who.budgets):
        return call
    # A hard budget holds only if no answer can outgrow its hold.
    return replace(call, request=replace(call.request, max_output_tokens=limit), output_limit=limit)


def _limit_header(call: Call) -> list[tuple[str, str]]:
    return [] if call.output_limit is None else [("x-farebox-max-output-tokens", str(call.output_limit))]


def with_cost(tail: bytes, amount_pusd: int) -> bytes:
    """Tell the price inside the usage object that a stream ends with, as OpenRouter does, where the client sees one.

    Inside a JSON string the quotes of `"usage":{` would be escaped, so a match is a real key; the last one, since a
    Responses answer repeats its tools before its usage, and a tool may have a parameter of that name."""
    at, key = max((tail.rfind(key), key) for key in (b'"usage":{', b'"usage": {'))
    if at < 0:
        return tail
    at += len(key)
    return tail[:at] + b'"cost":' + in_usd(amount_pusd).encode() + b"," + tail[at:]
