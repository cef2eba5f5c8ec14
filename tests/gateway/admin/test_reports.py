"""What the reports say is what was recorded, to the pico-dollar, on both databases."""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.money import format_usd, parse_usd
from billing.rating import charge
from billing.usage import UsageRecord, input_tokens_total, output_tokens_total
from gateway.admin.reading import Reader
from gateway.admin.times import stamp
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import DAY_NS, NOW_NS, World, traffic


def _charge(made: World, record: UsageRecord) -> int:
    sheet = made.prices.by_id(record.price_id)
    assert sheet is not None
    return charge(record.quantities, sheet).sale_pusd


def _since(days: int) -> str:
    return stamp(NOW_NS - days * DAY_NS).isoformat()


def _by(made: World, records: list[UsageRecord], key: Callable[[UsageRecord], Any]) -> Counter[Any]:
    sums: Counter[Any] = Counter()
    for record in records:
        sums[key(record)] += _charge(made, record)
    return sums


async def test_overview_tells_this_week_from_the_one_before(made: World, browser: Browser, tmp_path: Path) -> None:
    records = await traffic(made, tmp_path / "journal", 300, days=14)
    said = await browser.get("/overview", **{"from": _since(7)})
    for part, start, end in (("now", 7, 0), ("before", 14, 7)):
        mine = [r for r in records if NOW_NS - start * DAY_NS <= r.at_ns < NOW_NS - end * DAY_NS]
        totals = said[part]
        assert totals["requests"] == len(mine) > 0
        assert totals["charge_usd"] == format_usd(sum(_charge(made, r) for r in mine))
        assert totals["input_tokens"] == sum(input_tokens_total(r.quantities) for r in mine)
        assert totals["output_tokens"] == sum(output_tokens_total(r.quantities) for r in mine)
        assert totals["failed"] == sum(r.outcome in ("upstream_failed", "timed_out", "killed") for r in mine)
        times = sorted(r.first_token_ms for r in mine if r.first_token_ms is not None)
        quantiles = said["first_token_now" if part == "now" else "first_token_before"]
        assert quantiles["p50_ms"] == times[-(-len(times) * 50 // 100) - 1]
        assert quantiles["p95_ms"] == times[-(-len(times) * 95 // 100) - 1]
    assert sum(parse_usd(point["charge_usd"]) for point in said["by_model"]) == parse_usd(said["now"]["charge_usd"])
    budget = next(each for each in said["budgets"] if each["label"] == "Shop")
    month = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC).timestamp() * 10**9
    spent = sum(_charge(made, r) for r in records if r.project_id == "proj_shop" and r.at_ns >= month)
    assert budget["spent_usd"] == format_usd(spent)


@pytest.mark.parametrize("by", ["key", "project", "alias", "provider", "outcome", "end_user", "dialect"])
async def test_usage_by_any_dimension_adds_up(small: World, tmp_path: Path, by: str) -> None:
    records = await traffic(small, tmp_path / "journal", 120, days=5)
    field = {"key": "key_id", "project": "project_id"}.get(by, by)
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        said = await browser.get("/usage", by=by, **{"from": _since(30)})
        expected = _by(small, records, lambda r: getattr(r, field) or "(none)")
        assert {group["name"]: parse_usd(group["totals"]["charge_usd"]) for group in said["groups"]} == dict(expected)
        charges = [parse_usd(group["totals"]["charge_usd"]) for group in said["groups"]]
        assert charges == sorted(charges, reverse=True)
        assert parse_usd(said["total"]["charge_usd"]) == sum(expected.values())
        # Steps of a day begin at midnight, and lose nothing.
        days = Counter[str]()
        for point in said["series"]:
            days[point["at"]] += parse_usd(point["charge_usd"])
        assert days == _by(
            small, records, lambda r: stamp(r.at_ns // DAY_NS * DAY_NS).isoformat().replace("+00:00", "Z")
        )
        if by == "key":
            assert {group["label"] for group in said["groups"]} == set(small.key_ids)


async def test_filters_narrow_and_several_values_widen(made: World, browser: Browser, tmp_path: Path) -> None:
    records = await traffic(made, tmp_path / "journal", 120, days=5)
    keys = [made.key_ids["ci"], made.key_ids["nightly-batch"]]
    said = await browser.get("/usage", by="alias", provider="openai", key=keys, **{"from": _since(30)})
    mine = [r for r in records if r.provider == "openai" and r.key_id in keys]
    assert said["total"]["requests"] == len(mine) > 0
    assert [group["name"] for group in said["groups"]] == ["gpt-5-mini"]


async def test_what_is_beyond_the_biggest_groups_is_in_other(small: World, tmp_path: Path) -> None:
    from gateway.admin import reports
    from gateway.admin.times import BUCKETS, Period

    await traffic(small, tmp_path / "journal", 80, days=2)
    period = Period(NOW_NS - 3 * DAY_NS, NOW_NS)
    async with small.services.reader.reading() as db:
        points = await reports.series(db, "alias", BUCKETS["day"], period, {}, ["gpt-5-mini"])
        total = await reports.totals(db, period, {})
    assert {point.name for point in points} == {"gpt-5-mini", reports.OTHER}
    assert sum(point.totals.charge_pusd for point in points) == total.charge_pusd


@pytest.mark.parametrize("by", ["alias", "outcome", "dialect", "end_user", "key"])
async def test_one_query_says_what_three_say(
    made: World, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.admin import reports
    from gateway.admin.times import BUCKETS, Period

    await traffic(made, tmp_path / "journal", 60, days=4)
    period, filters = Period(NOW_NS - 3 * DAY_NS, NOW_NS), {"provider": ["openai", "groq", "anthropic"]}
    answers = []
    for few in (frozenset({by}), frozenset[str]()):
        monkeypatch.setattr(reports, "_FEW", few)
        async with made.services.reader.reading() as db:
            answers.append(await reports.explore(db, by, BUCKETS["day"], period, filters, limit=2, top=1))
    assert answers[0] == answers[1]
    assert len(answers[0].groups) == 2
    assert answers[0].total.charge_pusd == sum(point.totals.charge_pusd for point in answers[0].points) > 0


async def test_the_table_for_spreadsheets_is_exact_and_inert(made: World, browser: Browser, tmp_path: Path) -> None:
    records = await traffic(made, tmp_path / "journal", 60, days=5)
    answer = await browser.call("GET", f"/usage.csv?by=alias&from={_since(30).replace('+', '%2B')}")
    assert answer.headers["content-disposition"] == 'attachment; filename="usage-by-alias.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["alias"]: parse_usd(row["charge_usd"]) for row in rows} == dict(_by(made, records, lambda r: r.alias))
    from gateway.admin.api.usage_export import _inert

    assert [_inert(name) for name in ("=1+1", "@SUM(A1)", "gpt")] == ["'=1+1", "'@SUM(A1)", "gpt"]


async def test_pages_of_requests_meet_without_gap_or_overlap(made: World, browser: Browser, tmp_path: Path) -> None:
    records = await traffic(made, tmp_path / "journal", 55, days=5)
    seen: list[str] = []
    cursor = None
    while True:
        page = await browser.get("/requests", limit=10, cursor=cursor)
        seen += [item["id"] for item in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == [r.id for r in sorted(records, key=lambda r: (-r.at_ns, r.id))]
    bad = await browser.call("GET", "/requests?cursor=AAAA")
    assert (bad.status_code, bad.json()["field"]) == (422, "cursor")


async def test_one_request_is_priced_line_by_line_and_matches_its_postings(
    made: World, browser: Browser, tmp_path: Path
) -> None:
    records = await traffic(made, tmp_path / "journal", 40, days=5)
    record = next(r for r in records if len(r.quantities) == 4)  # One that read from a cache.
    said = await browser.get(f"/requests/{record.id}")
    charged = _charge(made, record)
    assert parse_usd(said["request"]["charge_usd"]) == charged
    assert {line["meter"]: line["quantity"] for line in said["lines"]} == {
        m.value: q for m, q in record.quantities.items()
    }
    assert sum(parse_usd(line["amount_usd"]) for line in said["lines"]) == charged
    for line in said["lines"]:
        assert parse_usd(line["price_usd_per_million"]) * line["quantity"] == parse_usd(line["amount_usd"]) * 10**6
    sold = [p for p in said["postings"] if p["kind"] in ("charge", "overrun")]
    assert sum(parse_usd(p["amount_usd"]) for p in sold) == charged
    missing = await browser.call("GET", "/requests/req_none")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert missing.json()["todo"]


async def test_what_a_request_cost_us_is_for_those_who_see_money(small: World, tmp_path: Path) -> None:
    from gateway.admin.auth.roles import Role

    records = await traffic(small, tmp_path / "journal", 5, days=1)
    record = next(r for r in records if r.quantities)
    async with Browser(small.app()) as viewer, Browser(small.app()) as finance:
        await viewer.sign_in(await small.link(Role.VIEWER))
        await finance.sign_in(await small.link(Role.FINANCE))
        assert (await viewer.get("/usage"))["total"]["cost_usd"] is None
        assert (await finance.get("/usage"))["total"]["cost_usd"] is not None
        hidden, shown = await viewer.get(f"/requests/{record.id}"), await finance.get(f"/requests/{record.id}")
    assert (hidden["cost_usd"], hidden["postings"]) == (None, [])
    assert all(line["cost_usd"] is None for line in hidden["lines"])
    assert shown["cost_usd"] == format_usd(_charge(small, record))
    assert shown["postings"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=colour", "by"),
        ("from=2026-11-01T00:00:00Z&to=2026-10-01T00:00:00Z", "from"),
        ("from=2026-11-01T00:00:00", "from"),
        ("bucket=minute&from=2026-01-01T00:00:00Z", "bucket"),
        ("bucket=fortnight", "bucket"),
    ],
)
async def test_a_question_that_makes_no_sense_names_its_bad_part(small: World, query: str, field: str) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        answer = await browser.call("GET", f"/usage?{query}")
        assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_report_that_takes_too_long_is_cut_off(fresh_database_url: str) -> None:
    from sqlalchemy import text

    endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n WHERE i < 0")
    reader = Reader(fresh_database_url, bound_s=0.2)
    with pytest.raises(TimeoutError):
        async with reader.reading() as db:
            await db.execute(endless)
    async with reader.reading() as db:  # The connection is good for the next one.
        assert (await db.execute(text("SELECT 1"))).scalar_one() == 1
    await reader.aclose()
