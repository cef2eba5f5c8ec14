"""One admitted request owes exactly one usage record. A Settlement is that debt, from the intent to the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

import structlog
from msgspec import Struct

from billing.errors import JournalUnavailable, UnknownPrice
from billing.journal import Journal
from billing.prices import BATCH, STANDARD, PriceSheet, variant_of
from billing.rating import BY_TOKENS, Counts, charge, priced
from billing.usage import Intent, Meter, Outcome, UsageRecord, input_tokens_total, output_tokens_total
from gateway.admission import Admission, Gate
from gateway.errors import NoRouteLeft
from gateway.exchange import SayError
from gateway.metering import estimated_usage, outcome_of, quantities
from gateway.observe.metrics import METRICS
from gateway.observe.trail import TRAIL
from gateway.routing.catalog import Deployment
from gateway.routing.explaining import way_of
from gateway.routing.policy import OK, Leg, RoutePlan, Try
from providers.neutral import Usage

log = structlog.get_logger(__name__)


class Ending(Struct, frozen=True):
    """How an answer ended, as far as anyone knows. A usage without output tokens is completed by an estimate."""

    outcome: Outcome
    usage: Usage = Usage()
    finish_reason: str | None = None
    status: int | None = None
    output_bytes: int = 0
    produced: bool = True
    """Whether the provider may have produced anything: a refused request has used nothing."""
    counts: Counts = BY_TOKENS
    """Of what is not sold by its text: as the provider told it."""
    likely: Counts = BY_TOKENS
    """Charged, and marked as estimated, where it told nothing. Without one: what was held for."""
    estimated: bool = False
    """Though counts were told, they are not all of it."""


class Settlement:
    """`open` writes the intent, `finish` the record; only the first `finish` counts."""

    def __init__(
        self,
        journal: Journal,
        gate: Gate,
        admission: Admission,
        intent: Intent,
        leg: Leg,
        clock: Callable[[], int],
        price_of: Callable[[Deployment, str], PriceSheet],
        counts: Counts = BY_TOKENS,
        route: RoutePlan | None = None,
        tier: str = STANDARD,
    ) -> None:
        """price_of: what a deployment's answer costs at a service tier's variant; raises UnknownPrice. counts: the
        worst case of what is not sold by its text. route: what could have been tried, for the record. tier: the
        variant of the service tier that was asked for, whatever closer price its legs are sold at."""
        self._route = route
        self._tier = tier
        self._counts = counts
        self._price_of = price_of
        self._journal = journal
        self._gate = gate
        self._admission = admission
        self._intent = intent
        self._clock = clock
        self._amount_pusd: int | None = None
        self.id, self.dialect, self.at_ns = intent.id, intent.dialect, intent.at_ns
        self.leg = leg
        self.attempts = 1
        self.tries: tuple[Try, ...] = ()
        self.lost_pusd = 0
        self.first_token_ns: int | None = None

    def open(self) -> None:
        """Raises: JournalUnavailable; then nothing is owed, and the caller must release the admission."""
        self._journal.intent(self._intent)

    def owed(self, say: SayError) -> _Owed:
        """A context: what fails inside before anything was settled ends the request, and is raised on."""
        return _Owed(self, say)

    def answered(self, leg: Leg, attempts: int, tries: tuple[Try, ...] = (), lost_pusd: int = 0) -> None:
        """Which leg of the plan it was in the end: its price is charged. lost_pusd: what another one costs us."""
        self.leg = leg
        self.lost_pusd += lost_pusd
        self.tries = tries
        self.attempts = attempts

    def broke(self, ended: str) -> None:
        """The leg that had begun its answer did not end it: so it stands in the request's way, after how long."""
        name, ms = self.leg.deployment.id, (self._clock() - self.at_ns) // 1_000_000
        self.tries = (*(each for each in self.tries if each[:2] != (name, OK)), (name, ended, ms))

    def carried_on(self, leg: Leg, attempts: int, tries: tuple[Try, ...]) -> None:
        """Another leg goes on with what one before it had begun, after so many calls of its own."""
        ms = (self._clock() - self.at_ns) // 1_000_000
        now = tries or ((leg.deployment.id, OK, ms),)
        self.answered(leg, self.attempts + attempts, (*self.tries, *now))

    def first_token(self) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = self._clock()

    async def finish(self, ending: Ending) -> int:
        """Write the record and give back what was not used, and wait until it is on stable storage. Returns: the charge
        in pUSD.

        A caller that is cancelled meanwhile stops waiting; the record has been written and the limits told before
        anything is waited for."""
        if self._amount_pusd is not None:
            return self._amount_pusd
        sheet, variant = self._sheet(ending.usage.service_tier)
        record = self._record(ending, sheet, variant)
        priced_pusd = self._amount(record, sheet)
        amount_pusd = self._amount_pusd = priced_pusd or 0
        read, written = input_tokens_total(record.quantities), output_tokens_total(record.quantities)
        counted = (0, 0) if record.estimated else (read, written)
        try:
            # Both are under way at once: a future, and a command that leaves before its reply is waited for. What is
            # only told of the request comes after what is owed for it.
            on_disk = self._journal.settle(record)
            told = self._gate.settle(
                self._admission,
                read + written,
                # What waits for a price counts as what was held for it, here and in the sums of SQL.
                record.hold_pusd if priced_pusd is None else priced_pusd,
                input_tokens=counted[0],
                output_tokens=counted[1],
                provider=record.provider,
            )
            _tell(record, sheet, read, amount_pusd)
            await on_disk
            await told
        except JournalUnavailable:
            # The intent is on disk and the record in the journal's memory: nothing is lost, an operator must act.
            METRICS.journal_failed()
            log.error("usage record not on disk yet; free disk space or mend the data folder", request_id=self.id)
        return amount_pusd

    def _sheet(self, service_tier: str | None) -> tuple[PriceSheet, str]:
        """The price of the tier that the answer came from, where the provider says which, and that tier's variant."""
        asked, sold = self._tier, self.leg.sheet.variant
        # A batch is run by us: it is charged as one, whatever tier of the provider's its lines went to. And a price for
        # what was asked for itself (an image of a quality and a size) is no tier's: no tier takes its place.
        answered = asked if service_tier is None or asked == BATCH or sold != asked else variant_of(service_tier)
        if answered == asked:
            return self.leg.sheet, sold
        try:
            return self._price_of(self.leg.deployment, answered), answered
        except UnknownPrice:
            # The row names a price of another tier, so the ledger waits until the operator has set this one's.
            return self.leg.sheet, answered

    def _amount(self, record: UsageRecord, sheet: PriceSheet) -> int | None:
        """What the client is told. A meter that turns out unpriced (a search nobody foresaw) is written down all the
        same: the ledger posts it once the operator has set its price."""
        try:
            if record.variant != sheet.variant:
                raise UnknownPrice(f"tier {record.variant!r} of {sheet.provider}/{sheet.model}")
            return charge(record.quantities, sheet).sale_pusd
        except UnknownPrice as error:
            log.error("used something unpriced; `farebox prices set` posts it", request_id=self.id, what=str(error))
            return None

    def _record(self, ending: Ending, sheet: PriceSheet, variant: str) -> UsageRecord:
        intent, deployment, now_ns = self._intent, self.leg.deployment, self._clock()
        usage, estimated = ending.usage, ending.estimated
        if not self._counts and ending.produced and (usage.output_tokens is None or ending.finish_reason is None):
            estimated = True
            usage = estimated_usage(
                usage,
                input_tokens_total(intent.estimate),
                ending.output_bytes,
                output_tokens_total(intent.estimate),
            )
        used = quantities(usage) if ending.produced else {}
        if self._counts and ending.produced:
            told = priced(ending.counts, sheet)
            estimated = told is None
            # Last, what was held for: nothing is held for that the sheet does not price.
            used = told or priced(ending.likely, sheet) or priced(self._counts, sheet) or {}
        first = self.first_token_ns
        return UsageRecord(
            id=intent.id,
            at_ns=intent.at_ns,
            organisation_id=intent.organisation_id,
            project_id=intent.project_id,
            key_id=intent.key_id,
            end_user=intent.end_user,
            alias=intent.alias,
            provider=deployment.provider,
            model=deployment.model,
            deployment=deployment.id,
            price_id=sheet.id,
            variant=variant,
            quantities=used,
            estimated=estimated,
            outcome=ending.outcome,
            hold_pusd=intent.hold_pusd,
            finish_reason=ending.finish_reason,
            first_token_ms=None if first is None else (first - intent.at_ns) // 1_000_000,
            duration_ms=(now_ns - intent.at_ns) // 1_000_000,
            status=ending.status,
            dialect=intent.dialect,
            tags=intent.tags,
            attempts=self.attempts,
            way=None if self._route is None else way_of(self._route, self.tries, self.lost_pusd),
        )


def _tell(record: UsageRecord, sheet: PriceSheet, input_tokens: int, amount_pusd: int) -> None:
    METRICS.settled(record, amount_pusd)
    if (trail := TRAIL.get()) is not None:
        trail.settled(record)
    if cached := record.quantities.get(Meter.CACHE_READ_TOKENS):
        prices = sheet.tier(input_tokens).sale
        whole, read = prices.get(Meter.INPUT_TOKENS), prices.get(Meter.CACHE_READ_TOKENS)
        if whole is not None and read is not None:  # an unpriced meter is written down all the same
            METRICS.saved(record, cached * max(0, whole - read))


class _Owed:
    """What `Settlement.owed` returns."""

    __slots__ = ("_say", "_settlement")

    def __init__(self, settlement: Settlement, say: SayError) -> None:
        self._settlement = settlement
        self._say = say

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, asyncio.CancelledError):
            # The client of a stream left before its first token: the prompt has been read, nothing else is known.
            ending = Ending(Outcome.CLIENT_GONE)
        else:
            # Nothing has reached the client, so nothing is charged, whatever the provider may bill us for its failure.
            if isinstance(error, NoRouteLeft):
                self._settlement.attempts, self._settlement.tries = len(error.tries) or 1, error.tries
            status = self._say(error, self._settlement.id).status if isinstance(error, Exception) else None
            ending = Ending(outcome_of(error), status=status, produced=False)
        await self._settlement.finish(ending)
