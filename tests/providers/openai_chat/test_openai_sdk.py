"""What our encoders write, read by openai-python in its strict mode over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest

from providers.dialects import openai_chat, openai_completions
from providers.dialects.base import Dialect, ErrorBody
from providers.neutral import (
    AudioPart,
    Candidate,
    ChatResponse,
    Citation,
    ImagePart,
    Logprob,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    TokenLogprob,
    ToolCallPart,
    Usage,
    replay,
)
from tests.emulators.server import Emulator, Out, Request

USAGE = Usage(
    input_tokens=10, output_tokens=5, cache_read_tokens=3, cache_write_tokens=2, reasoning_tokens=1, service_tier="flex"
)
TEXT = TextPart("naïve \u2028 text", citations=(Citation(url="https://e.com", title="E", start=0, end=3),))
CALLS = (
    ToolCallPart("a", "f", '{"x": 1}', signature="c2ln"),
    ToolCallPart("b", "sql", "select 1", kind="custom"),
    ToolCallPart("s", "web_search", "{}", kind="server"),
)
LOGPROBS = (Logprob(TokenLogprob("n", -0.5, (110,)), (TokenLogprob("m", -1.0),)),)
REASONING = (ReasoningPart("hm", "sig", dialect="anthropic_messages"), ReasoningPart(redacted="x", dialect="anthropic"))


def answer(*parts: Part, reason: Any = "stop", logprobs: tuple[Logprob, ...] = ()) -> ChatResponse:
    return ChatResponse("msg_1", "m-1", (Candidate(parts, reason, logprobs=logprobs),), USAGE, 1700000000)


ANSWERS = {
    "text": answer(TEXT, logprobs=LOGPROBS),
    "empty": answer(),
    "thinking": answer(*REASONING, TEXT),
    "tools": answer(TextPart("so"), *CALLS, reason="tool_calls"),
    "tools alone": answer(*CALLS, reason="tool_calls"),
    "refusal": answer(RefusalPart("no")),
    "pictures": answer(TextPart("see"), ImagePart("image/png", "AA==")),
    "failed midway": answer(TextPart("hal"), reason="error"),
    "two": ChatResponse("m", "m", (Candidate((TEXT,), "stop"), Candidate((TextPart("b"),), "length")), USAGE),
}


class Face(Emulator):
    """A gateway reduced to its egress: answers every request of a dialect with one neutral response."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect
        self.response = ANSWERS["text"]
        self.error: ErrorBody | None = None

    async def handle(self, request: Request, out: Out) -> None:
        asked = self.dialect.decode_request(request.body)
        if not asked.stream:
            if self.error is not None:
                await out.whole(self.error.status, self.dialect.encode_error(self.error))
                return
            await out.whole(200, self.dialect.encode_response(self.response, asked))
            return
        encoder = self.dialect.event_encoder(asked)
        await out.start(200, self.dialect.stream_media_type)
        for event in replay(self.response):
            await out.chunk(encoder.encode([event]))
        await out.chunk(encoder.fail(self.error) if self.error is not None else encoder.close())
        await out.end()


@pytest.fixture
async def face() -> AsyncIterator[Face]:
    async with Face(openai_chat.DIALECT) as made:
        yield made


def client(face: Face, *, strict: bool = True) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=face.url + "/v1", api_key="k", max_retries=0, _strict_response_validation=strict)


@pytest.mark.parametrize("name", ANSWERS)
async def test_whole_answers(name: str, face: Face) -> None:
    face.response = ANSWERS[name]
    async with client(face) as sdk:
        got = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert got.id.startswith("chatcmpl-")
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (10, 5, 15)
    assert got.usage.prompt_tokens_details is not None
    assert got.usage.prompt_tokens_details.cached_tokens == 3
    assert got.usage.completion_tokens_details is not None
    assert got.usage.completion_tokens_details.reasoning_tokens == 1
    assert got.service_tier == "flex"
    assert len(got.choices) == len(face.response.candidates)
    dumped = got.choices[0].model_dump()
    assert {"logprobs", "finish_reason", "index", "message"} <= dumped.keys()
    assert {"refusal", "content", "role"} <= dumped["message"].keys()
    if name == "tools":
        assert got.choices[0].message.content == "so"
        assert got.choices[0].message.tool_calls is not None
        assert [call.type for call in got.choices[0].message.tool_calls] == ["function", "custom"]
    if name == "refusal":
        assert (got.choices[0].message.content, got.choices[0].message.refusal) == (None, "no")


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("usage", [False, True])
async def test_streamed_answers(name: str, usage: bool, face: Face) -> None:
    face.response = ANSWERS[name]
    options: Any = {"include_usage": True} if usage else openai.omit
    # The SDK's model of a chunk knows no custom tool, which the API streams all the same.
    async with client(face, strict="tools" not in name) as sdk:
        stream = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    assert all(chunk.id.startswith("chatcmpl-") and chunk.object == "chat.completion.chunk" for chunk in chunks)
    told = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [u.total_tokens for u in told] == ([15] if usage else [])
    assert [chunk for chunk in chunks if not chunk.choices] == (chunks[-1:] if usage else [])
    for number, candidate in enumerate(face.response.candidates):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == number]
        assert choices[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == [choices[-1].finish_reason]
        text = "".join(choice.delta.content or "" for choice in choices)
        assert text == "".join(part.text for part in candidate.content if isinstance(part, TextPart))
    if name == "thinking":
        deltas = [choice.delta.model_dump() for chunk in chunks for choice in chunk.choices]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "hm"
        sealed = [detail for delta in deltas for detail in delta.get("reasoning_details") or ()]
        assert [detail["format"] for detail in sealed] == ["anthropic_messages", "anthropic"]


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request", openai.BadRequestError),
        (401, "authentication", openai.AuthenticationError),
        (403, "permission", openai.PermissionDeniedError),
        (404, "not_found", openai.NotFoundError),
        (429, "rate_limited", openai.RateLimitError),
        (503, "unavailable", openai.InternalServerError),
    ],
)
async def test_errors(status: int, kind: str, raised: type[openai.APIStatusError], face: Face) -> None:
    face.error = ErrorBody(status, kind, "the_code", "what went wrong", "messages[0]", "req")
    async with client(face) as sdk:
        with pytest.raises(raised) as caught:
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert (caught.value.code, caught.value.param) == ("the_code", "messages[0]")
    assert "what went wrong" in caught.value.message


async def test_an_error_in_the_stream_is_raised(face: Face) -> None:
    face.error = ErrorBody(502, "upstream", "upstream_failed", "cut")
    async with client(face) as sdk:
        stream = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        with pytest.raises(openai.APIError, match="cut"):
            [chunk async for chunk in stream]


async def test_the_sdks_own_accumulator_agrees(face: Face) -> None:
    face.response = answer(TextPart("so"), CALLS[0], ToolCallPart("b", "g", "{}"), reason="tool_calls")
    async with (
        client(face) as sdk,
        sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as stream,
    ):
        whole = await stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.arguments == '{"x": 1}'
    assert whole.choices[0].finish_reason == "tool_calls"


async def test_audio_answers(face: Face) -> None:
    face.response = answer(AudioPart(data="UklG", id="a1", transcript="hi"))
    async with client(face) as sdk:
        got = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert got.choices[0].message.audio is not None
    assert got.choices[0].message.audio.transcript == "hi"


@pytest.mark.parametrize("stream", [False, True])
async def test_legacy_completions(stream: bool) -> None:
    # The SDK's one model wants a finish reason of every chunk, which the API gives to the last one alone.
    async with Face(openai_completions.DIALECT) as face, client(face, strict=not stream) as sdk:
        if stream:
            got = await sdk.completions.create(
                model="m", prompt="x", stream=True, logprobs=1, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in got]
            assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT.text
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.total_tokens == 15
            return
        whole = await sdk.completions.create(model="m", prompt="x")
        assert whole.choices[0].text == TEXT.text
        assert whole.choices[0].logprobs is not None
        assert whole.choices[0].logprobs.tokens == ["n"]
        assert whole.id.startswith("cmpl-")


@pytest.mark.parametrize("name", ["text", "empty", "two", "failed midway"])
def test_completions_read_what_they_write(name: str) -> None:
    dialect = openai_completions.DIALECT
    response = ANSWERS[name]
    request = dialect.decode_request(
        b'{"model":"m","prompt":"x","stream":true,"stream_options":{"include_usage":true}}'
    )
    encoder = dialect.event_encoder(request)
    data = encoder.encode(replay(response)) + encoder.close()
    for step in (1, 7, len(data)):
        decoder = dialect.event_decoder()
        for at in range(0, len(data), step):
            list(decoder.feed(data[at : at + step]))
        list(decoder.close())
        assert decoder.usage == msgspec.structs.replace(USAGE, service_tier=None)
    whole = dialect.decode_response(dialect.encode_response(response, request))
    assert len(whole.candidates) == len(response.candidates)
