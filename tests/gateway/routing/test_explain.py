"""`farebox route explain`: the plan of a request that nobody sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import farebox, farebox_json

SETTINGS = """
discover_providers = false
[providers.dear]
kind = "openai_like"
base_url = "http://127.0.0.1:9/v1"
[providers.cheap]
kind = "openai_like"
base_url = "http://127.0.0.1:9/v1"

[[models]]
alias = "fast"
strategy = "lowest_cost"
max_request_usd = 0.05
deployments = [
  { provider = "dear", model = "d", max_output_tokens = 2000 },
  { provider = "cheap", model = "c", max_output_tokens = 2000 },
]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "farebox.toml").write_text(SETTINGS)
    farebox_json("migrate", cwd=tmp_path)
    for provider, model, price in (("dear", "d", "20"), ("cheap", "c", "2")):
        farebox("prices", "set", provider, model, "--input", price, "--output", price, cwd=tmp_path)
    return tmp_path


def test_the_plan_its_prices_and_who_is_left_out(folder: Path) -> None:
    told = farebox_json("route", "explain", "fast", "--max-tokens", "500", cwd=folder)
    assert (told["strategy"], told["ceiling_pusd"]) == ("lowest_cost", 5 * 10**10)
    assert [(leg["deployment"], leg["most_pusd"]) for leg in told["legs"]] == [
        ("cheap/c", 3 * 10**9),
        ("dear/d", 3 * 10**10),
    ]
    told = farebox_json("route", "explain", "fast", cwd=folder)  # 2,000 tokens may come: 0.06 USD from the dear one
    assert [leg["deployment"] for leg in told["legs"]] == ["cheap/c"]
    assert told["left_out"] == [{"deployment": "dear/d", "why": "may cost 0.06 USD"}]
    shown = farebox("route", "explain", "fast", cwd=folder).stdout
    assert "left out: may cost 0.06 USD" in shown
    refused = farebox("route", "explain", "fast", "--input-tokens", "100000", cwd=folder, check=1)
    assert "allows 0.05 USD" in refused.stderr
    unknown = farebox("route", "explain", "nope", cwd=folder, check=1)
    assert "nope" in unknown.stderr
