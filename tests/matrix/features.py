"""What is asked of every pair, and what a right answer is. Each check raises AssertionError for a wrong one."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from tests.matrix.asks import TOOL, Ask, Client, NotOffered, Said, Seen

COUNT = "count from 1 to 5"
FIVE = "1, 2, 3, 4, 5"
# 1,500 words: more than the 1,024 tokens below which nobody caches.
LONG = "Read this with care. " * 375

Check = Callable[[Client, str], Awaitable[None]]


async def text(client: Client, alias: str) -> None:
    _counted(await client.ask(alias, Ask(COUNT)))


async def stream(client: Client, alias: str) -> None:
    _counted(await client.ask(alias, Ask(COUNT, stream=True)))


def _counted(seen: Seen) -> None:
    assert seen.text == FIVE
    assert seen.input_tokens
    assert (seen.output_tokens or 0) - seen.reasoning_tokens == 5


async def system_text(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask("go on", system="x-script: say=as_the_system_said"))
    assert seen.text == "as the system said"


async def tools(client: Client, alias: str) -> None:
    await _round_trip(client, alias, streamed=False)


async def tools_streamed(client: Client, alias: str) -> None:
    await _round_trip(client, alias, streamed=True)


async def _round_trip(client: Client, alias: str, *, streamed: bool) -> None:
    ask = Ask("use get_weather for it", tools=True, stream=streamed)
    called = await client.ask(alias, ask)
    assert [(call.name, call.arguments) for call in called.calls] == [(TOOL, {"location": "San Francisco"})]
    told = await client.ask(alias, replace(ask, after=called, results=("18 degrees",)))
    assert told.text == "The tool said: 18 degrees"


async def forced_tool(client: Client, alias: str) -> None:
    called = await client.ask(alias, Ask("hello", tools=True, forced=True))
    assert [call.name for call in called.calls] == [TOOL]


async def parallel_tools(client: Client, alias: str) -> None:
    """Streamed, with thoughts before the calls where there are any: signatures must survive the round."""
    ask = Ask("two parallel calls of get_weather", tools=True, stream=True)
    called = await client.ask(alias, ask)
    assert [call.arguments["location"] for call in called.calls] == ["San Francisco", "Paris"]
    told = await client.ask(alias, replace(ask, after=called, results=("18 degrees", "7 degrees")))
    assert told.text == "The tool said: 18 degrees; 7 degrees"


async def schema(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask("who?", schema=True))
    assert json.loads(seen.text) == {"name": "Alice", "age": 3}


async def image(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask("look", image=True))
    assert seen.text == "I see 1 image."


async def pdf(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask("look", pdf="bytes"))
    assert seen.text == "I read 1 document."


async def pdf_by_address(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask("look", pdf="address"))
    assert seen.text == "I read 1 document."


async def reasoning(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask(COUNT, reasoning=True))
    assert seen.text == FIVE
    assert seen.reasoning or seen.reasoning_tokens
    assert (seen.output_tokens or 0) >= 5 + 8


async def reasoning_and_tools(client: Client, alias: str) -> None:
    """Thoughts, their signatures and the call go back with the tool's result."""
    ask = Ask("use get_weather for it", tools=True, reasoning=True)
    called = await client.ask(alias, ask)
    told = await client.ask(alias, replace(ask, after=called, results=("18 degrees",)))
    assert told.text == "The tool said: 18 degrees"


async def prompt_cache(client: Client, alias: str) -> None:
    """No other cell shares the prompt."""
    ask = Ask("go on", system=f"{client.name} at {alias}. {LONG}", cache=True)
    try:
        first = await client.ask(alias, ask)
    except NotOffered:  # no word for a mark; there are backends that need none
        ask = replace(ask, cache=False)
        first = await client.ask(alias, ask)
    second = await client.ask(alias, ask)
    if not ask.cache and not second.cache_read_tokens and is_marked(alias):
        raise NotOffered
    assert first.cache_read_tokens == 0
    assert second.cache_read_tokens >= 1500


def is_marked(alias: str) -> bool:
    """Whether the backend caches what is marked and nothing else."""
    return "claude" in alias or alias.startswith("bedrock/")


async def stop(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask(COUNT, stop="3"))
    assert seen.text.strip() == "1, 2,"


async def seed(client: Client, alias: str) -> None:
    _counted(await client.ask(alias, Ask(COUNT, seed=7)))


async def candidates(client: Client, alias: str) -> None:
    seen = await client.ask(alias, Ask(COUNT, n=2))
    assert seen.texts == [FIVE, FIVE]


async def logprobs(client: Client, alias: str) -> None:
    assert (await client.ask(alias, Ask(COUNT, logprobs=True))).logprobs


async def count_tokens(client: Client, alias: str) -> None:
    assert await client.count(alias, Ask(COUNT)) > 0


async def bad_key(client: Client, alias: str) -> None:
    said = await said_of(client.stranger, alias, Ask(COUNT))
    assert said.code == "AccessDeniedException" if said.code else said.status == 401, f"{said.status} {said.error!r}"


async def rejected(client: Client, alias: str) -> None:
    said = await said_of(client, alias, Ask("x-script: fault=400"))
    assert said.code == "ValidationException" if said.code else said.status == 400


async def throttled(client: Client, alias: str) -> None:
    said = await said_of(client, alias, Ask("x-script: fault=429"))
    assert said.code == "ThrottlingException" if said.code else said.status == 429


async def failing(client: Client, alias: str) -> None:
    said = await said_of(client, alias, Ask("x-script: fault=500"))
    assert (said.status or 0) >= 500


async def failing_in_stream(client: Client, alias: str) -> None:
    said = await said_of(client, alias, Ask("x-script: long=40 fault=stream-error", stream=True))
    assert said.message


async def said_of(client: Client, alias: str, ask: Ask) -> Said:
    """Raises: AssertionError when there was an answer; NotOffered."""
    try:
        seen = await client.ask(alias, ask)
    except NotOffered:
        raise
    except Exception as error:
        if (said := Said(error)).is_refusal:
            raise
        return said
    raise AssertionError(f"answered: {seen}")


FEATURES: Mapping[str, Check] = {
    "text": text,
    "stream": stream,
    "system text": system_text,
    "tools, round trip": tools,
    "tools, streamed": tools_streamed,
    "forced tool": forced_tool,
    "parallel tools": parallel_tools,
    "JSON schema": schema,
    "image": image,
    "PDF": pdf,
    "PDF by address": pdf_by_address,
    "reasoning": reasoning,
    "reasoning and tools": reasoning_and_tools,
    "prompt cache": prompt_cache,
    "stop": stop,
    "seed": seed,
    "several answers": candidates,
    "logprobs": logprobs,
    "count tokens": count_tokens,
}
FAULTS: Mapping[str, Check] = {
    "error: bad key": bad_key,
    "error: rejected": rejected,
    "error: throttled": throttled,
    "error: failing": failing,
    "error: in the stream": failing_in_stream,
}
