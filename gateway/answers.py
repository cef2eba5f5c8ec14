"""Answers kept for the same question: exact, per project and never across, only where the alias says for how long.

A hit is an admitted request like any other: its key's limits count it, and it is settled as one request of no tokens,
so it costs what the price list asks for a request, which is nothing for most models. Kept in Redis, at most MOST_BYTES
each; Redis away or full is a miss."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import hiredis
import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from billing.usage import Meter, Outcome
from gateway.admission import Principal
from gateway.admission.store import LimitStore, link_to
from gateway.desk import Ask, Booking
from gateway.errors import Unavailable
from gateway.exchange import Headers, Reply, in_usd
from gateway.observe.metrics import METRICS
from gateway.routing.preferences import Preferences
from gateway.settlement import Ending
from providers.base import Call

if TYPE_CHECKING:
    from gateway.similar import SimilarAnswers

log = structlog.get_logger(__name__)

HEADER: Final = "x-farebox-cache"
HIT: Final = "hit"
MOST_BYTES: Final = 512 * 1024
# Cut short, filtered or failed answers are asked anew.
WHOLE: Final = frozenset({"stop", "tool_calls"})
ONE_REQUEST: Final = ({Meter.REQUESTS: 1},)
_COST: Final = re.compile(rb'("usage": ?\{)"cost":[0-9.]+,')


class Place(Struct, frozen=True):
    """Where the answer to this very question is kept, and for how many seconds."""

    name: str
    seconds: float
    then: Callable[[], Awaitable[None]] | None = None
    """Done once an answer is kept here."""


class Kept(Struct, frozen=True, array_like=True):
    """body: the client's bytes, a stream's in one piece. at_s: unix time."""

    at_s: int
    deployment: str
    media_type: str
    body: bytes


class Answers:
    def __init__(self, redis: LimitStore, secret: bytes) -> None:
        """secret: names are keyed with it, so that whoever reads Redis cannot test guesses of a question."""
        self._link = link_to(redis)
        self._secret = blake2b(secret, digest_size=32, person=b"answers").digest()
        self.similar: SimilarAnswers | None = None
        """Who looks for questions that mean the same, where an alias wants that."""

    async def aclose(self) -> None:
        await self._link.aclose()

    def place(
        self, call: Call, preferences: Preferences, who: Principal, headers: Mapping[str, str], seconds: float | None
    ) -> Place | None:
        """None: the alias keeps nothing, or the client wants its answer made anew."""
        if seconds is None or {headers.get(HEADER), headers.get("cache-control")} & {"no-store", "no-cache"}:
            return None
        asked = replace(call.request, user=None, metadata=None)
        question: Any = (call.dialect, call.operation, asked, preferences, call.forward_headers, call.strict)
        named = hmac.new(self._secret, who.project_id.encode() + b"\0", "sha256")
        if who.guard is not None:
            question = (*question, who.guard.id)  # What passed other guardrails is no answer of these.
        named.update(msgspec.msgpack.encode(question, order="deterministic"))
        return Place(f"fbx:answer:{named.hexdigest()}", seconds)

    async def find(self, place: Place, hit: str = HIT) -> Kept | None:
        """hit: what finding it is called."""
        try:
            found: Any = await self._link.call("GET", place.name)
        except (Unavailable, hiredis.ReplyError):
            return None
        METRICS.kept_answer("miss" if found is None else hit)
        try:
            return None if found is None else msgspec.msgpack.decode(found, type=Kept)
        except msgspec.MsgspecError:  # of another version
            return None

    async def keep(self, place: Place, deployment: str, media_type: str, body: bytes) -> None:
        if len(body) > MOST_BYTES:
            return
        kept = msgspec.msgpack.encode(Kept(int(time.time()), deployment, media_type, body))
        try:
            await self._link.call("SET", place.name, kept, "PX", max(1, int(place.seconds * 1000)))
        except (Unavailable, hiredis.ReplyError) as error:
            log.debug("answer not kept", reason=type(error).__name__)
            return
        if place.then is not None:
            await place.then()

    async def watched(
        self, place: Place, deployment: str, media_type: str, pieces: AsyncIterator[bytes], whole: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """A stream passed on as it comes, and kept once it is whole. whole: asked after its last piece."""
        held: list[bytes] = []
        size = 0
        try:
            async for piece in pieces:
                size += len(piece)
                if size <= MOST_BYTES:
                    held.append(piece)
                else:
                    held.clear()
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
        if whole() and size <= MOST_BYTES:
            await self.keep(place, deployment, media_type, b"".join(held))


def asked_again(ask: Ask) -> Ask:
    """The same request when its answer is at hand: nothing will be read or written."""
    return replace(ask, answers=False, counts=ONE_REQUEST, prompt=None)


async def served(booking: Booking, kept: Kept, hit: str = HIT) -> Reply:
    """From what was kept. Inside `settlement.owed()`."""
    settlement = booking.settlement
    leg = next((leg for leg in booking.plan.legs if leg.deployment.id == kept.deployment), settlement.leg)
    settlement.answered(leg, 0)
    amount_pusd = await settlement.finish(
        Ending(Outcome.COMPLETED, finish_reason="stop", status=200, counts=ONE_REQUEST, output_bytes=len(kept.body))
    )
    cost = in_usd(amount_pusd)
    headers: Headers = booking.headers(())
    headers += [("content-type", kept.media_type), ("x-farebox-cost-usd", cost), (HEADER, hit)]
    headers += [("age", str(max(0, int(time.time()) - kept.at_s)))]
    body = _COST.sub(rb'\1"cost":' + cost.encode() + b",", kept.body)
    return Reply(200, headers, body if kept.media_type == "application/json" else _once(body))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
