"""boto3, the strictest reader there is of AWS frames, as the judge: of the emulator, and of every byte that our encoder
writes for Bedrock's clients."""

from __future__ import annotations

import asyncio
import json
from calendar import timegm
from time import strptime
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from providers.auth.sigv4 import scope_of, verify
from providers.dialects import bedrock_converse
from providers.dialects.base import ErrorBody
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Citation,
    ImagePart,
    Message,
    PartDelta,
    PartStart,
    ReasoningPart,
    RefusalPart,
    ResponseStart,
    TextPart,
    ToolCallPart,
    Usage,
    replay,
)
from tests.emulators.bedrock import ACCESS_KEY_ID, SECRET_ACCESS_KEY, BedrockEmulator
from tests.emulators.server import Emulator, Out, Request

DIALECT = bedrock_converse.DIALECT
REQUEST = ChatRequest("m", (Message("user", (TextPart("hi"),)),), stream=True)
ASK = [{"role": "user", "content": [{"text": "hi"}]}]


class Replayer(Emulator):
    """Serves given bytes, so that boto3 reads them off a real socket."""

    def __init__(self, body: bytes, status: int = 200, media_type: str = "application/json") -> None:
        super().__init__()
        self._answer = (status, body, {"content-type": media_type})

    async def handle(self, request: Request, out: Out) -> None:
        await out.whole(*self._answer)


def client(url: str, service: str = "bedrock-runtime") -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
        config=Config(retries={"total_max_attempts": 1}),
    )


def converse(url: str, **request: Any) -> Any:
    return client(url).converse(**({"modelId": "some.model-v1:0", "messages": ASK} | request))


def converse_stream(url: str, **request: Any) -> list[dict[str, Any]]:
    answer = client(url).converse_stream(**({"modelId": "some.model-v1:0", "messages": ASK} | request))
    return list(answer["stream"])


ANSWER = ChatResponse(
    "chatcmpl-1",
    "gpt-x",
    (
        Candidate(
            (
                ReasoningPart("mulling", "sig", dialect="anthropic_messages"),
                ReasoningPart(redacted="b3BhcXVl", dialect="anthropic_messages"),
                ReasoningPart("from afar", redacted="enc", id="rs_1", dialect="openai_responses"),
                TextPart("answer", citations=(Citation("https://a.example", "A", "quoted"),)),
                RefusalPart("no"),
                ToolCallPart("call_1", "get.weather", '{"city": "Paris"}'),
                ToolCallPart("call_2", "look", "{}", signature="c2ln"),
                ToolCallPart("srv", "web_search", "{}", kind="server"),
                ImagePart("image/png", "aaaa"),
            ),
            "stop",
            stop_sequence="END",
        ),
    ),
    Usage(100, 20, 30, 40, 10, 5, service_tier="flex"),
)


async def test_boto3_reads_our_whole_answer() -> None:
    async with Replayer(DIALECT.encode_response(ANSWER, REQUEST)) as server:
        answer = await asyncio.to_thread(converse, server.url)
    content = answer["output"]["message"]["content"]
    kinds = [next(iter(block)) for block in content]
    assert kinds == [*["reasoningContent"] * 3, "citationsContent", "text", "toolUse", "toolUse", "image"]
    assert content[5]["toolUse"] == {"toolUseId": "call_1", "name": "get.weather", "input": {"city": "Paris"}}
    assert answer["stopReason"] == "stop_sequence"
    assert answer["additionalModelResponseFields"] == {"stop_sequence": "END"}
    usage = answer["usage"]
    assert (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]) == (30, 20, 120)
    assert usage["cacheDetails"] == [{"ttl": "5m", "inputTokens": 30}, {"ttl": "1h", "inputTokens": 10}]
    assert answer["serviceTier"] == {"type": "flex"}


async def test_boto3_reads_our_stream() -> None:
    encoder = DIALECT.event_encoder(REQUEST)
    data = encoder.encode(replay(ANSWER)) + encoder.close()
    async with Replayer(data, media_type=DIALECT.stream_media_type) as server:
        events = await asyncio.to_thread(converse_stream, server.url)
    names = [next(iter(event)) for event in events]
    assert names[0] == "messageStart"
    assert names[-2:] == ["messageStop", "metadata"]
    assert names.count("contentBlockStart") == 2
    deltas = [event["contentBlockDelta"] for event in events if "contentBlockDelta" in event]
    assert "".join(d["delta"]["toolUse"]["input"] for d in deltas if "toolUse" in d["delta"]) == '{"city": "Paris"}{}'
    assert [d["delta"]["reasoningContent"] for d in deltas if d["contentBlockIndex"] == 1] == [
        {"redactedContent": b"opaque"}
    ]
    assert events[-1]["metadata"]["usage"]["totalTokens"] == 120


async def test_what_a_client_keeps_comes_back_as_it_was() -> None:
    """An answer of other models, sent again by a boto3 client: seals, ids and signatures are found again."""
    body = json.loads(DIALECT.encode_response(ANSWER, REQUEST))
    history = [*ASK, body["output"]["message"], *ASK]
    async with BedrockEmulator() as emulator:
        await asyncio.to_thread(_ignoring_refusal, emulator.url, history)
        sent = emulator.last.body
    parts = DIALECT.decode_request(sent, model="m").messages[1].content
    assert parts[0] == ReasoningPart("mulling", "sig", dialect="bedrock_converse")
    assert parts[2] == ReasoningPart("from afar", redacted="enc", id="rs_1", dialect="openai_responses")
    assert parts[6] == ToolCallPart("call_2", "look", "{}", signature="c2ln")


def _ignoring_refusal(url: str, history: list[Any]) -> None:
    with pytest.raises(ClientError):
        converse(url, messages=_with_bytes(history))


def _with_bytes(value: Any) -> Any:
    """As boto3 wants it: blobs as bytes."""
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if isinstance(value, dict):
        return {k: b"opaque" if k in ("redactedContent", "bytes") else _with_bytes(v) for k, v in value.items()}
    return value


@pytest.mark.parametrize(
    ("status", "kind", "code", "in_stream"),
    [
        (400, "invalid_request", "ValidationException", "validationException"),
        (401, "authentication", "AccessDeniedException", "validationException"),
        (403, "permission", "AccessDeniedException", "validationException"),
        (404, "not_found", "ResourceNotFoundException", "validationException"),
        (413, "invalid_request", "ValidationException", "validationException"),
        (429, "rate_limited", "ThrottlingException", "throttlingException"),
        (429, "quota_exceeded", "ThrottlingException", "throttlingException"),
        (500, "internal", "InternalServerException", "internalServerException"),
        (502, "upstream", "InternalServerException", "internalServerException"),
        (503, "unavailable", "ServiceUnavailableException", "serviceUnavailableException"),
        (504, "upstream", "ModelTimeoutException", "modelStreamErrorException"),
    ],
)
async def test_errors_reach_boto3_as_their_own_types(status: int, kind: str, code: str, in_stream: str) -> None:
    error = ErrorBody(status, kind, "c", "what happened")
    async with Replayer(DIALECT.encode_error(error), status) as server:
        with pytest.raises(ClientError, match="what happened") as raised:
            await asyncio.to_thread(converse, server.url)
    assert raised.value.response["Error"]["Code"] == code
    encoder = DIALECT.event_encoder(REQUEST)
    data = encoder.encode([ResponseStart("1", "m"), PartStart(0, TextPart("")), PartDelta(0, "par")])
    async with Replayer(data + encoder.fail(error), media_type=DIALECT.stream_media_type) as server:
        with pytest.raises(EventStreamError, match="what happened") as torn:
            await asyncio.to_thread(converse_stream, server.url)
    assert torn.value.response["Error"]["Code"] == in_stream


async def test_boto3s_own_signature_is_one_that_we_verify() -> None:
    async with BedrockEmulator() as emulator:
        await asyncio.to_thread(
            converse, emulator.url, modelId="arn:aws:bedrock:us-east-1:1:inference-profile/us.a-v1:0"
        )
        request = emulator.last
    scope = scope_of(request.headers["authorization"])
    assert scope is not None
    assert scope.access_key_id == ACCESS_KEY_ID
    now_s = timegm(strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    facts = (request.method, request.raw_path, "", request.headers)
    assert verify(*facts, request.body, SECRET_ACCESS_KEY, now_s)
    assert not verify(*facts, request.body + b" ", SECRET_ACCESS_KEY, now_s)


async def test_the_emulator_is_what_boto3_expects() -> None:
    async with BedrockEmulator() as emulator:
        ask = [{"role": "user", "content": [{"text": "say hi\nx-script: reasoning=2 cached=1 cache_write=2"}]}]
        answer = await asyncio.to_thread(converse, emulator.url, messages=ask)
        content = answer["output"]["message"]["content"]
        assert content[0]["reasoningContent"]["reasoningText"]["text"] == "think1 think2"
        assert content[1] == {"text": "hi"}
        assert answer["usage"]["cacheDetails"][1]["ttl"] == "1h"
        events = await asyncio.to_thread(converse_stream, emulator.url, messages=ask)
        texts = [e["contentBlockDelta"]["delta"].get("text", "") for e in events if "contentBlockDelta" in e]
        assert "".join(texts) == "hi"
        with pytest.raises(EventStreamError) as raised:
            await asyncio.to_thread(converse_stream, emulator.url, modelId="fault-stream-error")
        assert raised.value.response["Error"]["Code"] == "throttlingException"
        with pytest.raises(ClientError) as refused:
            await asyncio.to_thread(converse, emulator.url, modelId="fault-498")
        assert refused.value.response["Error"]["Code"] == "ModelNotReadyException"
        body = json.dumps(
            {
                "anthropic_version": "bedrock-2023-05-31",
                "max_tokens": 50,
                "messages": [{"role": "user", "content": "say hi"}],
            }
        )
        invoked = await asyncio.to_thread(client(emulator.url).invoke_model, modelId="anthropic.claude-x", body=body)
        assert json.loads(invoked["body"].read())["content"] == [{"type": "text", "text": "hi"}]
        chunks = await asyncio.to_thread(_invoke_stream, emulator.url, body)
        assert [chunk["type"] for chunk in chunks][:3] == ["message_start", "ping", "content_block_start"]
        assert "amazon-bedrock-invocationMetrics" in chunks[-1]
        listed = await asyncio.to_thread(client(emulator.url, "bedrock").list_foundation_models)
        assert listed["modelSummaries"]


def _invoke_stream(url: str, body: str) -> list[dict[str, Any]]:
    answer = client(url).invoke_model_with_response_stream(modelId="anthropic.claude-x", body=body)
    return [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
