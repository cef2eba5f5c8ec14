"""Golden streams: what each family of models writes -> what it means, the same under every slicing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_backend.parsers import CallArguments, CallStart, Event, HarmonyParser, MarkedParser, Parser, Said, Thought
from local_backend.tools import FORMATS, HERMES, format_of

BY_NAME = {format_.name: format_ for format_ in FORMATS}
SCHEMAS: dict[str, dict[str, Any]] = {"get": {"properties": {"city": {"type": "string"}}}, "add": {}}


def marked(name: str | None, *, thinking: bool = False, think: bool = True) -> Callable[[], Parser]:
    marks = ("<think>", "</think>") if think else None
    return lambda: MarkedParser(BY_NAME[name] if name else None, think=marks, thinking=thinking, schemas=SCHEMAS)


def call(index: int, name: str, arguments: str) -> list[Event]:
    return [CallStart(index, name), CallArguments(index, arguments)]


GOLDEN: dict[str, tuple[Callable[[], Parser], str, list[Event]]] = {
    "hermes: thought, text, two calls": (
        marked("hermes"),
        '<think>\nSee: 1 < 2.\n</think>\n\nSure.\n<tool_call>\n{"name": "get", "arguments": {"city": "Köln }"}}\n'
        '</tool_call>\n<tool_call>\n{"arguments": {"a": [1, "\\"}"]}, "name": "add"}\n</tool_call>\n',
        [
            Thought("See: 1 < 2."),
            Said("Sure."),
            *call(0, "get", '{"city": "Köln }"}'),
            *call(1, "add", '{"a": [1, "\\"}"]}'),
        ],
    ),
    "hermes: no arguments": (marked("hermes"), '<tool_call>{"name": "add"}</tool_call>', call(0, "add", "{}")),
    "hermes: arguments as text": (
        marked("hermes"),
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        call(0, "add", '{"a": 1}'),
    ),
    "hermes: cut off": (
        marked("hermes"),
        '<tool_call>\n{"name": "get", "arguments": {"city": "Pa',
        call(0, "get", '{"city": "Pa'),
    ),
    "hermes: an object that is no call": (
        marked("hermes"),
        'See <tool_call>{"x": 1}</tool_call> there.',
        [Said('See{"x": 1} there.')],
    ),
    "hermes: a mark that comes to nothing": (marked("hermes"), "1 <tool_cal 2  ", [Said("1 <tool_cal 2  ")]),
    "thought that the prompt began": (
        marked(None, thinking=True),
        "Hmm.\n</think>\nYes.",
        [Thought("Hmm."), Said("Yes.")],
    ),
    "thought begun twice": (marked(None, thinking=True), "<think>Hmm.</think>Yes.", [Thought("Hmm."), Said("Yes.")]),
    "thought without end": (marked(None), "<think>Hmm. ", [Thought("Hmm.")]),
    "plain text keeps its white space": (marked("hermes"), "\n  a \n\n b\n", [Said("\n  a \n\n b\n")]),
    "llama3: bare calls": (
        marked("llama3"),
        '{"name": "get", "parameters": {"city": "Rome"}}; {"name": "add", "parameters": {}}',
        [*call(0, "get", '{"city": "Rome"}'), *call(1, "add", "{}")],
    ),
    "llama3: after the tag": (
        marked("llama3"),
        '<|python_tag|>{"type": "function", "name": "get", "parameters": {"city": "Rome"}}',
        call(0, "get", '{"city": "Rome"}'),
    ),
    "llama3: an answer in JSON": (
        marked("llama3"),
        '{"answer": {"a": 42}} it is',
        [Said('{"answer": {"a": 42}} it is')],
    ),
    "llama3: a name that is no tool's": (
        marked("llama3"),
        '{"name": "Ann", "parameters": 1}',
        [Said('{"name": "Ann", "parameters": 1}')],
    ),
    "mistral": (
        marked("mistral"),
        'ok[TOOL_CALLS]get[ARGS]{"city": "Bonn"}[TOOL_CALLS]add[CALL_ID]abc123XYZ[ARGS]{}',
        [Said("ok"), *call(0, "get", '{"city": "Bonn"}'), *call(1, "add", "{}")],
    ),
    "mistral v3": (
        marked("mistral-v3"),
        '[TOOL_CALLS] [{"name": "get", "arguments": {"city": "[{"}}, {"name": "add", "arguments": {}}]',
        [*call(0, "get", '{"city": "[{"}'), *call(1, "add", "{}")],
    ),
    "deepseek v3": (
        marked("deepseek-v3"),
        "x<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n"
        '{"city": "Linz"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{}\n'
        "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Said("x"), *call(0, "get", '{"city": "Linz"}'), *call(1, "add", "{}")],
    ),
    "deepseek v3.1": (
        marked("deepseek", thinking=True),
        'So.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{"city": "Graz"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Thought("So."), *call(0, "get", '{"city": "Graz"}'), *call(1, "add", "{}")],
    ),
    "qwen3-coder": (
        marked("hermes"),
        "Now.\n<tool_call>\n<function=get>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        [Said("Now."), *call(0, "get", '{"city": "12", "days": 3}')],
    ),
    "gpt-oss: thought and call": (
        HarmonyParser,
        "<|channel|>analysis<|message|>Weather?<|end|><|start|>assistant<|channel|>commentary to=functions.get "
        '<|constrain|>json<|message|>{"city":"Ulm"}<|call|>',
        [Thought("Weather?"), *call(0, "get", '{"city":"Ulm"}')],
    ),
    "gpt-oss: thought, preamble, answer": (
        HarmonyParser,
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait. <|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
        [Thought("Easy."), Said("Wait.It is 4.")],
    ),
    "gpt-oss: no form at all": (HarmonyParser, "Hello.", [Said("Hello.")]),
}


def joined(events: list[Event]) -> list[Event]:
    """Neighbours of one kind as one."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if not isinstance(event, CallStart) and type(last) is type(event):
            assert last is not None
            assert not isinstance(last, CallStart)
            if getattr(last, "index", 0) == getattr(event, "index", 0):
                out[-1] = msgspec.structs.replace(last, text=last.text + event.text)
                continue
        out.append(event)
    return out


def read(parser: Parser, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined(events + parser.finish())


@pytest.mark.parametrize("name", GOLDEN)
def test_every_slicing_means_the_same(name: str) -> None:
    make, text, want = GOLDEN[name]
    assert read(make(), [text]) == want
    assert read(make(), list(text)) == want
    for at in range(len(text)):
        assert read(make(), [text[:at], text[at:]]) == want
    chance = random.Random(name)
    for _ in range(50):
        cuts = sorted(chance.sample(range(len(text)), min(len(text), chance.randrange(1, 9))))
        assert read(make(), [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == want


PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "get", ',
    '"arguments": {',
    "}",
    '"',
    "a",
    " \n",
]
PIECES += ["<function=get>", "</function>", "[TOOL_CALLS]", "[ARGS]", "<|message|>", "<|channel|>", "<|end|>", "{", "<"]


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from([*BY_NAME, None]), st.data())
def test_no_text_breaks_a_parser_and_slicing_changes_nothing(pieces: list[str], name: str | None, data: Any) -> None:
    make = HarmonyParser if name == "harmony" else marked(name)
    text = "".join(pieces)
    cut = data.draw(st.integers(0, len(text)))
    assert read(make(), [text[:cut], text[cut:]]) == read(make(), list(text))


def test_a_call_streams_before_it_is_whole() -> None:
    parser = MarkedParser(HERMES)
    assert parser.feed('<tool_call>\n{"name": "get", "arguments": {"ci') == [*call(0, "get", '{"ci')]
    assert parser.feed('ty": "Os') == [CallArguments(0, 'ty": "Os')]
    assert parser.called


def test_templates_tell_their_family() -> None:
    told = {
        "{{ '<tool_call>' }}": "hermes",
        "{{ '<|channel|>' }}": "harmony",
        "{{ '[TOOL_CALLS]' }} {{ '[ARGS]' }}": "mistral",
        "{{ '[TOOL_CALLS] [' }}": "mistral-v3",
        "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' }}": "deepseek-v3",
        "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['function']['name'] }}": "deepseek",
        "{{ 'Environment: ipython' }}": "llama3",
    }
    for template, name in told.items():
        found = format_of(template)
        assert found is not None
        assert found.name == name
    assert format_of("{{ messages[0].content }}") is None
