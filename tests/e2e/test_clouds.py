"""What AWS's and Azure's users expect of their own cloud, asked with boto3 and openai through a whole gateway: profiles
by ARN, tiers, guardrails and their trace, InvokeModel in each family's words, content filters, the older paths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import boto3
import httpx
import openai
import pytest
import pytest_asyncio
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.azure import AzureEmulator
from tests.emulators.bedrock import (
    ACCESS_KEY_ID,
    BLOCKED,
    FORBIDDEN,
    GUARDRAIL,
    MODELS,
    PROFILE_ARN,
    SECRET_ACCESS_KEY,
    BedrockEmulator,
)
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Emulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIVE = "1, 2, 3, 4, 5"
ASK = "count from 1 to 5"
CONVERSED: Any = [{"role": "user", "content": [{"text": ASK}]}]
CHATTED: Any = [{"role": "user", "content": ASK}]
CLAUDES = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 100, "messages": CHATTED}
NOVAS = {
    "schemaVersion": "messages-v1",
    "system": [{"text": "be brief"}],
    "messages": CONVERSED,
    "inferenceConfig": {"max_new_tokens": 50, "topK": 20},
}
OPENAIS = {"messages": CHATTED, "max_completion_tokens": 50}
NOVA_ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/nova00000001"


class Clouds:
    def __init__(self, gateway: House, bedrock: Emulator, azure: Emulator, other: Emulator) -> None:
        self.gateway, self.bedrock, self.azure, self.other = gateway, bedrock, azure, other

    @property
    def boto3(self) -> Any:
        key = self.gateway.key
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=self.gateway.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=key,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def azure_sdk(self) -> openai.AsyncAzureOpenAI:
        return openai.AsyncAzureOpenAI(
            api_key=self.gateway.key, azure_endpoint=self.gateway.url, api_version="2025-04-01-preview", max_retries=0
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clouds(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[Clouds]:
    folder = tmp_path_factory.mktemp("clouds")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        bedrock = await stack.enter_async_context(BedrockEmulator())
        azure = await stack.enter_async_context(AzureEmulator(api_key="sk-test"))
        azure.asynchronous_filter = True
        other = await stack.enter_async_context(OpenAIEmulator())
        keys = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
        profiles = {PROFILE_ARN: MODELS[0], NOVA_ARN: MODELS[1]}
        providers = {
            "aws": provider("bedrock", bedrock.url, keys, region="us-east-1", options={"profiles": profiles}),
            "azure": provider("azure_ai", azure.url),
            "other": provider("openai", f"{other.url}/v1"),
        }
        models = (
            model("claude", f"aws/{PROFILE_ARN}"),
            model(NOVA_ARN, f"aws/{NOVA_ARN}"),
            model("nova", "aws/amazon.nova-pro-v1:0"),
            model("gpt", "azure/gpt-4o-mini"),
            model("filtered", "azure/fault-content-filter"),
            model("full", "azure/fault-429"),
            model("other", "other/echo-1"),
        )
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        built = await stack.enter_async_context(house(settings_for(folder, url, _valkey, providers, models)))
        yield Clouds(built, bedrock, azure, other)


# --- AWS --------------------------------------------------------------------------------------------------------------


async def test_a_profile_by_its_arn_both_ways(clouds: Clouds) -> None:
    """The client names an ARN, and so do we; what it stands for decides in which words the model is asked."""
    answer = await asyncio.to_thread(
        lambda: clouds.boto3.converse(
            modelId=NOVA_ARN, messages=CONVERSED, additionalModelRequestFields={"inferenceConfig": {"topK": 20}}
        )
    )
    assert answer["output"]["message"]["content"] == [{"text": FIVE}]
    encoded = NOVA_ARN.replace(":", "%3A").replace("/", "%2F")
    assert clouds.bedrock.last.raw_path == f"/model/{encoded}/converse"
    async with openai.AsyncOpenAI(base_url=clouds.gateway.v1, api_key=clouds.gateway.key) as sdk:
        await sdk.chat.completions.create(
            model="claude", messages=CHATTED, reasoning_effort="low", max_completion_tokens=4000
        )
    sent = clouds.bedrock.last.json()["additionalModelRequestFields"]
    assert sent == {"thinking": {"type": "enabled", "budget_tokens": 1024}}


async def test_what_converse_asks_for_and_is_told(clouds: Clouds) -> None:
    asked = {
        "serviceTier": {"type": "default"},
        "performanceConfig": {"latency": "optimized"},
        "requestMetadata": {"team": "a"},
        "guardrailConfig": {"guardrailIdentifier": GUARDRAIL, "guardrailVersion": "1", "trace": "enabled"},
        "system": [{"text": "be brief"}, {"cachePoint": {"type": "default"}}],
    }

    def run(text: str) -> tuple[Any, Any]:
        messages = [{"role": "user", "content": [{"text": text}]}]
        whole = clouds.boto3.converse(modelId="nova", messages=messages, **asked)
        events = list(clouds.boto3.converse_stream(modelId="nova", messages=messages, **asked)["stream"])
        return whole, events

    for text, said, reason in ((ASK, FIVE, "end_turn"), (f"{FORBIDDEN} things", BLOCKED, "guardrail_intervened")):
        whole, events = await asyncio.to_thread(run, text)
        assert whole["output"]["message"]["content"] == [{"text": said}]
        assert whole["stopReason"] == reason
        assert whole["performanceConfig"] == {"latency": "optimized"}
        assert whole["serviceTier"] == {"type": "default"}
        policy = whole["trace"]["guardrail"]["inputAssessment"][GUARDRAIL]["topicPolicy"]
        assert [topic["action"] for topic in policy["topics"]] == (["BLOCKED"] if reason != "end_turn" else [])
        (stopped,) = (e["messageStop"] for e in events if "messageStop" in e)
        assert stopped["stopReason"] == reason
        assert events[-1]["metadata"]["trace"]["guardrail"]["inputAssessment"].keys() == {GUARDRAIL}
    sent = clouds.bedrock.last.json()
    assert {name: sent[name] for name in asked} == asked


async def test_a_guardrail_elsewhere_is_refused_by_name(clouds: Clouds) -> None:
    config = {"guardrailIdentifier": GUARDRAIL, "guardrailVersion": "1"}

    def run() -> str:
        with pytest.raises(ClientError) as refused:
            clouds.boto3.converse(modelId="other", messages=CONVERSED, guardrailConfig=config)
        with pytest.raises(ClientError) as invoked:
            clouds.boto3.invoke_model(
                modelId="other", body=json.dumps(CLAUDES), guardrailIdentifier=GUARDRAIL, guardrailVersion="1"
            )
        # A hint is told, and stops nobody.
        answer = clouds.boto3.invoke_model(
            modelId="other", body=json.dumps(CLAUDES), performanceConfigLatency="optimized"
        )
        dropped = answer["ResponseMetadata"]["HTTPHeaders"]["x-farebox-dropped"]
        return f"{refused.value} {invoked.value} {dropped}"

    said = await asyncio.to_thread(run)
    assert "guardrailConfig" in said
    assert "x-amzn-bedrock-guardrailidentifier" in said
    assert "x-amzn-bedrock-performanceconfig-latency" in said


@pytest.mark.parametrize("alias", ["claude", "nova"])
async def test_invoke_models_own_headers_reach_bedrock(clouds: Clouds, alias: str) -> None:
    """By InvokeModel where the model is Claude; in the body where it is asked by Converse."""

    def run() -> Any:
        body = {**CLAUDES, "messages": [{"role": "user", "content": f"{FORBIDDEN} things"}]}
        return clouds.boto3.invoke_model(
            modelId=alias,
            body=json.dumps(body),
            guardrailIdentifier=GUARDRAIL,
            guardrailVersion="1",
            trace="ENABLED",
            performanceConfigLatency="optimized",
        )

    answer = await asyncio.to_thread(run)
    assert [block["text"] for block in json.loads(answer["body"].read())["content"]] == [BLOCKED]
    sent = clouds.bedrock.last
    if alias == "claude":
        assert sent.headers["x-amzn-bedrock-guardrailidentifier"] == GUARDRAIL
        assert sent.headers["x-amzn-bedrock-performanceconfig-latency"] == "optimized"
    else:
        config = {"guardrailIdentifier": GUARDRAIL, "guardrailVersion": "1", "trace": "enabled"}
        assert sent.json()["guardrailConfig"] == config
        assert not any(name.startswith("x-amzn-bedrock") for name in sent.headers)


async def test_a_tier_by_header_is_the_requests_tier(clouds: Clouds) -> None:
    """It is asked at a tier's price: a model without one is refused as unpriced, before anything is sent."""

    def run() -> str:
        with pytest.raises(ClientError) as refused:
            clouds.boto3.invoke_model(modelId="claude", body=json.dumps(CLAUDES), serviceTier="flex")
        answer = clouds.boto3.invoke_model(modelId="claude", body=json.dumps(CLAUDES), serviceTier="default")
        assert answer["body"].read()
        return str(refused.value)

    answers = clouds.bedrock.stats.answers
    assert "no price" in await asyncio.to_thread(run)
    assert clouds.bedrock.stats.answers == answers + 1


def _text_of(family: str, answer: Any) -> str:
    if family == "claude":
        return str(answer["content"][0]["text"])
    if family == "nova":
        return str(answer["output"]["message"]["content"][0]["text"])
    return str(answer["choices"][0]["message"]["content"])


def _delta_of(family: str, event: Any) -> str:
    if family == "claude":
        return str(event["delta"].get("text", "")) if event["type"] == "content_block_delta" else ""
    if family == "nova":
        return str(event.get("contentBlockDelta", {"delta": {}})["delta"].get("text", ""))
    return "".join(choice.get("delta", {}).get("content") or "" for choice in event["choices"])


@pytest.mark.parametrize("alias", ["claude", "nova", "other", "gpt"])
@pytest.mark.parametrize(("family", "body"), [("claude", CLAUDES), ("nova", NOVAS), ("openai", OPENAIS)])
async def test_invoke_model_in_the_words_of_each_family(
    clouds: Clouds, alias: str, family: str, body: dict[str, Any]
) -> None:
    if family == "nova" and alias in ("other", "gpt"):
        body = {**body, "inferenceConfig": {"maxTokens": 50}}  # Nova's own knob is refused by name there

    def run() -> tuple[Any, Any, Any]:
        whole = clouds.boto3.invoke_model(modelId=alias, body=json.dumps(body))
        stream = clouds.boto3.invoke_model_with_response_stream(modelId=alias, body=json.dumps(body))
        events = [json.loads(event["chunk"]["bytes"]) for event in stream["body"]]
        return json.loads(whole["body"].read()), whole["ResponseMetadata"]["HTTPHeaders"], events

    whole, headers, events = await asyncio.to_thread(run)
    assert _text_of(family, whole) == "".join(_delta_of(family, event) for event in events) == FIVE
    tokens = int(headers["x-amzn-bedrock-input-token-count"]), int(headers["x-amzn-bedrock-output-token-count"])
    metrics = events[-1]["amazon-bedrock-invocationMetrics"]
    assert (metrics["inputTokenCount"], metrics["outputTokenCount"]) == tokens
    assert tokens[1] == 5
    assert metrics["invocationLatency"] >= metrics["firstByteLatency"] >= 0
    assert int(headers["x-amzn-bedrock-invocation-latency"]) >= 0
    if family == "nova" and alias == "nova":
        sent = clouds.bedrock.last.json()
        assert sent["inferenceConfig"] == {"maxTokens": 50}
        assert sent["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 20}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "x", "max_gen_len": 10}, "Converse"),
        ({"inputText": "x", "textGenerationConfig": {}}, "Converse"),
        ({"what": "x"}, "messages"),
        ({"messages": 5}, "messages"),
        ({"schemaVersion": "messages-v1", "messages": CONVERSED, "inferenceConfig": 5}, "inferenceConfig"),
    ],
)
async def test_bodies_of_no_family_are_refused_with_advice(clouds: Clouds, body: dict[str, Any], said: str) -> None:
    def run() -> str:
        with pytest.raises(ClientError) as refused:
            clouds.boto3.invoke_model(modelId="nova", body=json.dumps(body))
        assert refused.value.response["Error"]["Code"] == "ValidationException"
        return str(refused.value)

    assert said in await asyncio.to_thread(run)


# --- Azure ------------------------------------------------------------------------------------------------------------


async def test_content_filter_annotations_reach_the_client(clouds: Clouds) -> None:
    text = f"{ASK}\nx-script: finish=content_filter"
    asked: Any = [{"role": "user", "content": text}]
    async with clouds.azure_sdk() as sdk:
        whole = await sdk.chat.completions.create(model="gpt", messages=asked)
        stream = await sdk.chat.completions.create(model="gpt", messages=asked, stream=True)
        chunks = [chunk async for chunk in stream]
    assert whole.model_extra is not None
    assert whole.model_extra["prompt_filter_results"][0]["content_filter_results"]["hate"]["severity"] == "safe"
    choice = whole.choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.model_extra is not None
    assert choice.model_extra["content_filter_results"]["violence"] == {"filtered": True, "severity": "high"}
    assert chunks[0].choices == []
    assert "prompt_filter_results" in (chunks[0].model_extra or {})
    annotated = [c for chunk in chunks for c in chunk.choices if "content_filter_offsets" in (c.model_extra or {})]
    assert len(annotated) == 1
    assert chunks[-1].choices[0].finish_reason == "content_filter"


async def test_annotations_do_not_trouble_a_client_of_another_dialect(clouds: Clouds) -> None:
    """The chunks without choices or delta end in no event of theirs; the filter's verdict is the finish reason."""
    text = f"{ASK}\nx-script: finish=content_filter"

    def run() -> list[Any]:
        messages = [{"role": "user", "content": [{"text": text}]}]
        return list(clouds.boto3.converse_stream(modelId="gpt", messages=messages)["stream"])

    events = await asyncio.to_thread(run)
    assert "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e) == FIVE
    assert [e["messageStop"]["stopReason"] for e in events if "messageStop" in e] == ["content_filtered"]


async def test_a_blocked_prompt_tells_which_filter_struck(clouds: Clouds) -> None:
    async with clouds.azure_sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="filtered", messages=CHATTED)
        with pytest.raises(openai.BadRequestError) as streamed:
            await sdk.chat.completions.create(model="filtered", messages=CHATTED, stream=True)
    for error in (caught.value, streamed.value):
        assert error.code == "content_filter"
        assert isinstance(error.body, dict)
        inner = error.body["innererror"]
        assert inner["code"] == "ResponsibleAIPolicyViolation"
        assert inner["content_filter_result"]["violence"] == {"filtered": True, "severity": "high"}


async def test_a_full_deployment_tells_when_to_come_back(clouds: Clouds) -> None:
    async with clouds.azure_sdk() as sdk:
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model="full", messages=CHATTED)
    assert caught.value.response.headers["retry-after-ms"] == "2500"
    assert caught.value.response.headers["retry-after"] == "3"


async def test_the_paths_of_no_deployment(clouds: Clouds) -> None:
    """AzureOpenAI asks for answers, models and files below /openai, without a version."""
    async with clouds.azure_sdk() as sdk:
        answer = await sdk.responses.create(model="gpt", input=ASK)
        assert answer.output_text == FIVE
        assert (await sdk.responses.retrieve(answer.id)).output_text == FIVE
        assert "gpt" in [found.id async for found in sdk.models.list()]
        made = await sdk.files.create(file=("in.jsonl", b"{}"), purpose="batch")
        assert [found.id async for found in sdk.files.list()] == [made.id]
        assert (await sdk.files.delete(made.id)).deleted
        assert [found.id async for found in sdk.batches.list()] == []
    async with httpx.AsyncClient(base_url=clouds.gateway.url) as http:
        assert (await http.get("/openai/models?api-version=2024-10-21")).status_code == 401
