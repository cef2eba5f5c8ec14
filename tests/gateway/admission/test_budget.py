"""Worst cases: never below what is charged, and not so far above that a fitting request is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import UnknownPrice
from billing.prices import PriceSheet, Rates, Tier, make_sheet
from billing.rating import charge
from billing.usage import Meter
from gateway.admission.budget import OVERHEAD_TOKENS, Estimate, Ratios, estimate, image_tokens
from tests.gateway.admission.support import sheet


def worst(*sheets: PriceSheet, ratios: Ratios | None = None, **more: object) -> Estimate:
    facts: dict[str, object] = {
        "input_bytes": 1_000, "images": 0, "candidates": 1, "context_window": 100_000, "extra": {},
    }  # fmt: skip
    return estimate(ratios or Ratios(), "small", sheets=sheets, **{**facts, **more})  # type: ignore[arg-type]


def test_the_dearest_sheet_counts() -> None:
    cheap, dear = sheet(1, 2), sheet(3, 1)
    both = worst(cheap, dear)
    tokens = both.input_tokens
    assert tokens == OVERHEAD_TOKENS + 500
    assert both.hold_pusd(10) == max(tokens + 20, 3 * tokens + 10)
    assert both.hold_pusd(10**6) == tokens + 2 * 10**6
    assert both.quantities(10) == {Meter.INPUT_TOKENS: tokens, Meter.REQUESTS: 1, Meter.OUTPUT_TOKENS: 10}


def test_what_a_provider_may_count_more_dearly_is_held_so() -> None:
    writes = worst(sheet(2, 10, cache_write_5m_tokens=3, cache_write_1h_tokens=5, reasoning_tokens=20, requests=1_000))
    assert writes.hold_pusd(7) == 5 * writes.input_tokens + 7 * 20 + 1_000
    searches = worst(sheet(2, 10, searches=10**9), extra={Meter.SEARCHES: 3})
    assert searches.hold_pusd(0) == 2 * searches.input_tokens + 3 * 10**9
    with pytest.raises(UnknownPrice):
        worst(sheet(), extra={Meter.SEARCHES: 1})


def test_unpriced_is_refused_and_an_embedding_needs_no_output_price() -> None:
    no_output = make_sheet("p", "x", "e", 0, Rates({Meter.INPUT_TOKENS: 1}, {}), "test")
    with pytest.raises(UnknownPrice):
        worst(no_output)
    assert worst(no_output, answers=False).hold_pusd(0) == OVERHEAD_TOKENS + 500
    with pytest.raises(UnknownPrice):
        worst(make_sheet("p", "x", "n", 0, Rates({Meter.OUTPUT_TOKENS: 1}, {}), "test"))


def test_context_tiers_and_images() -> None:
    tiers = (Tier(10_000, {Meter.INPUT_TOKENS: 9, Meter.OUTPUT_TOKENS: 90}, {}),)
    tiered = make_sheet("p", "x", "t", 0, Rates({Meter.INPUT_TOKENS: 1, Meter.OUTPUT_TOKENS: 5}, {}, tiers), "test")
    assert worst(tiered).hold_pusd(1) == OVERHEAD_TOKENS + 500 + 5
    pictures = worst(tiered, images=5)
    assert pictures.input_tokens == OVERHEAD_TOKENS + 500 + 5 * image_tokens("small")
    assert pictures.hold_pusd(1) == 9 * pictures.input_tokens + 90
    assert image_tokens("openai/GPT-4o-mini") > image_tokens("gpt-5") > 0


def test_no_prompt_is_larger_than_the_context() -> None:
    assert worst(sheet(), input_bytes=10**9, context_window=8_192).input_tokens == 8_192


@given(pusd=st.integers(0, 10**7), each=st.integers(0, 50), candidates=st.integers(1, 4))
def test_the_affordable_output_is_the_longest_that_fits(pusd: int, each: int, candidates: int) -> None:
    line = worst(sheet(2, each), sheet(1, 3 * each), candidates=candidates)
    output = line.affordable_output(pusd)
    if output is None:
        assert each == 0
        assert line.hold_pusd(10**9) <= pusd
    elif output:
        assert line.hold_pusd(output) <= pusd < line.hold_pusd(output + 1)
    else:
        assert line.hold_pusd(1) > pusd


@given(
    text_bytes=st.integers(0, 10**6),
    output=st.integers(0, 10_000),
    ratio=st.floats(2, 8),
    reasoning=st.integers(0, 10_000),
)
def test_the_hold_covers_what_is_charged(text_bytes: int, output: int, ratio: float, reasoning: int) -> None:
    """For any prompt that is no denser than two bytes a token."""
    prices = sheet(2, 10, cache_read_tokens=1, cache_write_5m_tokens=3, reasoning_tokens=12)
    held = worst(prices, input_bytes=text_bytes, context_window=10**7).hold_pusd(output)
    tokens = int(text_bytes / ratio)
    used = {
        Meter.INPUT_TOKENS: tokens - tokens // 3,
        Meter.CACHE_WRITE_5M_TOKENS: tokens // 3,
        Meter.REASONING_TOKENS: min(reasoning, output),
        Meter.OUTPUT_TOKENS: output - min(reasoning, output),
        Meter.REQUESTS: 1,
    }
    assert charge(used, prices).sale_pusd <= held


def test_the_ratio_is_learned_and_clamped() -> None:
    ratios = Ratios()
    before = ratios.worst_input("m", 8_000)
    for _ in range(200):
        ratios.learn("m", 8_000, 1_600, 100)
    assert 1_600 < ratios.worst_input("m", 8_000) < 1_600 * 1.1 + OVERHEAD_TOKENS < before
    assert ratios.likely_input("m", 8_000) == pytest.approx(1_600, rel=0.01)
    assert ratios.likely_output("m") == pytest.approx(200, rel=0.01)
    for _ in range(200):
        ratios.learn("m", 8_000, 80_000, 0)  # Ten tokens a byte is nobody's tokenizer.
    assert ratios.worst_input("m", 8_000) == OVERHEAD_TOKENS + 8_000
    for _ in range(500):
        ratios.learn("m", 8_000, 1, 0)
    assert ratios.worst_input("m", 8_000) <= OVERHEAD_TOKENS + 1_100


def test_one_odd_prompt_makes_it_careful_again() -> None:
    ratios = Ratios()
    for _ in range(200):
        ratios.learn("m", 8_000, 2_000, 10)
    steady = ratios.worst_input("m", 8_000)
    ratios.learn("m", 8_000, 6_000, 10)
    assert ratios.worst_input("m", 8_000) > steady * 1.1


def test_short_prompts_and_silence_teach_nothing() -> None:
    ratios = Ratios()
    before = ratios.worst_input("m", 1_000), ratios.likely_output("m")
    ratios.learn("m", 20, 60, 0)
    ratios.learn("m", 9_000, 0, 0)
    assert (ratios.worst_input("m", 1_000), ratios.likely_output("m")) == before


def test_the_memory_is_bounded() -> None:
    ratios = Ratios()
    for i in range(10_050):
        ratios.learn(f"m{i}", 1_000, 250, 10)
    assert len(ratios._learned) == 10_000
