"""Values for the tests of billing, filled in where a test does not care."""

from typing import Any

from billing.prices import PriceBook, Rates, make_sheet
from billing.usage import Intent, Meter, Outcome, UsageRecord

AT_NS = 1_795_000_000 * 10**9  # In November 2026.
SALE = {Meter.INPUT_TOKENS: 3_000_000, Meter.OUTPUT_TOKENS: 15_000_000}
COST = {Meter.INPUT_TOKENS: 2_500_000, Meter.OUTPUT_TOKENS: 10_000_000}
SHEET = make_sheet("price_test", "openai", "gpt-test", 0, Rates(SALE, COST), "test")
BOOK = PriceBook([SHEET], [])


def _request(request_id: str) -> dict[str, Any]:
    return {
        "id": request_id,
        "at_ns": AT_NS,
        "organisation_id": "org_1",
        "project_id": "project_1",
        "key_id": "key_1",
        "end_user": None,
        "alias": "gpt",
        "provider": "openai",
        "model": "gpt-test",
        "deployment": "openai/gpt-test",
        "price_id": SHEET.id,
        "hold_pusd": 10**12,
    }


def intent(request_id: str, **changes: Any) -> Intent:
    estimate = {Meter.INPUT_TOKENS: 100, Meter.OUTPUT_TOKENS: 1000, Meter.REQUESTS: 1}
    return Intent(**{**_request(request_id), "estimate": estimate, **changes})


def record(request_id: str, **changes: Any) -> UsageRecord:
    settled = {
        "quantities": {Meter.INPUT_TOKENS: 90, Meter.OUTPUT_TOKENS: 20, Meter.REQUESTS: 1},
        "estimated": False,
        "outcome": Outcome.COMPLETED,
        "finish_reason": "stop",
        "status": 200,
    }
    return UsageRecord(**{**_request(request_id), **settled, **changes})


RECORD_SALE_PUSD = 90 * SALE[Meter.INPUT_TOKENS] + 20 * SALE[Meter.OUTPUT_TOKENS]
RECORD_COST_PUSD = 90 * COST[Meter.INPUT_TOKENS] + 20 * COST[Meter.OUTPUT_TOKENS]
