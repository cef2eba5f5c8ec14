"""Money through the admin API: invoices, refunds, price lists, bills of providers."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World, traffic


async def test_an_invoice_is_listed_read_and_taken_home(made: World, browser: Browser, tmp_path: Path) -> None:
    await traffic(made, tmp_path / "journal", 120)
    listed = await browser.get("/invoices")
    assert [line["month"] for line in listed] == sorted({line["month"] for line in listed}, reverse=True)
    newest = listed[0]
    assert (newest["month"], newest["organisation"], newest["open"]) == ("2026-11", "Harbour Books", True)
    bill = await browser.get("/invoices/org_1/2026-11")
    assert bill["usage_usd"] == newest["usage_usd"]
    assert sum(item["requests"] for item in bill["items"]) == newest["requests"]
    moved = sum(Decimal(m["amount_usd"]) for m in bill["movements"])
    assert Decimal(bill["opening_usd"]) - Decimal(bill["usage_usd"]) + moved == Decimal(bill["closing_usd"])
    assert (bill["currency"], bill["rate_day"], bill["differing_usd"]) == ("USD", None, "0.00")
    pdf = await browser.call("GET", "/invoices/org_1/2026-11/pdf")
    assert (pdf.headers["content-type"], pdf.content[:5]) == ("application/pdf", b"%PDF-")
    assert pdf.headers["content-disposition"] == 'attachment; filename="invoice-2026-11-org_1.pdf"'
    table = await browser.call("GET", "/invoices/org_1/2026-11/csv")
    assert table.text.count("\r\n") == 3 + len(bill["items"]) + len(bill["movements"])
    assert await browser.get("/invoices", organisation_id="nobody") == []
    for path, status in (("/invoices/nobody/2026-11", 404), ("/invoices/org_1/2026-13/pdf", 422)):
        refused = await browser.call("GET", path)
        assert (refused.status_code, bool(refused.json()["todo"])) == (status, True)


async def test_a_request_is_refunded_once_and_never_more_than_it_cost(
    made: World, browser: Browser, tmp_path: Path
) -> None:
    await traffic(made, tmp_path / "journal", 20)
    sold = next(r for r in (await browser.get("/requests", limit=50))["items"] if r["outcome"] == "completed")
    charged = Decimal(sold["charge_usd"])
    before = Decimal((await browser.get("/ledger/balances"))["organisations"][0]["left_usd"])
    asked = {"request_id": sold["id"], "note": "wrong answer"}
    too_much = {**asked, "amount_usd": str(charged + 1)}
    assert (await browser.call("POST", "/ledger/refunds", too_much, **{"idempotency-key": "k" * 8})).status_code == 422
    first = await browser.send("POST", "/ledger/refunds", asked, **{"idempotency-key": "k" * 8})
    again = await browser.send("POST", "/ledger/refunds", asked, **{"idempotency-key": "another-key"})
    assert (first["new"], again["new"]) == (True, False)
    assert Decimal(again["left_usd"]) == Decimal(first["left_usd"]) == before + charged
    by_hand = {"organisation_id": "org_1", "amount_usd": "1.50", "note": "goodwill"}
    for new in (True, False):
        answer = await browser.send("POST", "/ledger/refunds", by_hand, **{"idempotency-key": "by-hand-1"})
        assert answer["new"] is new
    trace = (await browser.get("/audit", action="ledger.refund"))["items"]
    assert [row["after"]["amount_usd"] for row in trace] == ["1.50", sold["charge_usd"]]
    assert [row["subject"] for row in (await browser.get("/audit", why="Wrong"))["items"]] == ["customer:org_1"]
    posted = (await browser.get("/ledger/transfers", kind="refund"))["items"]
    assert {row["id"] for row in posted} == {"refund:by-hand-1", f"refund:{sold['id']}"}
    assert (await browser.get("/ledger/audit"))["sound"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"note": "n"}, 422),
        ({"note": "n", "organisation_id": "org_1", "amount_usd": "0"}, 422),
        ({"note": "n", "organisation_id": "nobody", "amount_usd": "1"}, 404),
        ({"note": "n", "request_id": "req_none"}, 404),
        ({"note": "", "organisation_id": "org_1", "amount_usd": "1"}, 422),
    ],
)
async def test_a_bad_refund_moves_nothing(small: World, body: dict[str, Any], status: int) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        before = await browser.get("/ledger/transfers")
        refused = await browser.call("POST", "/ledger/refunds", body, **{"idempotency-key": "k" * 8})
        assert refused.status_code == status
        assert await browser.get("/ledger/transfers") == before


async def test_postings_of_a_time(made: World, browser: Browser) -> None:
    """The only posting of this world was made forty days before its today."""
    assert len((await browser.get("/ledger/transfers", to="2026-10-20T00:00:00Z"))["items"]) == 1
    assert (await browser.get("/ledger/transfers", **{"from": "2026-10-20T00:00:00Z"}))["items"] == []


LIST = {
    "gpt-5-mini": {
        "litellm_provider": "openai", "mode": "chat",
        "input_cost_per_token": 3e-07, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 2.5e-08,
    },
    "groq/brand-new-1": {
        "litellm_provider": "groq", "mode": "chat", "input_cost_per_token": 1e-07, "output_cost_per_token": 4e-07,
    },
}  # fmt: skip


async def test_a_price_list_is_compared_before_it_is_taken_over(made: World, browser: Browser) -> None:
    text = json.dumps(LIST)
    found = await browser.send("POST", "/prices/compare", {"list": text})
    assert (found["listed"], found["missing"], found["differing"]) == (2, 1, 1)
    first = found["differences"][0]
    assert (first["model"], first["meter"], first["ours"], first["theirs"]) == (
        "gpt-5-mini", "input_tokens", "0.25", "0.30",
    )  # fmt: skip
    taken = await browser.send("POST", "/prices/import", {"list": text, "name": "november.json"})
    assert (taken["imported"], taken["kept"]) == (1, 1)
    assert (await browser.send("POST", "/prices/compare", {"list": text}))["missing"] == 0
    new = await browser.get("/prices", provider="groq", model="brand-new-1")
    assert (new[0]["in_force"], new[0]["sale"]["output_tokens"]) == (True, "0.40")
    trace = (await browser.get("/audit", action="prices.import"))["items"][0]
    assert (trace["subject"], trace["after"]["imported"]) == ("november.json", 1)
    for bad in ("[]", "{", json.dumps({"x": {"litellm_provider": "nobody"}})):
        refused = await browser.call("POST", "/prices/compare", {"list": bad})
        assert (refused.status_code, refused.json()["field"]) == (422, "list")


async def test_a_providers_bill_is_held_against_our_rows(made: World, browser: Browser, tmp_path: Path) -> None:
    records = await traffic(made, tmp_path / "journal", 200)
    ours = [r for r in records if r.provider == "anthropic" and r.quantities and not r.estimated]
    day = max(r.at_ns // (24 * 3600 * 10**9) for r in ours)
    start = day * 24 * 3600
    written = sum(r.quantities["output_tokens"] for r in ours if r.at_ns // (24 * 3600 * 10**9) == day)  # type: ignore[index]
    results = [{"model": "claude-sonnet-5", "input_tokens": 0, "output_tokens": written + 7}]
    bill = json.dumps({"data": [{"start_time": start, "results": results}]})
    found = await browser.send("POST", "/reconcile", {"provider": "anthropic", "bill": bill})
    assert len(found["lines"]) == 1
    line = found["lines"][0]
    assert (line["model"], line["theirs"]["output_tokens"]) == ("claude-sonnet-5", written + 7)
    assert not line["explained"]
    assert line["unexplained"]["output_tokens"] <= 7
    assert found["unexplained"] == 1
    refused = await browser.call("POST", "/reconcile", {"provider": "anthropic", "bill": "when,what\n1,2\n"})
    assert (refused.status_code, refused.json()["field"]) == (422, "bill")
    unknown = await browser.call("POST", "/reconcile", {"provider": "antropic", "bill": bill})
    assert (unknown.status_code, unknown.json()["field"]) == (422, "provider")
    assert "anthropic" in unknown.json()["todo"]
