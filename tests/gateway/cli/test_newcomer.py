"""The newcomer's journey by the command line alone: from `farebox up` to an invoice and a trail that holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from tests.emulators.openai import OpenAIEmulator
from tests.gateway.cli.conftest import Up, emulated, farebox, farebox_json

# At 120 dollars a million tokens, the longest answers cost more than the budget.
MODEL = "gpt-4-32k"


def asked(up: Up, key: str, text: str, longest: int) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": longest}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{up.ready['base_url']}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_a_newcomer_needs_no_browser(start: Callable[..., Up], tmp_path: Path) -> None:
    upstream = OpenAIEmulator()
    with emulated(upstream):
        up = start("--no-local", OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=f"{upstream.url}/v1").wait_ready()

        def say(*arguments: str, check: int | None = 0) -> Any:
            return farebox_json(*arguments, cwd=tmp_path, check=check)

        assert "openai" in farebox("providers", "list", cwd=tmp_path, OPENAI_API_KEY="sk-test").stdout
        made = say("keys", "create", "--project", "demo", "--name", "first", "--budget", "1usd")
        key, key_id = made["key"], made["id"]
        answer = asked(up, key, "Say hello", 50)
        told = Decimal(answer.headers["x-farebox-cost-usd"])
        until = time.monotonic() + 60
        while not (lines := say("usage", "--by", "key")["lines"]):
            assert time.monotonic() < until
        assert Decimal(lines[0]["charge_usd"]) == told > 0

        # Such an answer may cost 2.40 dollars: that does not fit into one, and nothing is sent.
        refused = asked(up, key, "Write a novel", 20_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        say("quotas", "raise", "key", key_id, "$5", "--lasts", "1d")
        assert asked(up, key, "Write a novel", 20_000).status_code == 200

        month = time.strftime("%Y-%m", time.gmtime())
        organisation = say("ledger", "organisations")["organisations"][0]["id"]
        bill = say("invoice", organisation, month, "--pdf", "bill.pdf")
        assert (tmp_path / "bill.pdf").read_bytes().startswith(b"%PDF-")
        assert Decimal(bill["usage_usd"]) > 0
        assert say("ledger", "trial")["sound"]
        actions = [row["action"] for row in say("audit", "list")["audit"]]
        assert actions.index("key.create") < actions.index("key.budget")
        farebox("audit", "verify", cwd=tmp_path)
        assert up.stop() == 0
