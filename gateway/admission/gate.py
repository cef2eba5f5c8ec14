"""The one door of admission: `admit` before the call, `settle` or `release` after it. The pipeline calls only these."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import ceil
from types import MappingProxyType, TracebackType
from typing import Any, Final

import hiredis
import structlog
from msgspec.structs import replace
from sqlalchemy.exc import SQLAlchemyError

from billing.db import AsyncEngine
from billing.money import MAX_AMOUNT_PUSD
from billing.prices import PriceSheet
from billing.rating import BY_TOKENS, Counts
from billing.usage import Meter, input_tokens_total, output_tokens_total
from gateway.admission import spending
from gateway.admission.admitted import Admission as Admission
from gateway.admission.admitted import Pending, within_windows
from gateway.admission.budget import (
    BYTES_PER_TOKEN_MAX,
    OUTPUT_TOKENS_MIN,
    Estimate,
    Ratios,
    counted,
    estimate,
    fewest_tokens,
    image_tokens,
)
from gateway.admission.limits import LEASE_MS, RECORD_MS, Limiter, Scopes, Spending
from gateway.admission.muster import Muster
from gateway.admission.owners import Owner
from gateway.admission.plans import Plans
from gateway.admission.principal import NOBODY, NOTHING_KNOWN, Budget, Facts, Principal
from gateway.admission.shares import Share, Shares
from gateway.admission.store import LimitStore, link_to
from gateway.errors import LimitsAway, QuotaExceeded, RateLimited, Unavailable
from gateway.observe.metrics import METRICS
from gateway.tasks import cancel

log = structlog.get_logger(__name__)

# Whoever is not renewed for this long has been forgotten by whoever admitted it: a leak must not last for ever.
OPEN_MAX_S: Final = 6 * 3600.0
# How often settlements that found Redis away are sent again.
RETRY_S: Final = 0.5
# How often reservations of processes that died are looked for. Each is an organisation's round trip.
CORRECT_S: Final = 30.0
# Of a reservation whose gateway's journal nobody could read, its host being gone, the money is given back after this.
ABANDONED_MS: Final = RECORD_MS - 86_400_000
# How long a request waits for usage records to reach SQL. A backlog is shipped meanwhile, whoever waits.
SHIP_S: Final = 5.0
# Redis may lose its data again while it is told what it lost.
ANNOUNCE_TRIES: Final = 5
# One at a time per request would be a round trip each; all at once, a burst that delays the living.
RENEW_BATCH: Final = 256
# Unsettled while Redis is away. Beyond it the oldest are left to `correct_expired`, which asks SQL.
PENDING_MAX: Final = 100_000
# Clients may lower the output until it fits; a race with others may take the room in between.
CLAMP_TRIES: Final = 3

_NO_METERS: Final[Mapping[Meter, int]] = MappingProxyType({})


class Gate:
    """Use as an async context: inside it leases are renewed and late settlements sent."""

    def __init__(
        self,
        engine: AsyncEngine,
        redis: LimitStore,
        *,
        shipped: Callable[[], Awaitable[object]] | None = None,
        lease_ms: int = LEASE_MS,
        owner: Owner | None = None,
        share_percent: int = 0,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """shipped: brings this host's usage records to SQL before a counter is made from it. Without, what was charged
        within the last moments (the worker's idle time) is missing from a counter made after Redis lost its data.
        share_percent: of each budget, held in advance for when Redis is away; 0: then nothing is admitted.
        owner: whose journal tells what became of our reservations, should we die. clock: unix time in ns."""
        self._engine = engine
        self._shipped = shipped
        self._lease_ms = lease_ms
        self._owner = owner or Owner.of(None)
        self._link = link_to(redis)
        self._limiter = Limiter(self._link, self._spending, self._owner.name, self._assemble)
        self._muster = Muster(
            self._link, self._limiter, engine, self._owner, self._announce, clock, lambda: self._away_since_ns
        )
        self._announcing: dict[str, asyncio.Task[None]] = {}
        # Organisations of which something was ever admitted here: of the others there is nothing to ship.
        self._served: set[str] = set()
        self._shipping = asyncio.Lock()
        self._shipped_at_s = -1.0
        self._clock = clock
        self._away_since_ns: int | None = None
        self._met_away = False
        self._shares = Shares(share_percent) if share_percent else None
        # Granted from a share: Redis has not heard of them yet, or perhaps half.
        self._granted: set[str] = set()
        self._ratios = Ratios()
        self._plans = Plans()
        self._open: dict[str, tuple[Admission, float, float]] = {}
        self._pending: dict[str, Pending] = {}
        self._given_up: set[str] = set()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Gate:
        await self._muster.__aenter__()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="renew leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            await cancel(self._keeper)
        await self._give_back([] if self._shares is None else list(self._shares))
        announcing = list(self._announcing.values())
        for task in announcing:
            task.cancel()
        if announcing:
            await asyncio.wait(announcing)
        await self._send_pending()
        await self._muster.__aexit__(kind, error, trace)
        await self._link.aclose()

    def admit(
        self,
        principal: Principal,
        request_id: str,
        alias: str,
        *,
        input_bytes: int,
        images: int,
        max_output_tokens: int | None,
        candidates: int,
        deployment_max_output: int,
        context_window: int,
        sheets: Sequence[PriceSheet],
        end_user: str | None,
        now_ms: int,
        providers: tuple[str, ...] = (),
        tags: tuple[str, ...] = (),
        extra: Mapping[Meter, int] = _NO_METERS,
        counts: Counts = BY_TOKENS,
        unseen: bool = False,
        teaches: bool = True,
    ) -> Awaitable[Admission]:
        """Reserve the worst case of a request in every scope of its key.

        sheets: of every deployment that may answer; the dearest counts. extra: what else it may use (searches).
        unseen: it names documents that nobody here has seen: money is held for the whole window, rate limits are put
        right when it is known. teaches: whether its bytes tell how many tokens bytes are.
        counts: for what is not sold by its text, its worst case, in place of all sizes.
        Cancelled or failed, it reserves nothing. Raises: RateLimited, QuotaExceeded, Unavailable; UnknownPrice."""
        facts = Facts(alias, providers, tags, end_user)
        if counts:
            return self._admit_counted(principal, request_id, alias, counted(counts, sheets), facts, now_ms)
        ceiling = min(deployment_max_output, context_window)
        worst = estimate(
            self._ratios,
            alias,
            input_bytes=ceil(BYTES_PER_TOKEN_MAX * context_window) if unseen else input_bytes,
            images=images,
            candidates=max(1, candidates),
            context_window=context_window,
            sheets=sheets,
            extra=extra,
            answers=ceiling > 0,
        )
        # A client that asks for more than the model can say gets what the model can say.
        output = ceiling if max_output_tokens is None else min(max_output_tokens, ceiling)
        likely_output = output if max_output_tokens is not None else min(output, self._ratios.likely_output(alias))
        scopes = self._plans.scopes(principal, facts, now_ms)
        likely_input = self._ratios.likely_input(alias, input_bytes) + (images * image_tokens(alias) if images else 0)
        tokens = min(likely_input, context_window) + likely_output * max(1, candidates)
        if scopes.buckets:
            stated = OUTPUT_TOKENS_MIN if max_output_tokens is None else output * max(1, candidates)
            tokens = within_windows(tokens, min(fewest_tokens(input_bytes), context_window) + stated, scopes)
        admission = Admission(
            request_id,
            principal,
            alias,
            worst.quantities(output),
            worst.hold_pusd(output),
            None,
            tokens,
            scopes,
            0 if images or not teaches else input_bytes,
        )
        return self._reserve(admission, worst, may_clamp=max_output_tokens is None)

    def _admit_counted(
        self, principal: Principal, request_id: str, alias: str, worst: Estimate, facts: Facts, now_ms: int
    ) -> Awaitable[Admission]:
        """Nothing of it can be cut shorter, and nothing is learned from it."""
        quantities, scopes = worst.quantities(0), self._plans.scopes(principal, facts, now_ms)
        tokens = input_tokens_total(quantities) + output_tokens_total(quantities)
        admission = Admission(request_id, principal, alias, quantities, worst.hold_pusd(0), None, tokens, scopes, 0)
        return self._reserve(admission, worst, may_clamp=False)

    def settle(
        self,
        admission: Admission,
        tokens_used: int,
        charge_pusd: int,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        provider: str | None = None,
    ) -> asyncio.Future[int]:
        """Give back what was not used, or take what was used beyond. Sent twice it counts once. Called is done; awaited
        is waiting until the store knows.

        provider: who answered, of those that the reservation was made for.
        input_tokens, output_tokens: as the provider counted them, to learn from; 0 when it did not. Redis away is no
        error here: the answer has been given and the journal knows its price, so it is sent again later.
        Returns: how much of the hold was not used, in pUSD."""
        self._ratios.learn(admission.alias, admission.input_bytes, input_tokens, output_tokens)
        return self._close(admission, tokens_used, charge_pusd, 1, provider)

    def release(self, admission: Admission) -> asyncio.Future[int]:
        """Nothing was sent anywhere: all of it goes back, the request itself included."""
        return self._close(admission, 0, 0, 0)

    async def renew(self, admission: Admission) -> None:
        """For whoever keeps a request open outside of this process's `async with`. Raises: Unavailable."""
        await self._limiter.renew(
            admission.request_id,
            admission.scopes,
            tokens=admission.tokens,
            hold_pusd=admission.hold_pusd,
            lease_ms=self._lease_ms,
        )

    async def ping(self) -> None:
        """Whether the store of limits is there. Raises: Unavailable, hiredis.ReplyError."""
        await self._link.ping()

    async def available_pusd(self, principal: Principal, now_ms: int) -> list[tuple[Budget, int | None]]:
        """What each budget of a key would cover now; None where it has not been used since Redis began."""
        scopes = self._plans.scopes(principal, NOTHING_KNOWN, now_ms)
        return list(zip(scopes.budgets, await self._limiter.available_pusd(scopes), strict=True))

    async def correct_expired(self, organisation_ids: Sequence[str]) -> int:
        """Settle what died with its process: at what SQL says it cost, or at nothing where its process can never have
        sent it, because its journal has been read to the end and does not know it. The rest stays held.

        Returns: how many reservations were closed. Raises: Unavailable, SQLAlchemyError; what was closed stays so."""
        closed = 0
        for organisation_id in organisation_ids:
            expired = [e for e in await self._limiter.expired(organisation_id) if not self._knows(e[0])]
            if not expired:
                continue
            mine = self._owner.name
            if any(owner == mine for _, owner, _ in expired):
                await self._ship()
            # Before SQL is asked: what is read out after that may have come there too late for our question.
            unsent = {
                request_id
                for request_id, owner, ago_ms in expired
                if owner == mine or self._owner.is_read_out(owner) or ago_ms > ABANDONED_MS
            }
            found = await spending.charges_of(self._engine, [request_id for request_id, _, _ in expired])
            known = {request_id: charge for request_id, charge in found.items() if charge is not None}
            voided = dict.fromkeys(unsent - found.keys(), 0)
            closed += await self._limiter.correct(organisation_id, known | voided)
            METRICS.orphans("settled", len(known))
            METRICS.orphans("voided", len(voided))
            if voided:
                log.warning("reservations given back: no journal knows of them", request_ids=sorted(voided)[:20])
        return closed

    def _knows(self, request_id: str) -> bool:
        return request_id in self._open or request_id in self._pending or request_id in self._given_up

    @property
    def open_count(self) -> int:
        """Admitted here and not settled yet, for metrics."""
        return len(self._open)

    @property
    def pending_count(self) -> int:
        """Settled, and Redis does not know it yet, for metrics."""
        return len(self._pending)

    async def _reserve(self, admission: Admission, worst: Estimate, *, may_clamp: bool) -> Admission:
        if not admission.scopes.keys:
            return admission
        now_s = asyncio.get_running_loop().time()
        self._served.add(admission.scopes.prefix)
        for _ in range(CLAMP_TRIES):
            try:
                taken = await self._limiter.reserve(
                    admission.request_id,
                    admission.scopes,
                    tokens=admission.tokens,
                    hold_pusd=admission.hold_pusd,
                    lease_ms=self._lease_ms,
                )
            except QuotaExceeded as refused:
                if self._shares is not None and (given := self._shares.give_up(admission.scopes, now_s)):
                    await self._give_back(given)
                    last = refused
                    continue
                output = worst.affordable_output(refused.remaining_pusd) if may_clamp else None
                if output is None or output < OUTPUT_TOKENS_MIN:
                    raise
                admission = replace(
                    admission,
                    max_output_tokens=output,
                    estimate=worst.quantities(output),
                    hold_pusd=worst.hold_pusd(output),
                )
                last = refused
            except LimitsAway:
                self._met_away = True
                if self._shares is None:
                    self._pend(Pending(admission, 0, 0, 0))
                    raise
                return self._grant(self._shares, admission, now_s)
            except (Unavailable, asyncio.CancelledError):
                # The command may be on its way: whatever it takes is given back.
                self._pend(Pending(admission, 0, 0, 0))
                raise
            else:
                self._open[admission.request_id] = (admission, now_s, now_s)
                if self._shares is not None and self._shares.used(admission.scopes, now_s):
                    self._wake.set()
                for budget in taken.past:
                    METRICS.budget_passed(budget.kind, budget.scope)
                return replace(admission, windows=taken.windows, past=taken.past)
        raise last

    def _grant(self, shares: Shares, admission: Admission, now_s: float) -> Admission:
        """Without Redis, which may have taken the reservation all the same. Raises: LimitsAway, RateLimited."""
        try:
            shares.grant(admission.request_id, admission.scopes, admission.tokens, admission.hold_pusd, now_s)
        except (LimitsAway, RateLimited):
            self._pend(Pending(admission, 0, 0, 0))
            METRICS.local_share("refused")
            raise
        METRICS.local_share("admitted")
        self._granted.add(admission.request_id)
        self._open[admission.request_id] = (admission, now_s, now_s)
        return admission

    async def _restock(self) -> None:
        """Redis is there: tell it what was granted without it, give back what lived on, and hold shares anew.

        Raises: Unavailable; then nothing is given back, so nothing is free twice."""
        shares = self._shares
        if shares is None:
            return
        now_s = asyncio.get_running_loop().time()
        if shares.touched or self._granted:
            for request_id in list(self._granted & self._open.keys()):
                await self.renew(self._open[request_id][0])
                self._granted.discard(request_id)
            self._granted &= self._pending.keys()
            if self._granted:
                return
            await self._give_back(shares.start_over(now_s))
        await self._give_back(shares.idle(now_s))
        for share in shares.wanted(now_s):
            held = Admission(share.id, NOBODY, "", {}, share.amount_pusd, None, 0, share.scopes, 0)
            try:
                await self._limiter.reserve(
                    share.id, share.scopes, tokens=0, hold_pusd=share.amount_pusd, lease_ms=self._lease_ms
                )
            except (QuotaExceeded, RateLimited):
                shares.missed(share, now_s)
            except (Unavailable, asyncio.CancelledError):
                self._pend(Pending(held, 0, 0, 0))
                raise
            else:
                self._open[share.id] = (held, now_s, now_s)
                shares.took(share)

    async def _give_back(self, shares: Sequence[Share]) -> None:
        for share in shares:
            if (held := self._open.get(share.id)) is not None:
                await self._close(held[0], 0, 0, 0)

    def _close(
        self, admission: Admission, tokens: int, charge_pusd: int, requests: int, provider: str | None = None
    ) -> asyncio.Future[int]:
        """The future raises nothing: what the store does not take now is sent again. Returns: how much of the hold was
        not used, in pUSD."""
        closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._open.pop(admission.request_id, None)
        if self._shares is not None:
            self._shares.settle(admission.request_id, charge_pusd)
        unused_pusd = max(0, admission.hold_pusd - charge_pusd)
        if not admission.scopes.keys:
            closed.set_result(unused_pusd)
            return closed
        # Above nine million dollars the worker takes it for a wrong count, and so must a 64-bit counter.
        pending = Pending(admission, tokens, min(charge_pusd, MAX_AMOUNT_PUSD), requests, provider)
        sending: Awaitable[Any] = (
            self._settle(pending)
            if admission.request_id in self._granted
            else self._limiter.begin_settling(
                admission.request_id, admission.scopes, tokens, pending.charge_pusd, requests, provider
            )
        )
        if not isinstance(sending, asyncio.Future):
            sending = asyncio.ensure_future(sending)

        def sent(sending: asyncio.Future[Any]) -> None:
            if sending.cancelled() or sending.exception() is not None:
                self._pend(pending)  # Whatever it is: the keeper tries again, and says what it cannot mend.
            if not closed.done():
                closed.set_result(unused_pusd)

        sending.add_done_callback(sent)
        return closed

    async def _settle(self, pending: Pending) -> None:
        if pending.admission.request_id in self._granted:
            await self.renew(pending.admission)  # What it is settled against.
            self._granted.discard(pending.admission.request_id)
        await self._limiter.settle(
            pending.admission.request_id,
            pending.admission.scopes,
            tokens=pending.tokens,
            charge_pusd=pending.charge_pusd,
            requests=pending.requests,
            provider=pending.provider,
        )

    def _pend(self, pending: Pending) -> None:
        while len(self._pending) >= PENDING_MAX:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
        self._pending[pending.admission.request_id] = pending
        # A cancelled request's slot goes to the next one at once; if Redis is away, the keeper finds that out.
        self._wake.set()

    async def _spending(self, budget: Budget, start_ns: int, asked: Sequence[str]) -> Spending:
        try:
            await self._ship()
            return await spending.spending(self._engine, budget, start_ns, asked)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("the database that knows the budgets is away") from error

    async def _ship(self) -> None:
        """What stood in this host's journals at the call is in SQL on return. Raises: Unavailable."""
        if self._shipped is None:
            return
        loop = asyncio.get_running_loop()
        called_s = loop.time()
        try:
            async with asyncio.timeout(SHIP_S), self._shipping:
                if self._shipped_at_s > called_s:  # Somebody's that began while we waited.
                    return
                began_s = loop.time()
                await self._shipped()
                self._shipped_at_s = began_s
        except ExceptionGroup as error:  # Of what the worker could not ship.
            raise Unavailable("the database that knows the budgets is away") from error
        except TimeoutError:
            raise Unavailable("usage is on its way to the database; try again in a moment") from None

    async def _assemble(self, scopes: Scopes) -> Sequence[str]:
        return await self._muster.assemble(scopes)

    async def _announce(self, where: Scopes) -> None:
        """Tell Redis everything that is open here in an organisation, unless it knows. Raises: Unavailable."""
        task = self._announcing.get(where.prefix)
        if task is None:
            task = self._announcing[where.prefix] = asyncio.create_task(self._announce_once(where))
            task.add_done_callback(lambda _: self._announcing.pop(where.prefix, None))
        await asyncio.shield(task)

    async def _announce_once(self, where: Scopes) -> None:
        for _ in range(ANNOUNCE_TRIES):
            # Its answer comes after those to all reservations sent before, so what they took is in `_open` by then.
            token, there = await self._limiter.called(where)
            if there:
                return
            settled = [self._pending[each].admission for each in self._granted & self._pending.keys()]
            mine = [a for a in (*settled, *(a for a, _, _ in self._open.values())) if a.scopes.prefix == where.prefix]
            for start in range(0, len(mine), RENEW_BATCH):
                await asyncio.gather(*(self.renew(a) for a in mine[start : start + RENEW_BATCH]))
            if where.prefix in self._served:
                await self._ship()
            if await self._limiter.present(where, token):
                if mine:
                    log.warning("holds announced to a rate limit store that had lost them", open=len(mine))
                return
        raise Unavailable("the rate limit store keeps losing its data")

    async def _keep(self) -> None:
        """Nothing ends it but cancellation: without it every lease would run out."""
        loop = asyncio.get_running_loop()
        correct_at_s = loop.time() + CORRECT_S
        while True:
            try:
                await self._rest()
                await self._renew_open()
                if loop.time() >= correct_at_s:
                    correct_at_s = loop.time() + CORRECT_S
                    await self.correct_expired(await spending.organisation_ids(self._engine))
            except (Unavailable, SQLAlchemyError, OSError) as error:
                log.warning("reservations of dead processes not corrected", reason=type(error).__name__)
            except Exception:
                log.exception("leases not renewed")
                await asyncio.sleep(RETRY_S)

    async def _rest(self) -> None:
        if await self._is_there() and await self._send_pending():
            with contextlib.suppress(Unavailable):  # It went again. What is held stays held.
                await self._restock()
            # Not wait_for: in Python 3.11 it swallows a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(RETRY_S, self._lease_ms / 3000)):
                    await self._wake.wait()
        else:
            await asyncio.sleep(RETRY_S)
        self._wake.clear()

    async def _is_there(self) -> bool:
        """Of a cluster, whether any master is; what cannot be had of others is noticed by who asked for it."""
        there = True
        try:
            await self._link.ping()
        except (Unavailable, hiredis.ReplyError):
            there = False
        away, self._met_away = not there or self._met_away, False
        METRICS.limits_away(away)
        if not away:
            self._away_since_ns = None
        elif self._away_since_ns is None:
            self._away_since_ns = self._clock()
        return there

    async def _send_pending(self) -> bool:
        """Returns: False when Redis is away, or one of several servers."""
        away: set[str] = set()
        for request_id, pending in list(self._pending.items()):
            if pending.admission.scopes.prefix in away:
                continue
            try:
                await self._settle(pending)
            except Unavailable:
                away.add(pending.admission.scopes.prefix)
                continue
            except hiredis.ReplyError:
                # Redis takes anything but this one; the next must not wait behind it, and SQL will correct it.
                log.exception("reservation not settled", request_id=request_id)
            if self._pending.get(request_id) is pending:
                del self._pending[request_id]
        return not away

    async def _renew_open(self) -> None:
        now_s = asyncio.get_running_loop().time()
        due = []
        for request_id, (admission, since_s, renewed_s) in list(self._open.items()):
            if now_s - since_s > OPEN_MAX_S:
                log.error("request was never settled; its lease is given up", request_id=request_id)
                del self._open[request_id]
                self._given_up.add(request_id)
            elif now_s - renewed_s >= self._lease_ms / 3000:
                due.append((request_id, admission, since_s))
        for start in range(0, len(due), RENEW_BATCH):
            batch = due[start : start + RENEW_BATCH]
            results = await asyncio.gather(*(self.renew(a) for _, a, _ in batch), return_exceptions=True)
            for (request_id, admission, since_s), result in zip(batch, results, strict=True):
                if isinstance(result, Unavailable):
                    log.warning("leases not renewed, Redis is away", open=len(self._open))
                    return
                if isinstance(result, BaseException):
                    raise result
                if request_id in self._open:  # Else it was settled while we waited.
                    self._open[request_id] = (admission, since_s, now_s)
