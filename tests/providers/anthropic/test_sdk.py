"""Anthropic's own SDK, strict, as the judge: of the emulator, and of every byte that our encoder writes for clients."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anthropic
import pytest

from providers.dialects import anthropic_messages
from providers.dialects.base import ErrorBody
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Citation,
    Finish,
    ImagePart,
    Message,
    PartDelta,
    PartEnd,
    PartStart,
    ReasoningPart,
    RefusalPart,
    ResponseStart,
    TextPart,
    ToolCallPart,
    Usage,
    replay,
)
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.server import Emulator, Out, Request

DIALECT = anthropic_messages.DIALECT
REQUEST = ChatRequest("claude-alias", (Message("user", (TextPart("hi"),)),), stream=True)


class Replayer(Emulator):
    """Serves given bytes, so that an SDK reads them off a real socket."""

    def __init__(self, body: bytes, status: int = 200, media_type: str = "application/json") -> None:
        super().__init__()
        self._answer = (status, body, {"content-type": media_type})

    async def handle(self, request: Request, out: Out) -> None:
        await out.whole(*self._answer)


def sdk(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key="sk-ant-test", base_url=url, max_retries=0, _strict_response_validation=True
    )


ANSWER = ChatResponse(
    "chatcmpl-1",
    "gpt-x",
    (
        Candidate(
            (
                ReasoningPart("mulling", "sig", dialect="anthropic_messages"),
                ReasoningPart(redacted="b3BhcXVl", dialect="bedrock_converse"),
                ReasoningPart("from afar", redacted="enc", id="rs_1", dialect="openai_responses"),
                TextPart("answer", citations=(Citation("https://a.example", "A", "quoted"),)),
                RefusalPart("no"),
                ImagePart("image/png", "aaaa"),
                ToolCallPart("call_1", "get_weather", '{"city": "Paris"}'),
                ToolCallPart("call_2", "look", "{}", signature="c2ln"),
                ToolCallPart("srv", "web_search", "{}", kind="server"),
            ),
            "tool_calls",
        ),
    ),
    Usage(100, 20, 30, 40, 10, 5, searches=2, service_tier="default"),
)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_reads_what_we_write(stream: bool) -> None:
    if stream:
        encoder = DIALECT.event_encoder(REQUEST)
        body = encoder.encode(replay(ANSWER)) + encoder.close()
        media_type = DIALECT.stream_media_type
    else:
        body, media_type = DIALECT.encode_response(ANSWER, REQUEST), "application/json"
    async with Replayer(body, media_type=media_type) as server:
        client = sdk(server.url)
        if stream:
            async with client.messages.stream(model="m", max_tokens=9, messages=[]) as events:
                message = await events.get_final_message()
        else:
            message = await client.messages.create(model="m", max_tokens=9, messages=[])
    assert message.id == "msg_chatcmpl-1"
    assert message.stop_reason == "tool_use"
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "redacted_thinking", "thinking", "text", "text", "tool_use", "tool_use"]
    usage = message.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (30, 20, 30)
    assert usage.cache_creation_input_tokens == 40
    dumped = [block.model_dump(exclude_none=True) for block in message.content]
    assert dumped[3]["citations"][0]["url"] == "https://a.example"
    assert dumped[5]["input"] == {"city": "Paris"}
    # What the client keeps and sends again is what other models sealed, found again.
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "assistant", "content": dumped}]}).encode()
    parts = DIALECT.decode_request(body).messages[0].content
    assert parts[0] == ReasoningPart("mulling", "sig", dialect="anthropic_messages")
    assert parts[2] == ReasoningPart("from afar", redacted="enc", id="rs_1", dialect="openai_responses")
    assert parts[6] == ToolCallPart("call_2", "look", "{}", signature="c2ln")


async def test_parallel_calls_may_take_turns() -> None:
    events = [
        ResponseStart("1", "m"),
        PartStart(0, TextPart("")),
        PartDelta(0, "both"),
        PartEnd(0),
        PartStart(1, ToolCallPart("a", "f", "")),
        PartStart(2, ToolCallPart("b", "g", "")),
        PartDelta(2, '{"y":'),
        PartDelta(1, '{"x":1}'),
        PartDelta(2, "2}"),
        PartEnd(1),
        PartEnd(2),
        Finish("tool_calls", Usage(1, 2)),
    ]
    encoder = DIALECT.event_encoder(REQUEST)
    async with Replayer(encoder.encode(events), media_type=DIALECT.stream_media_type) as server:
        message = await _final(server.url)
    assert [block.input for block in message.content[1:]] == [{"x": 1}, {"y": 2}]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("status", "kind", "raised", "word"),
    [
        (400, "invalid_request", anthropic.BadRequestError, "invalid_request_error"),
        (401, "authentication", anthropic.AuthenticationError, "authentication_error"),
        (403, "permission", anthropic.PermissionDeniedError, "permission_error"),
        (404, "not_found", anthropic.NotFoundError, "not_found_error"),
        (413, "invalid_request", anthropic.APIStatusError, "request_too_large"),
        (429, "quota_exceeded", anthropic.RateLimitError, "rate_limit_error"),
        (429, "rate_limited", anthropic.RateLimitError, "rate_limit_error"),
        (502, "upstream", anthropic.InternalServerError, "api_error"),
        (503, "unavailable", anthropic.APIStatusError, "overloaded_error"),
        (504, "upstream", anthropic.APIStatusError, "timeout_error"),
        (500, "internal", anthropic.InternalServerError, "api_error"),
    ],
)
async def test_errors_reach_the_sdk_as_their_own_kinds(
    status: int, kind: str, raised: type[anthropic.APIStatusError], word: str
) -> None:
    body = DIALECT.encode_error(ErrorBody(status, kind, "some_code", "what happened", "max_tokens", "req_9"))
    async with Replayer(body, status) as server:
        with pytest.raises(raised) as error:
            await sdk(server.url).messages.create(model="m", max_tokens=9, messages=[])
    assert error.value.type == word
    assert error.value.error_code == "some_code"
    assert "max_tokens: what happened" in str(error.value)


async def test_an_error_in_mid_stream_raises_in_the_sdk() -> None:
    encoder = DIALECT.event_encoder(REQUEST)
    begun = [ResponseStart("1", "m"), PartStart(0, TextPart("")), PartDelta(0, "par")]
    data = encoder.encode(begun) + encoder.fail(ErrorBody(503, "unavailable", "upstream_overloaded", "too much"))
    async with Replayer(data, media_type=DIALECT.stream_media_type) as server:
        with pytest.raises(anthropic.APIStatusError, match="too much") as error:
            await _final(server.url)
    assert error.value.type == "overloaded_error"


async def _final(url: str) -> Any:
    async with sdk(url).messages.stream(model="m", max_tokens=9, messages=[]) as stream:
        return await stream.get_final_message()


def _texts(blocks: Iterable[Any]) -> list[str]:
    return [block.text for block in blocks if block.type == "text"]


async def test_the_emulator_is_what_the_sdk_expects() -> None:
    tool = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    async with AnthropicEmulator() as emulator:
        client = sdk(emulator.url)
        ask: dict[str, Any] = {"model": "claude-opus-4-6", "max_tokens": 2000}
        message = await client.messages.create(
            **ask, messages=[{"role": "user", "content": "say hi\nx-script: reasoning=2 cached=1"}]
        )
        assert _texts(message.content) == ["hi"]
        assert message.content[0].type == "thinking"
        async with client.messages.stream(
            **ask, messages=[{"role": "user", "content": "weather in parallel"}], tools=[tool]
        ) as stream:
            final = await stream.get_final_message()
        assert final.stop_reason == "tool_use"
        assert [block.input["city"] for block in final.content] == ["San Francisco", "Paris"]  # type: ignore[union-attr]
        counted = await client.messages.count_tokens(model="m", messages=[{"role": "user", "content": "a b"}])
        assert counted.input_tokens == 5
        assert [model.id async for model in client.models.list()]
        with pytest.raises(anthropic.OverloadedError):
            await client.messages.create(**(ask | {"model": "fault-529"}), messages=[{"role": "user", "content": "x"}])
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async with client.messages.stream(
                **(ask | {"model": "fault-stream-error"}), messages=[{"role": "user", "content": "x"}]
            ) as stream:
                await stream.get_final_message()
