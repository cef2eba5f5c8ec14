"""Batches run by the gateway over any provider, driven by openai-python; kill -9 in the middle costs nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from billing import journal, schema
from billing.db import create_engine, reading, writing
from billing.pricelist import set_price
from billing.usage import Meter, UsageRecord
from gateway import schema as ours
from gateway.config import load
from gateway.sections import BatchSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.test_crash import prepare, serving, written
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.services import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

HALF = {Meter.INPUT_TOKENS: 750_000, Meter.OUTPUT_TOKENS: 3_625_000}
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("batches")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(OpenAIEmulator())
        claude = await stack.enter_async_context(AnthropicEmulator(api_key="sk-test"))
        providers = {"up": provider("openai", f"{upstream.url}/v1"), "claude": provider("anthropic", claude.url)}
        models = (
            model("echo", "up/echo-1"),
            model("claude", "claude/echo-1"),
            model("failing", "up/fault-500"),
            model("embed", "up/text-embedding-3-small"),
            model("dear", "up/no-batch-price"),
        )
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        settings = settings_for(folder, url, _valkey, providers, models, batches=BatchSettings(parallel=4, lease_s=2))
        engine = create_engine(url)
        async with writing(engine) as db:
            for name in ("up/echo-1", "claude/echo-1", "up/fault-500", "up/text-embedding-3-small"):
                where, _, what = name.partition("/")
                await set_price(db, where, what, HALF, HALF, at_ns=time.time_ns(), variant="batch")
        await engine.dispose()
        yield await stack.enter_async_context(house(settings))


def sdk_of(house: House, key: str | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=house.v1, api_key=key or house.key, max_retries=0)


def line(custom_id: str, alias: str = "echo", text: str = "Say hello", url: str = CHAT, **more: Any) -> dict[str, Any]:
    body = {"model": alias, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


async def upload(sdk: openai.AsyncOpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(json.dumps(each) for each in lines).encode()
    return (await sdk.files.create(file=("in.jsonl", content), purpose="batch")).id


async def ended(sdk: openai.AsyncOpenAI, ident: str, within_s: float = 30) -> Any:
    async with asyncio.timeout(within_s):
        while True:
            batch = await sdk.batches.retrieve(ident)
            if batch.status not in ("validating", "in_progress", "finalizing", "cancelling"):
                return batch
            await asyncio.sleep(0.05)


async def lines_of(sdk: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in (await sdk.files.content(file_id)).text.splitlines()]


async def run(sdk: openai.AsyncOpenAI, lines: list[dict[str, Any]], endpoint: Any = CHAT, **more: Any) -> Any:
    made = await sdk.batches.create(
        input_file_id=await upload(sdk, lines), endpoint=endpoint, completion_window="24h", **more
    )
    assert made.status == "in_progress"
    return await ended(sdk, made.id)


async def test_any_provider_at_the_batch_price(office: House) -> None:
    sdk, before = sdk_of(office), await office.charged_pusd()
    known = len(await office.rows())
    texts = [f"count from 1 to {n}" for n in range(2, 14)]
    batch = await run(
        sdk, [line(f"r{n}", "claude" if n % 2 else "echo", t) for n, t in enumerate(texts)], metadata={"a": "b"}
    )
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 12, 0)
    assert (batch.metadata, batch.error_file_id) == ({"a": "b"}, None)
    found = await lines_of(sdk, batch.output_file_id)
    assert [each["custom_id"] for each in found] == [f"r{n}" for n in range(12)]  # in the order of the input
    assert all(each["response"]["status_code"] == 200 for each in found)
    answers = [each["response"]["body"]["choices"][0]["message"]["content"] for each in found]
    assert answers[3] == "1, 2, 3, 4, 5"
    rows = (await office.rows())[known:]
    assert {row["variant"] for row in rows} == {"batch"}
    assert {row["id"] for row in rows} == {each["id"] for each in found}
    tokens = [sum(row["quantities"].get(meter, 0) for row in rows) for meter in ("input_tokens", "output_tokens")]
    spent = tokens[0] * HALF[Meter.INPUT_TOKENS] + tokens[1] * HALF[Meter.OUTPUT_TOKENS]
    assert await office.charged_pusd() - before == spent > 0


async def test_embeddings_and_responses(office: House) -> None:
    sdk = sdk_of(office)
    asked = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"model": "embed", "input": "x"}}
    (found,) = await lines_of(sdk, (await run(sdk, [asked], "/v1/embeddings")).output_file_id)
    assert len(found["response"]["body"]["data"][0]["embedding"]) == 8
    asked = {
        "custom_id": "r",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": "echo", "input": "Say hello"},
    }
    (found,) = await lines_of(sdk, (await run(sdk, [asked], "/v1/responses")).output_file_id)
    assert found["response"]["body"]["status"] == "completed"


async def test_what_fails_is_told_line_by_line_and_costs_nothing(office: House) -> None:
    sdk, before = sdk_of(office), await office.charged_pusd()
    lines = [line("a", "failing"), line("b", "dear"), line("c", "nobody"), line("d", temperature="hot")]
    batch = await run(sdk, lines)
    assert (batch.status, batch.request_counts.failed, batch.output_file_id) == ("completed", 4, None)
    found = {each["custom_id"]: each["response"] for each in await lines_of(sdk, batch.error_file_id)}
    assert {name: each["status_code"] for name, each in found.items()} == {"a": 502, "b": 403, "c": 404, "d": 400}
    assert "no price" in found["b"]["body"]["error"]["message"]
    assert await office.charged_pusd() == before


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("{", "invalid_json_line"),
        (json.dumps(line("x", url="/v1/embeddings")), "mismatched_url"),
        (json.dumps(line("ok")), "duplicate_custom_id"),
        (json.dumps(line("x", stream=True)), "unsupported_parameter"),
        (json.dumps(line("x", service_tier="priority")), "unsupported_parameter"),
        (json.dumps({**line("x"), "method": "GET"}), "invalid_method"),
        (json.dumps({**line("x"), "body": {"input": "no model"}}), "invalid_body"),
        (json.dumps(line("")), "invalid_custom_id"),
    ],
)
async def test_a_file_with_a_fault_is_not_run_at_all(office: House, bad: str, code: str) -> None:
    sdk, rows = sdk_of(office), len(await office.rows())
    content = (json.dumps(line("ok")) + "\n\n" + bad + "\n").encode()
    file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(f.code, f.line) for f in batch.errors.data or []] == [(code, 3)]
    assert len(await office.rows()) == rows


async def test_files_are_listed_read_and_deleted(office: House) -> None:
    sdk = sdk_of(office)
    ident = await upload(sdk, [line("a")])
    assert (await sdk.files.retrieve(ident)).purpose == "batch"
    assert [file.id async for file in sdk.files.list(limit=1)].index(ident) == 0  # it pages through all of them
    assert json.loads((await sdk.files.content(ident)).text)["custom_id"] == "a"
    other = sdk_of(office, await key_of_another_project(office))
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(ident)
    await sdk.files.delete(ident)
    with pytest.raises(openai.NotFoundError):
        await sdk.files.content(ident)
    with pytest.raises(openai.NotFoundError, match="no file"):
        await sdk.batches.create(input_file_id=ident, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await sdk.files.create(file=("a.txt", b"x"), purpose="assistants")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        await sdk.batches.create(input_file_id=ident, endpoint="/v1/moderations", completion_window="24h")


async def key_of_another_project(office: House) -> str:
    from billing import accounts

    name = f"proj_other_{time.time_ns()}"
    async with writing(office.engine) as db:
        await accounts.create_project(db, name, office.project.organisation_id, "other", at_ns=time.time_ns())
    made = await office.keys.create_key(project_id=name, name="o", actor="test", now_ns=time.time_ns())
    assert made.plain is not None
    return made.plain


async def test_cancelled_in_the_middle(office: House) -> None:
    sdk = sdk_of(office)
    slow = [line(f"s{n}", text="x-script: long=5 pace_ms=30", stream=False) for n in range(200)]
    made = await sdk.batches.create(input_file_id=await upload(sdk, slow), endpoint=CHAT, completion_window="24h")
    cancelled = await sdk.batches.cancel(made.id)
    assert cancelled.status == "cancelling"
    batch = await ended(sdk, made.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed + batch.request_counts.failed == 200
    assert batch.request_counts.failed > 0
    refused = await lines_of(sdk, batch.error_file_id)
    assert {each["error"]["code"] for each in refused} == {"batch_cancelled"}
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        await sdk.batches.cancel(made.id)
    assert (await sdk.batches.list(limit=1)).data[0].id == made.id


async def test_a_batch_past_its_window_keeps_what_it_has(office: House) -> None:
    sdk = sdk_of(office)
    key = await office.new_key(rpm=1)  # one line goes through, the others wait for a minute
    made = await sdk_of(office, key).batches.create(
        input_file_id=await upload(sdk, [line(f"w{n}") for n in range(5)]), endpoint=CHAT, completion_window="24h"
    )
    async with asyncio.timeout(20):
        while (await sdk.batches.retrieve(made.id)).request_counts.completed < 1:  # type: ignore[union-attr]
            await asyncio.sleep(0.05)
    async with writing(office.engine) as db:
        late = update(ours.batches).where(ours.batches.c.id == made.id).values(expires_at_ns=time.time_ns())
        await db.execute(late)
    batch = await ended(sdk, made.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("expired", 1, 4)
    assert {each["error"]["code"] for each in await lines_of(sdk, batch.error_file_id)} == {"batch_expired"}


async def test_a_budget_stops_the_lines_that_it_does_not_cover(office: House) -> None:
    sdk = sdk_of(office, await office.new_key(budget_pusd=1))
    batch = await run(sdk, [line("a"), line("b")])
    found = await lines_of(sdk, batch.error_file_id)
    assert [each["response"]["body"]["error"]["code"] for each in found] == ["insufficient_quota"] * 2


@pytest.mark.asyncio(loop_scope="function")
async def test_two_gateways_share_one_batch(tmp_path: Path, fresh_database_url: str, redis_url: str) -> None:
    """Both take lines while both are there; each line is answered once and charged once, and one closes it."""
    count = 40
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(OpenAIEmulator())
        providers = {"up": provider("openai", f"{upstream.url}/v1")}
        engine = create_engine(fresh_database_url)
        async with writing(engine) as db:
            await set_price(db, "up", "echo-1", HALF, HALF, at_ns=time.time_ns(), variant="batch")
        await engine.dispose()
        houses = []
        for name in ("one", "two"):
            settings = settings_for(
                tmp_path / name,
                fresh_database_url,
                redis_url,
                providers,
                (model("echo", "up/echo-1"),),
                batches=BatchSettings(parallel=2, lease_s=60),
            )
            houses.append(await stack.enter_async_context(house(settings)))
        one, two = houses
        async with sdk_of(one) as sdk:
            # Slow enough that the one which is not asked has time to look round: it does so each second.
            slow = "x-script: pace_ms=200"
            batch = await run(sdk, [line(f"t{n}", text=f"count from 1 to {n % 9 + 2}\n{slow}") for n in range(count)])
            found = await lines_of(sdk, batch.output_file_id)
        await one.shipped()
        rows = [row for row in await two.rows(at_least=count) if row["id"].startswith("batch_req_")]
        done = [_lines_run_by(each) for each in houses]
    assert (batch.status, batch.request_counts.completed) == ("completed", count)
    assert [each["custom_id"] for each in found] == [f"t{n}" for n in range(count)]
    assert sorted(row["id"] for row in rows) == sorted(each["id"] for each in found)
    assert upstream.stats.answers == count
    assert sum(done) == count
    assert min(done) > 0, done


def _lines_run_by(each: House) -> int:
    return sum(
        isinstance(entry, UsageRecord)
        for run in journal.runs(each.settings.data_dir / "journal")
        for segment in journal.segments(run)
        for _, entry in journal.read_segment(segment)
    )


@pytest.mark.asyncio(loop_scope="function")
async def test_kill_9_in_the_middle(tmp_path: Path, fresh_database_url: str, redis_url: str) -> None:
    """The next process goes on where the dead one was: each line answered once, each charged once."""
    [port] = free_ports(1)
    count = 40
    async with OpenAIEmulator() as upstream:
        config = written(tmp_path, upstream.url, fresh_database_url, redis_url, port)
        config.write_text(config.read_text() + "\n[batches]\nparallel = 4\nlease_s = 1.0\n")
        settings = load(config, {})
        key = await prepare(settings)
        engine = create_engine(settings.database_url)
        async with writing(engine) as db:
            await set_price(db, "up", "echo-1", HALF, HALF, at_ns=time.time_ns(), variant="batch")
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as sdk:
            lines = [line(f"k{n}", text=f"count from 1 to {n + 2}", n=1) for n in range(count)]
            async with serving(config, port) as process:
                made = await sdk.batches.create(
                    input_file_id=await upload(sdk, lines), endpoint=CHAT, completion_window="24h"
                )
                async with asyncio.timeout(20):
                    while upstream.stats.answers < 5:
                        await asyncio.sleep(0)
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
            before = upstream.stats.answers
            assert before < count, "killed too late to prove anything"
            async with serving(config, port):
                batch = await ended(sdk, made.id, within_s=60)
                found = await lines_of(sdk, batch.output_file_id)
                async with asyncio.timeout(20):
                    while True:
                        async with reading(engine) as db:
                            rows = (await db.execute(select(schema.usage_records.c.id))).scalars().all()
                        if len(rows) >= count:
                            break
                        await asyncio.sleep(0.05)
    await engine.dispose()
    assert (batch.status, batch.request_counts.completed) == ("completed", count)
    assert [each["custom_id"] for each in found] == [f"k{n}" for n in range(count)]
    assert len(rows) == len(set(rows)) == count
    assert set(rows) == {each["id"] for each in found}
    assert upstream.stats.answers <= count + 4  # what was on its way when it died is asked again, nothing else
