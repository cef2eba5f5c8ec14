"""Every place of a request in turn holds what does not belong there: each dialect reads it or refuses it by name.

Seen by strangers with curl as a 500 (2026-11: a list where the Responses API has an item's type)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from providers.dialects import load
from providers.errors import ProviderError

VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 10**30, 1e308, "", "x", "\U0001f600\u2028\u0000", "x" * 3000),
    *([], {}, [None], [[]], [{}], {"a": {"b": [1]}}),
)
PNG: Final = "iVBORw0KGgo="
SCHEMA: Final = {"type": "object", "properties": {"location": {"type": "string"}}}
BODIES: Final[Mapping[str, dict[str, Any]]] = {
    "openai_chat": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "text", "text": "hi"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "max_tokens": 20, "temperature": 0.5, "stop": ["z"], "seed": 1, "n": 1, "stream": True,
        "stream_options": {"include_usage": True}, "metadata": {"a": "b"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    },
    "openai_responses": {
        "model": "m",
        "input": [
            {"role": "user", "content": [
                {"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "u"},
            ]},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        ],
        "instructions": "i",
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
        "reasoning": {"effort": "low"}, "max_output_tokens": 50, "include": ["x"], "metadata": {"a": "b"},
    },
    "openai_completions": {"model": "m", "prompt": ["hi"], "max_tokens": 5, "stop": "x", "echo": False, "n": 1},
    "anthropic_messages": {
        "model": "m",
        "max_tokens": 30,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "hi"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            ]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f"}, "thinking": {"type": "enabled", "budget_tokens": 1024},
        "temperature": 0.5, "stop_sequences": ["z"], "metadata": {"user_id": "u"}, "top_k": 5,
    },
    "gemini": {
        "contents": [
            {"role": "user", "parts": [{"text": "hi"}, {"inlineData": {"mimeType": "image/png", "data": PNG}}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "YQ=="}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"r": 1}}}]},
        ],
        "systemInstruction": {"parts": [{"text": "s"}]},
        "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "maxOutputTokens": 30, "stopSequences": ["z"], "candidateCount": 1, "responseSchema": {"type": "OBJECT"},
            "responseMimeType": "application/json", "thinkingConfig": {"thinkingBudget": 0},
        },
    },
    "gemini_interactions": {
        "model": "m", "input": [{"type": "user_input", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}], "system_instruction": "s",
        "generation_config": {"temperature": 0.5, "thinking_level": "low"}, "stream": False, "store": False,
    },
    "bedrock_converse": {
        "messages": [
            {"role": "user", "content": [{"text": "hi"}, {"image": {"format": "png", "source": {"bytes": PNG}}}]},
            {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t1", "name": "f", "input": {}}}]},
            {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": [{"text": "ok"}]}}]},
        ],
        "system": [{"text": "s"}, {"cachePoint": {"type": "default"}}],
        "inferenceConfig": {"maxTokens": 30, "temperature": 0.5, "stopSequences": ["z"]},
        "toolConfig": {
            "tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": SCHEMA}}}], "toolChoice": {"any": {}},
        },
        "additionalModelRequestFields": {"top_k": 5}, "guardrailConfig": {"guardrailIdentifier": "g"},
    },
}  # fmt: skip
Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from places(each, (*place, name))


def with_put(body: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(body)
    at = changed
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", list(BODIES))
def test_what_does_not_belong_there_is_read_or_refused(name: str) -> None:
    dialect, whole = load(name), BODIES[name]
    model = "m" if "model" not in whole else None
    dialect.decode_request(json.dumps(whole).encode(), model=model, stream=False)
    for place in places(whole):
        for value in VALUES:
            bent = json.dumps(with_put(whole, place, value)).encode()
            try:
                request = dialect.decode_request(bent, model=model, stream=False)
            except ProviderError:
                continue
            except Exception as error:
                raise AssertionError(f"{place} = {value!r}: {type(error).__name__}: {error}") from error
            assert request.messages is not None
