"""Tries a plan's legs in order until one gives a first event. After that there is no second try.

Each try is told to the health of its deployment and to the metrics; here the clock is asked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import NoRouteLeft
from gateway.marking import wants_markers
from gateway.observe.metrics import METRICS
from gateway.observe.trail import TRAIL, Attempt
from gateway.routing.catalog import Deployment
from gateway.routing.health import Health, HealthTable, Outlook, Trip, is_at
from gateway.routing.hedging import HedgeBudget, raced
from gateway.routing.policy import LOST, OK, Leg, RoutePlan, Try
from gateway.routing.quotas import quota_of
from gateway.routing.retries import RetryTerms, delay_s
from gateway.routing.turnstile import Saturated, Turnstile
from gateway.routing.warmth import TOKENS_PER_BLOCK, Chain, Warmth
from providers.errors import AuthFailed, ContextTooLong, ProviderError, TimedOut

T = TypeVar("T")


class Arrival(Struct, Generic[T], frozen=True):
    """What came of it: the first leg that answered, how many calls were made. journey: for a stream, to be ended.
    tries: each of them where there was more than one. lost_pusd: about what the prompt cost us at a second deployment
    that answered later."""

    got: T
    leg: Leg
    attempts: int
    journey: Journey
    tries: tuple[Try, ...] = ()
    lost_pusd: int = 0


class Journey:
    """The rest of an answer that has begun: its deployment has one in flight until `end`, which is owed for streams."""

    __slots__ = ("_clock", "_correct", "_counted", "_leave", "_provider", "_trail", "_trip")

    def __init__(
        self,
        trip: Trip,
        provider: str,
        clock: Callable[[], float],
        correct: Callable[[int], None] | None = None,
        leave: Callable[[int], None] | None = None,
        trail: Attempt | None = None,
    ) -> None:
        """trail: of the call, to be ended with it. correct: to be told how many tokens of the prompt were found cached.
        leave: that the turn has ended, after how many tokens."""
        self._trip = trip
        self._trail = trail
        self._leave = leave
        self._correct = correct
        self._provider = provider
        self._clock = clock
        self._counted = False

    def failed(self, error: ProviderError) -> None:
        self._trip.failed(error, self._clock())
        if self._trail is not None:
            self._trail.end(error)
        self._count(type(error).__name__)

    def end(self, output_tokens: int | None = None, cached_tokens: int | None = None) -> None:
        self._trip.end(self._clock(), output_tokens)
        if self._trail is not None:
            self._trail.end()
        if self._leave is not None:
            self._leave(output_tokens or 0)
            self._leave = None
        if self._correct is not None and cached_tokens is not None:
            self._correct(cached_tokens)
        self._count(OK)

    def _count(self, result: str) -> None:
        """A call counts once, by how it ended."""
        if not self._counted:
            self._counted = True
            METRICS.attempted(self._provider, result)


class Dispatcher:
    """One a process: what it has learned of the deployments, and what it may still try."""

    def __init__(
        self,
        terms: RetryTerms,
        clock: Callable[[], float],
        chance: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """clock: monotonic seconds. chance: draws from [0, 1)."""
        self._terms = terms
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self.health = HealthTable(terms.slow_s)
        self.warmth = Warmth()
        self.tell_warm: Callable[[str, Chain], None] | None = None
        # Of deployments with a `max_parallel`.
        self._turnstiles: dict[str, Turnstile] = {}
        self._hedges = HedgeBudget(terms.hedge_share)

    def renewed(self, endpoints: set[str]) -> None:
        """These providers (or `provider@account`) are reached otherwise now, or no more: whoever is there next has read
        nothing, and what those who have left had read takes no room."""
        self.health.renew(endpoints)
        for name in self.warmth.names():
            if is_at(name, endpoints):
                self.warmth.drop(name)
        for name, turnstile in list(self._turnstiles.items()):
            if is_at(name, endpoints) and not turnstile.queue.running:
                del self._turnstiles[name]

    def promised(self, plan: RoutePlan) -> RoutePlan:
        """The same plan, whose first leg counts as busy from now on. Nothing to choose, nothing to promise."""
        if len(plan.legs) == 1:
            return plan
        leg, now = plan.legs[0], self._clock()
        if plan.chain:  # The next prompt with this beginning may come before this one is read.
            self._keep(plan, leg.deployment, now)
        return replace(plan, promise=self.health.promise(leg.deployment.id, leg.fresh_tokens, now))

    def warm(self, deployments: Sequence[Deployment], chain: Chain, told: Mapping[str, int] = {}) -> Mapping[str, int]:
        """told: by those that tell it themselves."""
        now = self._clock()
        guessed = self.warmth.tokens({d.id: d.cache for d in deployments if d.id not in told}, chain, now)
        return {**guessed, **self.warmth.told(told, chain, now)} if told else guessed

    def is_well(self, deployment_id: str) -> bool:
        """Whether there is nothing to tell of it in a plan."""
        return self._is_well(self.health.of(deployment_id))

    def outlook(self, deployment_ids: list[str]) -> Outlook:
        return self.health.outlook(deployment_ids, self._clock())

    def conditions(self) -> list[tuple[str, str]]:
        """Of every deployment that was asked, by its id, for metrics."""
        now = self._clock()
        return [(name, health.breaker.condition(now)) for name, health in self.health.items()]

    def queues(self) -> list[tuple[str, int]]:
        """How many wait, where a deployment bounds how many it is asked at once; for metrics."""
        return [(name, turnstile.queue.waiting) for name, turnstile in self._turnstiles.items()]

    def patience_s(self, of_alias: float | None, of_client: float | None) -> float:
        """How long a request waits for its turn: as its alias says, else the settings; a client may want less."""
        usual = self._terms.queue_s if of_alias is None else of_alias
        return usual if of_client is None else min(usual, of_client)

    def heard(self, deployment_id: str, headers: Mapping[str, str]) -> None:
        """headers: of an answer, which may tell what is left of a quota."""
        if (quota := quota_of(headers, self._clock(), time.time())) is not None:
            self.health.of(deployment_id).quota = quota

    async def first_arrival(
        self,
        plan: RoutePlan,
        attempt: Callable[[Leg], Awaitable[T]],
        *,
        streams: bool = False,
        discard: Callable[[T], Awaitable[None]] | None = None,
    ) -> Arrival[T]:
        """attempt: returns with a stream's first event, or with the whole answer; its `journey` is then to be ended.
        discard: lets go of a stream that lost a race; None: this request is not asked twice.

        Raises: the ProviderError at once where another deployment would say the same (the client's own mistake);
        NoRouteLeft with every attempt's story once the plan, its retries or its time are used up."""
        run = _Run(plan, self._clock() + self._terms.total_s)
        while run.legs:
            leg = run.legs.popleft()
            health = self.health.of(leg.deployment.id)
            if run.legs and run.may_defer(leg) and not (self._is_well(health) and self._has_room(leg)):
                run.legs.append(leg)  # Things have changed since the choice: what was well then may be open by now.
                continue
            try:
                if discard is not None and (wait := self._hedge_after(run, health)) is not None:
                    return await self._raced(run, leg, health, attempt, wait, discard)
                return await self._try(run, leg, health, attempt, streams)
            except ProviderError as error:
                if not (error.retryable or isinstance(error, AuthFailed | ContextTooLong) or plan.terms.goes_on(error)):
                    raise
                run.stories.append(f"{leg.deployment.id}: {error.message}")
                run.last = error
                if await self._again(run, health, error):
                    run.legs.append(leg)
            if self._clock() >= run.deadline:
                run.stories.append(f"no time left after {self._terms.total_s:g} s")
                break
        raise NoRouteLeft("; ".join(run.stories), attempts=run.stories, last=run.last, tries=run.tries)

    def _hedge_after(self, run: _Run, health: Health) -> float | None:
        """Seconds; None: this one is asked alone."""
        percent = run.plan.terms.hedge_percentile
        if percent is None:
            return None
        self._hedges.requested(self._clock())
        return health.tail.percentile(percent) if run.legs and not run.attempts else None

    async def _raced(
        self,
        run: _Run,
        leg: Leg,
        health: Health,
        attempt: Callable[[Leg], Awaitable[T]],
        wait_s: float,
        discard: Callable[[T], Awaitable[None]],
    ) -> Arrival[T]:
        began = {leg.deployment.id: self._clock()}

        def second() -> Awaitable[Arrival[T]] | None:
            other, now = run.legs[0], self._clock()
            health = self.health.of(other.deployment.id)
            if not self._is_well(health) or not self._affordable(leg, other) or not self._hedges.take(now):
                return None
            began[other.deployment.id] = now
            return self._try(run, run.legs.popleft(), health, attempt, streams=True)

        async def lost(arrival: Arrival[T]) -> None:
            arrival.journey.end()
            await discard(arrival.got)

        won = await raced(self._try(run, leg, health, attempt, streams=True), wait_s, second, lost)
        if run.attempts < 2:
            return won
        METRICS.hedged("second" if won.leg is not leg else "first")
        late = next(each for each in run.plan.legs if each is not won.leg and each.deployment.id in began)
        name = late.deployment.id
        if any(tried == name and ended != OK for tried, ended, _ in won.tries):
            return won  # It failed by itself.
        # Its provider had the whole prompt when it was cancelled, and may have read it.
        METRICS.hedge_lost(late.deployment.provider, late.prompt_cost_pusd)
        story = (name, LOST, round((self._clock() - began[name]) * 1000))
        tries = (story, *(each for each in won.tries if each[0] != name))
        return replace(won, tries=tries, lost_pusd=late.prompt_cost_pusd)

    def _affordable(self, *legs: Leg) -> bool:
        """Whoever of them loses."""
        most = self._terms.hedge_pusd
        return most is None or max(leg.prompt_cost_pusd for leg in legs) <= most

    def _has_room(self, leg: Leg) -> bool:
        turnstile = self._turnstiles.get(leg.deployment.id)
        return leg.deployment.max_parallel is None or turnstile is None or not turnstile.queue.is_full

    async def _turn(self, leg: Leg, run: _Run) -> Callable[[int], None]:
        """Raises: Saturated."""
        deployment, turn = leg.deployment, run.plan.turn
        turnstile = self._turnstiles.get(deployment.id)
        if turnstile is None:
            turnstile = Turnstile(deployment.id, deployment.max_parallel or 1, self._terms.queue_max)
            self._turnstiles[deployment.id] = turnstile
        turnstile.resize(deployment.max_parallel or 1)
        now = self._clock()
        if run.waits_until is None:  # However many deployments it waits for.
            run.waits_until = now + (self._terms.queue_s if turn.wait_s is None else turn.wait_s)
        wait_s = max(0.0, min(run.waits_until, run.deadline) - now)
        return await turnstile.enter(turn.tenant, turn.urgency, turn.tokens, wait_s, turn.weight)

    def _is_well(self, health: Health) -> bool:
        return health.breaker.condition(self._clock()) in ("closed", "half_open")

    async def _try(
        self, run: _Run, leg: Leg, health: Health, attempt: Callable[[Leg], Awaitable[T]], streams: bool
    ) -> Arrival[T]:
        run.attempts += 1
        number = run.attempts  # A second one may be asked beside it while it waits for its turn.
        leave = None if leg.deployment.max_parallel is None else await self._turn(leg, run)
        provider, began = leg.deployment.provider, self._clock()
        if number == 1:
            health.retries.requested(began)
            if run.plan.promise is not None:
                run.plan.promise.keep()
        trip = Trip(health, began, leg.fresh_tokens)
        trace = TRAIL.get()
        trail = None if trace is None else trace.attempt(leg, number)
        going_on = False
        try:
            if number == 1:
                got = await attempt(leg)  # bounded by the transport's own limits, which are the plan's
            else:
                got = await _within(attempt(leg), run.deadline - began)
            trip.answered(self._clock(), streams=streams)
            going_on = streams
        except ProviderError as error:
            now = self._clock()
            trip.failed(error, now)
            if trail is not None:
                trail.end(error)
            METRICS.attempted(provider, type(error).__name__)
            run.tries.append((leg.deployment.id, ended(error), round((now - began) * 1000)))
            raise
        finally:
            if not going_on:
                trip.end(self._clock())
                if leave is not None:
                    leave(0)
                if trail is not None:
                    trail.end()
        correct = self._corrector(run.plan, leg) if run.plan.chain else None
        journey = Journey(trip, provider, self._clock, correct, leave if going_on else None, trail)
        if not streams:
            journey.end()
        if run.attempts > 1:
            run.tries.append((leg.deployment.id, OK, round((self._clock() - began) * 1000)))
        return Arrival(got, leg, run.attempts, journey, tuple(run.tries))

    def _corrector(self, plan: RoutePlan, leg: Leg) -> Callable[[int], None]:
        """The deployment has read the prompt. Should it tell that it had found much less of it than was thought, what
        was thought is forgotten: its cache is smaller, or it was started anew."""
        deployment, chain = leg.deployment, plan.chain
        thought = len(chain) * TOKENS_PER_BLOCK - leg.fresh_tokens
        self._keep(plan, deployment, self._clock())
        if self.tell_warm is not None:
            self.tell_warm(deployment.id, chain)

        def correct(cached_tokens: int) -> None:
            if cached_tokens < thought // 2:
                self.warmth.drop(deployment.id)
                self._keep(plan, deployment, self._clock())

        return correct

    def _keep(self, plan: RoutePlan, deployment: Deployment, now: float) -> None:
        asked_s = plan.asked_s if wants_markers(deployment) else None
        self.warmth.keep(deployment.id, deployment.cache, plan.chain, now, asked_s)

    async def _again(self, run: _Run, health: Health, error: ProviderError) -> bool:
        """Waits before the only deployment is asked once more. Another one is asked at once, and costs no retry."""
        if len(run.plan.legs) > 1 or isinstance(error, Saturated):
            return False
        now = self._clock()
        wait = delay_s(error, run.attempts, self._terms, self._chance)
        if wait is None or now + wait >= run.deadline or not health.retries.take(self._terms, now):
            return False
        await self._sleep(wait)
        return True


class _Run:
    """One request's way through its plan."""

    __slots__ = ("_deferred", "attempts", "deadline", "last", "legs", "plan", "stories", "tries", "waits_until")

    def __init__(self, plan: RoutePlan, deadline: float) -> None:
        self.plan = plan
        self.deadline = deadline
        self.waits_until: float | None = None
        self.legs = deque(plan.legs)
        self.attempts = 0
        self.stories: list[str] = []
        self.tries: list[Try] = []
        self.last: ProviderError | None = None
        self._deferred: set[str] = set()

    def may_defer(self, leg: Leg) -> bool:
        """Once: the second time it is its turn, well or not."""
        if leg.deployment.id in self._deferred:
            return False
        self._deferred.add(leg.deployment.id)
        return True


def ended(error: ProviderError) -> str:
    """Without the provider's own words, which may repeat the client's: this is kept."""
    return type(error).__name__ + (f" {error.status}" if error.status else "")


async def _within(attempt: Awaitable[T], seconds: float) -> T:
    """Raises: TimedOut, not the TimeoutError that nobody upstream knows."""
    try:
        async with asyncio.timeout(seconds):
            return await attempt
    except TimeoutError as error:
        raise TimedOut("the request's time is used up", "total") from error
