"""Bedrock's hosts of the OpenAI dialects: the emulator before openai-python's own Bedrock clients, our adapter before
the emulator. Which route a model has is learned once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from openai.providers.bedrock import bedrock

from providers import registry
from providers.base import Answer, Call, Credential, Endpoint
from providers.bedrock_openai import BedrockOpenAI
from providers.dialects import openai_chat, openai_responses
from providers.errors import AuthFailed, ContentFiltered, Rejected, Throttled, Unsupported
from providers.neutral import ChatRequest, ChatResponse, Message, TextPart, collect
from providers.transport.http1 import Http1Transport
from tests.emulators.bedrock import ACCESS_KEY_ID, FORBIDDEN, GUARDRAIL, SECRET_ACCESS_KEY
from tests.emulators.bedrock_openai import BedrockOpenAIEmulator

Host = Literal["runtime", "mantle"]
KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
OSS, GPT, GROK = "openai.gpt-oss-120b", "openai.gpt-5.5", "xai.grok-4.3"
CHAT, RESPONSES = "/chat/completions", "/responses"
HOSTS: list[Host] = ["runtime", "mantle"]


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


class Watched(BedrockOpenAIEmulator):
    """Notes each path that it was asked at."""

    def __init__(self, *args: Any, **server: Any) -> None:
        super().__init__(*args, **server)
        self.paths: list[str] = []

    async def handle(self, request: Any, out: Any) -> None:
        self.paths.append(request.path)
        await super().handle(request, out)


def adapter(
    emulator: BedrockOpenAIEmulator, transport: Http1Transport, fields: dict[str, str] = KEYS, **options: Any
) -> BedrockOpenAI:
    endpoint = Endpoint("bedrock_openai", emulator.url, "us-east-1", Credential(fields), options)
    return BedrockOpenAI(endpoint, transport)


def call(text: str = "say hi", *, stream: bool = False, **facts: Any) -> Call:
    """From a client of another dialect."""
    request = ChatRequest("alias", (Message("user", (TextPart(text),)),), stream)
    return Call("chat", "anthropic_messages", request, b"", "req-1", **facts)


def responses_call(text: str = "say hi", **fields: Any) -> Call:
    raw = json.dumps({"model": "alias", "input": text, **fields}).encode()
    return Call("chat", "openai_responses", openai_responses.DIALECT.decode_request(raw), raw, "req-1")


def chat_call(text: str = "say hi", **fields: Any) -> Call:
    raw = json.dumps({"model": "alias", "messages": [{"role": "user", "content": text}], **fields}).encode()
    return Call("chat", "openai_chat", openai_chat.DIALECT.decode_request(raw), raw, "req-1")


async def whole(answer: Answer, *, stream: bool = False) -> ChatResponse:
    try:
        if not stream:
            return answer.dialect.decode_response(await answer.read())
        decoder = answer.dialect.event_decoder()
        events = []
        async for chunk in answer.chunks():
            events += list(decoder.feed(chunk))
        return collect([*events, *decoder.close()])
    finally:
        await answer.aclose()


def text_of(response: ChatResponse) -> str:
    return "".join(part.text for part in response.candidates[0].content if isinstance(part, TextPart))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("signed", [True, False])
async def test_openais_own_client_takes_the_emulator_for_bedrock(host: Host, signed: bool) -> None:
    async with BedrockOpenAIEmulator(host, api_key="bedrock-key") as emulator:
        secret: dict[str, Any] = KEYS if signed else {"api_key": "bedrock-key"}
        place = f"{emulator.url}/openai/v1"
        provider = bedrock(endpoint=host, region="us-east-1", base_url=place, **secret)
        async with openai.AsyncOpenAI(provider=provider, max_retries=0) as sdk:
            said = [{"role": "user", "content": "say hi"}]
            answer = await sdk.chat.completions.create(model=GROK, messages=said)  # type: ignore[call-overload]
            assert answer.choices[0].message.content == "hi"
            assert (await sdk.responses.create(model=GPT, input="say hi")).output_text == "hi"
            if host == "mantle":
                with pytest.raises(openai.BadRequestError, match="isn't supported on this route"):
                    await sdk.responses.create(model=OSS, input="say hi")
        stranger = bedrock(endpoint=host, region="us-east-1", base_url=place, api_key="of-nobody")
        async with openai.AsyncOpenAI(provider=stranger, max_retries=0) as sdk:
            with pytest.raises(openai.AuthenticationError):
                await sdk.responses.create(model=GPT, input="say hi")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("how", ["signed", "minted", "bearer"])
async def test_three_ways_to_be_somebody(host: Host, how: str, transport: Http1Transport) -> None:
    async with BedrockOpenAIEmulator(host, api_key="bedrock-key") as emulator:
        fields = {"api_key": "bedrock-key"} if how == "bearer" else KEYS
        provider = adapter(emulator, transport, fields, host=host, **({"auth": "minted"} if how == "minted" else {}))
        for stream in (False, True):
            response = await whole(await provider.send(call(stream=stream), GROK), stream=stream)
            assert text_of(response) == "hi"
            assert response.usage.output_tokens == 1
        sent = emulator.last.headers["authorization"]
        begins = {"bearer": "Bearer bedrock-key", "minted": "Bearer bedrock-api-key-", "signed": "AWS4-HMAC-SHA256"}
        assert sent.startswith(begins[how])
        if how == "signed":
            assert f"/us-east-1/{'bedrock-mantle' if host == 'mantle' else 'bedrock'}/aws4_request" in sent
        with pytest.raises(AuthFailed):
            await adapter(emulator, transport, {"api_key": "of-nobody"}, host=host).send(call(), OSS)
        await provider.aclose()


@pytest.mark.parametrize(
    ("model", "asked", "tried"),
    [
        (OSS, call(), ["/v1/chat/completions"]),
        (OSS, responses_call(), ["/v1/responses"]),
        (GROK, call(), ["/openai/v1/chat/completions"]),
        (GPT, responses_call(), ["/openai/v1/responses"]),
        # Nobody knows which APIs a model has before it was asked; nor, of a family that is new, where it is.
        (GPT, call(), ["/openai/v1/chat/completions", "/v1/chat/completions", "/openai/v1/responses"]),
        (GPT, chat_call(), ["/openai/v1/chat/completions", "/v1/chat/completions", "/openai/v1/responses"]),
    ],
)
async def test_a_models_route_is_learned_once(
    model: str, asked: Call, tried: list[str], transport: Http1Transport
) -> None:
    async with Watched() as emulator:
        provider = adapter(emulator, transport, host="mantle")
        assert text_of(await whole(await provider.send(asked, model))) == "hi"
        assert emulator.paths == tried
        assert text_of(await whole(await provider.send(asked, model))) == "hi"
        assert emulator.paths == [*tried, tried[-1]]
        # What was learned of one model says nothing of another.
        assert text_of(await whole(await provider.send(call(), OSS))) == "hi"


async def test_a_family_that_is_new_is_found_where_it_is(
    monkeypatch: pytest.MonkeyPatch, transport: Http1Transport
) -> None:
    monkeypatch.setattr("tests.emulators.bedrock_openai.FRONTIER", __import__("re").compile(r"newcomer\."))
    async with Watched() as emulator:
        provider = adapter(emulator, transport, host="mantle")
        assert text_of(await whole(await provider.send(chat_call(stream=True), "newcomer.one"), stream=True)) == "hi"
        assert emulator.paths == ["/v1/chat/completions", "/openai/v1/chat/completions"]


async def test_what_is_refused_for_another_reason_is_asked_once(transport: Http1Transport) -> None:
    async with Watched() as emulator:
        provider = adapter(emulator, transport, host="mantle")
        with pytest.raises(Rejected):
            await provider.send(call("x-script: fault=400"), OSS)
        with pytest.raises(Throttled):
            await provider.send(call("x-script: fault=429"), OSS)
        with pytest.raises(Unsupported, match="background"):
            await provider.send(responses_call(background=True), OSS)
        assert emulator.paths == ["/v1/chat/completions"] * 2


async def test_a_limit_of_the_budget_goes_along_under_the_routes_own_name(transport: Http1Transport) -> None:
    async with Watched() as emulator:
        provider = adapter(emulator, transport, host="mantle")
        await whole(await provider.send(chat_call(max_tokens=50), OSS))
        assert emulator.last.json()["max_completion_tokens"] == 50
        await whole(await provider.send(chat_call(max_tokens=50), GPT))
        assert emulator.last.json()["max_output_tokens"] == 50
        assert emulator.last.json()["model"] == GPT


async def test_guardrails_are_the_runtime_hosts_alone(transport: Http1Transport) -> None:
    asks = (("x-amzn-bedrock-guardrailidentifier", GUARDRAIL), ("x-amzn-bedrock-guardrailversion", "1"))
    async with BedrockOpenAIEmulator("runtime") as emulator, BedrockOpenAIEmulator("mantle") as mantle:
        provider = adapter(emulator, transport)
        with pytest.raises(ContentFiltered):
            await provider.send(call(FORBIDDEN, forward_headers=asks), OSS)
        ours = adapter(emulator, transport, guardrail={"id": GUARDRAIL, "version": 1, "trace": "enabled"})
        with pytest.raises(ContentFiltered):
            await ours.send(call(FORBIDDEN), OSS)
        assert emulator.last.headers["x-amzn-bedrock-trace"] == "ENABLED"
        with pytest.raises(Unsupported, match="guardrail"):
            await adapter(mantle, transport, host="mantle").send(call(forward_headers=asks), OSS)


async def test_models_and_where_the_hosts_are(transport: Http1Transport) -> None:
    async with BedrockOpenAIEmulator("mantle") as emulator:
        assert "echo-1" in await adapter(emulator, transport, host="mantle").models()
    async with BedrockOpenAIEmulator("runtime") as emulator:
        assert await adapter(emulator, transport).models() == ()

    def base(region: str | None = None, base_url: str | None = None, **options: Any) -> str:
        endpoint = Endpoint("bedrock_openai", base_url, region, Credential(KEYS), options)
        made: BedrockOpenAI = registry.create(endpoint, transport)  # type: ignore[assignment]
        return made.base_url

    assert base("eu-west-1") == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    assert base("cn-north-1") == "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"
    assert base("eu-west-1", host="mantle") == "https://bedrock-mantle.eu-west-1.api.aws"
    # As AWS' own pages write them; the region is told by the host, or by a profile's ARN.
    assert (
        base(None, "https://bedrock-mantle.us-east-2.api.aws/openai/v1") == "https://bedrock-mantle.us-east-2.api.aws"
    )
    arn = "arn:aws:bedrock:ap-south-1:123456789012:application-inference-profile/abc"
    assert base(profiles={arn: OSS}) == "https://bedrock-runtime.ap-south-1.amazonaws.com"
    with pytest.raises(ValueError, match="region is missing"):
        base()
    with pytest.raises(ValueError, match="runtime or mantle"):
        base("us-east-1", host="cloak")
