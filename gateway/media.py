"""The way of sound and images: bodies go through as they came, in OpenAI's form, to whoever speaks it.

Sold by the second, character, image or token: by what the deployment's price names. Held before at worst, settled by
what the provider tells, else by what the sound's own bytes say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from math import ceil

import structlog
from msgspec.structs import replace

from billing.rating import Counts
from billing.usage import Meter, Outcome
from gateway.admission import Principal
from gateway.desk import Ask, Booking, Desk
from gateway.errors import Unsupported
from gateway.exchange import Inbound, Providers, Reply, SayError, in_usd, queue_of, tags_of
from gateway.metering import Size, outcome_of
from gateway.routing.fallback import Journey
from gateway.routing.policy import Leg
from gateway.settlement import Ending, Settlement
from providers.base import MediaCall, Medium, read_whole
from providers.dialects import load, openai_media
from providers.dialects.openai_media import EventWatch, MediaRequest, MediaUsage
from providers.errors import ProviderError
from providers.transport.base import HttpResponse
from providers.wire import sound

log = structlog.get_logger(__name__)
Attempt = Callable[[Leg], Awaitable[HttpResponse]]

# At worst, and as providers count usually. Source: OpenAI's pricing notes (gpt-4o-transcribe about 1,000 tokens a
# minute, gpt-4o-mini-tts about 1,250, gpt-image-1 6,240 a high 1536x1024 image), read 2026-11.
_HEARD_TOKENS_PER_S = 25
_WRITTEN_TOKENS_PER_S = 20
_SPOKEN_TOKENS_PER_S = 21
_SPOKEN_TOKENS_PER_CHARACTER = 8
_IMAGE_TOKENS = 6_240
_IMAGE_PIXELS = 1536 * 1024
_LARGEST_PIXELS = 4096 * 4096
_PARTIAL_IMAGE_TOKENS = 100
_GIVEN_IMAGE_TOKENS = 6_240
_BYTES_PER_TOKEN = 2
_HEAD_BYTES = 65_536
"""Of a made sound: enough to see its bit rate."""
_QUALITY = re.compile(r"[a-z]{1,12}")
_SHARE_OF_QUALITY = {"low": 16, "medium": 4}


class Media:
    def __init__(self, desk: Desk, providers: Providers, say: SayError) -> None:
        self._desk = desk
        self._providers = providers
        self._say = say

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        route = inbound.route
        content_type = inbound.headers.get("content-type", "application/json")
        request = openai_media.decode_request(inbound.body, content_type, route.operation, route.model)  # type: ignore[arg-type]
        body = inbound.body
        if who.guard is not None and request.text:
            (text,) = await self._desk.looked_at(inbound, who, request.model, (request.text,))
            if text != request.text:
                body = openai_media.with_text(body, content_type, request.operation, text)
                request = replace(request, text=text)
        call = MediaCall(request.operation, body, content_type, inbound.request_id)
        ask = Ask(
            request_id=inbound.request_id,
            dialect=route.dialect,
            alias=request.model,
            needs=frozenset({request.operation}),
            size=Size(len(request.text.encode())),
            answers=False,
            counts=at_worst(request),
            grades=grades_of(request),
            tags=tags_of(inbound.headers),
            queue_s=queue_of(inbound.headers),
        )
        booking = await self._desk.check_in(ask, who, inbound.now_ns)

        async def attempt(leg: Leg) -> HttpResponse:
            provider = self._providers.get(leg.deployment.adapter)
            if not isinstance(provider, Medium):
                raise Unsupported(f"{leg.deployment.provider} has no {request.operation}", (request.operation,))
            return await provider.pass_on(call, leg.deployment.model)

        async with booking.settlement.owed(self._say):
            if request.stream or request.operation == "speech":
                return await self._stream(booking, attempt, request)
            return await self._whole(booking, attempt, request)

    async def _whole(self, booking: Booking, attempt: Attempt, request: MediaRequest) -> Reply:
        async def read(leg: Leg) -> tuple[bytes, str, MediaUsage]:
            response = await attempt(leg)
            body = await read_whole(response)
            return body, response.headers.get("content-type", "application/json"), openai_media.usage_in(body)

        arrival = await booking.dispatcher.first_arrival(booking.plan, read)
        booking.settlement.answered(arrival.leg, arrival.attempts, arrival.tries)
        body, content_type, usage = arrival.got
        ending = Ending(Outcome.COMPLETED, finish_reason="stop", status=200, counts=told(usage, request))
        amount_pusd = await booking.settlement.finish(replace(ending, likely=likely(request, b"", 0)))
        headers = booking.headers(())
        headers += [("content-type", content_type), ("x-farebox-cost-usd", in_usd(amount_pusd))]
        return Reply(200, headers, body)

    async def _stream(self, booking: Booking, attempt: Attempt, request: MediaRequest) -> Reply:
        arrival = await booking.dispatcher.first_arrival(booking.plan, attempt, streams=True)
        booking.settlement.answered(arrival.leg, arrival.attempts, arrival.tries)
        booking.settlement.first_token()
        headers = booking.headers(())
        headers.append(("content-type", arrival.got.headers.get("content-type", "application/octet-stream")))
        return Reply(200, headers, self._relay(arrival.got, request, booking.settlement, arrival.journey))

    async def _relay(
        self, response: HttpResponse, request: MediaRequest, settlement: Settlement, journey: Journey
    ) -> AsyncIterator[bytes]:
        """The newest piece waits until the next is there, the last one until the record is on disk."""
        is_events = response.headers.get("content-type", "").startswith("text/event-stream")
        watch, head, size, held = EventWatch(), b"", 0, b""
        ending = Ending(Outcome.CLIENT_GONE)
        try:
            yield b""  # Arms this generator: from here on its end settles, whoever leaves.
            async for piece in response.chunks():
                if is_events:
                    watch.feed(piece)
                elif len(head) < _HEAD_BYTES:
                    head += piece[:_HEAD_BYTES]
                size += len(piece)
                held, piece = piece, held
                if piece:
                    yield piece
            ending = Ending(Outcome.COMPLETED, finish_reason="stop")
        except ProviderError as error:
            log.warning("stream failed", request_id=settlement.id, kind=type(error).__name__)
            journey.failed(error)
            ending = Ending(outcome_of(error))
            if not is_events:
                raise  # a sound that is cut must not look whole: the connection is cut too
            held += (
                b"event: error\ndata: " + load("openai_chat").encode_error(self._say(error, settlement.id)) + b"\n\n"
            )
        finally:
            journey.end()
            await response.aclose()
            counts = told(watch.usage, request)
            await settlement.finish(replace(ending, status=200, counts=counts, likely=likely(request, head, size)))
        yield held


def grades_of(request: MediaRequest) -> tuple[str, ...]:
    """Price variants of an image of this quality and size, the closest first: `hd/1024x1792`, `hd/*`, `*/1024x1792`.

    The slash keeps a client's word for quality from naming a service tier's variant."""
    quality = request.quality if _QUALITY.fullmatch(request.quality) and request.quality != "auto" else ""
    both = (f"{quality}/{request.size}",) if quality and request.size else ()
    return both + ((f"{quality}/*",) if quality else ()) + ((f"*/{request.size}",) if request.size else ())


def at_worst(request: MediaRequest) -> Counts:
    text_tokens = -(-len(request.text.encode()) // _BYTES_PER_TOKEN) + 16
    match request.operation:
        case "transcriptions" | "translations":
            length = ceil(sound.seconds(request.sound)[0]) or 1
            heard = {Meter.INPUT_AUDIO_TOKENS: length * _HEARD_TOKENS_PER_S, Meter.INPUT_TOKENS: text_tokens}
            return {Meter.SECONDS: length}, heard | {Meter.OUTPUT_TOKENS: length * _WRITTEN_TOKENS_PER_S}
        case "speech":
            spoken = len(request.text) * _SPOKEN_TOKENS_PER_CHARACTER
            tokens = {Meter.INPUT_TOKENS: text_tokens, Meter.OUTPUT_AUDIO_TOKENS: spoken}
            return {Meter.CHARACTERS: len(request.text)}, tokens
    each = _IMAGE_TOKENS * (request.pixels or _LARGEST_PIXELS) // _IMAGE_PIXELS
    each = max(each // _SHARE_OF_QUALITY.get(request.quality, 1), 272)
    drawn = request.images * (each + request.partial_images * _PARTIAL_IMAGE_TOKENS)
    tokens = {
        Meter.INPUT_TOKENS: text_tokens,
        Meter.INPUT_IMAGE_TOKENS: request.given_images * _GIVEN_IMAGE_TOKENS,
        Meter.OUTPUT_IMAGE_TOKENS: drawn,
    }
    return tokens, {Meter.IMAGES: request.images}


def told(usage: MediaUsage, request: MediaRequest) -> Counts:
    counts: list[dict[Meter, int]] = []
    if request.operation == "speech":
        counts.append({Meter.CHARACTERS: len(request.text)})  # We know them as well as anybody.
    if usage.seconds is not None:
        counts.append({Meter.SECONDS: ceil(usage.seconds)})
    if usage.input_tokens is not None and usage.output_tokens is not None:
        written = usage.output_text_tokens or 0
        made = Meter.OUTPUT_TOKENS
        if request.operation in ("images", "image_edits"):
            made = Meter.OUTPUT_IMAGE_TOKENS
        elif request.operation == "speech":
            made = Meter.OUTPUT_AUDIO_TOKENS
        parts = {
            Meter.INPUT_AUDIO_TOKENS: usage.input_audio_tokens,
            Meter.INPUT_IMAGE_TOKENS: usage.input_image_tokens,
        }
        rest = max(0, usage.input_tokens - sum(parts.values()))
        tokens = {**parts, Meter.INPUT_TOKENS: rest, made: max(0, usage.output_tokens - written)}
        if made is not Meter.OUTPUT_TOKENS:
            tokens[Meter.OUTPUT_TOKENS] = min(written, usage.output_tokens)
        counts.append(tokens)
    if usage.images is not None:
        counts.append({Meter.IMAGES: usage.images})
    return tuple(counts)


def likely(request: MediaRequest, made: bytes, size: int) -> Counts:
    """What nobody told, as closely as can be seen. made: the head of a sound of so many bytes."""
    if request.sound:
        length, sure = sound.seconds(request.sound)
        return ({Meter.SECONDS: ceil(length)},) if sure else ()
    if request.operation != "speech" or not size:
        return ()
    if request.response_format == "pcm":
        length = size / sound.PCM_BYTES_PER_S
    else:
        length, _ = sound.seconds(made, size)
    text_tokens = -(-len(request.text.encode()) // 4) + 1
    return ({Meter.INPUT_TOKENS: text_tokens, Meter.OUTPUT_AUDIO_TOKENS: ceil(length * _SPOKEN_TOKENS_PER_S)},)
