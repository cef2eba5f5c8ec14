"""Tools: what a request offers and demands, and how each family of models writes a call.

A family is one `Format`, a row of a table: the marks that the parser looks for, and how a demanded call is begun and
constrained. Sources: the chat templates of the named models on the Hugging Face hub, read 2026-11.
"""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from local_backend.errors import InvalidRequest
from local_backend.structured import lark_json, lark_literal
from local_backend.tokenizer import Tokenizer

MAX_TOOLS = 128
TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class Format(Struct, frozen=True):
    """How a family writes calls. `told_by`: marks in a chat template by which the family is known."""

    name: str
    told_by: tuple[str, ...]
    begin: str
    """Opens the section of calls, or one call."""
    end: str
    """Closes it; empty if it lasts to the end of the answer."""
    opening: str
    """What stands between `begin` and the arguments of a call; `{name}` is the tool's."""
    between: str
    """What stands after the arguments of one call, up to the `opening` of the next; empty if an answer has one call."""
    head: re.Pattern[str] | None = None
    """Finds the name before the arguments' brace; None where it is inside the braces."""
    bare: bool = False
    """A call may come without `begin`: an answer that is an object with a tool's name."""
    extra: tuple[str, ...] = ()
    """Further marks that may be special tokens, and so must not vanish from the text."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Every text of the form that may be a special token."""
        return tuple(mark for mark in (self.begin, self.end, *self.extra) if mark)

    def opened(self, name: str) -> str:
        """What stands before the arguments of a call of this tool."""
        return self.opening.replace("{name}", name)


HERMES = Format(
    name="hermes",
    told_by=("<tool_call>",),
    begin="<tool_call>",
    end="</tool_call>",
    opening='\n{"name": "{name}", "arguments": ',
    between="}\n</tool_call>\n<tool_call>",
)

FORMATS = (
    Format(
        name="harmony",
        told_by=("<|channel|>",),
        begin="<|channel|>",
        end="",
        opening="commentary to=functions.{name} <|constrain|>json<|message|>",
        between="",
        extra=("<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|constrain|>"),
    ),
    Format(
        name="mistral",  # v11 and later
        told_by=("[ARGS]",),
        begin="[TOOL_CALLS]",
        end="",
        opening="{name}[ARGS]",
        between="[TOOL_CALLS]",
        head=re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*$"),
        extra=("[ARGS]", "[CALL_ID]"),
    ),
    Format(
        name="mistral-v3",
        told_by=("[TOOL_CALLS]",),
        begin="[TOOL_CALLS]",
        end="",
        opening=' [{"name": "{name}", "arguments": ',
        between="}, ",
    ),
    Format(
        name="deepseek-v3",
        told_by=("tool['type'] + '<｜tool▁sep｜>'",),
        begin="<｜tool▁calls▁begin｜>",
        end="<｜tool▁calls▁end｜>",
        opening="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        between="\n```<｜tool▁call▁end｜>\n",
        head=re.compile(r"<｜tool▁sep｜>([\w.-]+)\s*(?:```json)?\s*$"),
        extra=("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    ),
    Format(
        name="deepseek",  # V3.1 and later
        told_by=("<｜tool▁calls▁begin｜>",),
        begin="<｜tool▁calls▁begin｜>",
        end="<｜tool▁calls▁end｜>",
        opening="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
        between="<｜tool▁call▁end｜>",
        head=re.compile(r"<｜tool▁call▁begin｜>([\w.-]+)<｜tool▁sep｜>\s*$"),
        extra=("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    ),
    HERMES,
    Format(
        name="llama3",
        told_by=("<|python_tag|>", "ipython"),
        begin="<|python_tag|>",
        end="",
        opening='{"name": "{name}", "parameters": ',
        between="}; ",
        bare=True,
    ),
)
"""The first that a template tells of is the model's; one that tells of none gets HERMES with instructions of ours."""


class Tool(Struct, frozen=True):
    """A function that the model may call. `raw`: as the client wrote it, for the template."""

    name: str
    schema: dict[str, Any]
    raw: dict[str, Any]


class Choice(Struct, frozen=True):
    """What the client demands: none, auto, required, or `named` one tool."""

    kind: str
    name: str = ""


def read_tools(tools: list[Any] | None) -> list[Tool]:
    """Raises InvalidRequest naming the tool that is malformed."""
    found: dict[str, Tool] = {}
    if len(tools or ()) > MAX_TOOLS:
        raise InvalidRequest(f"{len(tools or ())} tools in one request; at most {MAX_TOOLS}", param="tools")
    for at, raw in enumerate(tools or ()):
        param = f"tools[{at}]"
        if not isinstance(raw, dict) or raw.get("type") != "function" or not isinstance(raw.get("function"), dict):
            raise InvalidRequest('a tool is {"type": "function", "function": {...}}', param=param)
        function = raw["function"]
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            raise InvalidRequest(
                "a tool's name has 1 to 64 letters, digits, _, - and .", param=f"{param}.function.name"
            )
        if name in found:
            raise InvalidRequest(f"two tools are named {name!r}", param=f"{param}.function.name")
        if schema is not None and not isinstance(schema, dict):
            raise InvalidRequest("a tool's parameters are a JSON schema", param=f"{param}.function.parameters")
        schema = {"type": "object"} | (schema or {})
        if schema["type"] != "object":
            raise InvalidRequest(
                "a tool's parameters are a schema of type object", param=f"{param}.function.parameters.type"
            )
        found[name] = Tool(name, schema, raw)
    return list(found.values())


def read_choice(value: Any, tools: list[Tool]) -> Choice:
    """`tool_choice` in OpenAI's forms. Raises InvalidRequest if it demands what is not offered."""
    match value:
        case None:
            return Choice("auto" if tools else "none")
        case "none" | "auto":
            return Choice(value if tools else "none")
        case "required" if tools:
            return Choice("required")
        case "required":
            raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
        case {"type": "function", "function": {"name": str() as name}} | {"type": "function", "name": str() as name}:
            if name not in {tool.name for tool in tools}:
                raise InvalidRequest(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
            return Choice("named", name)
    raise InvalidRequest(
        'tool_choice is "none", "auto", "required" or {"type": "function", "function": {"name": ...}}',
        param="tool_choice",
    )


def format_of(template: str) -> Format | None:
    """The family that a chat template tells of; None if it knows no tools."""
    return next((f for f in FORMATS if any(mark in template for mark in f.told_by)), None)


def demanded(
    format_: Format, choice: Choice, tools: list[Tool], tokenizer: Tokenizer, *, several: bool
) -> tuple[str, str]:
    """A demanded call: the text that begins it, to be put behind the prompt, and the grammar of what follows.

    The beginning is ours, so the model is where it has learned to write a call; the grammar ends with the arguments.
    several: more calls may follow the first."""
    if choice.kind == "named":
        tool = next(tool for tool in tools if tool.name == choice.name)
        return format_.begin + format_.opened(tool.name), f"start: {lark_json(tool.schema)}"
    # The first call's opening is part of the grammar: which tool it is for, is the model's to say.
    lines = [
        "start: call" + (f" ({lark_literal(format_.between, tokenizer)} call)*" if several and format_.between else "")
    ]
    lines.append("call: " + " | ".join(f"call_{n}" for n in range(len(tools))))
    lines += [
        f"call_{n}: {lark_literal(format_.opened(tool.name), tokenizer)} {lark_json(tool.schema)}"
        for n, tool in enumerate(tools)
    ]
    return format_.begin, "\n".join(lines)


INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
"""As Qwen 2.5 and Hermes are told; for templates that know no tools."""


def told_in_text(messages: list[dict[str, Any]], tools: list[Tool]) -> list[dict[str, Any]]:
    """The same conversation for a template that knows no tools: all that concerns them as plain text."""
    out: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "tool":
            text = f"<tool_response>\n{content}\n</tool_response>"
            before = out[-1]["content"] if out and out[-1]["role"] == "user" else None
            if isinstance(before, str) and before.endswith("</tool_response>"):  # else parts, an image among them
                out[-1] = {"role": "user", "content": before + "\n" + text}
            else:
                out.append({"role": "user", "content": text})
            continue
        for call in message.get("tool_calls") or ():
            function = call["function"]
            written = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
            content += ("\n" if content else "") + f"<tool_call>\n{written}\n</tool_call>"
        out.append({"role": message["role"], "content": content})
    if tools:
        listed = "\n".join(json.dumps(tool.raw, ensure_ascii=False) for tool in tools)
        instructions = INSTRUCTIONS.replace("{tools}", listed)
        if out and out[0]["role"] == "system":
            out[0] = {"role": "system", "content": out[0]["content"] + "\n\n" + instructions}
        else:
            out.insert(0, {"role": "system", "content": instructions})
    return out
