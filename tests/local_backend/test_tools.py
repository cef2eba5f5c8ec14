"""Tools and constrained answers with the real model: whatever it would rather say, the form is kept."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher
from openai import AsyncOpenAI, BadRequestError

from local_backend.errors import InvalidRequest, ModelUnavailable
from local_backend.model_text import ModelText
from local_backend.structured import after_thought, schema_grammar, token_table
from local_backend.template import ChatTemplate
from local_backend.tools import FORMATS, Choice, demanded, read_tools
from tests.local_backend.support import SMOLLM2, EngineProcess

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"$ref": "#/$defs/unit"},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "unit", "days"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in (WEATHER, CLOCK)}
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture
async def client(smollm2_engine: EngineProcess) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=smollm2_engine.url + "/v1", api_key="-", max_retries=0, timeout=120) as made:
        yield made


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_demanded_call_meets_its_schema_streamed_or_not(
    client: AsyncOpenAI, choice: Any, temperature: float
) -> None:
    asked: Any = {"model": SMOLLM2, "messages": ASKED, "tools": [WEATHER, CLOCK], "tool_choice": choice}
    asked |= {"temperature": temperature, "seed": 5, "max_tokens": 80}
    whole = (await client.chat.completions.create(**asked)).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert not whole.message.content
    (call,) = whole.message.tool_calls or [None]
    assert call is not None
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    if isinstance(choice, dict):
        assert call.function.name == "get_weather"
    async with client.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.message.tool_calls is not None
    (again,) = streamed.message.tool_calls
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    assert streamed.finish_reason == "tool_calls"


async def test_a_conversation_goes_on_after_the_tool_has_answered(client: AsyncOpenAI) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    turns: Any = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:30"},
    ]
    answer = await client.chat.completions.create(
        model=SMOLLM2, messages=turns, tools=[CLOCK], tool_choice="none", temperature=0, max_tokens=12
    )
    assert answer.choices[0].message.content
    broken: Any = [*turns]
    broken[1] = {"role": "assistant", "tool_calls": [{"function": {"name": "get_time", "arguments": "{"}}]}
    with pytest.raises(BadRequestError) as refusal:
        await client.chat.completions.create(model=SMOLLM2, messages=broken)
    assert refusal.value.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_answers_meet_their_constraint(client: AsyncOpenAI, temperature: float) -> None:
    async def ask(**constraint: Any) -> str:
        answer = await client.chat.completions.create(
            model=SMOLLM2, messages=ASKED, temperature=temperature, seed=3, max_tokens=120, **constraint
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    schema: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    jsonschema.validate(json.loads(await ask(response_format=schema)), PERSON)
    regex = r"[A-Z][a-z]{2,8}, \d{4}-\d\d"
    assert re.fullmatch(regex, await ask(extra_body={"structured_outputs": {"regex": regex}}))
    assert await ask(extra_body={"guided_choice": ["ja", "nein"]}) in ("ja", "nein")
    gbnf = 'root ::= "<" [0-9] [0-9] ">"'
    assert re.fullmatch("<[0-9]{2}>", await ask(extra_body={"guided_grammar": gbnf}))


async def test_free_and_constrained_answers_share_a_batch(client: AsyncOpenAI) -> None:
    async def free() -> str:
        answer = await client.chat.completions.create(
            model=SMOLLM2,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=12,
        )
        return answer.choices[0].message.content or ""

    async def bound(n: int) -> str:
        answer = await client.completions.create(
            model=SMOLLM2, prompt="x", temperature=1, seed=n, extra_body={"guided_regex": "[abc]{5}"}
        )
        return answer.choices[0].text

    answers = await asyncio.gather(*(free() for _ in range(4)), *(bound(n) for n in range(8)))
    assert set(answers[:4]) == {"The capital of France is Paris."}
    assert all(re.fullmatch("[abc]{5}", text) for text in answers[4:])


@pytest.mark.parametrize("name", [format_.name for format_ in FORMATS])
def test_every_family_can_be_told_to_call(smollm2: Path, name: str) -> None:
    text = ModelText.read(smollm2)
    format_ = next(f for f in FORMATS if f.name == name)
    tools = read_tools([WEATHER, CLOCK])
    primer, grammar = demanded(format_, Choice("named", "get_weather"), tools, text.tokenizer, several=False)
    assert primer.startswith(format_.begin)
    assert "get_weather" in primer
    text.checker.check(grammar, "tools")
    for several in (False, True):
        primer, grammar = demanded(format_, Choice("required"), tools, text.tokenizer, several=several)
        assert primer == format_.begin
        text.checker.check(grammar, "tools")


@pytest.mark.parametrize("opened", [True, False])
def test_thoughts_before_a_constrained_answer_are_free(smollm2: Path, opened: bool) -> None:
    text = ModelText.read(smollm2)
    grammar = after_thought(schema_grammar(PERSON, "-"), ("<think>", "</think>"), text.tokenizer, opened=opened)
    table = token_table(smollm2, (2,))

    def accepts(said: str) -> bool:
        matcher = LLMatcher(table, grammar)
        return matcher.consume_tokens(text.tokenizer.encode(said, special=False)) and matcher.is_accepting()

    answer = '{"name": "Ann", "age": 3, "tags": []}'
    assert accepts(("" if opened else "<think>") + 'Is {"x" right? </think>\n\n' + answer)
    assert accepts(answer) == (not opened)
    assert not accepts(("" if opened else "<think>") + "Hm.</think>\nNo.")


def template(folder: Path, source: str) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    return ChatTemplate(folder)


USER = [{"role": "user", "content": "hi"}]


def test_templates_that_know_tools_get_them_and_others_get_words(tmp_path: Path) -> None:
    tools = read_tools([CLOCK])
    knowing = template(tmp_path, "{{ '<tool_call>' }}{% for t in tools %}{{ t.function.name }}{% endfor %}")
    assert knowing.render(USER, tools) == "<tool_call>get_time"
    plain = template(tmp_path, "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}")
    said = plain.render(USER, tools)
    assert said.startswith("[system: # Tools")
    assert '"get_time"' in said
    assert said.endswith("[user: hi]")
    assert plain.render(USER) == "[user: hi]"


def test_what_minijinja_cannot_jinja2_does(tmp_path: Path) -> None:
    made = template(tmp_path, "{% for m in messages %}{{ m.content }}{{ '%s!' % m.role }}{% endfor %}")
    assert made.render(USER) == "hiuser!"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}{{ raise_exception('no') }}",
        "{{ undefined_thing.x.y }}",
    ],
)
def test_a_template_that_loops_or_breaks_is_the_requests_error(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequest, match="template rejects"):
        template(tmp_path, source).render(USER)


def test_a_template_that_does_not_compile_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="does not compile"):
        template(tmp_path, "{% for %}")
