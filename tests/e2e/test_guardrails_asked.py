"""Guardrails that are somebody else's: what they are asked, what their answers do, and what happens without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import pytest_asyncio
from botocore.config import Config

from gateway.config import Secret
from gateway.guardrails.policy import AzureSafety, Bedrock, Spec, Webhook
from gateway.till import GuardrailSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.test_guardrails import guarded_key, report_of, row_of, said, text_of
from tests.emulators.bedrock import ACCESS_KEY_ID, SECRET_ACCESS_KEY
from tests.emulators.guarding import AZURE_KEY, SECRET, GuardingEmulator
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Place:
    gateway: House
    asked: GuardingEmulator

    def spec(self, kind: str, **more: Any) -> Spec:
        match kind:
            case "webhook":
                return Webhook(url=f"{self.asked.url}/hook", **more)
            case "bedrock":
                return Bedrock(guardrail_id="gr123", version="2", provider="aws", **more)
        return AzureSafety(provider="safety", **more)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Place]:
    data = tmp_path_factory.mktemp("guardrails")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    async with OpenAIEmulator() as openai, GuardingEmulator() as asked:
        keys = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
        providers = {
            "openais": provider("openai", f"{openai.url}/v1"),
            "aws": provider("bedrock", asked.url, keys, region="us-east-1"),
            "safety": provider("azure_ai", asked.url, {"api_key": AZURE_KEY}),
        }
        settings = settings_for(
            data, f"sqlite:///{database}", _valkey, providers, (model("gpt", "openais/echo-1"),),
            guardrails=GuardrailSettings(signing_secret=Secret(SECRET, {}), private_targets=True),
        )  # fmt: skip
        async with house(settings) as built:
            yield Place(built, asked)


async def test_awss_own_client_is_answered_as_the_gateway_is(place: Place) -> None:
    """So what the gateway is tested against is what AWS's client takes for AWS."""
    client = boto3.client(
        "bedrock-runtime", region_name="us-east-1", endpoint_url=place.asked.url, aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY, config=Config(retries={"max_attempts": 1}),
    )  # fmt: skip
    place.asked.requests.clear()
    answer = await asyncio.to_thread(
        client.apply_guardrail,
        guardrailIdentifier="gr123",
        guardrailVersion="2",
        source="INPUT",
        content=[{"text": {"text": "my masked name"}}],
    )
    assert answer["outputs"] == [{"text": "my {NAME} name"}]
    key, _ = await guarded_key(place.gateway, place.spec("bedrock"), stage="input")
    await said(place.gateway, key, "openai_chat", "gpt", "my masked name", stream=False)
    theirs, ours = place.asked.requests
    assert (ours.method, ours.raw_path, ours.json()) == (theirs.method, theirs.raw_path, theirs.json())


@pytest.mark.parametrize("kind", ["webhook", "bedrock", "azure"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_what_is_said_no_to_is_stopped(place: Place, kind: str, stream: bool) -> None:
    key, _ = await guarded_key(place.gateway, place.spec(kind, every=50), action="block")
    word = "hate" if kind == "azure" else "forbidden"
    async with httpx.AsyncClient(timeout=60) as http:
        body = {"model": "gpt", "messages": [{"role": "user", "content": f"some {word} thing"}]}
        refused = await http.post(
            f"{place.gateway.v1}/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        )
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
    row = await row_of(place.gateway, refused.headers["x-request-id"])
    assert (row["outcome"], row["charge_pusd"] or 0) == ("rejected", 0)

    key, _ = await guarded_key(place.gateway, place.spec(kind, every=50), action="block", stage="output")
    prompt = f"x-script: say={'fine_' * 12}and_{word}_and_more_words_to_come"
    response, answer = await said(place.gateway, key, "openai_chat", "gpt", prompt, stream=stream)
    assert response.candidates[0].finish_reason == "content_filter"
    assert word not in answer.text
    row = await row_of(place.gateway, answer.headers["x-request-id"])
    assert row["quantities"]["output_tokens"] > 0


@pytest.mark.parametrize("kind", ["webhook", "bedrock"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_what_is_masked_is_masked(place: Place, kind: str, stream: bool) -> None:
    key, _ = await guarded_key(place.gateway, place.spec(kind, every=50), stage="output")
    prompt = f"x-script: say={'fine_' * 12}and_masked_and_more"
    response, answer = await said(place.gateway, key, "anthropic_messages", "gpt", prompt, stream=stream)
    assert text_of(response) == "fine " * 12 + f"and {'***' if kind == 'webhook' else '{NAME}'} and more"
    assert response.candidates[0].finish_reason == "stop"
    report = await report_of(place.gateway, answer.headers["x-request-id"])
    assert (report["outcome"], report["findings"][0]["rule"]) == ("redacted", "test")


@pytest.mark.parametrize(("on_failure", "status"), [("open", 200), ("closed", 400)])
async def test_nobody_answers_in_time(place: Place, on_failure: str, status: int) -> None:
    spec = place.spec("webhook", timeout_s=0.3, on_failure=on_failure)
    key, _ = await guarded_key(place.gateway, spec, stage="input")
    async with httpx.AsyncClient(timeout=60) as http:
        body = {"model": "gpt", "messages": [{"role": "user", "content": "stall"}]}
        answer = await http.post(
            f"{place.gateway.v1}/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        )
    assert answer.status_code == status
    report = await report_of(place.gateway, answer.headers["x-request-id"])
    assert report["outcome"] == f"failed_{on_failure}"


async def test_an_address_inside_is_not_asked(tmp_path: Path, place: Place) -> None:
    from gateway.guardrails.policy import Rule
    from gateway.guardrails.remote import Remotes
    from gateway.guardrails.visit import About, NoVerdict

    remotes = Remotes(None, GuardrailSettings())  # type: ignore[arg-type]
    rule = Rule("g", "g", "all", "*", "input", "block", place.spec("webhook"))
    with pytest.raises(NoVerdict, match=r"inside this network; guardrails\.private_targets"):
        await remotes.ask(rule, "input", ["x"], About("r", "o", "p", "k", "a", 0))
    await remotes.aclose()
