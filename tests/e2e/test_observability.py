"""What an operator sees of a gateway under traffic: whatever the shipped alerts and dashboard name is there."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from billing.accounts import Scope, Window
from gateway.observe import budgets
from gateway.observe.metrics import METRICS, Metrics
from gateway.observe.seldom import Seldom, SeldomFilter
from gateway.observe.tally import Spread, Tally
from gateway.observe.vitals import Standing
from tests.deploy.promql import labels_left
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEPLOY = Path(__file__).parents[2] / "deploy"
_LABEL = re.compile(r"\$labels\.(\w+)|{{ *(\w+) *}}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[tuple[House, AnthropicEmulator]]:
    data = tmp_path_factory.mktemp("observed")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    async with AnthropicEmulator() as upstream:
        providers = {"claudes": provider("anthropic", upstream.url, {"api_key": "sk-ant-test"})}
        models = (model("claude", "claudes/echo-1"),)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(budgets, "EVERY_S", 0.2)  # Else a budget of a test is seen half a minute later.
            async with house(settings_for(data, f"sqlite:///{database}", _valkey, providers, models)) as built:
                yield built, upstream


async def scraped(gateway: House) -> str:
    async with httpx.AsyncClient(timeout=60) as http:
        return (await http.get(f"{gateway.url}/metrics")).text


BEGUN = ('farebox_up{what="database"} 1.0', "farebox_budget_remaining_usd{")
"""What is asked for in the background, a moment after a start."""


def expressions() -> list[tuple[str, str]]:
    """Each with the text that tells of its result."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((DEPLOY / "grafana" / "farebox.json").read_text())["panels"]
    assert all({"summary", "todo"} == set(rule["annotations"]) for rule in rules)
    return [(rule["expr"], " ".join(rule["annotations"].values())) for rule in rules] + [
        (each["expr"], each["legendFormat"]) for panel in panels for each in panel["targets"]
    ]


def families(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """By sample name, as a scrape and the tallies that nothing was counted on yet tell them."""
    known: dict[str, tuple[str, frozenset[str]]] = {}
    for each in (*vars(METRICS).values(), *METRICS._watched.values()):
        if isinstance(each, Tally):
            known[f"{each._name}_total"] = ("counter", frozenset(each._labels))
        elif isinstance(each, Spread):
            for part, more in (("_bucket", {"le"}), ("_sum", set[str]()), ("_count", set[str]())):
                known[each._name + part] = ("histogram", frozenset({*each._labels, *more}))
        elif isinstance(each, Standing):
            known[each.name] = ("gauge", frozenset(each._labels))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known[sample.name] = (family.type, frozenset(sample.labels))
    return known


async def test_everything_that_alerts_and_dashboard_name_is_scraped(place: tuple[House, AnthropicEmulator]) -> None:
    """Each expression parses as Prometheus parses it, is about what is told, with labels that are there."""
    gateway, _ = place
    budget = (Scope.PROJECT, gateway.project.id, Window.MONTH, 50 * 10**12)
    await gateway.keys.set_budget(*budget, actor="test", now_ns=time.time_ns())
    body: dict[str, Any] = {"model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": "hi there"}]}
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        for stream in (True, False):
            answer = await http.post(f"{gateway.v1}/messages", json=body | {"stream": stream})
            assert answer.status_code == 200
    async with asyncio.timeout(30):
        text = await scraped(gateway)
        while not all(said in text for said in BEGUN):
            await asyncio.sleep(0.02)
            text = await scraped(gateway)
    assert 'farebox_up{what="redis"} 1.0' in text
    assert 'farebox_breaker{deployment="' in text
    # One process serves all tests: there may be more of them, and other models may have used up the labels before.
    assert re.search(r'farebox_output_token_seconds_count\{model="(claude|other)",provider="claudes"\} [1-9]', text)
    labels = f'kind="hard",scope="project",scope_id="{gateway.project.id}",window="month"'
    assert f"farebox_budget_limit_usd{{{labels}}} 50.0" in text
    left_usd = float(re.findall(rf"^farebox_budget_remaining_usd{{{labels}}} (.+)$", text, re.M)[0])
    assert 49 < left_usd <= 50
    known = families(text)
    for expression, told in expressions():
        left = labels_left(expression, known)
        assert {one or other for one, other in _LABEL.findall(told)} <= left, (expression, told, left)


async def test_probes_tell_what_they_are_asked(place: tuple[House, AnthropicEmulator]) -> None:
    gateway, _ = place
    async with httpx.AsyncClient(timeout=60) as http:
        for path in ("liveness", "liveliness", "readiness", "startup"):
            assert (await http.get(f"{gateway.url}/health/{path}")).status_code == 200, path


async def test_a_header_sent_in_two_lines_is_one_list(place: tuple[House, AnthropicEmulator]) -> None:
    gateway, upstream = place
    body = {"model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(
            f"{gateway.v1}/messages",
            json=body,
            headers=[("x-api-key", gateway.key), ("anthropic-beta", "one-1,two-2"), ("anthropic-beta", "three-3")],
        )
    assert answer.status_code == 200
    assert upstream.last.headers["anthropic-beta"] == "one-1,two-2, three-3"


async def test_malformed_requests_are_counted(place: tuple[House, AnthropicEmulator]) -> None:
    gateway, _ = place
    host, port = gateway.url.removeprefix("http://").split(":")
    for _ in range(3):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x16\x03\x01 no http at all\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()
    async with httpx.AsyncClient(timeout=60) as http:
        headers = {"authorization": f"Bearer {gateway.key}"}
        bad = await http.post(f"{gateway.v1}/chat/completions", content=b"{", headers=headers)
    assert bad.status_code == 400
    text = await scraped(gateway)
    counts = dict(re.findall(r'farebox_malformed_requests_total{what="(\w+)"} ([\d.]+)', text))
    assert float(counts["http"]) >= 3
    assert float(counts["body"]) >= 1


async def test_what_strangers_cause_is_said_now_and_then() -> None:
    now = [0.0]
    seldom = Seldom(10, lambda: now[0])
    assert [seldom.unsaid() for _ in range(3)] == [0, None, None]
    now[0] = 11
    assert seldom.unsaid() == 2
    watch = SeldomFilter(10, lambda: now[0])

    def line(text: str, level: int = logging.WARNING) -> logging.LogRecord:
        return logging.LogRecord("uvicorn.error", level, "", 0, text, (), None)

    assert [watch.filter(line("bad")) for _ in range(3)] == [True, False, False]
    assert watch.filter(line("other"))
    assert watch.filter(line("bad", logging.ERROR))
    now[0] = 30
    again = line("bad")
    assert watch.filter(again)
    assert again.msg == "bad (2 more like it)"


async def test_whoever_is_away_shows_as_zero() -> None:
    from gateway.observe import vitals

    metrics, calls = Metrics(), 0

    async def away() -> None:
        nonlocal calls
        calls += 1
        raise OSError("nobody there")

    async def there() -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitals, "METRICS", metrics)
        task = asyncio.create_task(vitals.Vitals({"redis": away, "database": there}).run())
        async with asyncio.timeout(30):
            while b'what="database"' not in metrics.exposition():
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait({task})
    said = metrics.exposition().decode()
    assert 'farebox_up{what="redis"} 0.0' in said
    assert 'farebox_up{what="database"} 1.0' in said
