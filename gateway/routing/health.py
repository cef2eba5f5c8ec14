"""What recent calls say of each deployment: a circuit breaker, a latency window, calls in flight.

State machines that ask nobody for the time: `now` is an argument everywhere, in seconds of one monotonic clock.
One process sees only its own calls: no round trip to learn what the next failure tells anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from math import exp, inf
from typing import Final, Literal

from msgspec import Struct

from gateway.routing.hedging import FirstTokens
from gateway.routing.quotas import Quota
from gateway.routing.retries import RetryBudget, Window
from providers.errors import AuthFailed, BadRequest, Overloaded, ProviderError, Rejected, Throttled, Unsupported

# Opened by so many failures in a row, or by this share of the calls of one window when there are enough to judge by.
CONSECUTIVE_FAILURES: Final = 5
FAILED_SHARE: Final = 0.5
JUDGED_CALLS: Final = 10
# Seconds. Each probe that fails doubles the next wait, up to the longest.
OPEN_S: Final = 5.0
OPEN_LONGEST_S: Final = 60.0
# A refused credential does not mend itself, and some providers lock accounts that go on knocking.
OPEN_AUTH_S: Final = 60.0
OPEN_AUTH_LONGEST_S: Final = 600.0
COOL_S: Final = 5.0  # after a 429 without a hint: quotas are counted by the minute, most in sliding windows
COOL_LONGEST_S: Final = 600.0  # hints of a day exist (Groq's daily tokens); a raised quota should not wait for that
# Who was asked again as late as it wished, so often and for so long, and had room for nobody, is not just full.
UNKEPT_WORDS: Final = 5
UNKEPT_S: Final = 30.0
# A latency peak is half forgotten after 7 s. Source: Finagle's PeakEwma, decay time 10 s, read 2026-11.
EWMA_S: Final = 10.0
# Tokens of a middling answer: turns tokens/s into the seconds that a client waits for it.
ANSWER_TOKENS: Final = 100
UNKNOWN_WAIT_S: Final = 1.0
# How fast a prompt is read is learned from prompts of at least so many tokens, each moving the mean by this share.
RATE_TOKENS: Final = 256
RATE_SHARE: Final = 0.2
# A choice that was made counts as under way for so long at most, until its call begins.
PROMISE_S: Final = 2.0
# Clients can name any model of an open provider; what nobody has called for longest is forgotten.
DEPLOYMENTS_MAX: Final = 4096

Condition = Literal["closed", "half_open", "open", "cooling", "absent"]


class Standing(Struct, frozen=True):
    """One deployment now, as the policy sees it.

    closed: calls go there. half_open: one call may find out. open, cooling, absent: for `wait_s` seconds only where
    nothing else is left. absent: probes missed it. found: what the last probe made of it, empty where none asks.
    first_token_s: peak EWMA, of whole answers where none has streamed; None: not known yet. queued_tokens: of prompts
    that wait for their first token, less what was cached. decoding: answers in the making. input_tokens_per_s: how
    quickly it reads. quota_left: share, by its own rate headers. unasked_s: since it was last chosen. calls: that
    ended in the last half minute; failed_share: of them."""

    condition: Condition = "closed"
    wait_s: float = 0.0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    in_flight: int = 0
    queued_tokens: int = 0
    decoding: int = 0
    input_tokens_per_s: float | None = None
    quota_left: float = 1.0
    found: str = ""
    unasked_s: float = inf
    calls: int = 0
    failed_share: float = 0.0

    @property
    def well(self) -> bool:
        return self.condition in ("closed", "half_open")

    @property
    def answer_s(self) -> float | None:
        """Seconds to a middling answer's end, were nobody else in line."""
        if self.first_token_s is None:
            return None
        return self.first_token_s + (ANSWER_TOKENS / self.tokens_per_s if self.tokens_per_s else 0.0)

    @property
    def expected_s(self) -> float:
        """The same behind those in flight. A deployment nobody has measured is tried, but not by everyone at once."""
        seconds = self.answer_s
        if seconds is None:
            return UNKNOWN_WAIT_S * self.in_flight
        return seconds * (self.in_flight + 1)


UNKNOWN: Final = Standing()


class Outlook(Struct, frozen=True):
    """Snapshot of all that one choice looks at; who is not in it is well and unmeasured."""

    standings: Mapping[str, Standing] = {}

    def of(self, deployment_id: str) -> Standing:
        return self.standings.get(deployment_id, UNKNOWN)


CALM: Final = Outlook()


class PeakEwma:
    """A mean that believes a rise at once and a fall slowly."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value: float | None = None
        self._at = 0.0

    def observe(self, value: float, now: float) -> None:
        if self._value is None or value > self._value:
            self._value = value
        else:
            kept = exp(-max(0.0, now - self._at) / EWMA_S)
            self._value = self._value * kept + value * (1 - kept)
        self._at = now

    def read(self, now: float) -> float | None:
        """Falls towards zero while nothing is heard, so that what was slow once is tried again."""
        return None if self._value is None else self._value * exp(-max(0.0, now - self._at) / EWMA_S)

    @property
    def latest(self) -> float | None:
        return self._value


class Breaker:
    """closed -> open -> half_open -> closed. Beside it a cool-down, which a provider asks for and which is no fault,
    and absence, which probes find and end."""

    __slots__ = (
        "_absent_until",
        "_calls",
        "_consecutive",
        "_cool_until",
        "_failures",
        "_open_until",
        "_opened_at",
        "_probes",
        "_span",
        "_unkept",
        "_unkept_since",
        "probing",
    )

    def __init__(self) -> None:
        self._calls = Window()
        self._failures = Window()
        self._consecutive = 0
        self._open_until: float | None = None
        self._opened_at = 0.0
        self._span = 0.0
        self._cool_until = 0.0
        self._unkept = 0
        self._unkept_since = 0.0
        self._probes = 0
        self._absent_until = 0.0
        self.probing: int | None = None

    def condition(self, now: float) -> Condition:
        if now < self._absent_until:
            return "absent"
        if self._open_until is not None:
            return "open" if now < self._open_until or self.probing is not None else "half_open"
        return "cooling" if now < self._cool_until else "closed"

    def wait_s(self, now: float) -> float:
        return max(0.0, (self._open_until or 0.0) - now, self._cool_until - now, self._absent_until - now)

    def missed(self, until: float) -> None:
        """Probes found nobody well there: so it is believed until then, or until the next one tells otherwise."""
        self._absent_until = until

    def back(self, now: float) -> None:
        """A probe found it well. What opened while it was away may be tried at once."""
        if self._absent_until:
            self._absent_until = 0.0
            if self._open_until is not None:
                self._open_until = min(self._open_until, now)

    def seen(self, now: float) -> tuple[int, int]:
        """Of the last half minute: how many calls ended, and how many failed."""
        return self._calls.total(now), self._failures.total(now)

    def begin(self, now: float) -> int | None:
        """A call starts. Returns: its number if it is the probe, whose end must be told with it by `succeeded`,
        `failed`, `throttled`, `rationed` or `let_go`. One that outlives its opening is a call like any other."""
        if self.condition(now) != "half_open":
            return None
        self._probes += 1
        self.probing = self._probes
        return self.probing

    def succeeded(self, began: float, now: float, probe: int | None) -> None:
        """began: a call from before the opening says nothing of what came after it."""
        self._calls.add(now)
        self._unkept = 0
        self._absent_until = 0.0  # An answer is worth more than what a probe made of it.
        if self._open_until is None:
            self._consecutive = 0
        elif self._is_probe(probe) or began >= self._opened_at:
            # Also one that had nowhere else to go: an answer is an answer, whoever sent it.
            self._close()

    def failed(self, began: float, now: float, probe: int | None, *, auth: bool = False) -> None:
        self._calls.add(now)
        self._failures.add(now)
        self._consecutive += 1
        probed = self._is_probe(probe)
        if self._open_until is not None:
            if probed or auth:
                self._open(now, auth)
        elif auth or self._tripped(now):
            self._open(now, auth)

    def throttled(self, retry_after_s: float | None, now: float, probe: int | None) -> None:
        wait = COOL_S if retry_after_s is None else min(retry_after_s, COOL_LONGEST_S)
        self._cool_until = max(self._cool_until, now + wait)
        self._unkept = 0
        if self._is_probe(probe):
            # It is there and knows us: what it was opened for is over, but the next one waits as long as it asks.
            self._close()

    def rationed(self, retry_after_s: float, now: float, probe: int | None) -> None:
        """Full for now, and it says until when: no fault, but what stands before one that is down says the same of it.
        So what opened stays open, and who sends everybody away whenever they come back opens as well: what is
        down is found out by one call, and less and less often. Capacity comes back sooner than quotas do."""
        if now >= self._cool_until:  # It had said nothing, or that it would have room by now.
            self._unkept_since = self._unkept_since if self._unkept else now
            self._unkept += 1
        self._cool_until = max(self._cool_until, now + min(retry_after_s, OPEN_LONGEST_S))
        is_probe = self._is_probe(probe)
        if self._unkept >= UNKEPT_WORDS and now - self._unkept_since >= UNKEPT_S:
            if self._open_until is None or is_probe:
                self._open(now, False)
                self._open_until = max(now + self._span, self._cool_until)
        elif is_probe:
            self._open_until = self._cool_until
            self.probing = None

    def let_go(self, probe: int | None) -> None:
        """The call ended without telling anything: its client left, or it was never sent."""
        if self._is_probe(probe):
            self.probing = None

    def _is_probe(self, probe: int | None) -> bool:
        return probe is not None and probe == self.probing

    def _tripped(self, now: float) -> bool:
        if self._consecutive >= CONSECUTIVE_FAILURES:
            return True
        calls = self._calls.total(now)
        return calls >= JUDGED_CALLS and self._failures.total(now) >= FAILED_SHARE * calls

    def _open(self, now: float, auth: bool) -> None:
        least, most = (OPEN_AUTH_S, OPEN_AUTH_LONGEST_S) if auth else (OPEN_S, OPEN_LONGEST_S)
        self._span = min(max(least, self._span * 2), max(most, self._span))
        self._opened_at = now
        self._open_until = now + self._span
        self.probing = None

    def _close(self) -> None:
        self._open_until = None
        self._span = 0.0
        self._consecutive = 0
        self.probing = None
        self._calls.clear()
        self._failures.clear()


class Health:
    """One deployment: made on its first call, told of each call by its Trip."""

    __slots__ = (
        "asked_at",
        "breaker",
        "decoding",
        "first_token",
        "found",
        "in_flight",
        "input_rate",
        "queued_tokens",
        "quota",
        "retries",
        "slow_s",
        "tail",
        "token",
        "whole",
    )

    def __init__(self, slow_s: float | None = None) -> None:
        self.breaker = Breaker()
        self.retries = RetryBudget()
        self.first_token = PeakEwma()
        self.whole = PeakEwma()
        self.token = PeakEwma()
        self.asked_at = -inf
        self.in_flight = 0
        self.queued_tokens = 0
        self.decoding = 0
        self.input_rate: float | None = None
        self.quota: Quota | None = None
        self.tail = FirstTokens()
        self.slow_s = slow_s
        self.found = ""

    def read(self, tokens: int, seconds: float) -> None:
        """So many tokens were read in that time. A short prompt tells of latency, not of speed."""
        if tokens >= RATE_TOKENS and seconds > 0:
            rate, known = tokens / seconds, self.input_rate
            self.input_rate = rate if known is None else known + RATE_SHARE * (rate - known)

    def standing(self, now: float) -> Standing:
        first = self.first_token.read(now)
        token_s = self.token.latest
        condition = self.breaker.condition(now)
        calls, failed = self.breaker.seen(now)
        return Standing(
            condition,
            0.0 if condition == "closed" else self.breaker.wait_s(now),
            self.whole.read(now) if first is None else first,
            1 / token_s if token_s and first is not None else None,
            self.in_flight,
            self.queued_tokens,
            self.decoding,
            self.input_rate,
            1.0 if self.quota is None else self.quota.read(now),
            self.found,
            now - self.asked_at,
            calls,
            failed / calls if failed else 0.0,
        )


class Trip:
    """One call to one deployment. `end` is owed, once; what is told twice counts once."""

    __slots__ = ("_ahead", "_began", "_ended", "_first", "_health", "_judged", "_probe", "_reading")

    def __init__(self, health: Health, now: float, fresh_tokens: int = 0) -> None:
        """fresh_tokens: of the prompt, that are not cached there."""
        self._health = health
        self._began = now
        health.asked_at = now
        health.queued_tokens += fresh_tokens
        self._reading = fresh_tokens
        self._ahead = health.queued_tokens
        self._probe = health.breaker.begin(now)
        self._first: float | None = None
        self._judged = False
        self._ended = False
        health.in_flight += 1

    def answered(self, now: float, *, streams: bool) -> None:
        """The first event is here, or the whole of an answer that does not stream."""
        health = self._health
        if streams:
            self._first = now
            health.decoding += 1
            health.first_token.observe(now - self._began, now)
            health.tail.add(now - self._began)
            health.read(self._ahead, now - self._began)
        else:
            health.whole.observe(now - self._began, now)
        self._has_read()
        self._judged = True
        if streams and health.slow_s is not None and now - self._began > health.slow_s:
            health.breaker.failed(self._began, now, self._probe)  # It came, but nobody would wait so long again.
        else:
            health.breaker.succeeded(self._began, now, self._probe)
        self._probe = None

    def failed(self, error: ProviderError, now: float) -> None:
        """Before the first event or, as Interrupted, after it: an answer that broke is no health either."""
        breaker = self._health.breaker
        self._judged = True
        match error:
            case Throttled():
                breaker.throttled(error.retry_after_s, now, self._probe)
            case Overloaded() if error.retry_after_s is not None:
                breaker.rationed(error.retry_after_s, now, self._probe)
            case Unsupported():  # found out by us: nothing was sent
                breaker.let_go(self._probe)
            case Rejected() | BadRequest():  # it looked at the request and said no: it is well
                breaker.succeeded(self._began, now, self._probe)
            case _:
                breaker.failed(self._began, now, self._probe, auth=isinstance(error, AuthFailed))
        self._probe = None

    def end(self, now: float, output_tokens: int | None = None) -> None:
        """Nothing more comes. output_tokens: of a stream, where its provider counted them."""
        if self._ended:
            return
        self._ended = True
        self._has_read()
        self._health.in_flight -= 1
        if self._first is not None:
            self._health.decoding -= 1
        if not self._judged:
            self._health.breaker.let_go(self._probe)
        # A few tokens come in one network read and would tell of gigantic speeds.
        if self._first is not None and output_tokens is not None and output_tokens >= 8 and now > self._first:
            self._health.token.observe((now - self._first) / output_tokens, now)

    def _has_read(self) -> None:
        self._health.queued_tokens -= self._reading
        self._reading = 0


class Promise:
    """A choice whose call has not begun: it counts at once, or a thousand requests of one instant would all go where
    there was least to do. Kept by the call that begins, or by time."""

    __slots__ = ("_health", "_tokens", "until")

    def __init__(self, health: Health, tokens: int, now: float) -> None:
        self._health: Health | None = health
        self._tokens = tokens
        self.until = now + PROMISE_S
        health.asked_at = now
        health.in_flight += 1
        health.queued_tokens += tokens

    def keep(self) -> None:
        if self._health is not None:
            self._health.in_flight -= 1
            self._health.queued_tokens -= self._tokens
            self._health = None


def is_at(deployment_id: str, endpoints: Collection[str]) -> bool:
    """Whether it is asked at one of these providers (or `provider@account`). Models have an @ in their names, too: who
    may be meant is."""
    provider, _, model = deployment_id.partition("/")
    return provider in endpoints or f"{provider}@{model.rpartition('@')[2]}" in endpoints


class HealthTable:
    """Of every deployment that this process has called."""

    def __init__(self, slow_s: float | None = None) -> None:
        self._slow_s = slow_s
        self._of: dict[str, Health] = {}
        self._promises: deque[Promise] = deque()

    def __len__(self) -> int:
        return len(self._of)

    def items(self) -> list[tuple[str, Health]]:
        return list(self._of.items())

    def of(self, deployment_id: str) -> Health:
        if (health := self._of.get(deployment_id)) is None:
            if len(self._of) >= DEPLOYMENTS_MAX:
                self._forget()
            health = self._of[deployment_id] = Health(self._slow_s)
        return health

    def promise(self, deployment_id: str, fresh_tokens: int, now: float) -> Promise:
        promise = Promise(self.of(deployment_id), fresh_tokens, now)
        self._promises.append(promise)
        return promise

    def renew(self, endpoints: set[str]) -> None:
        """These providers (or `provider@account`) have another address or credential now: what opened their breakers is
        over. Latencies are forgotten as well; trips under way keep the Health that they began with."""
        for name in [name for name in self._of if is_at(name, endpoints)]:
            del self._of[name]

    def outlook(self, deployment_ids: Iterable[str], now: float) -> Outlook:
        while self._promises and self._promises[0].until <= now:
            self._promises.popleft().keep()
        known = self._of
        return Outlook({name: known[name].standing(now) for name in deployment_ids if name in known})

    def _forget(self) -> None:
        """The oldest quarter that is idle. Its trips, should any be left, hold their own Health."""
        idle = [name for name, health in self._of.items() if not health.in_flight]
        for name in idle[: DEPLOYMENTS_MAX // 4]:
            del self._of[name]
