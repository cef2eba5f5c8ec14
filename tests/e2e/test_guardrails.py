"""Guardrails on a whole gateway: no match leaves, whatever the dialect and however its deltas cut it; what was made is
billed; every change and outcome is written down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select

from billing.db import reading
from gateway import schema
from gateway.guardrails.policy import Patterns, Pii, Spec, Tools, Topics
from gateway.guardrails.store import GuardrailAdmin, NewRule
from gateway.till import GuardrailSettings
from providers.dialects import load
from providers.neutral import ChatResponse, ReasoningPart, TextPart, ToolCallPart
from providers.neutral.response import collect
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")
CARD = "4111_1111_1111_1111"
DIALECTS = ("openai_chat", "openai_responses", "anthropic_messages", "gemini", "bedrock_converse")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    data = tmp_path_factory.mktemp("guardrails")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    async with OpenAIEmulator() as openai, AnthropicEmulator() as anthropic:
        providers = {
            "openais": provider("openai", f"{openai.url}/v1"),
            "claudes": provider("anthropic", anthropic.url, {"api_key": "sk-ant-test"}),
        }
        models = (
            model("gpt", "openais/echo-1"),
            model("claude", "claudes/echo-1"),
            model("embed", "openais/text-embedding-3-small"),
        )
        settings = settings_for(
            data, f"sqlite:///{database}", _valkey, providers, models,
            guardrails=GuardrailSettings(private_targets=True),
        )  # fmt: skip
        async with house(settings) as built:
            yield built


async def guarded_key(gateway: House, spec: Spec, **more: Any) -> tuple[str, str]:
    """A key of its own with one guardrail. Returns: the key, its id."""
    key = await gateway.new_key()
    ident = (await gateway.keys.list_keys(limit=1))[0].id  # the newest
    admin = GuardrailAdmin(gateway.engine, gateway.keys.changed)
    new = NewRule(name=more.pop("name", "test"), spec=spec, scope="key", scope_id=ident, **more)
    await admin.create(new, actor="test", now_ns=time.time_ns())
    return key, ident


def asked(dialect: str, alias: str, prompt: str, *, stream: bool, **more: Any) -> tuple[str, dict[str, Any]]:
    turn = {"role": "user", "content": prompt}
    match dialect:
        case "openai_chat":
            body = {"model": alias, "messages": [turn], "stream": stream}
            return "/v1/chat/completions", body | ({"stream_options": {"include_usage": True}} if stream else {}) | more
        case "openai_responses":
            return "/v1/responses", {"model": alias, "input": prompt, "stream": stream, "store": False, **more}
        case "anthropic_messages":
            return "/v1/messages", {"model": alias, "messages": [turn], "max_tokens": 500, "stream": stream, **more}
        case "gemini":
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
            return f"/v1beta/models/{alias}:{verb}", body | more
    verb = "converse-stream" if stream else "converse"
    return f"/model/{alias}/{verb}", {"messages": [{"role": "user", "content": [{"text": prompt}]}], **more}


async def said(gateway: House, key: str, dialect: str, alias: str, prompt: str, *, stream: bool, **more: Any) -> tuple[
    ChatResponse, httpx.Response
]:  # fmt: skip
    path, body = asked(dialect, alias, prompt, stream=stream, **more)
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(gateway.url + path, json=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    spoken = load(dialect)
    if not stream:
        return spoken.decode_response(answer.content), answer
    decoder = spoken.event_decoder()
    return collect([*decoder.feed(answer.content), *decoder.close()]), answer


def text_of(response: ChatResponse) -> str:
    return "".join(part.text for part in response.candidates[0].content if isinstance(part, TextPart))


async def report_of(gateway: House, request_id: str) -> dict[str, Any]:
    query = select(schema.guardrail_reports).where(schema.guardrail_reports.c.request_id == request_id)
    async with asyncio.timeout(30):
        while True:
            async with reading(gateway.engine) as db:
                row = (await db.execute(query)).mappings().one_or_none()
            if row is not None:
                return dict(row)
            await asyncio.sleep(0.01)


async def row_of(gateway: House, request_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            found = [row for row in await gateway.rows() if row["id"] == request_id]
            if found:
                return found[0]
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("alias", ["gpt", "claude"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_what_spans_deltas_is_redacted_before_it_leaves(
    gateway: House, dialect: str, alias: str, stream: bool
) -> None:
    key, _ = await guarded_key(gateway, Pii(), stage="output")
    prompt = f"x-script: say=pay_{CARD}_or_mail_a.b@c.example_now"
    response, answer = await said(gateway, key, dialect, alias, prompt, stream=stream)
    assert text_of(response) == "pay [CARD] or mail [EMAIL] now"
    assert response.candidates[0].finish_reason == "stop"
    assert b"1111" not in answer.content
    row = await row_of(gateway, answer.headers["x-request-id"])
    assert (row["outcome"], row["estimated"]) == ("completed", False)
    report = await report_of(gateway, answer.headers["x-request-id"])
    assert report["outcome"] == "redacted"
    assert report["findings"][0]["found"] == {"card": 1, "email": 1}


@pytest.mark.parametrize("alias", ["gpt", "claude"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_blocked_answer_ends_in_its_clients_words_and_is_billed(
    gateway: House, dialect: str, alias: str, stream: bool
) -> None:
    spec = Patterns(patterns=(r"secret\s{1,9}falcon",))
    key, _ = await guarded_key(gateway, spec, stage="output", action="block")
    prompt = "x-script: say=one_two_three_the_secret_falcon_flies_far"
    response, answer = await said(gateway, key, dialect, alias, prompt, stream=stream)
    assert response.candidates[0].finish_reason == "content_filter"
    assert text_of(response) == ("one two three the " if stream else "")
    assert b"falcon" not in answer.content
    row = await row_of(gateway, answer.headers["x-request-id"])
    assert (row["outcome"], row["finish_reason"]) == ("completed", "content_filter")
    assert row["quantities"]["output_tokens"] >= 5
    assert row["charge_pusd"] > 0
    assert (await report_of(gateway, answer.headers["x-request-id"]))["outcome"] == "blocked"


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages"])
async def test_thoughts_and_tool_arguments_are_looked_at_too(gateway: House, dialect: str) -> None:
    key, _ = await guarded_key(gateway, Patterns(patterns=("think3", "4111111111111111"), label="gone"), stage="output")
    schema_ = {"type": "object", "properties": {"card": {"type": "integer"}}}
    tool: Any = {"name": "pay", "input_schema": schema_}
    if dialect == "openai_chat":
        tool = {"type": "function", "function": {"name": "pay", "parameters": schema_}}
    prompt = 'x-script: reasoning=5\nx-call: pay {"card": 4111111111111111}'
    response, _ = await said(gateway, key, dialect, "claude", prompt, stream=True, tools=[tool])
    parts = response.candidates[0].content
    thoughts = [part for part in parts if isinstance(part, ReasoningPart)]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    assert [json.loads(call.arguments) for call in calls] == [{"card": "[GONE]"}]
    assert "[GONE]" in thoughts[0].text
    assert "think3" not in thoughts[0].text
    if dialect == "anthropic_messages":
        assert not thoughts[0].signature  # It sealed another text.


async def test_a_prompt_is_redacted_before_it_goes_and_a_blocked_one_never_does(gateway: House) -> None:
    key, _ = await guarded_key(gateway, Pii(detectors=("email",)), stage="input")
    response, _ = await said(gateway, key, "openai_chat", "gpt", "hello a.b@c.example", stream=False, temperature=0.5)
    assert "[EMAIL]" in text_of(response)
    key, _ = await guarded_key(
        gateway, Topics(deny=("weather",)), stage="input", action="block", message="not about the weather, please"
    )
    path, body = asked("openai_chat", "gpt", "how is the Weather", stream=True)
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(gateway.url + path, json=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"
    assert answer.json()["error"]["message"] == "not about the weather, please"
    report = await report_of(gateway, answer.headers["x-request-id"])
    assert (report["outcome"], report["findings"][0]["found"]) == ("blocked", {"topic": 1})


async def test_tools_that_may_not_be_declared_are_refused_or_left_out(gateway: House) -> None:
    functions = [{"name": name, "parameters": {"type": "object"}} for name in ("a_1", "b_1")]
    tools = [{"type": "function", "function": function} for function in functions]
    for action, status in (("block", 400), ("redact", 200)):
        key, _ = await guarded_key(gateway, Tools(allow=("a_*",)), stage="input", action=action)
        path, body = asked("openai_chat", "gpt", "call b_1", stream=False, tools=tools)
        async with httpx.AsyncClient(timeout=60) as http:
            answer = await http.post(gateway.url + path, json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status, answer.text
        if status == 200:
            assert not answer.json()["choices"][0]["message"].get("tool_calls")


async def test_a_change_is_felt_and_off_leaves_the_bytes_alone(gateway: House) -> None:
    key, ident = await guarded_key(gateway, Pii(), stage="output")
    admin = GuardrailAdmin(gateway.engine, gateway.keys.changed)
    rule = next(rule for rule in await admin.rules() if rule.scope_id == ident)
    prompt = f"x-script: say=pay_{CARD}"
    response, _ = await said(gateway, key, "openai_chat", "gpt", prompt, stream=True)
    assert text_of(response) == "pay [CARD]"
    await admin.remove(rule.id, actor="test", now_ns=time.time_ns())
    async with asyncio.timeout(30):
        while True:
            response, _ = await said(gateway, key, "openai_chat", "gpt", prompt, stream=True)
            if text_of(response) == "pay 4111 1111 1111 1111":
                return
            await asyncio.sleep(0.02)


async def test_embeddings_counts_and_speech_pass_the_same_rules(gateway: House) -> None:
    key, _ = await guarded_key(gateway, Topics(deny=("weather",)), stage="input", action="block")
    asks = {
        "/v1/embeddings": {"model": "embed", "input": ["fine", "the weather"]},
        "/v1/messages/count_tokens": {"model": "claude", "messages": [{"role": "user", "content": "the weather"}]},
        "/v1/rerank": {"model": "embed", "query": "weather", "documents": ["a"]},
        "/v1/audio/speech": {"model": "embed", "input": "the weather", "voice": "alloy"},
    }
    async with httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {key}"}) as http:
        for path, body in asks.items():
            answer = await http.post(gateway.url + path, json=body)
            assert answer.status_code == 400, (path, answer.text)
            assert "guardrail" in answer.text, path
        numbers = await http.post(f"{gateway.v1}/embeddings", json={"model": "embed", "input": [[1, 2, 3]]})
        assert numbers.status_code == 400
        assert "token numbers" in numbers.text
    key, _ = await guarded_key(gateway, Pii(), stage="input")
    async with httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {key}"}) as http:
        good = await http.post(f"{gateway.v1}/embeddings", json={"model": "embed", "input": ["to a.b@c.example"]})
        assert good.status_code == 200, good.text
