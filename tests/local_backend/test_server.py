"""The HTTP face with the real model behind it: openai's SDK over a real socket, streams, many at once, cancellation."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from tests.local_backend.support import SMOLLM2, EngineProcess

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


async def metric(http: httpx.AsyncClient, name: str) -> float:
    """A metric's value, summed over its labels."""
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


async def until_idle(http: httpx.AsyncClient) -> None:
    """Wait until nothing runs and every block is free. Fails after a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if await metric(http, "vllm:num_requests_running") == 0 == await metric(http, "vllm:kv_cache_usage_perc"):
            return
        await asyncio.sleep(0.01)
    pytest.fail("sequences still run, or blocks are still held")


async def test_whole_answer(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=30)
    (choice,) = answer.choices
    assert choice.message.content == "The capital of France is Paris."
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8  # seven of text and the stop token
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


async def test_stream_says_the_same_and_ends_with_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        temperature=0,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The capital of France is"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


async def test_twenty_at_once_say_what_each_says_alone(client: AsyncOpenAI) -> None:
    async def ask(n: int) -> str:
        stream = await client.chat.completions.create(
            model=SMOLLM2,
            messages=[{"role": "user", "content": f"Count up from {n}."}],
            temperature=0,
            max_tokens=8,
            stream=True,
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    together = await asyncio.gather(*map(ask, range(20)))
    assert [await ask(n) for n in (0, 7, 19)] == [together[0], together[7], together[19]]
    assert all(together)


async def test_second_time_the_prompt_comes_from_the_cache_unless_salted(client: AsyncOpenAI) -> None:
    message: Any = [{"role": "user", "content": "A prompt that nobody else here sends. " * 4}]

    async def cached(**extra: Any) -> int:
        answer = await client.chat.completions.create(model=SMOLLM2, messages=message, max_tokens=1, extra_body=extra)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens is not None
        return answer.usage.prompt_tokens_details.cached_tokens

    await cached()
    assert await cached() > 32
    assert await cached(cache_salt="another tenant") == 0


async def test_n_answers_differ_and_a_seed_repeats_them(client: AsyncOpenAI) -> None:
    async def ask() -> list[str]:
        answer = await client.chat.completions.create(
            model=SMOLLM2,
            messages=[{"role": "user", "content": "Tell me a story."}],
            n=3,
            seed=11,
            max_tokens=10,
            temperature=1.0,
            top_p=0.95,
        )
        assert [c.index for c in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 30
        return [c.message.content or "" for c in answer.choices]

    first = await ask()
    assert len(set(first)) == 3
    assert await ask() == first


async def test_streamed_n_answers_are_told_apart(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=SMOLLM2, messages=QUESTION, n=2, temperature=0, max_tokens=4, stream=True
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "The capital of France", 1: "The capital of France"}


async def test_logprobs(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=30, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens is not None
    assert "".join(t.token for t in tokens) == answer.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert bytes(token.bytes or []).decode() == token.token


async def test_stop_strings_and_bias(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=30, stop=["ance is", "never"]
    )
    assert answer.choices[0].message.content == "The capital of Fr"
    assert answer.choices[0].finish_reason == "stop"
    answer = await client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        temperature=0,
        max_tokens=3,
        logit_bias={"2": 100},
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].finish_reason == "length", "the stop token was forced, and ignored"


async def test_completions(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    answer = await client.completions.create(
        model=SMOLLM2, prompt=["The capital of France is", "2 + 2 ="], temperature=0, max_tokens=3, echo=True
    )
    assert answer.choices[0].text.startswith("The capital of France is Paris")
    assert answer.choices[1].text.startswith("2 + 2 =")
    ids = (await http.post("/tokenize", json={"model": SMOLLM2, "prompt": "The capital of France is"})).json()["tokens"]
    by_ids = await client.completions.create(model=SMOLLM2, prompt=ids, temperature=0, max_tokens=3, logprobs=1)
    assert "The capital of France is" + by_ids.choices[0].text == answer.choices[0].text
    logprobs = by_ids.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == by_ids.choices[0].text
    assert logprobs.text_offset == [0, len(logprobs.tokens[0]), len("".join(logprobs.tokens[:2]))]  # type: ignore[index]
    stream = await client.completions.create(
        model=SMOLLM2, prompt="The capital of France is", temperature=0, max_tokens=3, echo=True, stream=True
    )
    assert "".join([c.choices[0].text async for c in stream]) == answer.choices[0].text


async def test_models_and_tokenize(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    assert [m.id async for m in client.models.list()] == [SMOLLM2]
    assert (await client.models.retrieve(SMOLLM2)).id == SMOLLM2
    with pytest.raises(NotFoundError):
        await client.models.retrieve("other")
    reply = (await http.post("/tokenize", json={"messages": QUESTION})).json()
    answer = await client.chat.completions.create(model=SMOLLM2, messages=QUESTION, max_tokens=1)
    assert answer.usage is not None
    assert reply["count"] == len(reply["tokens"]) == answer.usage.prompt_tokens
    assert reply["max_model_len"] == 8192


@pytest.mark.parametrize("stream", [True, False])
async def test_a_gone_client_frees_its_blocks(http: httpx.AsyncClient, stream: bool) -> None:
    body = {"model": SMOLLM2, "messages": QUESTION, "max_tokens": 4000, "ignore_eos": True, "stream": stream, "n": 3}
    asking = asyncio.create_task(_read_some(http, body))
    while await metric(http, "vllm:num_requests_running") < 3:
        assert not asking.done() or stream
        await asyncio.sleep(0.01)
    if stream:
        await asking
    else:
        asking.cancel()
        await asyncio.wait({asking})
    await until_idle(http)
    generated = await metric(http, "vllm:generation_tokens_total")
    steps = await metric(http, "farebox:engine_steps_total")
    answer = await http.post("/v1/completions", json={"model": SMOLLM2, "prompt": "x", "max_tokens": 2})
    assert answer.status_code == 200
    assert await metric(http, "farebox:engine_steps_total") <= steps + 2, "nothing of the old request goes on"
    assert await metric(http, "vllm:generation_tokens_total") <= generated + 2


async def _read_some(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()
        for _ in range(20):
            await anext(lines)
        running = await metric(http, "vllm:num_requests_running")
        assert running == 3


async def test_stream_is_whole_json_lines_with_request_id(http: httpx.AsyncClient) -> None:
    body = {
        "model": SMOLLM2,
        "messages": [{"role": "user", "content": "Repeat: 日本語 🙂🙂 é"}],
        "stream": True,
        "max_tokens": 40,
        "temperature": 0,
        "x_made_up": 1,
    }
    reply = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "abc123"})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-request-id"] == "abc123"
    assert reply.headers["x-farebox-ignored"] == "x_made_up"
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    text = "".join(json.loads(e.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for e in events[:-2])
    whole = await http.post("/v1/chat/completions", json=body | {"stream": False})
    assert text == whole.json()["choices"][0]["message"]["content"]


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OK_CHAT = {"model": SMOLLM2, "messages": QUESTION, "max_tokens": 1}
OK_COMPLETION = {"model": SMOLLM2, "prompt": "x", "max_tokens": 1}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
NEVER = {"type": "string", "minLength": 5, "maxLength": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

UNSOUND = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "strin"}}}}}


def json_format(schema: Any) -> dict[str, Any]:
    """A request whose answer must meet the schema."""
    return OK_CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


BAD: list[tuple[str, str, Any, int, str, str | None]] = [
    ("malformed JSON", CHAT, b'{"model": ', 400, "invalid_json", None),
    ("not UTF-8", CHAT, b'{"model": "\xff"}', 400, "invalid_json", None),
    ("not an object", CHAT, b"[]", 400, "invalid_json", None),
    ("empty body", CHAT, b"", 400, "invalid_json", None),
    ("no model", CHAT, {"messages": QUESTION}, 400, "invalid_request", "model"),
    ("unknown model", CHAT, OK_CHAT | {"model": "gpt-4"}, 404, "model_not_found", "model"),
    ("no messages", CHAT, {"model": SMOLLM2}, 400, "invalid_request", "messages"),
    ("empty messages", CHAT, OK_CHAT | {"messages": []}, 400, "invalid_request", "messages"),
    ("message of wrong type", CHAT, OK_CHAT | {"messages": ["hi"]}, 400, "invalid_request", "messages[0]"),
    (
        "unknown role",
        CHAT,
        OK_CHAT | {"messages": [{"role": "boss", "content": "x"}]},
        400,
        "invalid_request",
        "messages[0].role",
    ),
    ("temperature as text", CHAT, OK_CHAT | {"temperature": "hot"}, 400, "invalid_request", "temperature"),
    ("temperature too high", CHAT, OK_CHAT | {"temperature": 2.1}, 400, "invalid_request", "temperature"),
    ("top_p zero", CHAT, OK_CHAT | {"top_p": 0}, 400, "invalid_request", "top_p"),
    ("max_tokens zero", CHAT, OK_CHAT | {"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
    ("n absurd", CHAT, OK_CHAT | {"n": 10_000}, 400, "invalid_request", "n"),
    ("bias for no token", CHAT, OK_CHAT | {"logit_bias": {"999999": 1}}, 400, "invalid_request", "logit_bias"),
    ("bias for a word", CHAT, OK_CHAT | {"logit_bias": {"-1": 1}}, 400, "invalid_request", "logit_bias"),
    ("top_logprobs alone", CHAT, OK_CHAT | {"top_logprobs": 2}, 400, "invalid_request", "top_logprobs"),
    (
        "stream_options alone",
        CHAT,
        OK_CHAT | {"stream_options": {"include_usage": True}},
        400,
        "invalid_request",
        "stream_options",
    ),
    ("too many stops", CHAT, OK_CHAT | {"stop": ["x"] * 17}, 400, "invalid_request", "stop"),
    ("image", CHAT, OK_CHAT | {"messages": IMAGE}, 400, "unsupported", "messages[0].content[0]"),
    (
        "format unknown",
        CHAT,
        OK_CHAT | {"response_format": {"type": "x"}},
        400,
        "invalid_request",
        "response_format.type",
    ),
    ("schema of no type", CHAT, json_format({"type": "strin"}), 400, "invalid_constraint", "response_format"),
    ("schema nobody meets", CHAT, json_format(NEVER), 400, "invalid_constraint", "response_format"),
    ("schema pointing nowhere", CHAT, json_format({"$ref": "#/x"}), 400, "invalid_constraint", "response_format"),
    ("regex open", CHAT, OK_CHAT | {"guided_regex": "[ab"}, 400, "invalid_constraint", "guided_regex"),
    ("regex of nothing", CHAT, OK_CHAT | {"guided_regex": r"[^\s\S]"}, 400, "invalid_constraint", "guided_regex"),
    ("grammar undefined", CHAT, OK_CHAT | {"guided_grammar": "start: x"}, 400, "invalid_constraint", "guided_grammar"),
    (
        "grammar endless",
        CHAT,
        OK_CHAT | {"guided_grammar": 'start: start "a"'},
        400,
        "invalid_constraint",
        "guided_grammar",
    ),
    ("two constraints", CHAT, json_format({}) | {"guided_regex": "a"}, 400, "invalid_request", "guided_regex"),
    (
        "tool without name",
        CHAT,
        OK_CHAT | {"tools": [{"type": "function", "function": {}}]},
        400,
        "invalid_request",
        "tools[0].function.name",
    ),
    ("tool twice", CHAT, OK_CHAT | {"tools": [TOOL, TOOL]}, 400, "invalid_request", "tools[1].function.name"),
    (
        "tool schema unsound",
        CHAT,
        OK_CHAT | {"tools": [UNSOUND], "tool_choice": "required"},
        400,
        "invalid_constraint",
        "tools",
    ),
    ("required of none", CHAT, OK_CHAT | {"tool_choice": "required"}, 400, "invalid_request", "tool_choice"),
    (
        "a tool not offered",
        CHAT,
        OK_CHAT | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        400,
        "invalid_request",
        "tool_choice",
    ),
    ("min_tokens under a constraint", CHAT, json_format({}) | {"min_tokens": 3}, 400, "invalid_request", "min_tokens"),
    ("no such id", "/detokenize", {"tokens": [99999]}, 400, "invalid_request", "tokens"),
    ("functions", CHAT, OK_CHAT | {"functions": [{}]}, 400, "unsupported", "functions"),
    ("audio", CHAT, OK_CHAT | {"modalities": ["text", "audio"]}, 400, "unsupported", "modalities"),
    (
        "prompt over the context",
        CHAT,
        OK_CHAT | {"messages": [{"role": "user", "content": "word " * 9000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    (
        "body over the bound",
        CHAT,
        OK_CHAT | {"messages": [{"role": "user", "content": "x" * 400_000}]},
        413,
        "request_too_large",
        None,
    ),
    ("empty prompt", COMPLETIONS, OK_COMPLETION | {"prompt": []}, 400, "empty_prompt", "prompt"),
    ("empty text", COMPLETIONS, OK_COMPLETION | {"prompt": ""}, 400, "empty_prompt", "prompt"),
    (
        "token id beyond the vocabulary",
        COMPLETIONS,
        OK_COMPLETION | {"prompt": [1, 99999]},
        400,
        "invalid_request",
        "prompt",
    ),
    ("ids and text mixed", COMPLETIONS, OK_COMPLETION | {"prompt": [1, "x"]}, 400, "invalid_request", "prompt"),
    ("suffix", COMPLETIONS, OK_COMPLETION | {"suffix": "x"}, 400, "unsupported", "suffix"),
    ("best_of", COMPLETIONS, OK_COMPLETION | {"best_of": 3}, 400, "unsupported", "best_of"),
    ("echo with logprobs", COMPLETIONS, OK_COMPLETION | {"echo": True, "logprobs": 1}, 400, "unsupported", "echo"),
    ("long completion", COMPLETIONS, OK_COMPLETION | {"prompt": [5] * 8192}, 400, "context_length_exceeded", "prompt"),
    ("neither prompt nor messages", "/tokenize", {"model": SMOLLM2}, 400, "invalid_request", "prompt"),
    ("no such path", "/v1/images", {}, 404, "not_found", None),
    ("not an encoder", "/v1/embeddings", {}, 400, "unsupported", None),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
async def test_bad_input_is_refused_by_name_and_the_engine_lives_on(
    http: httpx.AsyncClient, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = await http.post(path, content=content)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["message"]
    assert error["type"]
    assert reply.headers["x-request-id"]
    assert (await http.get("/health/ready")).status_code == 200
    await until_idle(http)


async def test_the_longest_prompt_that_fits_gives_one_token(http: httpx.AsyncClient) -> None:
    reply = await http.post(COMPLETIONS, json={"model": SMOLLM2, "prompt": [5] * 600, "max_tokens": 1})
    assert reply.json()["usage"]["completion_tokens"] == 1


async def test_two_hundred_clients_at_once_and_none_fails(
    smollm2_engine: EngineProcess, http: httpx.AsyncClient
) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=smollm2_engine.url, timeout=300, limits=limits) as many:

        async def ask(n: int) -> tuple[int, str | None]:
            body = OK_COMPLETION | {"prompt": f"The number {n} is", "max_tokens": 3, "ignore_eos": True}
            reply = await many.post(COMPLETIONS, json=body)
            return reply.status_code, reply.json()["choices"][0]["finish_reason"]

        assert set(await asyncio.gather(*(ask(n) for n in range(200)))) == {(200, "length")}
    await until_idle(http)


async def test_a_deadline_frees_what_the_request_held(http: httpx.AsyncClient) -> None:
    body = OK_CHAT | {"max_tokens": 8000, "ignore_eos": True}
    reply = await http.post(CHAT, json=body, headers={"x-farebox-timeout-s": "0.2"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    await until_idle(http)
    reply = await http.post(CHAT, json=OK_CHAT, headers={"x-farebox-timeout-s": "soon"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-farebox-timeout-s")


async def test_tenants_share_no_cache(http: httpx.AsyncClient) -> None:
    body = OK_COMPLETION | {"prompt": "A prompt of some length, of which whole blocks are kept for whoever asks again."}

    async def cached(tenant: str) -> int:
        reply = await http.post(COMPLETIONS, json=body, headers={"x-farebox-tenant": tenant})
        found: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert [await cached(tenant) for tenant in ("project-1", "project-1", "project-2")] == [0, 16, 0]


async def test_tokens_there_and_back(http: httpx.AsyncClient) -> None:
    text = "Grüße, 世界 🙂!"
    ids = (await http.post("/tokenize", json={"prompt": text})).json()["tokens"]
    assert (await http.post("/detokenize", json={"tokens": ids})).json() == {"prompt": text}


async def test_min_tokens_holds_the_end_back(http: httpx.AsyncClient) -> None:
    body = OK_CHAT | {"max_tokens": 30, "temperature": 0}
    short = (await http.post(CHAT, json=body)).json()["usage"]["completion_tokens"]
    long = (await http.post(CHAT, json=body | {"min_tokens": 20})).json()["usage"]["completion_tokens"]
    assert short < 20 <= long


async def test_wrong_method(http: httpx.AsyncClient) -> None:
    reply = await http.get(CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "method_not_allowed")
