"""Answers that serve a question which means the same: only where an alias wants it, and never across anything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from msgspec.structs import replace
from redis.asyncio import Redis

from billing import accounts
from billing.db import writing
from gateway import similar
from gateway.offered import SimilarSettings
from tests.e2e.harness import WITHIN_S, House, house, model, provider, settings_for
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Out, Request

pytestmark = pytest.mark.asyncio(loop_scope="module")
THRESHOLD = 0.9


class Meanings(OpenAIEmulator):
    """Vectors of words: the same words in another order mean the same, and each further word a little else."""

    broken = False

    async def _embeddings(self, request: Request, out: Out) -> None:
        if self.broken:
            await out.json(500, {"error": {"message": "no", "type": "server_error"}})
            return
        data = []
        for at, text in enumerate(request.json()["input"]):
            numbers = [0.0] * 384
            for word in text.lower().split():
                numbers[int.from_bytes(blake2b(word.encode(), digest_size=4).digest()) % 384] += 1.0
            data.append({"object": "embedding", "index": at, "embedding": numbers})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        await out.json(200, {"object": "list", "data": data, "model": "minilm", "usage": usage})


@dataclass
class Yard:
    gateway: House
    chats: OpenAIEmulator
    meanings: Meanings

    async def ask(self, text: str, alias: str = "alike", key: str | None = None, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.gateway.key}", **more.pop("headers", {})}
        body = {"model": alias, "temperature": 0, "messages": [{"role": "user", "content": text}], **more}
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            answer = await http.post(f"{self.gateway.v1}/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    data = tmp_path_factory.mktemp("similar")
    (data / "farebox.db").write_bytes(sqlite_template.read_bytes())
    # Patience for a busy machine: what comes too late is told apart in a test of its own.
    said = SimilarSettings(model="minilm", threshold=THRESHOLD, wait_s=10.0)
    async with OpenAIEmulator() as chats, Meanings() as meanings:
        providers = {
            "up": provider("openai_like", f"{chats.url}/v1"),
            "own": provider("openai_like", f"{meanings.url}/v1"),
        }
        kept = replace(model("alike", "up/echo-1"), keep_answers_s=600.0, similar_answers=said)
        models = (
            kept,
            replace(kept, alias="elsewhere"),
            replace(kept, alias="small"),
            replace(kept, alias="chosen", similar_answers=replace(said, projects=("proj_chosen",))),
            replace(kept, alias="warm", similar_answers=replace(said, max_temperature=1.0)),
            model("minilm", "own/minilm"),
        )
        async with house(settings_for(data, f"sqlite:///{data / 'farebox.db'}", _valkey, providers, models)) as built:
            yield Yard(built, chats, meanings)


async def test_what_means_the_same_is_answered_again_and_pays_for_a_request(yard: Yard) -> None:
    asked, rows = len(yard.chats.requests), len(await yard.gateway.rows())
    first = await yard.ask("how do I open a new bank account for my child in France")
    again = await yard.ask("for my child in France how do I open a new bank account")
    assert again.json()["choices"] == first.json()["choices"]
    assert len(yard.chats.requests) == asked + 1
    assert "x-farebox-cache" not in first.headers
    assert again.headers["x-farebox-cache"] == "similar"
    assert again.headers["x-farebox-similarity"] == f"1.0000; threshold={THRESHOLD}"
    assert float(again.headers["x-farebox-cost-usd"]) == 0
    assert float(first.headers["x-farebox-cost-usd"]) > 0
    found = (await yard.gateway.rows(rows + 2))[rows:]
    assert sorted((row["attempts"], row["charge_pusd"] > 0) for row in found) == [(0, False), (1, True)]
    # Nothing of what the vectors cost is on a bill: one row for each request.
    assert {row["alias"] for row in found} == {"alike"}


async def test_what_is_not_alike_enough_is_told_how_alike_it_was(yard: Yard) -> None:
    await yard.ask("which trees grow in the north of Norway by the sea")
    other = await yard.ask("which trees grow in the south of Spain by the sea")
    assert "x-farebox-cache" not in other.headers
    closest, _, threshold = other.headers["x-farebox-similarity"].partition("; ")
    assert 0.5 < float(closest) < THRESHOLD
    assert threshold == f"threshold={THRESHOLD}"


async def test_a_stream_is_served_from_what_was_kept(yard: Yard) -> None:
    asked = len(yard.chats.requests)
    texts = []
    for said in ("tell me all about the old harbour of Genoa", "all about the old harbour of Genoa tell me"):
        answer = await yard.ask(said, stream=True)
        texts.append("".join(
            json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            for line in answer.text.splitlines() if line.startswith("data: {") and json.loads(line[6:])["choices"]
        ))  # fmt: skip
    assert texts[0] == texts[1] != ""
    assert answer.headers["x-farebox-cache"] == "similar"
    assert len(yard.chats.requests) == asked + 1


@pytest.mark.parametrize(("first", "second"), [
    ("is this mushroom safe to eat with wine", "is this mushroom not safe to eat with wine"),
    ("what was new in Python 3.11 for all who write servers", "what was new in Python 3.12 for all who write servers"),
    ("convert 5 miles into kilometres for me please", "convert 50 miles into kilometres for me please"),
])  # fmt: skip
async def test_figures_and_negations_set_questions_apart_however_alike_they_look(
    yard: Yard, first: str, second: str
) -> None:
    await yard.ask(first)
    assert "x-farebox-cache" not in (await yard.ask(second)).headers


@pytest.mark.parametrize("more", [
    {"max_tokens": 50},
    {"top_p": 0.5},
    {"model": "elsewhere"},
    {"seed": 3},
])  # fmt: skip
async def test_other_terms_are_another_question(yard: Yard, more: dict[str, Any]) -> None:
    name = next(iter(more))
    await yard.ask(f"why is the sky so blue in the evening {name}")
    answer = await yard.ask(f"in the evening {name} why is the sky so blue", **more)
    assert "x-farebox-cache" not in answer.headers


async def test_the_system_prompt_is_part_of_the_question(yard: Yard) -> None:
    def under(prompt: str, text: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": prompt}, {"role": "user", "content": text}]

    await yard.ask("", messages=under("You are a lawyer.", "may I park here on a Sunday morning"))
    same = await yard.ask("", messages=under("You are a lawyer.", "on a Sunday morning may I park here"))
    other = await yard.ask("", messages=under("You are a poet.", "on a Sunday morning may I park here"))
    assert same.headers["x-farebox-cache"] == "similar"
    assert "x-farebox-cache" not in other.headers


async def test_never_across_projects_and_only_for_those_that_take_part(yard: Yard) -> None:
    async with writing(yard.gateway.engine) as db:
        chosen = await accounts.create_project(
            db, "proj_chosen", yard.gateway.project.organisation_id, "chosen", at_ns=1
        )
    mine, yard.gateway.project = yard.gateway.project, chosen
    try:
        key = await yard.gateway.new_key()
    finally:
        yard.gateway.project = mine
    first, second = "what did our board decide about the merger", "about the merger what did our board decide"
    await yard.ask(first)
    assert "x-farebox-cache" not in (await yard.ask(second, key=key)).headers
    for alias, who, hit in (("chosen", None, False), ("chosen", key, True)):
        await yard.ask(first, alias, who)
        answer = await yard.ask(second, alias, who)
        assert ("x-farebox-cache" in answer.headers) == hit
        assert ("x-farebox-similarity" in answer.headers) == hit


async def test_a_request_may_want_more_likeness_or_none_of_it(yard: Yard) -> None:
    said = "how long does it take to walk from here to the old mill"
    nearly = f"{said} exactly"
    await yard.ask(said)
    for headers in ({"x-farebox-cache": "exact"}, {"x-farebox-cache": "no-store"}):
        answer = await yard.ask(nearly, headers=headers, max_tokens=None)
        assert "x-farebox-cache" not in answer.headers
        assert "x-farebox-similarity" not in answer.headers
    stricter = await yard.ask(f"{said} please", headers={"x-farebox-similarity": "0.999"})
    assert "x-farebox-cache" not in stricter.headers
    assert stricter.headers["x-farebox-similarity"].endswith("threshold=0.999")
    laxer = await yard.ask(f"walk {said} really", headers={"x-farebox-similarity": "0.1"})
    assert laxer.headers["x-farebox-similarity"].endswith(f"threshold={THRESHOLD}")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(("more", "why"), [
    ({"temperature": 0.9}, "temperature 0.9 above 0.3"),
    ({"temperature": None}, "temperature 1 above 0.3"),
    ({"tools": [TOOL]}, "tools"),
    ({"n": 2}, "several candidates"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "what is it"}]}]}, "more than text"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                   {"role": "user", "content": "c"}]}, "not the first question"),
    ({"messages": [{"role": "user", "content": "long " * similar.QUESTION_BYTES}]}, "more than 2000 bytes"),
])  # fmt: skip
async def test_what_no_other_answer_may_answer_is_told(yard: Yard, more: dict[str, Any], why: str) -> None:
    embedded = len(yard.meanings.requests)
    answer = await yard.ask("what is it", **more)
    assert answer.headers["x-farebox-similarity"].startswith("skipped: ")
    assert why in answer.headers["x-farebox-similarity"]
    assert len(yard.meanings.requests) == embedded


async def test_a_warmer_temperature_is_the_operators_choice(yard: Yard) -> None:
    await yard.ask("name me some good songs for a long drive", "warm", temperature=0.9)
    again = await yard.ask("for a long drive name me some good songs", "warm", temperature=0.9)
    assert again.headers["x-farebox-cache"] == "similar"


async def test_the_index_stays_small(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "ENTRIES", 3)
    monkeypatch.setattr(similar, "CONTEXTS", 2)
    words = ["alpha", "beta", "gamma", "delta"]
    async with Redis.from_url(yard.gateway.settings.redis_url or "", decode_responses=True) as redis:
        before = {key async for key in redis.scan_iter("fbx:similar:*")}
        for prompt in words:
            for word in words:
                system = {"role": "system", "content": f"small {prompt}"}
                await yard.ask("", "small", messages=[system, {"role": "user", "content": word}])
        made = {key async for key in redis.scan_iter("fbx:similar:*")} - before
        (index,) = [key for key in made if key.endswith("}")]
        assert await redis.zcard(index) == 2
        assert set(await redis.zrange(index, 0, -1)) == made - {index}
        for context in made - {index}:
            assert await redis.llen(context) == 3  # type: ignore[misc]
            assert await redis.pttl(context) > 0


async def test_without_vectors_requests_go_on_and_are_not_kept_waiting(yard: Yard) -> None:
    yard.meanings.broken = True
    before = len(yard.meanings.requests)
    for number in range(2):
        answer = await yard.ask(f"anything at all {'x' * number}")
        assert "x-farebox-similarity" not in answer.headers
    assert len(yard.meanings.requests) == before + 1, "who has just failed is left alone"
