"""What is only told of a request never stands between it and its usage record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from billing.errors import UnknownPrice
from billing.journal import Journal, read_segment, runs, segments
from billing.prices import STANDARD, PriceSheet, Rates, make_sheet
from billing.usage import Meter, Outcome, UsageRecord
from gateway.chat import Chat
from gateway.routing.catalog import Deployment
from gateway.routing.policy import Leg
from gateway.settlement import Ending, Settlement
from providers.base import Call
from providers.neutral import ChatRequest, Usage
from tests.billing.make import intent


class Gate:
    """Limits that note what they are told: tokens, the charge, and what there is to learn of the answer."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, int, int]] = []

    async def settle(
        self, _: object, tokens: int, charge_pusd: int, *, input_tokens: int, output_tokens: int, **__: object
    ) -> None:
        self.told.append((tokens, charge_pusd, input_tokens, output_tokens))


def settlement_of(
    journal: Journal, priced: dict[Meter, int], gate: Gate | None = None, now_ns: Callable[[], int] = lambda: 2
) -> Settlement:
    sheet = make_sheet("p1", "openai", "gpt", 0, Rates(sale=priced, cost=priced), "operator")

    def of_tier(_: Deployment, variant: str) -> PriceSheet:
        raise UnknownPrice(f"tier {variant}", Meter.INPUT_TOKENS)

    leg = Leg(Deployment("openai", "openai", "gpt"), sheet)
    admission = cast(Any, None)
    debt = Settlement(journal, cast(Any, gate or Gate()), admission, intent("r1"), leg, now_ns, of_tier)
    debt.open()
    return debt


def records(directory: Path) -> list[UsageRecord]:
    found = [entry for run in runs(directory) for part in segments(run) for _, entry in read_segment(part)]
    return [entry for entry in found if isinstance(entry, UsageRecord)]


@pytest.mark.parametrize("listed", [Meter.OUTPUT_TOKENS, Meter.INPUT_TOKENS, Meter.CACHE_READ_TOKENS])
async def test_a_sheet_without_prices_for_what_was_read_from_a_cache_still_gets_its_record(
    tmp_path: Path, listed: Meter
) -> None:
    book = Journal.open(tmp_path, "gateway")
    usage = Usage(input_tokens=30, output_tokens=4, cache_read_tokens=20)
    await settlement_of(book, {listed: 3}).finish(Ending(Outcome.COMPLETED, usage, "stop", 200))
    await book.close()
    (row,) = records(tmp_path)
    assert row.quantities[Meter.CACHE_READ_TOKENS] == 20


PRICED = {Meter.INPUT_TOKENS: 3, Meter.OUTPUT_TOKENS: 5}
HELD_PUSD = intent("r1").hold_pusd


@pytest.mark.parametrize(("ending", "told"), [
    (Ending(Outcome.COMPLETED, Usage(input_tokens=30, output_tokens=4), "stop", 200), (34, 110, 30, 4)),
    # Of a tier without a price: held until it has one, and nothing is known of its charge.
    (
        Ending(Outcome.COMPLETED, Usage(input_tokens=30, output_tokens=4, service_tier="flex"), "stop", 200),
        (34, HELD_PUSD, 30, 4),
    ),
    # A guess teaches nothing.
    (Ending(Outcome.CLIENT_GONE, Usage(input_tokens=30), None, 200, output_bytes=15), (35, 115, 0, 0)),
    (Ending(Outcome.TIMED_OUT, Usage(input_tokens=30, output_tokens=4), produced=False), (0, 0, 0, 0)),
], ids=["counted", "a tier without a price", "estimated", "nothing made"])  # fmt: skip
async def test_the_limits_are_told_once_what_it_cost(
    tmp_path: Path, ending: Ending, told: tuple[int, int, int, int]
) -> None:
    gate, book = Gate(), Journal.open(tmp_path, "gateway")
    debt = settlement_of(book, PRICED, gate, lambda: intent("r1").at_ns + 7_000_000)
    charged = await debt.finish(ending)
    assert await debt.finish(Ending(Outcome.COMPLETED, Usage(input_tokens=9, output_tokens=9), "stop", 200)) == charged
    await book.close()
    assert gate.told == [told]
    assert charged == (0 if told[1] == HELD_PUSD else told[1])
    (row,) = records(tmp_path)
    assert (row.outcome, row.duration_ms) == (ending.outcome, 7)


@pytest.mark.parametrize(("asked", "sold", "told", "charged"), [
    (STANDARD, "hd/1024x1792", "default", "hd/1024x1792"),  # an image by its quality and size, whatever tier made it
    ("priority", "hd/1024x1792", "default", "hd/1024x1792"),
    ("priority", "priority", "default", STANDARD),  # the asked tier was full
    (STANDARD, STANDARD, "flex", "flex"),
    ("batch", "batch", "default", "batch"),
])  # fmt: skip
async def test_a_tier_that_is_told_changes_a_tiers_price_and_no_closer_one(
    tmp_path: Path, asked: str, sold: str, told: str, charged: str
) -> None:
    def sheet(variant: str) -> PriceSheet:
        rates = Rates(sale={Meter.INPUT_TOKENS: 3}, cost={Meter.INPUT_TOKENS: 3})
        return make_sheet(variant, "openai", "gpt", 0, rates, "operator", variant=variant)

    book = Journal.open(tmp_path, "gateway")
    deployment = Deployment("openai", "openai", "gpt")
    debt = Settlement(
        book,
        cast(Any, Gate()),
        cast(Any, None),
        replace(intent("r1"), variant=sold),
        Leg(deployment, sheet(sold)),
        lambda: 2,
        lambda _, variant: sheet(variant),
        tier=asked,
    )
    debt.open()
    await debt.finish(
        Ending(Outcome.COMPLETED, Usage(input_tokens=30, output_tokens=0, service_tier=told), "stop", 200)
    )
    await book.close()
    (row,) = records(tmp_path)
    assert (row.price_id, row.variant) == (charged, charged)


@pytest.mark.parametrize("fails", ["health", "connection", "guardrail"])
async def test_a_stream_is_settled_whatever_fails_while_it_is_tidied_up(tmp_path: Path, fails: str) -> None:
    def tidy(which: str) -> None:
        if which == fails:
            raise RuntimeError(which)

    async def close() -> None:
        tidy("connection")

    async def rest() -> AsyncIterator[bytes]:
        yield b"data: more\n\n"

    book = Journal.open(tmp_path, "gateway")
    stream = SimpleNamespace(
        usage=Usage(input_tokens=30, output_tokens=4),
        finish_reason=None,
        output_bytes=9,
        feed=lambda data: data,
        close=lambda: b"",
    )
    opened = SimpleNamespace(
        answer=SimpleNamespace(aclose=close), stream=stream, chunks=rest(), head=b"data: first\n\n", ended=False
    )
    arrival = SimpleNamespace(got=opened, journey=SimpleNamespace(end=lambda *_: tidy("health")))
    booking = SimpleNamespace(settlement=settlement_of(book, {Meter.INPUT_TOKENS: 3, Meter.OUTPUT_TOKENS: 3}))
    visit = SimpleNamespace(end=lambda _: tidy("guardrail"))
    call = Call("chat", "openai_chat", ChatRequest(model="a", messages=()), b"", "r1")
    chat = Chat(*(cast(Any, None) for _ in range(8)))
    told = b""
    with pytest.raises(RuntimeError, match=fails):
        async for piece in chat._relay(cast(Any, arrival), call, cast(Any, booking), cast(Any, visit)):
            told += piece
    await book.close()
    (row,) = records(tmp_path)
    assert (row.id, row.outcome, row.quantities[Meter.OUTPUT_TOKENS]) == ("r1", Outcome.COMPLETED, 4)
