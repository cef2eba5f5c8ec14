"""Answers made in the background: `background: true` of the Responses API, read later by polling, cancelled, or
followed as a stream that can be taken up again behind any event.

An answer is one line of work for the batches' runner (any gateway process runs it, a lease saves it from a dead one),
at the standard price, and before every batch. Whoever follows it reads its events from SQL, in whichever process.
Source: OpenAI API reference "Responses" and guide "Background mode", openai-python 3.54, read 2026-11.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import structlog
from msgspec import Raw, Struct
from msgspec.structs import replace
from sqlalchemy import and_, delete, func, insert, select, update

from billing.db import AsyncEngine, reading, writing
from billing.errors import JournalUnavailable
from gateway import schema
from gateway.admission import Principal
from gateway.batches.lines import BACKGROUND
from gateway.batches.store import Work
from gateway.errors import InvalidRequest, RateLimited, Unavailable
from gateway.exchange import Inbound, Reply, SayError, forwarded
from gateway.routing.explaining import DRY_RUN
from gateway.stored import RETENTION_S, Stored
from providers.dialects import load
from providers.dialects.base import ErrorBody
from providers.errors import ProviderError
from providers.neutral import ResponseStart
from providers.wire import jsonio, sse
from providers.wire.sse import SseDecoder

log = structlog.get_logger(__name__)

WINDOW_NS: Final = 24 * 3600 * 10**9
"""How long it may wait for its turn, or for a limit to let it through."""
LOOK_S: Final = 0.25
"""How often whoever makes it looks whether it is still wanted, and whoever follows it for news."""
_FLUSH_BYTES: Final = 32 * 1024
_DIALECT: Final = "openai_responses"
ENDS: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
_END_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})

_jobs: Final = schema.batches
_lines: Final = schema.batch_lines
_stored: Final = schema.stored_responses
_pieces: Final = schema.response_pieces


class Told(Struct, frozen=True):
    """What a piece of work keeps beside its request. headers: of the client's, those that decide how it is run."""

    streams: bool
    headers: dict[str, str]


class Jobs:
    """What is done in SQL; each method is one transaction. Raises: SQLAlchemyError."""

    def __init__(self, engine: AsyncEngine, retention_s: int = RETENTION_S) -> None:
        self._engine = engine
        self._retention_ns = retention_s * 10**9

    async def add(self, who: Principal, stored: Stored, body: bytes, told: Told, now_ns: int) -> None:
        job = {
            "id": stored.id,
            "project_id": who.project_id,
            "key_id": who.key_id,
            "endpoint": BACKGROUND,
            "input_file_id": "",
            "metadata": msgspec.json.encode(told),
            "status": "in_progress",
            "total": 1,
            "created_at_ns": now_ns,
            "expires_at_ns": now_ns + WINDOW_NS,
        }
        kept = {
            "project_id": who.project_id,
            "id": stored.id,
            "conversation": stored.conversation,
            "body": stored.body,
            "created_at_ns": now_ns,
            "expires_at_ns": now_ns + self._retention_ns,
        }
        async with writing(self._engine) as db:
            await db.execute(delete(_pieces).where(_pieces.c.expires_at_ns <= now_ns))
            await db.execute(insert(_stored).values(kept))
            await db.execute(insert(_jobs).values(job))
            await db.execute(
                insert(_lines).values(batch_id=stored.id, number=1, custom_id=stored.id, body=body, state="waiting")
            )

    async def body(self, ident: str) -> bytes | None:
        """The answer as it stands. Ids of ours are made by chance, so that they need no project."""
        async with reading(self._engine) as db:
            return (await db.execute(select(_stored.c.body).where(_stored.c.id == ident))).scalar_one_or_none()

    async def say(self, ident: str, body: bytes, owner: str) -> bool:
        """The answer's new state, unless it is no longer this owner's to tell. Returns: whether it is."""
        async with writing(self._engine) as db:
            if not await _is_wanted(db, ident, owner, lock=True):
                return False
            await db.execute(update(_stored).where(_stored.c.id == ident).values(body=body))
        return True

    async def begin(self, ident: str, body: bytes, owner: str) -> int | None:
        """The answer's state as it is begun; what a dead process wrote of it goes. Returns: the place of the first
        piece, behind all that were there; None as `say` returns False."""
        async with writing(self._engine) as db:
            if not await _is_wanted(db, ident, owner, lock=True):
                return None
            await db.execute(update(_stored).where(_stored.c.id == ident).values(body=body))
            places = select(func.max(_pieces.c.place)).where(_pieces.c.response_id == ident)
            last = (await db.execute(places)).scalar_one()
            await db.execute(delete(_pieces).where(_pieces.c.response_id == ident))
        return 0 if last is None else int(last) + 1

    async def end(self, stored: Stored, owner: str) -> bool:
        """The whole answer in place of what stood there; the work is done. Returns: as `say`."""
        async with writing(self._engine) as db:
            if not await _is_wanted(db, stored.id, owner, lock=True):
                return False
            values = {"body": stored.body, "conversation": stored.conversation}
            await db.execute(update(_stored).where(_stored.c.id == stored.id).values(values))
            await _drop(db, stored.id)
        return True

    async def is_wanted(self, ident: str, owner: str) -> bool:
        """Whether nobody has cancelled it, nor taken it over."""
        async with reading(self._engine) as db:
            return await _is_wanted(db, ident, owner)

    async def cancel(self, ident: str, body: bytes, now_ns: int) -> bool:
        """Whoever makes it stops at the next look. Returns: False where it had ended."""
        async with writing(self._engine) as db:
            live = and_(_jobs.c.id == ident, _jobs.c.endpoint == BACKGROUND, _jobs.c.status == "in_progress")
            asked = await db.execute(update(_jobs).where(live).values(status="cancelling", cancelling_at_ns=now_ns))
            if not asked.rowcount:
                return False
            await db.execute(update(_stored).where(_stored.c.id == ident).values(body=body))
        return True

    async def is_live(self, ident: str) -> bool:
        async with reading(self._engine) as db:
            return (await db.execute(select(_jobs.c.id).where(_jobs.c.id == ident))).first() is not None

    async def drop(self, ident: str) -> None:
        async with writing(self._engine) as db:
            await _drop(db, ident)

    async def drop_cancelled(self, ident: str) -> None:
        """The work of one that is no longer wanted. Still in progress, it is another's, who has taken it over."""
        live = select(_jobs.c.id).where(_jobs.c.id == ident, _jobs.c.status == "in_progress")
        async with writing(self._engine) as db:
            if (await db.execute(live)).first() is None:
                await _drop(db, ident)

    async def append(self, ident: str, place: int, data: bytes, owner: str, now_ns: int) -> None:
        """Events, unless they are no longer this owner's to tell: whoever took over writes its own at these places."""
        values = {"response_id": ident, "place": place, "data": data, "expires_at_ns": now_ns + self._retention_ns}
        async with writing(self._engine) as db:
            if await _is_wanted(db, ident, owner, lock=True):
                await db.execute(insert(_pieces).values(values))

    async def pieces(self, ident: str, place: int) -> Sequence[tuple[int, bytes]]:
        wanted = (
            select(_pieces.c.place, _pieces.c.data)
            .where(_pieces.c.response_id == ident, _pieces.c.place >= place)
            .order_by(_pieces.c.place)
            .limit(100)
        )
        async with reading(self._engine) as db:
            return [(row.place, row.data) for row in (await db.execute(wanted)).all()]


async def _is_wanted(db: Any, ident: str, owner: str, *, lock: bool = False) -> bool:
    """lock: nobody cancels it or takes it over until this transaction has said its part."""
    mine = (
        select(_lines.c.number)
        .join(_jobs, _jobs.c.id == _lines.c.batch_id)
        .where(_jobs.c.id == ident, _jobs.c.status == "in_progress", _lines.c.owner == owner)
    )
    return (await db.execute(mine.with_for_update() if lock else mine)).first() is not None


async def _drop(db: Any, ident: str) -> None:
    await db.execute(delete(_lines).where(_lines.c.batch_id == ident))
    await db.execute(delete(_jobs).where(_jobs.c.id == ident, _jobs.c.endpoint == BACKGROUND))


class Background:
    """wake: set when there is work, so that this process begins it at once. clock: unix nanoseconds."""

    def __init__(self, jobs: Jobs, wake: asyncio.Event, clock: Callable[[], int]) -> None:
        self._jobs = jobs
        self._wake = wake
        self._clock = clock

    # What a client asks for.

    async def begin(self, inbound: Inbound, members: Mapping[str, Any], said: list[Any], who: Principal) -> Reply:
        """members: of the request, its conversation filled in. The caller has seen to it that it could be run."""
        streams = jsonio.plain(members.get("stream")) is True
        own = {name: value for name, value in members.items() if name not in ("background", "previous_response_id")}
        body = jsonio.joined({**own, "input": said, "store": False, "stream": streams})
        request = load(_DIALECT).decode_request(body)
        ident = f"resp_bg{secrets.token_hex(20)}"
        queued = _skeleton(ident, replace(request, stream=True), inbound.now_ns // 10**9) | {"status": "queued"}
        headers = dict(forwarded(inbound.headers))
        headers |= {name: value for name, value in inbound.headers.items() if name.startswith("x-farebox-")}
        stored = Stored(ident, msgspec.json.encode(said), msgspec.json.encode(queued))
        await self._jobs.add(who, stored, body, Told(streams, headers), inbound.now_ns)
        self._wake.set()
        if not streams:
            fields = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
            return Reply(200, fields, stored.body)
        return self._followed(inbound, ident, -1)

    def follow(self, inbound: Inbound, stored: Stored) -> Reply:
        """The stream of an answer, from behind the event that the query names. Raises: InvalidRequest."""
        asked = {name: values[-1] for name, values in parse_qs(inbound.route.query).items()}
        after = asked.get("starting_after", "-1")
        if not after.removeprefix("-").isdigit():
            raise InvalidRequest("starting_after must be the sequence_number of an event", param="starting_after")
        if not jsonio.plain(jsonio.split_object(stored.body).get("background", False)):
            raise InvalidRequest(
                "only a response made in the background can be streamed again: create it with background and stream",
                param="stream",
            )
        return self._followed(inbound, stored.id, int(after))

    async def cancel(self, stored: Stored, now_ns: int) -> bytes:
        """Raises: InvalidRequest for one that is whole. Said twice, it is cancelled once."""
        found = jsonio.split_object(stored.body)
        if jsonio.plain(found.get("status")) == "cancelled":
            return stored.body
        body = jsonio.joined({**found, "status": "cancelled"})
        if not await self._jobs.cancel(stored.id, body, now_ns):
            raise InvalidRequest("this response is whole: only one made in the background can be cancelled, under way")
        self._wake.set()
        return body

    def _followed(self, inbound: Inbound, ident: str, after: int) -> Reply:
        fields = [
            ("content-type", load(_DIALECT).stream_media_type),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
            ("x-request-id", inbound.request_id),
        ]
        return Reply(200, fields, self._events(ident, after))

    async def _events(self, ident: str, after: int) -> AsyncIterator[bytes]:
        """Ends with the answer, or where it was created without a stream: then there is nothing to follow."""
        yield b": following\n\n"
        place, last = 0, after
        while True:
            # Asked before the pieces: what is written between the two is read in the next round.
            live = await self._jobs.is_live(ident)
            found = await self._jobs.pieces(ident, place)
            for number, data in found:
                place = number + 1
                out, last = _behind(data, last)
                if out:
                    yield out
            if not found:
                if not live:
                    return
                await asyncio.sleep(LOOK_S)

    # What the runner does.

    async def run(
        self,
        work: Work,
        owner: str,
        serve: Callable[[Mapping[str, str]], Awaitable[Reply]],
        say: SayError,
        request_id: str,
    ) -> None:
        """One answer, from asking to its place in SQL. serve: asks, with these headers.

        Raises: what only has to wait."""
        told = msgspec.json.decode(work.metadata or b"{}", type=Told)
        body = await self._jobs.body(work.batch_id)
        if body is None or jsonio.plain(jsonio.split_object(body)["status"]) in ENDS:
            await self._jobs.drop(work.batch_id)  # deleted; or whole, and its process died before it said so
            return
        making = asyncio.create_task(self._make(work, told, body, owner, serve, say, request_id))
        try:
            while not making.done():
                await asyncio.wait({making}, timeout=LOOK_S)
                if not making.done() and not await self._jobs.is_wanted(work.batch_id, owner):
                    break
        finally:
            while not making.done():  # again, should a library have lost the first
                making.cancel()
                await asyncio.wait({making}, timeout=1)
        if making.cancelled():
            await self._jobs.drop_cancelled(work.batch_id)
            return
        making.result()

    async def unrun(self, ident: str, status: str) -> None:
        """One whose turn never came: cancelled while it waited, or past its time."""
        body = await self._jobs.body(ident)
        if body is not None and status != "cancelling":
            error = ErrorBody(503, "unavailable", "server_error", "it could not be begun within 24 hours")
            await self._jobs.cancel(ident, _failed(jsonio.split_object(body), error), self._clock())
        await self._jobs.drop(ident)

    async def _make(
        self,
        work: Work,
        told: Told,
        body: bytes,
        owner: str,
        serve: Callable[[Mapping[str, str]], Awaitable[Reply]],
        say: SayError,
        request_id: str,
    ) -> None:
        ident = work.batch_id
        answer = jsonio.split_object(body) | {"status": "in_progress"}
        place = await self._jobs.begin(ident, jsonio.joined(answer), owner)
        if place is None:
            return
        try:
            reply = await serve(told.headers)
        except (RateLimited, Unavailable, JournalUnavailable):
            await self._jobs.say(ident, body, owner)
            raise
        except Exception as error:
            whole = _failed(answer, say(error, request_id))
            if told.streams:
                await self._jobs.append(ident, place, _end_event(whole, 0), owner, self._clock())
            await self._end(work, whole, owner)
            return
        try:
            if isinstance(reply.body, bytes):
                whole = _ours(jsonio.split_object(reply.body), ident)
            else:
                whole = await self._written(ident, place, reply.body, answer, owner)
        except (msgspec.MsgspecError, ProviderError) as error:
            # Asked again, it would be paid for again and come to the same.
            log.exception("an answer cannot be read", response_id=ident, exc_info=error)
            whole = _failed(answer, say(error, request_id))
        await self._end(work, whole, owner)

    async def _written(
        self, ident: str, place: int, pieces: AsyncIterator[bytes], answer: dict[str, Any], owner: str
    ) -> bytes:
        """The stream's events in SQL, soon after they come. Returns: the answer that the last one holds."""
        frames, held, count, flushed_ns = SseDecoder(), bytearray(), 0, self._clock()
        whole, broken = b"", ErrorBody(502, "upstream", "server_error", "the answer ended before it was whole")
        coming = aiter(pieces)
        following: asyncio.Task[bytes | None] | None = None
        ended = False
        try:
            while not ended:
                following = following or asyncio.create_task(_next(coming))
                await asyncio.wait({following}, timeout=LOOK_S)
                pause = not following.done()
                if not pause:
                    piece = following.result()
                    following, ended = None, piece is None
                    for frame in frames.feed(piece or b""):
                        data, found = _as_ours(frame.data, ident, count)
                        held += sse.encode(data, frame.event)
                        count += 1
                        if frame.event in _END_EVENTS:
                            whole = found
                        elif frame.event == "error":
                            broken = _error_in(frame.data)
                if ended and not whole:
                    whole = _failed(answer, broken)
                    held += _end_event(whole, count)
                now_ns = self._clock()
                late = now_ns - flushed_ns > LOOK_S * 10**9
                if held and (pause or late or ended or len(held) >= _FLUSH_BYTES):
                    await self._jobs.append(ident, place, bytes(held), owner, now_ns)
                    place, flushed_ns = place + 1, now_ns
                    held.clear()
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait({following})
            await coming.aclose()  # type: ignore[attr-defined]
        return whole

    async def _end(self, work: Work, whole: bytes, owner: str) -> None:
        said = jsonio.plain(jsonio.split_object(work.body)["input"])
        output = jsonio.plain(jsonio.split_object(whole).get("output")) or []
        conversation = msgspec.json.encode([*said, *output])
        await self._jobs.end(Stored(work.batch_id, conversation, whole), owner)


def runs_in_background(members: Mapping[str, Any]) -> bool:
    """Raises: InvalidRequest for one that could not be found again."""
    if jsonio.plain(members.get("background")) is not True:
        return False
    if jsonio.plain(members.get("store")) is False:
        raise InvalidRequest("background needs store: the answer is read later", param="store")
    return True


def is_under_way(stored: Stored) -> bool:
    return jsonio.plain(jsonio.split_object(stored.body).get("status")) in ("queued", "in_progress")


def as_dry_run(inbound: Inbound, members: Mapping[str, Any], said: list[Any]) -> Inbound:
    """The request as a question whether it could be run."""
    own = {name: value for name, value in members.items() if name not in ("background", "previous_response_id")}
    headers = {**inbound.headers, DRY_RUN: "true"}
    return replace(inbound, body=jsonio.joined({**own, "input": said}), headers=headers)


async def _next(coming: AsyncIterator[bytes]) -> bytes | None:
    return await anext(coming, None)


def _skeleton(ident: str, request: Any, now_s: int) -> dict[str, Any]:
    """The answer before its first word, as the dialect writes it."""
    encoder = load(_DIALECT).event_encoder(request)
    data = encoder.encode([ResponseStart(ident, request.model, created=now_s)])
    frame = next(iter(SseDecoder().feed(data)))
    found: dict[str, Any] = msgspec.json.decode(frame.data)["response"]
    return found | {"background": True, "store": True}


def _ours(answer: Mapping[str, Any], ident: str) -> bytes:
    """An answer under the id that its client knows."""
    return jsonio.joined({**answer, "id": ident, "background": True, "store": True})


class _Event(Struct):
    sequence_number: int | None = None


_event: Final = msgspec.json.Decoder(_Event)


def _as_ours(data: bytes, ident: str, number: int) -> tuple[bytes, bytes]:
    """An event with our id and number in it (an error under way has a count of its own), and the answer it holds."""
    members = jsonio.split_object(data) | {"sequence_number": number}
    answer = b""
    if "response" in members:
        answer = _ours(jsonio.split_object(bytes(members["response"])), ident)
        members["response"] = Raw(answer)
    return jsonio.joined(members), answer


def _end_event(whole: bytes, number: int) -> bytes:
    event = {"type": "response.failed", "sequence_number": number, "response": Raw(whole)}
    return sse.encode(msgspec.json.encode(event), "response.failed")


def _behind(data: bytes, last: int) -> tuple[bytes, int]:
    """The events of a piece behind that number, and the newest number."""
    out = bytearray()
    for frame in SseDecoder().feed(data):
        number = _event.decode(frame.data).sequence_number
        if number is not None and number <= last:
            continue
        last = last if number is None else number
        out += sse.encode(frame.data, frame.event)
    return bytes(out), last


def _error_in(data: bytes) -> ErrorBody:
    found = msgspec.json.decode(data)
    return ErrorBody(502, "upstream", "server_error", str(found.get("message") or "the answer broke off"))


# The reference closes the list of codes of an answer's own error.
_CODES: Final = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


def _failed(answer: Mapping[str, Any], error: ErrorBody) -> bytes:
    told = {"code": _CODES.get(error.status, "server_error"), "message": error.message}
    return jsonio.joined({**answer, "status": "failed", "error": told})
