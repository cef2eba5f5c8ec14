"""Anthropic's Message Batches over any provider, driven by anthropic-python."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio
from sqlalchemy import update

from billing.db import create_engine, writing
from billing.pricelist import set_price
from billing.usage import Meter
from gateway import schema as ours
from gateway.sections import BatchSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

HALF = {Meter.INPUT_TOKENS: 750_000, Meter.OUTPUT_TOKENS: 3_625_000}
claude = AnthropicEmulator(api_key="sk-test")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("message_batches")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(OpenAIEmulator())
        await stack.enter_async_context(claude)
        providers = {"up": provider("openai", f"{upstream.url}/v1"), "claude": provider("anthropic", claude.url)}
        models = (model("echo", "up/echo-1"), model("claude", "claude/echo-1"), model("failing", "up/fault-500"))
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        settings = settings_for(folder, url, _valkey, providers, models, batches=BatchSettings(parallel=4, lease_s=2))
        engine = create_engine(url)
        async with writing(engine) as db:
            for place in ("up/echo-1", "claude/echo-1", "up/fault-500"):
                where, _, what = place.partition("/")
                await set_price(db, where, what, HALF, HALF, at_ns=time.time_ns(), variant="batch")
        await engine.dispose()
        yield await stack.enter_async_context(house(settings))


def sdk_of(house: House, key: str | None = None, prefix: str = "") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=house.url + prefix, api_key=key or house.key, max_retries=0)


def ask(custom_id: str, alias: str = "echo", text: str = "Say hello", **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return {"custom_id": custom_id, "params": {"model": alias, "max_tokens": 50, "messages": messages, **more}}


async def ended(sdk: anthropic.AsyncAnthropic, ident: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            batch = await sdk.messages.batches.retrieve(ident)
            if batch.processing_status == "ended":
                return batch
            await asyncio.sleep(0.05)


async def results(sdk: anthropic.AsyncAnthropic, ident: str) -> dict[str, Any]:
    return {each.custom_id: each.result async for each in await sdk.messages.batches.results(ident)}


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
async def test_any_provider_at_the_batch_price(office: House, prefix: str) -> None:
    sdk, before, known = sdk_of(office, prefix=prefix), await office.charged_pusd(), len(await office.rows())
    requests = [ask(f"r{n}", "claude" if n % 2 else "echo", f"count from 1 to {n + 2}") for n in range(6)]
    made = await sdk.messages.batches.create(requests=requests)
    assert made.id.startswith("msgbatch_")
    assert (made.type, made.archived_at, made.cancel_initiated_at) == ("message_batch", None, None)
    assert made.request_counts.processing + made.request_counts.succeeded == 6
    assert (made.expires_at - made.created_at).total_seconds() == 24 * 3600
    batch = await ended(sdk, made.id)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored, counts.canceled, counts.expired) == (0, 6, 0, 0, 0)
    assert batch.ended_at >= batch.created_at
    found = await results(sdk, made.id)
    assert list(found) == [f"r{n}" for n in range(6)]
    assert found["r3"].message.content[0].text == "1, 2, 3, 4, 5"
    assert found["r3"].message.usage.output_tokens == 5
    rows = (await office.rows(at_least=known + 6))[known:]
    assert {row["variant"] for row in rows} == {"batch"}
    spent = sum(row["quantities"].get(meter, 0) * HALF[meter] for row in rows for meter in HALF)
    assert await office.charged_pusd() - before == spent > 0


async def test_each_request_fails_for_itself(office: House) -> None:
    sdk, before = sdk_of(office), await office.charged_pusd()
    bad = ask("no-limit")
    del bad["params"]["max_tokens"]
    made = await sdk.messages.batches.create(requests=[ask("good"), ask("down", "failing"), ask("who", "nobody"), bad])
    counts = (await ended(sdk, made.id)).request_counts
    assert (counts.succeeded, counts.errored) == (1, 3)
    found = await results(sdk, made.id)
    assert {name: each.type for name, each in found.items()} == {
        "good": "succeeded",
        "down": "errored",
        "who": "errored",
        "no-limit": "errored",
    }
    kinds = {name: each.error.error.type for name, each in found.items() if each.type == "errored"}
    assert kinds == {"down": "api_error", "who": "not_found_error", "no-limit": "invalid_request_error"}
    assert "max_tokens" in found["no-limit"].error.error.message
    assert await office.charged_pusd() > before


async def test_betas_are_those_of_the_request_that_made_it(office: House) -> None:
    sdk = sdk_of(office)
    made = await sdk.beta.messages.batches.create(requests=[ask("b", "claude")], betas=["context-1m-2025-08-07"])
    assert (await ended(sdk, made.id)).request_counts.succeeded == 1
    assert "context-1m-2025-08-07" in claude.last.headers["anthropic-beta"]


async def test_canceled_in_the_middle(office: House) -> None:
    sdk = sdk_of(office)
    slow = [ask(f"s{n}", text="x-script: long=5 pace_ms=30") for n in range(200)]
    made = await sdk.messages.batches.create(requests=slow)
    with pytest.raises(anthropic.BadRequestError, match="not ended"):
        await sdk.messages.batches.delete(made.id)
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        await sdk.messages.batches.results(made.id)
    canceled = await sdk.messages.batches.cancel(made.id)
    assert canceled.processing_status in ("canceling", "ended")
    assert canceled.cancel_initiated_at is not None
    counts = (await ended(sdk, made.id)).request_counts
    assert counts.canceled > 0
    assert counts.canceled + counts.succeeded == 200
    found = await results(sdk, made.id)
    assert sum(each.type == "canceled" for each in found.values()) == counts.canceled
    with pytest.raises(anthropic.BadRequestError, match="ended"):
        await sdk.messages.batches.cancel(made.id)


async def test_a_batch_past_its_window_keeps_what_it_has(office: House) -> None:
    sdk = sdk_of(office, await office.new_key(rpm=1))  # one request goes through, the others wait for a minute
    known = len(await office.rows())
    made = await sdk.messages.batches.create(requests=[ask(f"w{n}") for n in range(4)])
    await office.rows(at_least=known + 1)
    async with writing(office.engine) as db:
        late = update(ours.batches).where(ours.batches.c.id == made.id).values(expires_at_ns=time.time_ns())
        await db.execute(late)
    counts = (await ended(sdk, made.id)).request_counts
    assert (counts.succeeded, counts.expired) == (1, 3)
    assert sorted(each.type for each in (await results(sdk, made.id)).values()) == ["expired"] * 3 + ["succeeded"]


async def test_lists_page_both_ways_and_keep_to_their_project_and_kind(office: House) -> None:
    key = await key_of_another_project(office)
    sdk, other = sdk_of(office, key), sdk_of(office)
    made = [(await sdk.messages.batches.create(requests=[ask("a")])).id for _ in range(5)]
    newest = made[::-1]
    assert [batch.id async for batch in sdk.messages.batches.list(limit=2)] == newest
    first = await sdk.messages.batches.list(limit=2)
    assert (first.has_more, first.first_id, first.last_id) == (True, newest[0], newest[1])
    before = await sdk.messages.batches.list(limit=2, before_id=newest[4])
    assert ([batch.id for batch in before.data], before.has_more) == (newest[2:4], True)
    with pytest.raises(anthropic.BadRequestError, match="not both"):
        await sdk.messages.batches.list(after_id=newest[0], before_id=newest[4])
    for call in (other.messages.batches.retrieve, other.messages.batches.cancel, other.messages.batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            await call(made[0])
    async with openai.AsyncOpenAI(base_url=office.v1, api_key=key, max_retries=0) as plain:
        assert [batch.id async for batch in plain.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            await plain.batches.retrieve(made[0])
        await ended(sdk, made[0])
        assert [file.id async for file in plain.files.list()] == []
    deleted = await sdk.messages.batches.delete(made[0])
    assert (deleted.id, deleted.type) == (made[0], "message_batch_deleted")
    with pytest.raises(anthropic.NotFoundError):
        await sdk.messages.batches.retrieve(made[0])


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "requests"),
        ([ask("a"), ask("a")], "twice"),
        ([ask("a b")], "custom_id"),
        ([ask("a", stream=True)], "stream"),
        ([{"custom_id": "a", "params": {"messages": []}}], "model"),
        ([{"custom_id": "a"}], "params"),
    ],
)
async def test_what_cannot_be_a_batch_is_refused_whole(office: House, requests: Any, said: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said):
        await sdk_of(office).messages.batches.create(requests=requests)


async def test_unknown_paths_and_keys(office: House) -> None:
    async with httpx.AsyncClient(base_url=office.url) as http:
        refused = await http.get("/v1/messages/batches")
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        body = json.dumps({"requests": [ask("a")]})
        assert (await http.post("/v1/messages/batches", content=body)).status_code == 401
        assert (await http.put("/v1/messages/batches", content=body)).status_code in (404, 405)


async def key_of_another_project(office: House) -> str:
    from billing import accounts

    name = f"proj_other_{time.time_ns()}"
    async with writing(office.engine) as db:
        await accounts.create_project(db, name, office.project.organisation_id, "other", at_ns=time.time_ns())
    made = await office.keys.create_key(project_id=name, name="o", actor="test", now_ns=time.time_ns())
    assert made.plain is not None
    return made.plain
