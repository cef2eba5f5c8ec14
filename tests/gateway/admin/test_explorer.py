"""What stands beside the usage explorer: files of it, what caches saved, and where a budget leads."""

from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path

import pytest

from billing.accounts import Scope, Window
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import USD, World, traffic


async def test_a_parquet_file_says_what_the_csv_says(made: World, browser: Browser, tmp_path: Path) -> None:
    arro3 = pytest.importorskip("arro3.io")
    await traffic(made, tmp_path / "journal", 80)
    query = "?by=key&from=2026-10-01T00:00:00Z"
    lines = (await browser.call("GET", f"/usage.csv{query}")).text.strip().split("\r\n")
    answer = await browser.call("GET", f"/usage.parquet{query}")
    assert answer.headers["content-disposition"] == 'attachment; filename="usage-by-key.parquet"'
    table = arro3.read_parquet(io.BytesIO(answer.content)).read_all()
    assert table.column_names == lines[0].split(",")
    assert table.num_rows == len(lines) - 1
    assert table.column("charge_usd").to_pylist() == [line.split(",")[6] for line in lines[1:]]
    assert table.column("requests").to_pylist() == [int(line.split(",")[2]) for line in lines[1:]]
    nothing = await browser.call("GET", "/usage.parquet?by=key&provider=nobody")
    assert arro3.read_parquet(io.BytesIO(nothing.content)).read_all().num_rows == 0


async def test_what_caches_saved_is_the_difference_of_two_prices(made: World, browser: Browser, tmp_path: Path) -> None:
    records = await traffic(made, tmp_path / "journal", 120, days=6)
    per_token = {"openai": 225_000, "anthropic": 2_700_000, "groq": 99_000, "gemini": 270_000, "local": 1_800_000}
    cached = [(r.provider, r.quantities.get("cache_read_tokens", 0)) for r in records]  # type: ignore[call-overload]
    found = await browser.get("/savings", **{"from": "2026-11-12T00:00:00Z"})
    assert found["cached_tokens"] == sum(tokens for _, tokens in cached) > 0
    assert Decimal(found["saved_usd"]) == Decimal(sum(per_token[p] * tokens for p, tokens in cached)) / USD
    assert found["kept_answers"] == 0
    # More than a week is not read, and said.
    assert (await browser.get("/savings", **{"from": "2026-01-01T00:00:00Z"}))["start"] == "2026-11-11T12:00:00Z"


async def test_a_forecast_is_a_straight_line_from_what_is_spent(made: World, browser: Browser, tmp_path: Path) -> None:
    await traffic(made, tmp_path / "journal", 200)
    line = await browser.get("/budgets/project/proj_shop/month/forecast")
    assert (line["starts_at"], line["ends_at"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    spent = [Decimal(point["spent_usd"]) for point in line["points"]]
    assert len(spent) == 18
    assert spent == sorted(spent)
    assert spent[-1] == Decimal(line["spent_usd"]) > 0
    # Twelve and a half days to come, at the rate of the last seven.
    end = Decimal(line["spent_usd"]) + Decimal(line["a_day_usd"]) * Decimal("12.5")
    assert abs(Decimal(line["at_end_usd"]) - end) < Decimal("0.0001")
    assert line["used_up_at"] is None
    await made.keys.set_budget(
        Scope.PROJECT, "proj_shop", Window.MONTH, int(spent[-1] * USD) + 1, actor="ann", now_ns=made.now_ns
    )
    assert "2026-11-18" in (await browser.get("/budgets/project/proj_shop/month/forecast"))["used_up_at"]
    assert (await browser.call("GET", "/budgets/project/proj_shop/day/forecast")).status_code == 404


@pytest.mark.parametrize(("window", "points"), [("hour", 0), ("day", 12), ("total", 31)])
async def test_each_window_is_drawn_in_steps_of_its_own(
    made: World, browser: Browser, window: str, points: int
) -> None:
    await made.keys.set_budget(Scope.PROJECT, "proj_search", Window(window), USD, actor="ann", now_ns=made.now_ns)
    line = await browser.get(f"/budgets/project/proj_search/{window}/forecast")
    assert len(line["points"]) == points
    assert (line["a_day_usd"], line["used_up_at"]) == ("0.00", None)
    assert (line["ends_at"] is None) == (window == "total")
