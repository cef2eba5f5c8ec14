"""The newcomer's journey by the command line alone: from `farebox up` to an invoice and a trail that holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from tests.emulators.bedrock import ACCESS_KEY_ID, MODELS, SECRET_ACCESS_KEY, BedrockEmulator
from tests.gateway.cli.conftest import Up, emulated, farebox, farebox_json

MODEL = f"east/{MODELS[0]}"
# At 16.50 dollars a million, such an answer could cost more than the whole budget.
LONG = 64_000


def asked(up: Up, key: str, text: str, longest: int) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": longest}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{up.ready['base_url']}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_a_newcomer_needs_no_browser(start: Callable[..., Up], tmp_path: Path) -> None:
    bedrock = BedrockEmulator()
    with emulated(bedrock):
        up = start("--no-local").wait_ready()

        def say(*arguments: str) -> Any:
            return farebox_json(*arguments, cwd=tmp_path)

        secrets = f"access_key_id={ACCESS_KEY_ID}\nsecret_access_key={SECRET_ACCESS_KEY}\n"
        (tmp_path / "aws.txt").write_text(secrets)
        east = ("east", "--kind", "bedrock", "--region", "us-east-1", "--base-url", bedrock.url, "--allow-private")
        say("providers", "add", *east, "--credential", "aws.txt")
        assert "It knows us" in farebox("providers", "test", "east", cwd=tmp_path).stdout
        made = say("keys", "create", "--project", "demo", "--name", "first", "--budget", "1usd")
        key, key_id = made["key"], made["id"]
        until = time.monotonic() + 60
        while (answer := asked(up, key, "Say hello", 50)).status_code == 404:
            assert time.monotonic() < until  # The gateway is another process, and looks every second or so.
        assert answer.status_code == 200, answer.text
        told = Decimal(answer.headers["x-farebox-cost-usd"])
        until = time.monotonic() + 60
        while not (lines := say("usage", "--by", "key")["lines"]):
            assert time.monotonic() < until
        assert Decimal(lines[0]["charge_usd"]) == told > 0

        refused = asked(up, key, "Write a novel", LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        say("quotas", "raise", "key", key_id, "$5", "--lasts", "1d")
        until = time.monotonic() + 60
        while (answer := asked(up, key, "Write a novel", LONG)).status_code == 429:
            assert time.monotonic() < until  # As above.
        assert answer.status_code == 200, answer.text

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
