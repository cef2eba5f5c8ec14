"""Sums over usage are the same from days, hours and rows, whatever is asked, sealed or shipped late."""

import asyncio
import itertools
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, days, rollups, schema, sums
from billing.db import reading, writing
from billing.journal import Journal
from billing.rollups import NS_PER_HOUR
from billing.sums import FAILED, FOR_EVER_NS, NOBODY, NS_PER_DAY, OTHER, Dimension, Span, Totals
from billing.usage import Meter, Outcome, UsageRecord
from billing.worker import Worker
from tests.billing.make import AT_NS, BOOK, record

DAY = AT_NS // NS_PER_DAY
MIDNIGHT_NS = DAY * NS_PER_DAY
COLUMN = {each: each.value for each in Dimension} | {
    Dimension.KEY: "key_id", Dimension.PROJECT: "project_id", Dimension.ORGANISATION: "organisation_id"
}  # fmt: skip
SPANS = [
    Span(),
    Span(MIDNIGHT_NS, MIDNIGHT_NS + NS_PER_DAY),
    Span(MIDNIGHT_NS - 2 * NS_PER_DAY + 17, MIDNIGHT_NS + 3 * NS_PER_HOUR + 1),
    Span(MIDNIGHT_NS - NS_PER_HOUR, MIDNIGHT_NS + NS_PER_HOUR),
    Span(MIDNIGHT_NS + 5, MIDNIGHT_NS + 6),
]
FILTERS: list[dict[Dimension, list[str]]] = [
    {},
    {Dimension.KEY: ["key_1"], Dimension.OUTCOME: ["completed", "killed"]},
    {Dimension.TAG: ["red"]},
    {Dimension.TEAM: ["team_1"]},
    {Dimension.TAG: ["red", "blue"]},
    {Dimension.END_USER: ["ann"], Dimension.PROJECT: ["project_1"]},
]

RANKED = (Dimension.END_USER, Dimension.TAG, Dimension.KEY)


async def ship(engine: AsyncEngine, folder: Path, records: list[UsageRecord]) -> None:
    journal = Journal.open(folder, "gw")
    for each in records:
        await journal.settle(each)
    await journal.close()
    assert await Worker(folder, engine, BOOK).ship_once() == len(records)


def some(count: int, first: int = 0, seed: int = 1) -> list[UsageRecord]:
    chance = random.Random(seed)
    made = []
    for number in range(first, first + count):
        used = {Meter.INPUT_TOKENS: chance.randrange(10**6), Meter.OUTPUT_TOKENS: 7, Meter.REQUESTS: 1}
        if chance.random() < 0.2:
            used[Meter.PAGES] = 1  # Without a price.
        at_ns = MIDNIGHT_NS + chance.randrange(-3, 2) * NS_PER_DAY + chance.randrange(NS_PER_DAY)
        if chance.random() < 0.2:
            at_ns = at_ns // NS_PER_HOUR * NS_PER_HOUR
        made.append(
            record(
                f"r{number}", at_ns=at_ns, key_id=f"key_{chance.randrange(3)}", quantities=used,
                project_id=f"project_{chance.randrange(2)}", deployment=chance.choice(["eu", "us"]),
                outcome=chance.choice(list(Outcome)), end_user=chance.choice([None, "ann", "bob"]),
                tags=tuple(sorted({"red", "blue"} & {chance.choice(["red", "no"]), chance.choice(["blue", "no"])})),
                first_token_ms=chance.choice([None, chance.randrange(900), chance.randrange(1000, 4000)]),
                estimated=chance.random() < 0.3,
            )
        )  # fmt: skip
    return made


async def rows_of(engine: AsyncEngine) -> list[dict[str, Any]]:
    async with reading(engine) as db:
        return [dict(row) for row in (await db.execute(select(schema.usage_records))).mappings()]


def total(rows: list[dict[str, Any]]) -> Totals:
    return Totals(
        requests=len(rows), failed=sum(r["outcome"] in FAILED for r in rows),
        input_tokens=sum(r["input_tokens"] for r in rows), output_tokens=sum(r["output_tokens"] for r in rows),
        charge_pusd=sum(r["charge_pusd"] or 0 for r in rows), cost_pusd=sum(r["cost_pusd"] or 0 for r in rows),
        estimated=sum(r["estimated"] for r in rows), unpriced=sum(r["charge_pusd"] is None for r in rows),
    )  # fmt: skip


def names(row: dict[str, Any], by: Dimension, filters: dict[Dimension, list[str]]) -> list[Any]:
    if by is Dimension.TEAM:
        return ["team_1" if row["project_id"] == "project_1" else None]
    if by is not Dimension.TAG:
        return [row[COLUMN[by]]]
    kept = [tag for tag in row["tags"] if tag in filters.get(by, [tag])]
    return kept or [None]


def chosen(rows: list[dict[str, Any]], span: Span, filters: dict[Dimension, list[str]]) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if span.since_ns <= row["at_ns"] < span.until_ns
        and all(bool(set(names(row, name, {})) & set(values)) for name, values in filters.items())
    ]


async def check(engine: AsyncEngine) -> None:
    rows = await rows_of(engine)
    async with reading(engine) as db:
        for span, filters in itertools.product(SPANS, FILTERS):
            mine = chosen(rows, span, filters)
            assert await sums.totals(db, span, filters) == total(mine), (span, filters)
            for by in Dimension:
                expected: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
                for row in mine:
                    for name in names(row, by, filters):
                        expected[name].append(row)
                found = await sums.groups(db, by, span, filters)
                assert dict(found) == {name: total(part) for name, part in expected.items()}, (by, span, filters)
                assert found == sorted(found, key=lambda g: (-g[1].charge_pusd, -g[1].requests))
        for span, by in itertools.product(SPANS, RANKED):
            found = await sums.groups(db, by, span, {})
            top = [name for name, _ in found[:2] if name is not None]
            listed, steps = await sums.ranked(db, by, NS_PER_DAY, span, {}, limit=3, top=2)
            assert listed == found[:3], (by, span)
            assert steps == await sums.series(db, by, NS_PER_DAY, span, {}, top), (by, span)
        for span, width in itertools.product(SPANS, (NS_PER_DAY, NS_PER_HOUR, 60 * 10**9)):
            steps: defaultdict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
            for row in chosen(rows, span, {}):
                name = row["end_user"]
                steps[row["at_ns"] // width, name if name == "ann" else NOBODY if name is None else OTHER].append(row)
            points = await sums.series(db, Dimension.END_USER, width, span, {}, ["ann"])
            assert {point[:2]: point[2] for point in points} == {key: total(part) for key, part in steps.items()}
            plain = await sums.series(db, None, width, span, {})
            assert sum(point[2].charge_pusd for point in plain) == sum(point[2].charge_pusd for point in points)


async def test_any_question_has_the_same_answer_from_days_hours_and_rows(
    fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    async with writing(fresh_engine) as db:
        await accounts.create_organisation(db, "org_1", "One", at_ns=0)
        await accounts.create_team(db, "team_1", "org_1", "Team", at_ns=0)
        await accounts.create_project(db, "project_1", "org_1", "Project", at_ns=0)
        await accounts.join_team(db, "project_1", "team_1")
    await ship(fresh_engine, tmp_path / "a", some(150))
    await check(fresh_engine)
    # Noon of the last day: that one is not over.
    now_ns = MIDNIGHT_NS + NS_PER_DAY * 3 // 2
    assert await days.seal_due(fresh_engine, now_ns=now_ns) == 4
    assert await days.seal_due(fresh_engine, now_ns=now_ns) == 0
    await check(fresh_engine)
    # Late rows take seals off, and what they say is there at once and after the next sealing.
    await ship(fresh_engine, tmp_path / "b", [each for each in some(60, first=150, seed=2) if each.at_ns < MIDNIGHT_NS])
    async with reading(fresh_engine) as db:
        left = (await db.execute(select(func.count()).select_from(schema.usage_sealed))).scalar_one()
    assert left == 1
    await check(fresh_engine)
    assert await days.seal_due(fresh_engine, now_ns=now_ns) == 3
    await check(fresh_engine)
    assert await days.rebuild(fresh_engine, now_ns=now_ns) == 4
    await check(fresh_engine)


async def test_sealed_days_are_what_is_read(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    """It can fail: without their rows, sealed days still answer, and only for what they keep."""
    await ship(fresh_engine, tmp_path, some(80))
    now_ns = MIDNIGHT_NS + 2 * NS_PER_DAY + NS_PER_HOUR
    await days.seal_due(fresh_engine, now_ns=now_ns)
    rows = await rows_of(fresh_engine)
    whole = Span(MIDNIGHT_NS - 3 * NS_PER_DAY, MIDNIGHT_NS + 2 * NS_PER_DAY)
    async with writing(fresh_engine) as db:
        await db.execute(delete(schema.usage_records))
        await db.execute(delete(schema.usage_hours))
    async with reading(fresh_engine) as db:
        assert await sums.totals(db, whole, {}) == total(rows)
        assert sum(group[1].requests for group in await sums.groups(db, Dimension.END_USER, whole, {})) == len(rows)
        one_tag = await sums.totals(db, whole, {Dimension.TAG: ["red"]})
        assert one_tag == total([row for row in rows if "red" in row["tags"]])
        two = {Dimension.TAG: ["red"], Dimension.KEY: ["key_1"]}
        assert await sums.totals(db, whole, two) == Totals()  # Only rows know both.


async def test_how_long_the_first_token_took(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path, some(120))
    rows = await rows_of(fresh_engine)
    span = Span(MIDNIGHT_NS - 3 * NS_PER_DAY + 5, MIDNIGHT_NS + 2 * NS_PER_DAY - 5)

    def waited(since_ns: int, until_ns: int, *, sealed: bool) -> list[tuple[int, int]]:
        counts: defaultdict[int, int] = defaultdict(int)
        for row in rows:
            ms = row["first_token_ms"]
            if ms is not None and since_ns <= row["at_ns"] < until_ns:
                counts[ms if ms < 1000 or not sealed else ms // 10 * 10] += 1
        return sorted(counts.items())

    async with reading(fresh_engine) as db:
        assert await sums.waits(db, span) == waited(span.since_ns, span.until_ns, sealed=False)
        assert await sums.waits(db, span, ["nobody"]) == []
    await days.seal_due(fresh_engine, now_ns=MIDNIGHT_NS + 3 * NS_PER_DAY)
    last = MIDNIGHT_NS + NS_PER_DAY
    async with reading(fresh_engine) as db:
        assert await sums.waits(db, span, ["openai"]) == waited(MIDNIGHT_NS - 3 * NS_PER_DAY, last, sealed=True)
        short = Span(MIDNIGHT_NS, last)
        assert await sums.waits(db, short) == waited(MIDNIGHT_NS, last, sealed=False)


async def test_a_row_that_comes_while_its_day_is_sealed_is_not_lost(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path, some(40))
    now_ns = MIDNIGHT_NS + 3 * NS_PER_DAY

    async def late(number: int) -> None:
        async with writing(fresh_engine) as db:
            row = (await db.execute(select(schema.usage_records).limit(1))).mappings().one()
            copy = {**row, "id": f"late_{number}", "at_ns": MIDNIGHT_NS + number}
            await db.execute(insert(schema.usage_records), [copy])
            await asyncio.sleep(0)
            await rollups.add(db, [copy])

    async def seal() -> None:
        async with writing(fresh_engine) as db:
            await days.seal(db, DAY)

    for round_ in range(5):
        await asyncio.gather(*(late(round_ * 10 + n) for n in range(4)), seal(), late(round_ * 10 + 9), seal())
        await check_day(fresh_engine)
    await days.seal_due(fresh_engine, now_ns=now_ns)
    await check_day(fresh_engine)


async def check_day(engine: AsyncEngine) -> None:
    span = Span(MIDNIGHT_NS, MIDNIGHT_NS + NS_PER_DAY)
    rows = chosen(await rows_of(engine), span, {})
    async with reading(engine) as db:
        assert await sums.totals(db, span, {}) == total(rows)
        users = await sums.groups(db, Dimension.END_USER, span, {})
    assert sum(line.requests for _, line in users) == len(rows)


async def test_sums_beyond_64_bits(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path, [record("r0")])
    top = 2**63 - 1
    async with writing(fresh_engine) as db:
        row = (await db.execute(select(schema.usage_records))).mappings().one()
        copies = [{**row, "id": f"big{n}", "charge_pusd": top, "input_tokens": top} for n in range(50)]
        await db.execute(insert(schema.usage_records), copies)
        await rollups.add(db, copies)
    for _ in range(2):
        async with reading(fresh_engine) as db:
            found = await sums.totals(db, Span(), {})
            assert found.charge_pusd == 50 * top + row["charge_pusd"]
            people = await sums.groups(db, Dimension.END_USER, Span(0, FOR_EVER_NS), {})
            assert people[0][1].charge_pusd == found.charge_pusd
        await days.seal_due(fresh_engine, now_ns=AT_NS + 2 * NS_PER_DAY)


@pytest.mark.parametrize("by", list(Dimension))
async def test_nothing_there_is_nothing(fresh_engine: AsyncEngine, by: Dimension) -> None:
    async with reading(fresh_engine) as db:
        assert await sums.totals(db, Span(), {}) == Totals()
        assert await sums.groups(db, by, Span(5, 6), {by: ["x"]}) == []
        assert await sums.series(db, by, NS_PER_DAY, Span(), {}) == []
        assert await sums.waits(db, Span()) == []
