"""One deterministic model for every emulator: what it answers, what that counts, and which fault it was told to play.

It knows no wire format and imports nothing of the product: an emulator reads its own wire into a `Prompt`, asks
`answer(prompt)` and writes the `Reply` in its own words. A token is a word with the space before it (`pieces`), so both
sides of a test can count.

What it does, first match wins:
- `x-script:` lines anywhere in the prompt (or system text), `key=value` or `key`, separated by spaces:
  `say=TEXT_WITH_UNDERSCORES`, `long=200` (that many words), `reasoning=12` (words of thinking first), `refusal`,
  `tools=2` (that many parallel calls), `text=0` (no text), `unicode`, `empty`, `finish=content_filter`,
  `cached=40` / `cache_write=10` (of the input tokens), `pace_ms=5` (between pieces,
  and before a whole answer of the OpenAI family), `fault=NAME`.
- an `x-call: NAME {"json": "arguments"}` line in the prompt calls that tool so, until a tool has answered.
- a model name that holds "reason" thinks first; a model name `fault-NAME` plays that fault.
- a tool result at the end: "The tool said: ...". A forced tool, or one whose name the last user text mentions: a call
  with arguments made from its JSON schema (`get_weather` gets San Francisco; the word "parallel" gives two calls).
- a JSON schema or JSON mode: an instance of it. "count ... 1 to 5": "1, 2, 3, 4, 5". "what is my name": the name told
  before. `say "X"`, "reply with X": X. Images: "I see 1 image." Files: "I read 1 document."
  Anything else: "You said: ...".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Finish = Literal["stop", "length", "tool_calls", "content_filter"]

UNICODE_TEXT = 'naïve 日本語 👩‍👩‍👧 line\u2028separator "quoted" back\\slash tab\tend'

# A quoted name that is not ASCII goes into the call as it stands.
_FOREIGN_NAME = re.compile(r"['\"]([^'\"]*[^\x00-\x7f][^'\"]*)['\"]")
_PIECE = re.compile(r"\s*\S+|\s+$")
_SCRIPT_LINE = re.compile(r"x-script:[ \t]*([^\r\n]*)")
_CALL_LINE = re.compile(r"x-call:[ \t]*(\S+)[ \t]+(\{[^\r\n]*\})")
_NAME_TOLD = re.compile(r"my name is (\w+)", re.IGNORECASE)
_SAY = re.compile(r"(?:say|reply with|respond with|answer with)(?: exactly)?:? [\"'“]?([^\"'”\n.]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Tool:
    name: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    takes_text: bool = False
    """A custom tool (OpenAI): free text in place of JSON arguments."""


@dataclass(frozen=True)
class Prompt:
    """What an emulator understood of a request.

    texts: every text of the prompt in order, system first: they are what input tokens are counted from.
    forced_tool: a tool's name, or "*" when any must be called. tool_results: texts of results after the last answer.
    """

    model: str
    last_user: str
    texts: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    forced_tool: str | None = None
    tools_forbidden: bool = False
    parallel_tools: bool = True
    tool_results: tuple[str, ...] = ()
    images: int = 0
    documents: int = 0
    schema: Mapping[str, Any] | None = None
    json_mode: bool = False
    reasoning: bool = False
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    cache_marks: tuple[int, ...] | None = None
    """How many of `texts` stand before each cache point; None where the provider caches by itself."""


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """JSON text, or free text for a tool that takes it."""


@dataclass(frozen=True)
class Reply:
    """Totals nest as in the product's own form: input includes cache reads and writes, output includes reasoning."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Finish = "stop"
    stop_sequence: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    pace_ms: float = 0.0
    """How long an emulator waits between pieces of a stream."""


@dataclass(frozen=True)
class Fault:
    """What to do instead of, or to, a good answer. times: how often (None: always); an emulator counts per name."""

    name: str
    times: int | None = None


FAULTS: Mapping[str, str] = {
    "400": "invalid request",
    "401": "bad key",
    "402": "payment required",
    "403": "forbidden",
    "404": "model not found",
    "408": "request timeout",
    "413": "body too large",
    "422": "unprocessable",
    "429": "throttled without a hint",
    "429-retry-after": "throttled, retry-after in seconds",
    "429-retry-after-ms": "throttled, the dialect's own header in milliseconds (retry-after-ms, x-amz-retry-after)",
    "429-retry-after-date": "throttled, retry-after as an HTTP date 7 s after the date header",
    "429-quota": "the account is out of money",
    "498": "flex capacity exceeded (Groq)",
    "500": "internal error",
    "502-html": "a proxy's HTML page",
    "503": "overloaded",
    "529": "overloaded (Anthropic)",
    "context": "prompt too long",
    "content-filter": "prompt refused by the safety filter",
    "tool-use-failed": "the model wrote a bad tool call (Groq 400)",
    "slow-first-byte": "never sends a response head",
    "stall": "half of the answer, then silence",
    "cut-before-head": "closes without an answer",
    "cut-mid-frame": "half of the answer, the last frame torn, then a clean close",
    "reset": "half of the answer, then a TCP reset",
    "garbage": "bytes that are no HTTP",
    "bad-frame": "a frame that is no JSON (or has a bad checksum) in the middle",
    "truncated-json": "a whole-looking body whose JSON ends early",
    "wrong-content-type": "a good answer said to be text/html",
    "200-error-body": "an error object behind a 200",
    "stream-error": "half of the answer, then an error event in the stream, then the end",
    "no-end": "all of the content, but neither finish reason nor end marker",
    "no-usage": "a good answer without usage",
    "unknown-finish": "a good answer that ended for a reason nobody has heard of",
    "unknown-event": "a good stream with an event nobody has heard of in the middle",
    "huge-chunk": "one piece of 2 MiB",
    "byte-by-byte": "a good answer, one byte a write",
    "split-utf8": "a good answer cut inside multi-byte characters",
    "keep-alive-close": "a good answer that promises keep-alive, then closes the connection",
    "redirect": "307 to another origin",
}

_FAULT_NAME = re.compile(r"^fault-(?P<name>.+?)(?:-(?P<times>once|twice))?$")


def fault_of(model: str, headers: Mapping[str, str] | None = None, prompt: Prompt | None = None) -> Fault | None:
    """The fault asked for by header `x-fault: NAME`, by an `x-script: fault=NAME`, or by a model `fault-NAME`.

    A NAME may end in `-once` or `-twice`. Raises: ValueError for a name that no emulator could know."""
    wanted = (headers or {}).get("x-fault")
    if wanted is None and prompt is not None:
        wanted = script_of(prompt).get("fault")
    if wanted is None:
        last = model.rsplit("/", 1)[-1]
        if not last.startswith("fault-"):
            return None
        wanted = last.removeprefix("fault-")
    match = _FAULT_NAME.match(f"fault-{wanted}")
    if match is None or match["name"] not in FAULTS:
        raise ValueError(f"no such fault: {wanted}")
    return Fault(match["name"], {"once": 1, "twice": 2}.get(match["times"] or ""))


def pieces(text: str) -> list[str]:
    """The text as the model's tokens: joined they are the text again."""
    found = _PIECE.findall(text)
    return found if found or not text else [text]


def count(text: str) -> int:
    return len(pieces(text))


def script_of(prompt: Prompt) -> dict[str, str]:
    """All `x-script:` directives of the prompt; a later one wins."""
    directives: dict[str, str] = {}
    for text in (*prompt.texts, prompt.last_user):
        for line in _SCRIPT_LINE.findall(text):
            for word in line.split():
                key, _, value = word.partition("=")
                directives[key] = value
    return directives


def answer(prompt: Prompt) -> Reply:
    """The one answer to this prompt: same prompt, same answer."""
    script = script_of(prompt)
    texts = prompt.texts if prompt.texts else (prompt.last_user,)
    input_tokens = 3 + sum(count(text) for text in texts) + sum(5 + 2 * len(tool.schema) for tool in prompt.tools)
    input_tokens += 85 * prompt.images
    reasoning = _reasoning(prompt, script)
    calls = () if "refusal" in script or "say" in script or "long" in script else _tool_calls(prompt, script)
    refusal = "I can't help with that." if "refusal" in script else ""
    text = "" if (calls and "text" not in script) or refusal else _text(prompt, script)
    finish: Finish = "tool_calls" if calls else "stop"
    if "finish" in script:
        finish = script["finish"]  # type: ignore[assignment]
    stop_sequence = None
    for stop in prompt.stop:
        at = text.find(stop)
        if at >= 0:
            text, stop_sequence, finish = text[:at], stop, "stop"
    reasoning_tokens = count(reasoning)
    if prompt.max_output_tokens is not None and not calls:
        if reasoning_tokens > prompt.max_output_tokens:
            reasoning = "".join(pieces(reasoning)[: prompt.max_output_tokens])
            reasoning_tokens = prompt.max_output_tokens
        room = prompt.max_output_tokens - reasoning_tokens
        if count(text) > room:
            text, finish, stop_sequence = "".join(pieces(text)[:room]), "length", None
    output_tokens = reasoning_tokens + count(text) + count(refusal)
    output_tokens += sum(4 + count(call.arguments) for call in calls)
    return Reply(
        text=text,
        reasoning=reasoning,
        refusal=refusal,
        tool_calls=calls,
        finish=finish,
        stop_sequence=stop_sequence,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        reasoning_tokens=reasoning_tokens,
        cache_read_tokens=min(int(script.get("cached") or 0), input_tokens),
        cache_write_tokens=min(int(script.get("cache_write") or 0), input_tokens),
        pace_ms=float(script.get("pace_ms") or 0),
    )


class PromptCache:
    """What a provider remembers of prompts: a beginning of 1,024 tokens or more that it has met before is read.

    A token is a word here, so a text counts as long when its characters say so too. With marks (Anthropic, Bedrock)
    the longest marked beginning is written once and read after; without, whole texts are compared and nothing is
    written. The script's `cached` and `cache_write` win."""

    MIN_TOKENS = 1024

    def __init__(self) -> None:
        self._met: set[tuple[object, ...]] = set()

    def answer(self, prompt: Prompt) -> Reply:
        """The model's answer, with what of its prompt came from here."""
        reply = answer(prompt)
        if reply.cache_read_tokens or reply.cache_write_tokens:
            return reply
        texts = prompt.texts or (prompt.last_user,)
        ends = prompt.cache_marks if prompt.cache_marks is not None else tuple(range(1, len(texts) + 1))
        long = sorted(end for end in ends if self._is_long(texts[:end]))
        keys = {end: (prompt.model, tuple(tool.name for tool in prompt.tools), texts[:end]) for end in long}
        known = [end for end in long if keys[end] in self._met]
        self._met.update(keys.values())
        read = self._tokens(texts[: known[-1]], reply) if known else 0
        written = self._tokens(texts[: long[-1]], reply) - read if prompt.cache_marks and long else 0
        return replace(reply, cache_read_tokens=read, cache_write_tokens=written)

    def _is_long(self, texts: tuple[str, ...]) -> bool:
        return sum(max(count(text), len(text) // 4) for text in texts) >= self.MIN_TOKENS

    @staticmethod
    def _tokens(texts: tuple[str, ...], reply: Reply) -> int:
        return min(sum(map(count, texts)), reply.input_tokens - 1)  # the last token is always computed


def instance_of(schema: Mapping[str, Any], name: str = "") -> Any:
    """A value that meets the JSON Schema, the same each time: enough of the language for tools and answers in tests."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance_of(schema[key][0], name)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    match str(kind).lower():
        case "object":
            return {key: instance_of(value, key) for key, value in (schema.get("properties") or {}).items()}
        case "array":
            return [instance_of(schema.get("items") or {"type": "string"}, name)]
        case "integer":
            return max(3, int(schema.get("minimum", 3)))
        case "number":
            return 3.5
        case "boolean":
            return True
        case "null":
            return None
        case _ if schema.get("properties"):
            return {key: instance_of(value, key) for key, value in schema["properties"].items()}
    if name in ("location", "city"):
        return "San Francisco"
    known = {"unit": "celsius", "name": "Alice", "setup": "Why?", "punchline": "Because."}
    return known.get(name, f"some {name}".strip())


def _reasoning(prompt: Prompt, script: Mapping[str, str]) -> str:
    if "reasoning" in script:
        words = int(script["reasoning"] or 8)
    elif prompt.reasoning or "reason" in prompt.model:
        words = 8
    else:
        return ""
    return " ".join(f"think{i}" for i in range(1, words + 1))


def _tool_calls(prompt: Prompt, script: Mapping[str, str]) -> tuple[ToolCall, ...]:
    if not prompt.tools or prompt.tools_forbidden or (prompt.tool_results and not prompt.forced_tool):
        return ()
    offered = {tool.name for tool in prompt.tools}
    told = [found for text in prompt.texts for found in _CALL_LINE.findall(text) if found[0] in offered]
    if told and not prompt.forced_tool:
        return tuple(ToolCall(f"call_{name[:32]}_{number}", name, text) for number, (name, text) in enumerate(told))
    named = prompt.last_user.lower()
    if prompt.forced_tool and prompt.forced_tool != "*":
        chosen = [tool for tool in prompt.tools if tool.name == prompt.forced_tool]
    else:
        chosen = [tool for tool in prompt.tools if _mentioned(tool.name, named)]
        if not chosen and (prompt.forced_tool == "*" or "tools" in script):
            chosen = [prompt.tools[0]]
    if not chosen:
        return ()
    wanted = int(script.get("tools") or 0) or (2 if "parallel" in named else len(chosen))
    if not prompt.parallel_tools:
        wanted = 1
    places = ("San Francisco", "Paris", "Tokyo", "Lagos")
    calls = []
    for number in range(wanted):
        tool = chosen[number % len(chosen)]
        arguments: Any = instance_of(tool.schema or {"type": "object"})
        if isinstance(arguments, dict):
            if foreign := _FOREIGN_NAME.search(prompt.last_user):
                arguments = {key: foreign[1] if value == f"some {key}" else value for key, value in arguments.items()}
            arguments = {
                key: places[number % len(places)] if key in ("location", "city") else value
                for key, value in arguments.items()
            }
        written = f"input for {tool.name}" if tool.takes_text else json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall(f"call_{tool.name[:32]}_{number}", tool.name, written))
    return tuple(calls)


def _mentioned(tool: str, text: str) -> bool:
    return tool.lower() in text or any(len(word) > 4 and word in text for word in re.split(r"[_\-\W]", tool.lower()))


def _text(prompt: Prompt, script: Mapping[str, str]) -> str:
    if "empty" in script or script.get("text") == "0":
        return ""
    if "say" in script:
        return script["say"].replace("_", " ")
    if "long" in script:
        return " ".join(f"word{i}" for i in range(1, int(script["long"]) + 1))
    if "unicode" in script:
        return UNICODE_TEXT
    if prompt.tool_results:
        return f"The tool said: {'; '.join(prompt.tool_results)}"
    if prompt.schema is not None:
        return json.dumps(instance_of(prompt.schema), ensure_ascii=False)
    if prompt.json_mode:
        return json.dumps({"answer": prompt.last_user}, ensure_ascii=False)
    asked = prompt.last_user.lower()
    if "count" in asked and "5" in asked:
        return "1, 2, 3, 4, 5"
    if "my name" in asked and "?" in asked:
        told = [name for text in prompt.texts for name in _NAME_TOLD.findall(text)]
        if told:
            return f"Your name is {told[-1]}."
    if prompt.documents:
        return f"I read {prompt.documents} document{'s' if prompt.documents > 1 else ''}."
    if prompt.images:
        return f"I see {prompt.images} image{'s' if prompt.images > 1 else ''}."
    if (say := _SAY.search(prompt.last_user)) is not None:
        return say[1].strip()
    return f"You said: {prompt.last_user}"
