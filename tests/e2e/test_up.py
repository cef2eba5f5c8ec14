"""`farebox up` as a stranger runs it: one command, a real model in our own engine, a real bill."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

MODEL = "smollm2-135m-instruct"
PROMPTS = [
    "What is the capital of France?",
    "Name three colours.",
    "Count from one to five.",
    "What is two plus two?",
    "Say hello in French.",
]


@dataclass
class Up:
    """A running `farebox up`. said: the JSON object of its last line."""

    process: subprocess.Popen[str]
    data: Path
    said: dict[str, Any]

    def cli(self, *words: str) -> Any:
        command = [sys.executable, "-m", "gateway", *words, "--data", str(self.data), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=clean())
        return json.loads(done.stdout)

    def sdk(self, key: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.said["base_url"] + "/v1", api_key=key or self.said["key"], max_retries=0, timeout=120
        )

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def clean() -> dict[str, str]:
    """No provider key of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_BASE_URL"))}


def start(data: Path) -> Up:
    command = [sys.executable, "-m", "gateway", "up", "--port", "0", "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean())
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"base_url"'):
            return Up(process, data, json.loads(line))
    raise AssertionError(f"`farebox up` ended with {process.wait()} before it was ready")


@pytest.fixture(scope="module")
def up(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # Short, because a Unix socket's path may have 107 bytes; with the model there, because fetching has its own test.
    data = tmp_path_factory.mktemp("up")
    shutil.copytree(smollm2, data / "models" / smollm2.name)
    running = start(data)
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0


async def test_a_real_answer_streams_and_the_same_number_stands_everywhere(up: Up) -> None:
    key = up.cli("keys", "create", "--project", "demo", "--name", "bill", "--budget", "0.5usd", "--rpm", "600")["key"]

    async def bill() -> list[dict[str, Any]]:
        used = await asyncio.to_thread(up.cli, "usage", "--by", "key")
        return [line for line in used["lines"] if line["name"].startswith("bill")]

    told = Decimal(0)
    async with up.sdk(key) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPTS[0]}],
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
        text = ""
        async for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if chunk.usage is not None:
                told += Decimal(repr((chunk.usage.model_extra or {})["cost"]))
        assert "Paris" in text
        raw = await sdk.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": PROMPTS[0]}], temperature=0, max_tokens=24
        )
        assert raw.parse().choices[0].message.content == text
        told += Decimal(raw.headers["x-farebox-cost-usd"])
    # The answers have come, so their records are on disk; the worker brings them to SQL within moments.
    async with asyncio.timeout(10):
        while not (lines := [line for line in await bill() if line["requests"] == 2]):
            await asyncio.sleep(0.1)
    assert lines[0]["charge_pusd"] == int(told * 10**12)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 16},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


async def test_a_demanded_call_streams_its_answer_is_heard_and_a_schema_is_kept(up: Up) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    async with up.sdk() as sdk:
        async with sdk.chat.completions.stream(
            model=MODEL, messages=turns, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=60
        ) as stream:
            asked = (await stream.get_final_completion()).choices[0]
        assert asked.finish_reason == "tool_calls"
        assert asked.message.tool_calls is not None
        (call,) = asked.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"city", "unit"}
        assert arguments["unit"] in ("celsius", "fahrenheit")
        turns.append({"role": "assistant", "tool_calls": [call.to_dict()]})
        turns.append({"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"})
        heard = await sdk.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=24)
        assert heard.choices[0].message.content
        schema: Any = {"name": "sky", "schema": {"enum": ["sunny", "cloudy"]}, "strict": True}
        told = await sdk.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "How is the sky?"}],
            response_format={"type": "json_schema", "json_schema": schema},
            max_tokens=10,
        )
        assert json.loads(told.choices[0].message.content or "") in ("sunny", "cloudy")
        with pytest.raises(openai.BadRequestError) as refusal:
            await sdk.chat.completions.create(
                model=MODEL,
                messages=turns[:1],
                response_format={"type": "json_schema", "json_schema": schema | {"schema": {"type": "strin"}}},
            )
    assert "strin" in refusal.value.message


async def test_fifty_at_once_say_what_each_says_alone(up: Up) -> None:
    async with up.sdk() as sdk:

        async def ask(prompt: str, stream: bool) -> str:
            asked: dict[str, Any] = {
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": 12,
            }
            if stream:
                pieces = await sdk.chat.completions.create(**asked, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in pieces])
            answer = await sdk.chat.completions.create(**asked)
            return answer.choices[0].message.content or ""

        alone = [await ask(prompt, False) for prompt in PROMPTS]
        together = await asyncio.gather(*(ask(PROMPTS[n % 5], n % 2 == 0) for n in range(50)))
    assert together == [alone[n % 5] for n in range(50)]


async def test_a_spent_cent_refuses_the_next_request(up: Up) -> None:
    key = up.cli("keys", "create", "--project", "demo", "--name", "cent", "--budget", "0.001usd", "--rpm", "60")["key"]
    async with up.sdk(key) as sdk:
        with pytest.raises(openai.RateLimitError) as refusal:
            for _ in range(30):
                await sdk.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=40
                )
    assert refusal.value.code == "insufficient_quota"


async def test_a_prompt_longer_than_the_window_is_refused_and_costs_nothing(up: Up) -> None:
    before = up.cli("usage", "--by", "day")["total_charge_pusd"]
    async with up.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as refusal:
            await sdk.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "one two three " * 5000}], max_tokens=5
            )
    assert refusal.value.code == "context_length_exceeded"
    assert up.cli("usage", "--by", "day")["total_charge_pusd"] == before


async def test_an_engine_that_is_killed_is_an_error_and_comes_back(up: Up) -> None:
    engine = [child for child in up.children() if "local_backend" in " ".join(child.cmdline())]
    assert engine
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    async with up.sdk() as sdk:
        for process in engine:
            process.kill()
        with pytest.raises(openai.APIStatusError) as failure:
            await sdk.chat.completions.create(**ask)
        assert failure.value.status_code in (502, 503)
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await sdk.chat.completions.create(**ask)
                    break
                except openai.APIStatusError:
                    await asyncio.sleep(0.2)
    assert answer.choices[0].message.content


def test_the_doctor_finds_nothing_wrong_and_the_books_balance(up: Up) -> None:
    assert up.cli("check")["ok"] is True
    assert up.cli("ledger", "trial")["sound"] is True


def test_kill_9_leaves_no_process_behind_and_the_next_start_serves(smollm2: Path, tmp_path: Path) -> None:
    data = tmp_path / "d"
    shutil.copytree(smollm2, data / "models" / smollm2.name)
    first = start(data)
    children = first.children()
    assert len(children) >= 2  # Valkey and the engine
    first.process.kill()
    first.process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    second = start(data)
    assert second.said["key"] == first.said["key"]
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(60) == 0
