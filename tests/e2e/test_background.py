"""`background: true` of the Responses API, driven by openai-python: polled, followed, taken up again, cancelled; made
by one gateway and read at another."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from billing import accounts, ledger
from billing import schema as billed
from billing.db import create_engine, reading, writing
from gateway import schema
from gateway.admission import Principal
from gateway.background import Background, Jobs, Told
from gateway.batches.store import Store, Work
from gateway.config import TimeoutSettings, load
from gateway.exchange import Reply
from gateway.ingress.errors import as_body
from gateway.sections import BatchSettings
from gateway.stored import Stored
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.test_crash import prepare, serving, written
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.services import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIVE = "1, 2, 3, 4, 5"
ASK = "count from 1 to 5"
SLOW = "x-script: long=40 pace_ms=50"
FOREVER = "x-script: long=4000 pace_ms=50"


class Pair:
    """Two gateways on one database: the first runs nothing itself."""

    def __init__(self, front: House, back: House) -> None:
        self.front, self.back = front, back

    async def made_later(self, at_least: int = 0) -> list[dict[str, Any]]:
        """Usage rows of answers made in the background."""
        async with asyncio.timeout(60):
            while True:
                await self.front.shipped()
                rows = [row for row in await self.back.rows() if row["id"].startswith("batch_req_")]
                if len(rows) >= at_least:
                    return rows
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("background")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(OpenAIEmulator())
        claude = await stack.enter_async_context(AnthropicEmulator(api_key="sk-test"))
        providers = {"up": provider("openai", f"{upstream.url}/v1"), "claude": provider("anthropic", claude.url)}
        models = (
            model("echo", "up/echo-1"),
            model("claude", "claude/echo-1"),
            model("failing", "up/fault-500"),
            model("breaking", "up/fault-stream-error"),
            model("silent", "up/fault-slow-first-byte"),
        )
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        houses = []
        for name, parallel in (("front", 0), ("back", 8)):
            batches = BatchSettings(parallel=parallel, lease_s=2)
            patient = TimeoutSettings(connect_s=2, first_byte_s=60, between_bytes_s=60, total_s=120)
            settings = settings_for(folder / name, url, _valkey, providers, models, batches=batches, timeouts=patient)
            houses.append(await stack.enter_async_context(house(settings)))
        yield Pair(*houses)


def sdk_of(house: House, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=house.v1, api_key=key, max_retries=0)


@pytest.fixture
def front(pair: Pair) -> openai.AsyncOpenAI:
    return sdk_of(pair.front, pair.front.key)


async def ended(sdk: openai.AsyncOpenAI, ident: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            answer = await sdk.responses.retrieve(ident)
            if answer.status not in ("queued", "in_progress"):
                return answer
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("alias", ["echo", "claude"])
async def test_polled(pair: Pair, front: openai.AsyncOpenAI, alias: str) -> None:
    known, before = len(await pair.made_later()), await pair.back.charged_pusd()
    made = await front.responses.create(model=alias, input=ASK, background=True, metadata={"a": "b"})
    assert made.status == "queued"
    assert made.background is True
    assert (made.output, made.metadata) == ([], {"a": "b"})
    answer = await ended(front, made.id)
    assert (answer.id, answer.status, answer.output_text, answer.background) == (made.id, "completed", FIVE, True)
    assert answer.usage.output_tokens == 5
    (row,) = (await pair.made_later(known + 1))[known:]
    assert (row["outcome"], row["variant"], row["alias"]) == ("completed", "", alias)
    assert await pair.back.charged_pusd() > before
    turn = await front.responses.create(model=alias, input="what did I say?", previous_response_id=made.id)
    assert turn.output_text
    listed = [item async for item in front.responses.input_items.list(made.id)]
    assert len(listed) == 1
    with pytest.raises(openai.BadRequestError, match="whole"):
        await front.responses.cancel(made.id)


@pytest.mark.parametrize("alias", ["echo", "claude"])
async def test_followed_and_taken_up_again(front: openai.AsyncOpenAI, alias: str) -> None:
    stream = await front.responses.create(model=alias, input=SLOW, background=True, stream=True)
    seen: list[Any] = []
    async with stream:
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta" and len(seen) > 8:
                break
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[0].type == "response.created"
    ident = seen[0].response.id
    with pytest.raises(openai.BadRequestError, match="still being made"):
        await front.responses.create(model=alias, input="and?", previous_response_id=ident)
    again = await front.responses.retrieve(ident, stream=True, starting_after=seen[-1].sequence_number)
    seen += [event async for event in again]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    whole = seen[-1]
    assert (whole.type, whole.response.id, whole.response.background) == ("response.completed", ident, True)
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    kept = await front.responses.retrieve(ident)
    assert (kept.output_text, kept.status) == (text, "completed")
    assert len(text.split()) == 40
    replayed = await front.responses.retrieve(ident, stream=True)
    assert [event.sequence_number async for event in replayed] == list(range(len(seen)))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_cancelled_under_way(pair: Pair, front: openai.AsyncOpenAI, stream: bool) -> None:
    known = len(await pair.made_later())
    alias = "echo" if stream else "silent"
    made: Any = await front.responses.create(model=alias, input=FOREVER, background=True, stream=stream)
    if stream:
        async with made:
            async for event in made:
                if event.type == "response.output_text.delta":
                    break
                if event.type == "response.created":
                    ident = event.response.id
    else:
        ident = made.id
        async with asyncio.timeout(60):
            while (await front.responses.retrieve(ident)).status == "queued":
                await asyncio.sleep(0.05)
    assert (await front.responses.cancel(ident)).status == "cancelled"
    assert (await front.responses.cancel(ident)).status == "cancelled"
    (row,) = (await pair.made_later(known + 1))[known:]
    assert row["outcome"] == "client_gone"
    assert (await front.responses.retrieve(ident)).status == "cancelled"
    if stream:
        rest = await front.responses.retrieve(ident, stream=True)
        assert [event.type async for event in rest][:1] == ["response.created"]


async def test_cancelled_or_deleted_before_its_turn(pair: Pair) -> None:
    key = await pair.front.new_key(rpm=1)
    sdk = sdk_of(pair.front, key)
    first = await sdk.responses.create(model="echo", input=ASK, background=True)
    assert (await ended(sdk, first.id)).status == "completed"
    second = await sdk.responses.create(model="echo", input=ASK, background=True)
    third = await sdk.responses.create(model="echo", input=ASK, background=True)
    assert (await sdk.responses.cancel(second.id)).status == "cancelled"
    await sdk.responses.delete(third.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(third.id)
    left = select(func.count()).select_from(schema.batches).where(schema.batches.c.id.in_([second.id, third.id]))
    async with asyncio.timeout(60):
        while True:
            async with reading(pair.front.engine) as db:
                if (await db.execute(left)).scalar_one() == 0:
                    break
            await asyncio.sleep(0.05)
    assert (await sdk.responses.retrieve(second.id)).status == "cancelled"


async def test_what_fails_is_told_in_the_answer(pair: Pair, front: openai.AsyncOpenAI) -> None:
    before = await pair.back.charged_pusd()
    answer = await ended(front, (await front.responses.create(model="failing", input=ASK, background=True)).id)
    assert (answer.status, answer.error.code) == ("failed", "server_error")
    stream = await front.responses.create(model="failing", input=ASK, background=True, stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == ["response.failed"]
    assert await pair.back.charged_pusd() == before
    stream = await front.responses.create(model="breaking", input=SLOW, background=True, stream=True)
    events = []
    with pytest.raises(openai.APIError, match="had an error"):
        async for event in stream:
            events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    ident = events[0].response.id
    assert (await ended(front, ident)).status == "failed"
    # Behind the error that the SDK raises, the stream ends as every one does.
    last = await front.responses.retrieve(ident, stream=True, starting_after=len(events))
    assert [event.type async for event in last] == ["response.failed"]


async def test_a_budget_ends_it_and_a_revoked_key_too(pair: Pair) -> None:
    sdk = sdk_of(pair.front, await pair.front.new_key(budget_pusd=1))
    answer = await ended(sdk, (await sdk.responses.create(model="echo", input=ASK, background=True)).id)
    assert answer.status == "failed"
    assert "budget" in answer.error.message


async def test_refused_at_once(pair: Pair, front: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await front.responses.create(model="nobody", input=ASK, background=True)
    with pytest.raises(openai.BadRequestError, match="store"):
        await front.responses.create(model="echo", input=ASK, background=True, store=False)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await front.responses.create(model="echo", input=ASK, background=True, temperature="hot")  # type: ignore[call-overload]
    plain = await front.responses.create(model="echo", input=ASK)
    with pytest.raises(openai.BadRequestError, match="background"):
        await front.responses.retrieve(plain.id, stream=True)
    made = await front.responses.create(model="echo", input=ASK, background=True)
    async with httpx.AsyncClient(base_url=pair.front.v1, headers={"authorization": f"Bearer {pair.front.key}"}) as http:
        odd = await http.get(f"/responses/{made.id}?stream=true&starting_after=x")
        assert (odd.status_code, odd.json()["error"]["param"]) == (400, "starting_after")
        dry = await http.post(
            "/responses",
            json={"model": "echo", "input": ASK, "background": True},
            headers={"x-farebox-dry-run": "true"},
        )
        assert "id" not in dry.json()
    await ended(front, made.id)
    # Created without a stream, it has no events to follow.
    assert [event async for event in await front.responses.retrieve(made.id, stream=True)] == []


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.timeout(180)
async def test_kill_9_in_the_middle(tmp_path: Path, fresh_database_url: str, redis_url: str) -> None:
    """The next process makes it anew: followed on behind the last event seen, whole, and charged once each."""
    [port] = free_ports(1)
    async with OpenAIEmulator() as upstream:
        config = written(tmp_path, upstream.url, fresh_database_url, redis_url, port)
        config.write_text(config.read_text() + "\n[batches]\nparallel = 4\nlease_s = 1.0\n")
        settings = load(config, {})
        key = await prepare(settings)
        engine = create_engine(settings.database_url)
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as sdk:
            async with serving(config, port) as process:
                late = "x-script: long=40 pace_ms=2500"  # as whole answers are paced: once
                polled = await sdk.responses.create(model="echo", input=late, background=True)
                stream = await sdk.responses.create(model="echo", input=SLOW, background=True, stream=True)
                seen: list[Any] = []
                async with asyncio.timeout(60):
                    async for event in stream:
                        seen.append(event)
                        if event.type == "response.output_text.delta":
                            break
                    while upstream.stats.requests < 2:
                        await asyncio.sleep(0.01)
                ident = seen[0].response.id
                assert (await sdk.responses.retrieve(polled.id)).status in ("queued", "in_progress")
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
                await stream.close()
            async with serving(config, port), asyncio.timeout(90):
                rest = await sdk.responses.retrieve(ident, stream=True, starting_after=seen[-1].sequence_number)
                seen += [event async for event in rest]
                whole, other = await ended(sdk, ident), await ended(sdk, polled.id)
                rows: list[str] = []
                while len(rows) < 2:
                    async with reading(engine) as db:
                        rows = list((await db.execute(select(billed.usage_records.c.id))).scalars())
                async with reading(engine) as db:
                    assert (await ledger.trial_balance(db)).sound
                    assert (await db.execute(select(func.count()).select_from(schema.batches))).scalar_one() == 0
        await engine.dispose()
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].type == "response.completed"
    said = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert (whole.status, whole.output_text) == ("completed", said)
    assert len(said.split()) == 40
    assert (other.status, other.output_text) == ("completed", said)
    assert len(rows) == 2
    assert all(row.startswith("batch_req_") for row in rows)
    assert upstream.stats.requests <= 4  # what was on its way when it died is asked again, nothing else


@pytest.mark.asyncio(loop_scope="function")
async def test_whoever_lost_its_lease_leaves_the_work_to_its_new_owner(fresh_database_url: str) -> None:
    """A process that hung for longer than its lease wakes up: it neither ends the other's work nor writes into it."""
    engine = create_engine(fresh_database_url)
    store, jobs = Store(engine), Jobs(engine)
    background = Background(jobs, asyncio.Event(), time.time_ns)
    ident, asked = "resp_bg1", b'{"model":"echo","input":"hi","stream":true,"store":false}'
    stored = Stored(ident, b"[]", b'{"id":"resp_bg1","object":"response","status":"queued","background":true}')
    async with writing(engine) as db:
        await accounts.create_organisation(db, "o", "org", at_ns=1)
        await accounts.create_project(db, "p", "o", "demo", at_ns=1)
    await jobs.add(Principal("k", "p", "n", "o", "p"), stored, asked, Told(True, {}), time.time_ns())
    whole = asyncio.Event()

    def serve_of(owner: str) -> Any:
        async def body() -> AsyncIterator[bytes]:
            yield b'event: response.output_text.delta\ndata: {"delta":"%b"}\n\n' % owner.encode()
            await whole.wait()
            yield b'event: response.output_text.delta\ndata: {"delta":"late"}\n\n'
            yield b'event: response.completed\ndata: {"response":{"output":[]}}\n\n'

        async def serve(headers: Mapping[str, str]) -> Reply:
            return Reply(200, [], body())

        return serve

    def running(work: Work, owner: str) -> asyncio.Task[None]:
        return asyncio.create_task(background.run(work, owner, serve_of(owner), as_body, "req_1"))

    async def pieces() -> bytes:
        return b"".join(data for _, data in await jobs.pieces(ident, 0))

    async def until_told(owner: str) -> None:
        async with asyncio.timeout(60):
            while owner.encode() not in await pieces():
                await asyncio.sleep(0.01)

    (first,) = await store.take("one", 1, 0, time.time_ns())
    loser = running(first, "one")
    await until_told("one")
    (second,) = await store.take("two", 1, 60 * 10**9, time.time_ns())
    winner = running(second, "two")
    await until_told("two")
    async with asyncio.timeout(60):
        await loser  # by itself: it sees whose the work is
    await jobs.append(ident, 99, b"one, late", "one", time.time_ns())
    assert await jobs.is_live(ident)
    assert await jobs.is_wanted(ident, "two")
    whole.set()
    async with asyncio.timeout(60):
        await winner
    assert not await jobs.is_live(ident)
    told = await pieces()
    assert (told.count(b"one"), told.count(b"two"), told.count(b"late")) == (0, 1, 1)
    await engine.dispose()
