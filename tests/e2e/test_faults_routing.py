"""Each fault under each strategy: what the client sees of it, with another deployment to turn to and without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import pytest_asyncio

from gateway.config import DeploymentSettings, ModelSettings, Strategy
from gateway.routing.health import CONSECUTIVE_FAILURES
from tests.e2e.harness import PRICE, House, house, model, provider, settings_for
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.scripted import FAULTS
from tests.matrix import rails

pytestmark = pytest.mark.asyncio(loop_scope="module")

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class Outcome:
    """(status, calls to providers) with a spare behind it, at first and when asked again right after; (status, code,
    calls) where it is all there is."""

    spared: tuple[int, int]
    again: tuple[int, int] | None
    alone: tuple[int, str, int]


# Wherever somebody can answer, the client sees 200. Who is throttled or refuses our key is asked last from then on
# (again: one call); who merely failed is asked first until it has failed five times. What the client got wrong goes
# back at once; too long a prompt goes on to another model.
TABLE: dict[str, Outcome] = {
    "500": Outcome((200, 2), (200, 2), (502, "upstream_broken", 3)),
    "503": Outcome((200, 2), (200, 2), (503, "upstream_overloaded", 3)),
    "529": Outcome((200, 2), (200, 2), (503, "upstream_overloaded", 3)),
    "502-html": Outcome((200, 2), (200, 2), (502, "upstream_broken", 3)),
    "garbage": Outcome((200, 2), (200, 2), (502, "upstream_broken", 3)),
    "429": Outcome((200, 2), (200, 1), (429, "upstream_rate_limited", 1)),
    # Its hint is over after 1.5 s, so what comes of asking again depends on the machine's haste.
    "429-retry-after-ms": Outcome((200, 2), None, (429, "upstream_rate_limited", 3)),
    "429-retry-after": Outcome((200, 2), (200, 1), (429, "upstream_rate_limited", 1)),
    "401": Outcome((200, 2), (200, 1), (502, "upstream_auth_failed", 1)),
    "402": Outcome((200, 2), (200, 1), (502, "upstream_auth_failed", 1)),
    "400": Outcome((400, 1), (400, 1), (400, "invalid_request_error", 1)),
    "404": Outcome((404, 1), (404, 1), (404, "model_not_found", 1)),
    "content-filter": Outcome((400, 1), (400, 1), (400, "content_filter", 1)),
    "context": Outcome((200, 2), (200, 2), (400, "context_length_exceeded", 1)),
}


def equals(strategy: Strategy, fault: str) -> ModelSettings:
    places = ((f"equal-{strategy}", f"fault-{fault}"), ("spare", "echo-1"))
    deployments = tuple(DeploymentSettings(provider=p, model=m, price=PRICE) for p, m in places)
    return ModelSettings(alias=f"equals-{strategy}-{fault}", deployments=deployments, strategy=strategy)


def models() -> tuple[ModelSettings, ...]:
    made = [model(f"alone-{fault}", f"alone/fault-{fault}") for fault in TABLE]
    made += [model("hiccup", "alone/fault-408-twice"), model("broken-stream", "alone/fault-stream-error")]
    for strategy in STRATEGIES:
        made += [equals(strategy, fault) for fault in ("500", "401")]
        for fault in TABLE:
            # A provider of its own for each strategy, or the breakers of one would tell the others.
            ordered = model(f"{strategy}-{fault}", f"{strategy}/fault-{fault}", "spare/echo-1")
            made.append(ModelSettings(alias=ordered.alias, deployments=ordered.deployments, strategy=strategy))
    return tuple(made)


@dataclass
class Yard:
    gateway: House
    upstream: OpenAIEmulator

    async def ask(self, alias: str, *, stream: bool = False) -> tuple[httpx.Response, list[str]]:
        """The answer, and the model of each call to a provider that it took."""
        before = len(self.upstream.requests)
        body: dict[str, Any] = {"model": alias, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        async with httpx.AsyncClient(timeout=20) as http:
            headers = {"authorization": f"Bearer {self.gateway.key}"}
            answer = await http.post(f"{self.gateway.v1}/chat/completions", json=body, headers=headers)
        return answer, [request.json()["model"] for request in self.upstream.requests[before:]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    folder = tmp_path_factory.mktemp("yard")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
    async with OpenAIEmulator() as upstream:
        names = ("alone", "spare", *STRATEGIES, *(f"equal-{strategy}" for strategy in STRATEGIES))
        providers = {name: provider("openai", f"{upstream.url}/v1") for name in names}
        async with house(settings_for(folder, url, _valkey, providers, models())) as gateway:
            yield Yard(gateway, upstream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", TABLE)
async def test_alone(yard: Yard, fault: str, stream: bool) -> None:
    answer, calls = await yard.ask(f"alone-{fault}", stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"], len(calls)) == TABLE[fault].alone


async def test_the_page_says_what_is_seen() -> None:
    """Each outcome here is the page's, and the page has every fault and every strategy."""
    lines = rails.PAGE.read_text().splitlines()
    assert f"| | {' | '.join((rails.ALONE, *STRATEGIES))} |" in lines
    assert [line.partition(":")[0].removeprefix("| ") for line in lines if ": " in line and line[0] == "|"] == [*FAULTS]
    for fault, outcome in TABLE.items():
        alone, spared = rails.Seen(outcome.alone[0], outcome.alone[2]), rails.Seen(*outcome.spared)
        assert rails.row(fault, [str(alone), *[str(spared)] * len(STRATEGIES)]) in lines


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_with_a_spare_behind_it(yard: Yard, strategy: Strategy) -> None:
    seen = {}
    for fault in TABLE:
        answers = [await yard.ask(f"{strategy}-{fault}", stream=stream) for stream in (False, True)]
        seen[fault] = [(answer.status_code, len(calls)) for answer, calls in answers]
        if TABLE[fault].again is None:
            seen[fault][1:] = []
        for answer, calls in answers:
            if answer.status_code == 200:
                assert answer.headers["x-farebox-attempts"] == str(len(calls))
                assert answer.headers["x-farebox-route"].startswith(f"{strategy}; ")
    assert seen == {fault: [said for said in (o.spared, o.again) if said] for fault, o in TABLE.items()}


async def test_a_hiccup_of_the_only_one_is_not_seen_and_paid_once(yard: Yard) -> None:
    answer, calls = await yard.ask("hiccup")
    assert (answer.status_code, len(calls), answer.headers["x-farebox-attempts"]) == (200, 3, "3")
    row = next(row for row in await yard.gateway.rows() if row["alias"] == "hiccup")
    assert (row["attempts"], row["outcome"]) == (3, "completed")


async def test_no_second_try_once_an_event_has_left(yard: Yard) -> None:
    answer, calls = await yard.ask("broken-stream", stream=True)
    assert (answer.status_code, len(calls)) == (200, 1)
    assert '"error"' in answer.text


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("fault", "most"), [("500", CONSECUTIVE_FAILURES), ("401", 1)])
async def test_among_equals_one_that_is_down_is_soon_left_alone(
    yard: Yard, strategy: Strategy, fault: str, most: int
) -> None:
    asked = []
    for number in range(15):
        answer, calls = await yard.ask(f"equals-{strategy}-{fault}", stream=number % 2 == 0)
        assert answer.status_code == 200
        asked += calls
    assert asked.count(f"fault-{fault}") <= most
    assert asked.count("echo-1") == 15
