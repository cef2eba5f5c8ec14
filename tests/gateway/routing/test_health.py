"""The breaker as a state machine, the latency window, calls in flight. No clock but the tests' own."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.observe.vitals import CONDITIONS
from gateway.routing import health
from gateway.routing.health import (
    CONSECUTIVE_FAILURES,
    Breaker,
    Condition,
    Health,
    HealthTable,
    PeakEwma,
    Standing,
    Trip,
)
from providers.errors import (
    AuthFailed,
    Broken,
    Interrupted,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    Unsupported,
)

NOW = 1000.0
# Seconds are floats: (now + 600) - now may be a little more or less.
A_HAIR = 1e-6


def fail(told: Health, times: int, now: float = NOW, error: ProviderError | None = None) -> None:
    for _ in range(times):
        trip = Trip(told, now)
        trip.failed(error or Broken("500"), now)
        trip.end(now)


def succeed(told: Health, times: int = 1, now: float = NOW) -> None:
    for _ in range(times):
        trip = Trip(told, now)
        trip.answered(now, streams=False)
        trip.end(now)


def condition(told: Health, now: float = NOW) -> str:
    return told.standing(now).condition


def test_failures_in_a_row_open_and_one_good_probe_closes() -> None:
    told = Health()
    fail(told, health.CONSECUTIVE_FAILURES - 1)
    assert condition(told) == "closed"
    fail(told, 1)
    assert condition(told) == "open"
    assert told.standing(NOW).wait_s == health.OPEN_S
    later = NOW + health.OPEN_S
    assert condition(told, later) == "half_open"
    probe = Trip(told, later)
    assert condition(told, later) == "open"  # for everyone else
    probe.answered(later, streams=True)
    assert condition(told, later) == "closed"
    probe.end(later)
    assert told.in_flight == 0


def test_each_failed_probe_doubles_the_wait_up_to_a_minute() -> None:
    told, now, waits = Health(), NOW, []
    fail(told, health.CONSECUTIVE_FAILURES)
    for _ in range(6):
        waits.append(told.standing(now).wait_s)
        now += waits[-1]
        fail(told, 1, now)
    assert waits == [5, 10, 20, 40, 60, 60]


def test_half_of_enough_calls_opens_and_half_of_a_few_does_not() -> None:
    told = Health()
    for _ in range(4):
        succeed(told)
        fail(told, 1)
    assert condition(told) == "closed"  # 4 of 8
    succeed(told)
    fail(told, 1)
    assert condition(told) == "open"  # 5 of 10
    old = Health()
    for _ in range(4):
        succeed(old)
        fail(old, 1)
    succeed(old, now=NOW + 60)
    fail(old, 1, NOW + 60)
    assert condition(old, NOW + 60) == "closed"  # those of a minute ago count no more


def test_a_refused_credential_opens_at_once_and_for_longer() -> None:
    told = Health()
    fail(told, 1, error=AuthFailed("401"))
    assert told.standing(NOW) == Standing("open", health.OPEN_AUTH_S, unasked_s=0.0, calls=1, failed_share=1.0)


@pytest.mark.parametrize(("hint", "wait"), [(7.0, 7.0), (None, health.COOL_S), (86_400.0, health.COOL_LONGEST_S)])
def test_a_throttled_one_cools_for_as_long_as_it_asks(hint: float | None, wait: float) -> None:
    told = Health()
    fail(told, 1, error=Throttled("429", retry_after_s=hint))
    assert told.standing(NOW) == Standing("cooling", wait, unasked_s=0.0)
    assert condition(told, NOW + wait) == "closed"


def test_who_is_full_and_says_when_to_come_back_has_not_failed() -> None:
    told = Health()
    fail(told, 20, error=Overloaded("503", retry_after_s=3.0))
    assert (told.standing(NOW + 2.9).condition, told.standing(NOW + 3.1).condition) == ("cooling", "closed")
    fail(told, 1, NOW + 4, Overloaded("down for a day", retry_after_s=86_400.0))
    assert told.standing(NOW + 63.9).wait_s == pytest.approx(0.1)
    fail(told, CONSECUTIVE_FAILURES, NOW + 70, Overloaded("503"))
    assert told.standing(NOW + 70.1).condition == "open", "without a word of when it is a failure"
    fail(told, 1, NOW + 76, Overloaded("503", retry_after_s=3.0))
    assert told.standing(NOW + 78.9).condition == "open", "nobody there has answered yet"
    assert told.standing(NOW + 79.1).condition == "half_open"
    succeed(told, now=NOW + 80)
    assert told.standing(NOW + 80).condition == "closed"


def test_who_is_full_each_time_one_comes_back_as_told_is_taken_for_down() -> None:
    told, full, now, waits = Health(), Overloaded("503", retry_after_s=1.0), NOW, []
    for _ in range(30):
        fail(told, 8, now, full)  # Several at once, as those come who were kept away.
        assert condition(told, now) == "cooling"
        now += 1.0
    for _ in range(6):
        fail(told, 1, now, full)
        assert condition(told, now) == "open"
        waits.append(told.standing(now).wait_s)
        now += waits[-1]
        assert condition(told, now) == "half_open"
    assert waits == [5, 10, 20, 40, 60, 60]
    fail(told, 1, now, Overloaded("503", retry_after_s=600.0))
    assert condition(told, now + 59) == "open"
    now += 60
    succeed(told, now=now)
    fail(told, 1, now, full)
    assert condition(told, now) == "cooling", "it has answered, so it is full again"


def test_who_is_full_now_and_then_is_not_down() -> None:
    told, full = Health(), Overloaded("503", retry_after_s=1.0)
    for hour in range(health.UNKEPT_WORDS - 1):
        fail(told, 20, NOW + 3_600 * hour, full)
        assert condition(told, NOW + 3_600 * hour) == "cooling"
    busy = Health()
    for second in range(120):  # One in ten gets in.
        if second % 10 == 9:
            succeed(busy, now=NOW + second)
        fail(busy, 5, NOW + second, full)
        assert condition(busy, NOW + second) == "cooling"


def test_a_no_to_the_client_is_health_and_what_was_never_sent_is_nothing() -> None:
    told = Health()
    fail(told, health.CONSECUTIVE_FAILURES - 1)
    fail(told, 1, error=Unsupported(("tools",), "it"))
    fail(told, 1, error=Rejected("400"))
    fail(told, health.CONSECUTIVE_FAILURES - 1)
    assert condition(told) == "closed"


def test_a_probe_that_tells_nothing_leaves_the_place_to_the_next() -> None:
    told = Health()
    fail(told, health.CONSECUTIVE_FAILURES)
    later = NOW + health.OPEN_S
    Trip(told, later).end(later)
    assert condition(told, later) == "half_open"


def test_an_answer_that_was_asked_for_before_the_opening_does_not_close() -> None:
    told = Health()
    early = Trip(told, NOW - 1)
    fail(told, health.CONSECUTIVE_FAILURES)
    early.answered(NOW, streams=True)
    assert condition(told) == "open"
    early.failed(Interrupted("cut"), NOW)
    early.end(NOW, 100)
    assert told.in_flight == 0


def test_a_stream_that_breaks_is_a_failure_though_it_began_well() -> None:
    told = Health()
    for _ in range(health.JUDGED_CALLS // 2):
        trip = Trip(told, NOW)
        trip.answered(NOW, streams=True)
        trip.failed(Interrupted("cut"), NOW)
        trip.end(NOW)
    assert condition(told) == "open"


def test_latency_rises_at_once_falls_slowly_and_is_forgotten_when_idle() -> None:
    mean = PeakEwma()
    mean.observe(0.1, 0.0)
    mean.observe(2.0, 1.0)
    assert mean.read(1.0) == 2.0
    mean.observe(0.1, 2.0)
    assert 1.5 < (mean.read(2.0) or 0) < 2.0
    assert (mean.read(62.0) or 1) < 0.01


def test_what_is_measured_and_who_stands_in_line() -> None:
    told = Health()
    trip = Trip(told, NOW)
    trip.answered(NOW + 0.5, streams=True)
    assert told.standing(NOW + 0.5).expected_s == 1.0  # half a second behind one in flight
    trip.end(NOW + 2.5, 100)
    trip.end(NOW + 9.0, 100)
    standing = told.standing(NOW + 0.5)
    assert (standing.first_token_s, standing.tokens_per_s, standing.in_flight) == (0.5, 50.0, 0)
    assert standing.answer_s == 2.5


def test_the_table_forgets_the_idle_and_keeps_the_busy() -> None:
    table = HealthTable()
    Trip(table.of("busy"), NOW)
    for number in range(health.DEPLOYMENTS_MAX + 100):
        table.of(f"p/m{number}")
    assert len(table) <= health.DEPLOYMENTS_MAX
    assert table.outlook(["busy", "never"], NOW).standings == {"busy": Standing(in_flight=1, unasked_s=0.0)}


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls, ends and waits. The model knows only what clients may rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.breaker = Breaker()
        self.calls: list[tuple[float, int | None]] = []

    @rule(seconds=st.floats(0.001, 90))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        before = self.breaker.condition(self.now)
        probe = self.breaker.begin(self.now)
        assert (probe is not None) == (before == "half_open")
        assert probe is None or self.breaker.probing == probe
        self.calls.append((self.now, probe))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "auth", "throttled", "rationed", "let_go"]))
    def end(self, data: st.DataObject, how: str) -> None:
        began, probe = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        was = self.breaker.condition(self.now)
        is_probe = probe is not None and probe == self.breaker.probing
        match how:
            case "succeeded":
                self.breaker.succeeded(began, self.now, probe)
                if was == "closed" or is_probe:
                    assert self.breaker.condition(self.now) in ("closed", "cooling")
            case "failed" | "auth":
                self.breaker.failed(began, self.now, probe, auth=how == "auth")
                if is_probe or how == "auth":
                    assert self.breaker.condition(self.now) == "open"
                    assert self.breaker.wait_s(self.now) >= health.OPEN_S - A_HAIR
            case "throttled":
                self.breaker.throttled(3.0, self.now, probe)
            case "rationed":
                self.breaker.rationed(3.0, self.now, probe)
                assert self.breaker.wait_s(self.now) >= 3.0 - A_HAIR
            case _:
                self.breaker.let_go(probe)

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        assert self.breaker.wait_s(self.now) <= health.OPEN_AUTH_LONGEST_S + A_HAIR
        late = self.now + self.breaker.wait_s(self.now) + 0.001
        if self.breaker.probing is None:
            assert self.breaker.condition(late) in ("closed", "half_open")

    @invariant()
    def whoever_keeps_others_out_is_one_call_that_is_still_on_its_way(self) -> None:
        if self.breaker.probing is not None:
            assert [probe for _, probe in self.calls].count(self.breaker.probing) == 1


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.floats(0.001, 100), st.floats(0, 30)), min_size=1))
@settings(max_examples=60, deadline=None)
def test_the_window_stays_between_the_least_and_the_greatest_seen(seen: list[tuple[float, float]]) -> None:
    mean, now = PeakEwma(), 0.0
    for value, gap in seen:
        now += gap
        mean.observe(value, now)
        assert mean.latest is not None
        assert mean.latest >= value or mean.latest == pytest.approx(value)
    assert mean.latest is not None
    assert min(v for v, _ in seen) * 0.999 <= mean.latest <= max(v for v, _ in seen) * 1.001


def test_a_probe_takes_one_out_and_brings_it_back() -> None:
    breaker = Breaker()
    breaker.missed(until=10.0)
    assert (breaker.condition(9.0), breaker.wait_s(9.0)) == ("absent", 1.0)
    assert breaker.condition(10.0) == "closed", "nobody probes any more: requests find out"
    breaker.missed(until=20.0)
    breaker.succeeded(11.0, 12.0, None)
    assert breaker.condition(12.0) == "closed", "an answer is worth more than a probe"


def test_what_opened_while_it_was_away_is_tried_when_it_is_back_and_only_then() -> None:
    breaker = Breaker()
    for now in range(CONSECUTIVE_FAILURES):
        breaker.failed(now, now, None)
    breaker.back(4.5)
    assert breaker.condition(4.5) == "open", "that the host is there does not mend what its answers broke"
    breaker.missed(until=100.0)
    breaker.back(5.0)
    assert breaker.condition(5.0) == "half_open"


def test_metrics_have_a_number_for_every_condition() -> None:
    assert set(CONDITIONS) == set(get_args(Condition))
