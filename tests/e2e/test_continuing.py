"""A stream that breaks is carried on elsewhere: each dialect's own SDK sees one answer, and one row pays for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from msgspec.structs import replace

from gateway.config import ModelSettings
from gateway.continuing import GO_ON
from gateway.metering import tokens_of
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.matrix.anthropic_sdks import Messages
from tests.matrix.asks import Ask, Client
from tests.matrix.aws_sdk import Converse
from tests.matrix.google_sdk import Gemini
from tests.matrix.openai_sdks import Chat, Responses

pytestmark = pytest.mark.asyncio(loop_scope="module")

FULL = " ".join(f"word{n}" for n in range(1, 41))
SAID = "x-script: long=40"
BREAKS = ("cut-mid-frame", "reset", "stream-error", "no-end")
CLIENTS: tuple[type[Client], ...] = (Chat, Responses, Messages, Gemini, Converse)
SPARES = ("openai", "anthropic")


@dataclass
class Yard:
    gateway: House
    openai: OpenAIEmulator
    anthropic: AnthropicEmulator

    async def row(self, alias: str) -> dict[str, Any]:
        rows = [row for row in await self.gateway.rows() if row["alias"] == alias]
        assert len(rows) == 1, "one request, one row"
        return rows[0]


def alias_of(client: type[Client], fault: str, spare: str) -> str:
    return f"{client.name}-{fault}-{spare}".replace(" ", "-")


def carried(alias: str, *places: str, **more: Any) -> ModelSettings:
    return replace(model(alias, *places), continue_broken=True, **more)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    data = tmp_path_factory.mktemp("continuing")
    (data / "farebox.db").write_bytes(sqlite_template.read_bytes())
    models = [
        carried(alias_of(client, fault, spare), f"{alias_of(client, fault, spare)}/fault-{fault}", f"{spare}/{name}")
        for client in CLIENTS
        for fault in BREAKS
        for spare, name in (("openai", "echo-1"), ("anthropic", "claude-haiku-4-5"))
    ]
    models += [
        carried("thrice", "one/fault-reset", "two/fault-cut-mid-frame", "spare/echo-1"),
        carried("kept", "nine/fault-reset", "spare/echo-1", keep_answers_s=60.0),
        carried("nobody", "three/fault-reset", "four/fault-cut-mid-frame"),
        carried("refused", "five/fault-reset", "six/fault-500"),
        carried("with-tools", "seven/fault-reset", "spare/echo-1"),
        model("as-ever", "eight/fault-reset", "spare/echo-1"),
    ]
    async with OpenAIEmulator() as upstream, AnthropicEmulator(api_key=None) as claude:
        # A name for each, or the breakers of one test would tell the next.
        names = {place.provider for each in models for place in each.deployments}
        providers = {name: provider("openai", f"{upstream.url}/v1") for name in names}
        providers["anthropic"] = provider("anthropic", claude.url)
        url = f"sqlite+aiosqlite:///{data / 'farebox.db'}"
        async with house(settings_for(data, url, _valkey, providers, tuple(models))) as gateway:
            yield Yard(gateway, upstream, claude)


@pytest.mark.parametrize("spare", SPARES)
@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_the_client_sees_one_answer(yard: Yard, client: type[Client], fault: str, spare: str) -> None:
    alias = alias_of(client, fault, spare)
    sdk = client(yard.gateway)
    try:
        seen = await sdk.ask(alias, Ask(SAID, stream=True, max_tokens=1000))
    finally:
        await sdk.aclose()
    # The scripted model says all of it again, so the seam can be found.
    assert seen.text.endswith(FULL)
    first = seen.text.removesuffix(FULL)
    assert first
    assert FULL.startswith(first)
    asked = (yard.anthropic if spare == "anthropic" else yard.openai).requests[-1].json()
    answered, go_on = asked["input" if "input" in asked else "messages"][-2:]
    assert (answered["role"], go_on["role"]) == ("assistant", "user")
    assert first in str(answered["content"]), "who goes on is shown what has been said"
    assert GO_ON in str(go_on["content"])
    row = await yard.row(alias)
    assert (row["provider"], row["outcome"], row["attempts"], row["estimated"]) == (spare, "completed", 2, True)
    assert 0 < row["charge_pusd"] <= row["hold_pusd"]
    assert row["output_tokens"] == seen.output_tokens, "the client is told what is charged"
    shown = tokens_of(len(first.encode()))
    assert row["output_tokens"] > shown, "both halves count"


async def stream_of(yard: Yard, alias: str, **more: Any) -> tuple[str, str]:
    """What the client got: the text, and the message of an error in mid-stream."""
    text = ""
    async with openai.AsyncOpenAI(base_url=yard.gateway.v1, api_key=yard.gateway.key, max_retries=0) as sdk:
        try:
            asked: Any = {"model": alias, "messages": [{"role": "user", "content": SAID}], "stream": True, **more}
            async for chunk in await sdk.chat.completions.create(**asked):
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
        except openai.APIError as error:
            return text, error.message
    return text, ""


async def test_it_may_break_more_than_once(yard: Yard) -> None:
    text, error = await stream_of(yard, "thrice")
    assert not error
    assert text.endswith(FULL)
    row = await yard.row("thrice")
    assert (row["provider"], row["attempts"], row["outcome"]) == ("spare", 3, "completed")
    said = yard.openai.requests[-1].json()["messages"][-2]["content"]
    assert text == str(said) + FULL, "the third is shown what both before it said"
    tries = [(name.partition("/")[0], how) for name, how, _ in json.loads(row["way"])["tries"]]
    assert tries == [("one", "Interrupted"), ("two", "Interrupted"), ("spare", "ok")]


async def test_what_two_said_between_them_is_kept_for_nobody(yard: Yard) -> None:
    for asked in (1, 2):
        text, error = await stream_of(yard, "kept")
        assert text.endswith(FULL)
        assert not error
        found = [row for row in await yard.gateway.rows() if row["alias"] == "kept"]
        assert [row["attempts"] for row in found] == [2] * asked


@pytest.mark.parametrize("alias", ["nobody", "refused"])
async def test_when_nobody_is_left_the_client_is_told_and_pays_for_what_it_got(yard: Yard, alias: str) -> None:
    text, error = await stream_of(yard, alias)
    assert text
    assert error
    row = await yard.row(alias)
    assert row["outcome"] == "upstream_failed"
    assert row["estimated"]
    assert row["output_tokens"] == tokens_of(len(text.encode()))


async def test_without_leave_and_with_tools_nothing_is_carried_on(yard: Yard) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for alias, more in (("as-ever", {}), ("with-tools", {"tools": [tool], "tool_choice": "none"})):
        _, error = await stream_of(yard, alias, **more)
        assert error, alias
        assert (await yard.row(alias))["attempts"] == 1


async def test_how_often_stands_in_the_metrics(yard: Yard) -> None:
    await stream_of(yard, "thrice")
    async with httpx.AsyncClient() as http:
        told = (await http.get(f"{yard.gateway.url}/metrics")).text
    count = next(line for line in told.splitlines() if line.startswith("farebox_continued_streams_total"))
    assert float(count.split()[-1]) >= 2
