"""Bad input and broken providers: each SDK raises its own right class with words of use, and no secret goes astray."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import House, until
from tests.e2e.yard import UPSTREAM_KEY, UPSTREAM_SECRET, Yard
from tests.matrix.anthropic_sdks import Messages
from tests.matrix.asks import Ask, Client, Said
from tests.matrix.aws_sdk import Converse
from tests.matrix.features import COUNT, said_of
from tests.matrix.google_sdk import Gemini
from tests.matrix.openai_sdks import Chat, Responses

pytestmark = pytest.mark.asyncio(loop_scope="module")

BACKENDS = ("openai", "anthropic", "gemini", "bedrock")
CLIENTS: dict[str, type[Client]] = {
    "openai_chat": Chat,
    "openai_responses": Responses,
    "anthropic_messages": Messages,
    "gemini": Gemini,
    "bedrock_converse": Converse,
}


async def refused(gateway: House, client: str, alias: str, *, stream: bool = False) -> Said:
    sdk = CLIENTS[client](gateway)
    try:
        return await said_of(sdk, alias, Ask(COUNT, stream=stream))
    finally:
        await sdk.aclose()


def is_kind(said: Said, client: str, kinds: tuple[str, str, int, str]) -> bool:
    """kinds: the class in openai's SDK and in anthropic's, the status in google's, the code in AWS's."""
    name = type(said.error).__name__
    match client:
        case "openai_chat" | "openai_responses":
            return name == kinds[0]
        case "anthropic_messages":
            return name == kinds[1]
        case "gemini":
            return said.status == kinds[2]
    return said.code == kinds[3]


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_bad_key(yard: Yard, client: str, stream: bool) -> None:
    stranger = replace(yard.gateway, key="fbx_not-a-key-of-ours-000000000000")
    said = await refused(stranger, client, "via-openai", stream=stream)
    assert is_kind(said, client, ("AuthenticationError", "AuthenticationError", 401, "AccessDeniedException"))
    assert "key" in said.message
    assert stranger.key not in said.message


@pytest.mark.parametrize("client", list(CLIENTS))
async def test_an_unknown_model_is_named(yard: Yard, client: str) -> None:
    said = await refused(yard.gateway, client, "no-such-model")
    assert is_kind(said, client, ("NotFoundError", "NotFoundError", 404, "ResourceNotFoundException"))
    assert "no-such-model" in said.message


@pytest.mark.parametrize("client", list(CLIENTS))
async def test_a_model_that_the_key_may_not_use(yard: Yard, client: str) -> None:
    narrow = replace(yard.gateway, key=await yard.gateway.new_key(models=("via-groq",)))
    said = await refused(narrow, client, "via-openai")
    assert is_kind(said, client, ("PermissionDeniedError", "PermissionDeniedError", 403, "AccessDeniedException"))
    assert "via-openai" in said.message


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_over_budget_it_is_not_run_and_not_to_be_tried_again(yard: Yard, client: str, stream: bool) -> None:
    poor = replace(yard.gateway, key=await yard.gateway.new_key(budget_pusd=1_000))
    sent = yard.backends["openai"].stats.requests
    said = await refused(poor, client, "via-openai", stream=stream)
    assert is_kind(said, client, ("RateLimitError", "RateLimitError", 429, "ThrottlingException"))
    assert "budget" in said.message
    if said.headers:
        assert said.headers["x-should-retry"] == "false"
        assert "retry-after" not in said.headers
    if isinstance(said.error, openai.RateLimitError):
        assert said.error.code == "insufficient_quota"
    assert yard.backends["openai"].stats.requests == sent


@pytest.mark.parametrize("client", list(CLIENTS))
async def test_a_rate_limit_says_when_to_come_back(yard: Yard, client: str) -> None:
    limited = replace(yard.gateway, key=await yard.gateway.new_key(rpm=1))
    await CLIENTS[client](limited).ask("via-openai", Ask(COUNT))
    said = await refused(limited, client, "via-openai")
    assert is_kind(said, client, ("RateLimitError", "RateLimitError", 429, "ThrottlingException"))
    if client == "bedrock_converse":
        assert int(said.headers["x-amz-retry-after"]) > 1000
        return
    if client == "gemini":
        details = said.error.details["error"]["details"]  # type: ignore[attr-defined]
        delay = next(d["retryDelay"] for d in details if d["@type"].endswith("RetryInfo"))
        assert 0 < float(delay.removesuffix("s")) <= 60
        return
    assert 0 < int(said.headers["retry-after"]) <= 60
    assert 0 < int(said.headers["retry-after-ms"]) <= 60_000
    theirs = client == "anthropic_messages"
    assert said.headers["anthropic-ratelimit-requests-remaining" if theirs else "x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_provider_that_fails_is_a_server_error(yard: Yard, client: str, backend: str) -> None:
    said = await refused(yard.gateway, client, f"{backend}-500")
    assert said.status is not None
    assert said.status >= 500
    if said.code is not None:
        assert said.code in ("InternalServerException", "ServiceUnavailableException")
    row = (await yard.gateway.rows())[-1]
    assert (row["outcome"], row["quantities"]) == ("upstream_failed", {})


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_provider_that_throttles_us(yard: Yard, client: str, backend: str) -> None:
    said = await refused(yard.gateway, client, f"{backend}-429")
    assert is_kind(said, client, ("RateLimitError", "RateLimitError", 429, "ThrottlingException"))


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_the_provider_rejects_goes_back_as_the_clients_mistake(
    yard: Yard, client: str, backend: str
) -> None:
    said = await refused(yard.gateway, client, f"{backend}-400")
    assert is_kind(said, client, ("BadRequestError", "BadRequestError", 400, "ValidationException"))
    assert "scripted" in said.message or "invalid" in said.message.lower()


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", ["cut-mid-frame", "stream-error"])
async def test_an_answer_that_breaks_off_raises_in_the_middle(
    yard: Yard, client: str, backend: str, fault: str
) -> None:
    said = await refused(yard.gateway, client, f"{backend}-{fault}", stream=True)
    assert said.message
    row = (await yard.gateway.rows())[-1]
    assert row["outcome"] == "upstream_failed"
    assert row["estimated"]
    assert row["quantities"]["output_tokens"] > 0


def ask(gateway: House, client: str, alias: str, prompt: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """URL and body of a plain request in the client's dialect, for what no SDK would do."""
    said = [{"role": "user", "content": prompt}]
    match client:
        case "openai_chat":
            return f"{gateway.v1}/chat/completions", {"model": alias, "messages": said, "stream": stream}
        case "openai_responses":
            return f"{gateway.v1}/responses", {"model": alias, "input": prompt, "stream": stream, "store": False}
        case "anthropic_messages":
            return f"{gateway.v1}/messages", {"model": alias, "messages": said, "stream": stream, "max_tokens": 500}
        case "gemini":
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            contents = [{"role": "user", "parts": [{"text": prompt}]}]
            return f"{gateway.url}/v1beta/models/{alias}:{verb}", {"contents": contents}
    verb = "converse-stream" if stream else "converse"
    messages = [{"role": "user", "content": [{"text": prompt}]}]
    return f"{gateway.url}/model/{alias}/{verb}", {"messages": messages}


async def raw(gateway: House, client: str, alias: str, **headers: str) -> httpx.Response:
    url, body = ask(gateway, client, alias, "count from 1 to 5", stream=False)
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {gateway.key}"} | headers) as http:
        return await http.post(url, json=body)


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_client_that_leaves_stops_the_provider_and_pays_for_what_was_made(
    yard: Yard, client: str, backend: str
) -> None:
    stats, rows = yard.backends[backend].stats, len(await yard.gateway.rows())
    cut = stats.cut_by_client
    url, body = ask(yard.gateway, client, f"via-{backend}", "x-script: long=200 pace_ms=20", stream=True)
    async with (
        httpx.AsyncClient(headers={"authorization": f"Bearer {yard.gateway.key}"}) as http,
        http.stream("POST", url, json=body) as answer,
    ):
        assert answer.status_code == 200
        seen = b""
        async for data in answer.aiter_bytes():
            seen += data
            if b"word3" in seen:
                break
    await until(lambda: stats.cut_by_client == cut + 1)
    row = (await yard.gateway.rows(at_least=rows + 1))[-1]
    assert row["outcome"] == "client_gone"
    assert row["estimated"]
    assert 0 < row["quantities"]["output_tokens"] < 200


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model":5}', b"\xff\xfe", b'{"messages":{}}'])
async def test_a_body_that_is_none_is_a_400_in_the_clients_envelope(yard: Yard, client: str, body: bytes) -> None:
    url, _ = ask(yard.gateway, client, "via-openai", "", stream=False)
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {yard.gateway.key}"}) as http:
        answer = await http.post(url, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    told = answer.json()
    assert told["message"] if client == "bedrock_converse" else told["error"]["message"]


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", BACKENDS)
async def test_no_secret_goes_astray(yard: Yard, client: str, backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The client's credential, in whatever place, does not reach the provider; ours reaches neither client nor log."""
    emulator, gateway = yard.backends[backend], yard.gateway
    gateway = replace(gateway, key=await gateway.new_key())
    tells = {
        "x-api-key": gateway.key,
        "api-key": gateway.key,
        "x-goog-api-key": gateway.key,
        "cookie": "session=from-the-client",
        "proxy-authorization": "Basic Y2xpZW50",
        "x-forwarded-for": "198.51.100.7",
        "te": "trailers",
        "x-stainless-lang": "python",
        "keep-alive": "timeout=5",
    }
    answers = [await raw(gateway, client, alias, **tells) for alias in (f"via-{backend}", f"{backend}-500")]
    assert [answer.is_success for answer in answers] == [True, False]
    for sent in emulator.requests[-2:]:
        told = json.dumps(dict(sent.headers)) + sent.raw_path + json.dumps(dict(sent.query)) + sent.body.decode()
        for foreign in (gateway.key, "from-the-client", "Y2xpZW50", "198.51.100.7", "trailers"):
            assert foreign not in told
        assert not sent.headers.keys() & {"cookie", "te", "keep-alive", "x-forwarded-for", "x-stainless-lang"}
    logged = "".join(capfd.readouterr())
    for answer in answers:
        told = answer.text + str(answer.headers)
        for ours in (UPSTREAM_KEY, UPSTREAM_SECRET, gateway.key, "AKIDTEST", emulator.url):
            assert ours not in told
    for secret in (UPSTREAM_KEY, UPSTREAM_SECRET, gateway.key):
        assert secret not in logged


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_who_does_not_rerank_says_so(yard: Yard, version: str) -> None:
    body = {"model": "via-openai", "query": "q", "documents": ["a", "b"]}
    async with httpx.AsyncClient(base_url=f"{yard.gateway.url}/{version}") as http:
        assert (await http.post("/rerank", json=body)).status_code == 401
        key = {"authorization": f"Bearer {yard.gateway.key}"}
        refusal = await http.post("/rerank", json=body, headers=key)
        unknown = await http.post("/rerank", json=body | {"model": "nope"}, headers=key)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "unsupported")
    assert "rerank" in refusal.json()["error"]["message"]
    assert unknown.status_code == 404


async def test_a_wrong_path_or_method_is_no_page_of_ours(yard: Yard) -> None:
    """Through the real door, where Litestar's own words used to come."""
    async with httpx.AsyncClient(base_url=yard.gateway.url, trust_env=False) as http:
        wrong = await http.get("/v1/chat/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST, OPTIONS")
        assert (await http.options("/v1/messages")).status_code == 204
        assert (await http.head("/v1/messages")).content == b""
        near = await http.post("/v1/chat/completions/", json={})
        assert near.json()["error"]["message"].endswith("did you mean /v1/chat/completions?")
        assert near.headers["x-request-id"].startswith("req_")
        sdk = openai.AsyncOpenAI(base_url=yard.gateway.url + "/v2", api_key=yard.gateway.key, max_retries=0)
        with pytest.raises(openai.NotFoundError, match="no such path"):
            await sdk.chat.completions.create(model="via-openai", messages=[{"role": "user", "content": "hi"}])
        await sdk.close()
        assert (await http.get("/admin/v1/nothing")).headers["content-type"].startswith("application/")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_choice_of_a_tool_that_is_not_there_is_refused(yard: Yard, backend: str) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    named: Any = {"type": "function", "function": {"name": "listen"}}
    sdk = openai.AsyncOpenAI(base_url=yard.gateway.v1, api_key=yard.gateway.key, max_retries=0)
    say = {"model": f"via-{backend}", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(openai.BadRequestError, match="the request has none"):
        await sdk.chat.completions.create(**say, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="'listen', which is none of the tools"):
        await sdk.chat.completions.create(**say, tools=[tool], tool_choice=named)
    answer = await sdk.chat.completions.create(**say, tools=[tool], tool_choice="none")
    assert answer.choices[0].message.content
    await sdk.close()
