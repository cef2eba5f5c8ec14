"""An answer that serves the same question again: by real SDKs, whole and streamed, at the price of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from msgspec.structs import replace
from openai import AsyncOpenAI

from billing import accounts
from billing.db import writing
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Yard:
    gateway: House
    upstream: OpenAIEmulator

    def client(self, key: str | None = None) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.gateway.v1, api_key=key or self.gateway.key, max_retries=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    data = tmp_path_factory.mktemp("answers")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    kept = replace(model("kept", "up/echo-1"), keep_answers_s=60.0)
    broken = replace(model("broken", "up/fault-stream-error"), keep_answers_s=60.0)
    async with OpenAIEmulator() as upstream:
        providers = {"up": provider("openai_like", f"{upstream.url}/v1")}
        models = (kept, broken, model("fresh", "up/echo-1"))
        async with house(settings_for(data, f"sqlite:///{database}", _valkey, providers, models)) as built:
            yield Yard(built, upstream)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "kept", "messages": [{"role": "user", "content": text}], "max_tokens": 64, **more}


async def whole(client: AsyncOpenAI, **body: Any) -> tuple[str, dict[str, str]]:
    headers = body.pop("headers", {})
    raw = await client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
    return raw.parse().choices[0].message.content or "", dict(raw.headers)


async def test_the_second_asks_nobody_and_pays_for_a_request(yard: Yard) -> None:
    asked, rows = len(yard.upstream.requests), len(await yard.gateway.rows())
    async with yard.client() as client:
        first, fresh = await whole(client, **said("once"))
        again, hit = await whole(client, **said("once"))
        other, _ = await whole(client, **said("twice"))
    assert first == again != other
    assert len(yard.upstream.requests) == asked + 2
    assert "x-farebox-cache" not in fresh
    assert float(fresh["x-farebox-cost-usd"]) > 0
    assert (hit["x-farebox-cache"], float(hit["x-farebox-cost-usd"]), hit["x-farebox-attempts"]) == ("hit", 0.0, "0")
    found = (await yard.gateway.rows(rows + 3))[rows:]
    assert sorted(row["attempts"] for row in found) == [0, 1, 1]
    free = next(row for row in found if row["attempts"] == 0)
    assert (free["charge_pusd"], free["outcome"], free["estimated"]) == (0, "completed", False)


async def test_a_stream_is_kept_when_it_is_whole(yard: Yard) -> None:
    asked = len(yard.upstream.requests)
    texts, costs = [], []
    async with yard.client() as client:
        for _ in range(2):
            text = ""
            options = {"include_usage": True}
            asked_for = said("flow", stream=True, stream_options=options)
            async for chunk in await client.chat.completions.create(**asked_for):
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if chunk.usage is not None:
                    costs.append(float(chunk.usage.cost))  # type: ignore[attr-defined]
            texts.append(text)
    assert texts[0] == texts[1] != ""
    assert len(yard.upstream.requests) == asked + 1
    assert costs[0] > 0
    assert costs[1] == 0


async def test_each_dialect_keeps_its_own(yard: Yard) -> None:
    asked = len(yard.upstream.requests)
    async with anthropic.AsyncAnthropic(base_url=yard.gateway.url, api_key=yard.gateway.key, max_retries=0) as client:
        answers = [await client.messages.create(**said("both ways")) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert len(yard.upstream.requests) == asked + 1


@pytest.mark.parametrize("body", [{"temperature": 0.5}, {"max_tokens": 65}, {"tools": []}, {"seed": 1}])
async def test_another_question_is_another_answer(yard: Yard, body: dict[str, Any]) -> None:
    async with yard.client() as client:
        await whole(client, **said("plain"))
        _, headers = await whole(client, **said("plain") | body)
        assert ("x-farebox-cache" in headers) == (body == {"tools": []})
        _, headers = await whole(client, **said("plain"), user="somebody else")
        assert headers["x-farebox-cache"] == "hit"


async def test_a_client_may_want_its_own(yard: Yard) -> None:
    async with yard.client() as client:
        await whole(client, **said("mine"))
        for headers in ({"x-farebox-cache": "no-store"}, {"cache-control": "no-cache"}):
            _, told = await whole(client, **said("mine"), headers=headers)
            assert "x-farebox-cache" not in told
        _, told = await whole(client, **said("mine", model="fresh"))
        _, told = await whole(client, **said("mine", model="fresh"))
        assert "x-farebox-cache" not in told


async def test_never_across_projects(yard: Yard) -> None:
    async with writing(yard.gateway.engine) as db:
        organisation = yard.gateway.project.organisation_id
        other = await accounts.create_project(db, "proj_other", organisation, "other", at_ns=1)
    mine, yard.gateway.project = yard.gateway.project, other
    try:
        key = await yard.gateway.new_key()
    finally:
        yard.gateway.project = mine
    async with yard.client() as client, yard.client(key) as stranger:
        await whole(client, **said("secret"))
        _, told = await whole(stranger, **said("secret"))
        assert "x-farebox-cache" not in told


async def test_what_broke_is_not_kept(yard: Yard) -> None:
    asked = len(yard.upstream.requests)
    async with yard.client() as client:
        for _ in range(2):
            with pytest.raises(Exception):  # noqa: B017 - whatever the SDK makes of a stream that breaks
                async for _ in await client.chat.completions.create(**said("break", model="broken", stream=True)):
                    pass
    assert len(yard.upstream.requests) == asked + 2
