"""Does the batches' work, in every gateway process: takes lines under a lease, runs each as a request of its own, and
makes files of what came out.

A process that dies leaves its lines leased; another takes them over when the lease is up. A line's request id comes
from its batch and its number, so however often it is begun, it is charged once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import structlog
from msgspec.structs import replace
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from billing.errors import JournalUnavailable
from billing.prices import BATCH
from billing.usage import Outcome
from gateway.admission import Principal
from gateway.background import Background
from gateway.batches.api import file_row
from gateway.batches.forms import line_of, result_type, unrun_of
from gateway.batches.lines import BACKGROUND, MESSAGES
from gateway.batches.messages import kept_of
from gateway.batches.store import RESULTS, Store, Work
from gateway.errors import NoRouteLeft, RateLimited, Unavailable
from gateway.exchange import Inbound, Reply, SayError
from gateway.ingress.endpoints import match
from gateway.sections import BatchSettings
from providers.dialects import load

log = structlog.get_logger(__name__)

IDLE_S: Final = 1.0
_BUSY_S: Final = 5.0
"""How long a line waits that no limit, journal or database lets through now, where nobody says how long."""
_CLEAN_NS: Final = 600 * 10**9
# Nothing was charged: whoever begins the line again needs an id of his own, or the new charge would be taken for this.
_UNCHARGED: Final = (Outcome.REJECTED, Outcome.UPSTREAM_FAILED, Outcome.TIMED_OUT)

Serve = Callable[[Inbound, Principal], Awaitable[Reply]]
PrincipalOf = Callable[[str, int], Awaitable[Principal]]


class Runner:
    def __init__(
        self,
        store: Store,
        background: Background,
        settings: BatchSettings,
        serve: Serve,
        principal_of: PrincipalOf,
        say: SayError,
        owner: str,
        clock: Callable[[], int],
        wake: asyncio.Event,
    ) -> None:
        """serve: one request through the gateway's own ways. principal_of: by key id, as things stand now. wake: set by
        whoever has work for us."""
        self._store = store
        self._background = background
        self._settings = settings
        self._serve = serve
        self._principal_of = principal_of
        self._say = say
        self._owner = owner
        self._clock = clock
        self._lease_ns = int(settings.lease_s * 10**9)
        self._running: set[asyncio.Task[None]] = set()
        self._cleaned_ns = 0
        self._wake = wake

    async def run(self) -> None:
        """Until cancelled; lines that run then are taken over by others, or by the next start."""
        renewing = asyncio.create_task(self._renew(), name="renew leases of batch lines")
        try:
            while True:
                self._wake.clear()
                try:
                    busy = await self._round()
                except (SQLAlchemyError, OSError) as error:
                    log.warning("batches wait for the database", reason=type(error).__name__)
                    busy = False
                if not busy:
                    await _first(self._wake.wait(), IDLE_S)
        finally:
            for task in (renewing, *self._running):
                task.cancel()
            await asyncio.gather(renewing, *self._running, return_exceptions=True)

    async def _round(self) -> bool:
        """Returns: whether there may be more to do at once."""
        now_ns = self._clock()
        if now_ns - self._cleaned_ns > _CLEAN_NS:
            self._cleaned_ns = now_ns
            await self._store.forget_expired(now_ns)
        if not await self._store.any_live():
            return False
        room = self._settings.parallel - len(self._running)
        taken = await self._store.take(self._owner, room, self._lease_ns, now_ns) if room > 0 else []
        for work in taken:
            task = asyncio.create_task(self._line(work), name=f"line {work.number} of {work.batch_id}")
            self._running.add(task)
            task.add_done_callback(self._ended)
        if taken:
            return len(taken) == room and self._settings.parallel > len(self._running)
        await self._store.end_overdue(now_ns, unrun_of)
        if (row := await self._store.take_finished(self._owner, self._lease_ns, now_ns)) is not None:
            await self._close(row)
            return True
        return False

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a line of a batch was left to the next runner", reason=type(error).__name__, exc_info=error)

    async def _line(self, work: Work) -> None:
        now_ns = self._clock()
        ident = await self._id_of(work)
        try:
            if work.endpoint == BACKGROUND:
                await self._background.run(
                    work, self._owner, lambda headers: self._respond(work, headers, ident, now_ns), self._say, ident
                )
                return
            status, body = await self._answer(work, ident, now_ns)
        except (RateLimited, Unavailable, JournalUnavailable) as busy:
            wait_s = getattr(busy, "retry_after_s", None) or _BUSY_S
            await self._store.put_back(self._owner, work, self._clock() + int(wait_s * 10**9))
            return
        line = line_of(work.endpoint, ident, work.custom_id, status, body)
        await self._store.finish_line(self._owner, work, line, good=status == 200)

    async def _answer(self, work: Work, ident: str, now_ns: int) -> tuple[int, bytes]:
        """Raises: what only has to wait."""
        route = match("POST", work.endpoint)
        assert route is not None
        betas = kept_of(work.metadata).betas if work.endpoint == MESSAGES else ""
        headers = {"anthropic-beta": betas} if betas else {}
        try:
            who = await self._principal_of(work.key_id, now_ns // 1_000_000)
            inbound = Inbound(route, headers, work.body, None, "", ident, now_ns, tier=BATCH)
            reply = await self._serve(replace(inbound, route=replace(route, stream=False)), who)
            assert isinstance(reply.body, bytes)  # `lines.py` lets no stream in
        except (RateLimited, Unavailable, JournalUnavailable):
            raise
        except Exception as error:
            said = self._say(error, ident)
            if said.status == 500:
                log.exception("unforeseen error in a batch", request_id=ident, exc_info=error)
            elif isinstance(error, NoRouteLeft):
                log.warning("line failed", request_id=ident, code=said.code)
            return said.status, load(route.error_dialect).encode_error(said)
        return reply.status, reply.body

    async def _respond(self, work: Work, headers: Mapping[str, str], ident: str, now_ns: int) -> Reply:
        """Raises: whatever a request may end in."""
        route = match("POST", "/v1/responses")
        assert route is not None
        who = await self._principal_of(work.key_id, now_ns // 1_000_000)
        return await self._serve(Inbound(route, headers, work.body, None, "", ident, now_ns), who)

    async def _id_of(self, work: Work) -> str:
        for again in range(work.tries + 1):
            ident = request_id(work, again)
            if work.tries == 0 or await self._store.charged(ident) not in _UNCHARGED:
                return ident
        return request_id(work, work.tries + 1)

    async def _close(self, row: Row[Any]) -> None:
        """The lines become files. Done again by another after a crash it makes the same files."""
        if row.endpoint == BACKGROUND:
            await self._background.unrun(row.id, row.status)
            return
        now_ns = self._clock()
        values: dict[str, Any] = {"ended_at_ns": now_ns}
        if row.endpoint == MESSAGES:
            counts: Counter[str] = Counter()
            lines = _counted(self._store.results(row.id, None), counts)
            values["output_file_id"] = await self._file(row, lines, "results", RESULTS, now_ns)
            values["metadata"] = msgspec.json.encode(replace(kept_of(row.metadata), counts=dict(counts)))
        else:
            for good, column, suffix in ((True, "output_file_id", "output"), (False, "error_file_id", "error")):
                lines = self._store.results(row.id, good)
                values[column] = await self._file(row, lines, suffix, "batch_output", now_ns)
        values["completed"], values["failed"] = await self._store.counts(row.id)
        values["status"] = "completed"
        if row.status == "cancelling":
            values["status"] = "cancelled"
        elif row.status == "in_progress" and row.expires_at_ns <= now_ns:
            values["status"] = "expired"
        await self._store.close_batch(row.id, self._owner, values)
        log.info("batch ended", batch=row.id, status=values["status"], failed=values["failed"])

    async def _file(
        self, row: Row[Any], lines: AsyncIterator[bytes], suffix: str, purpose: str, now_ns: int
    ) -> str | None:
        """Its id; None where there is no line."""
        ident = f"file-{row.id.rpartition('_')[2]}-{suffix}"
        size = await self._store.blobs.put(ident, lines)
        if not size:
            return None
        keep_ns = self._settings.retention_days * 24 * 3600 * 10**9
        file = file_row(ident, row.project_id, f"{row.id}_{suffix}.jsonl", purpose, now_ns, keep_ns)
        await self._store.add_file(file | {"size_bytes": size})
        return ident

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            try:
                if self._running:
                    await self._store.renew(self._owner, self._lease_ns, self._clock())
            except (SQLAlchemyError, OSError) as error:
                log.warning("leases of batch lines not renewed", reason=type(error).__name__)


def request_id(work: Work, again: int = 0) -> str:
    """Of the request that a line becomes: the same, whoever runs it."""
    named = f"{work.batch_id}:{work.number}" + (f":{again}" if again else "")
    return f"batch_req_{hashlib.sha256(named.encode()).hexdigest()[:24]}"


async def _counted(lines: AsyncIterator[bytes], counts: Counter[str]) -> AsyncIterator[bytes]:
    async for line in lines:
        counts[result_type(line)] += 1
        yield line


async def _first(event: Awaitable[Any], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event
    except TimeoutError:
        return
