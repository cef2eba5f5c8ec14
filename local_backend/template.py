"""Chat messages -> prompt text, through the template that the model brings.

A template is code of a stranger's: minijinja runs it without access to Python, and with a bound on its steps. What
minijinja does not know, jinja2's sandbox may.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from minijinja import Environment, TemplateError

from local_backend.errors import InvalidRequest, ModelUnavailable
from local_backend.model_config import read_json
from local_backend.tools import Format, Tool, format_of, told_in_text

FUEL = 5_000_000  # template steps; a long chat takes some thousands, an endless loop is ended
UNKNOWN_TO_MINIJINJA = ("InvalidOperation", "UnknownFilter", "UnknownFunction", "UnknownMethod", "UnknownTest")
RANGE_STEPS = 200_000
THINK = ("<think>", "</think>")


class ChatTemplate:
    """One model's template, compiled once. `calls`: how it writes calls of tools, None if it knows none; `think`: the
    marks around its reasoning, None if it does not reason."""

    def __init__(self, model_dir: Path, *, in_parts: bool = False) -> None:
        """in_parts: the template goes through the parts of a turn, as those of models that take images do."""
        config_path = model_dir / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name: the one for plain chat
            source = next((t["template"] for t in source if t.get("name") == "default"), None)
        self._in_parts = in_parts
        processor = model_dir / "chat_template.json"
        if in_parts and processor.exists():
            source = read_json(processor).get("chat_template")
        beside = model_dir / "chat_template.jinja"
        if source is None and beside.exists():
            source = beside.read_text(encoding="utf-8")
        self.present = source is not None
        self.calls: Format | None = format_of(source or "")
        self.think = THINK if THINK[1] in (source or "") else None
        self._tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token")}
        self._render = _compile(source or "")

    def render(
        self, messages: list[dict[str, Any]], tools: list[Tool] | None = None, variables: dict[str, Any] | None = None
    ) -> str:
        """Prompt text up to where the answer begins. Raises InvalidRequest if the template rejects the messages.

        variables: further ones, the client's."""
        if not self.present:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions", param="messages", code="no_chat_template"
            )
        if self.calls is None and (tools or any("tool_calls" in m or m["role"] == "tool" for m in messages)):
            messages, tools = told_in_text(messages, tools or []), None
        if self._in_parts:
            messages = [turn | {"content": _parts(turn["content"])} for turn in messages]
        given = {
            "messages": messages,
            "add_generation_prompt": True,
            "tools": [tool.raw for tool in tools] if tools else None,
            "documents": None,
        }
        try:
            return self._render((variables or {}) | given | self._tokens)
        except (TemplateError, jinja2.TemplateError, TemplateRefusal, TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"the model's chat template rejects these messages: {error}", param="messages"
            ) from error

    def opens_thought(self, prompt: str) -> bool:
        """True if the prompt ends inside a thought that the template has begun."""
        return self.think is not None and prompt.rstrip().endswith(self.think[0])


def _compile(source: str) -> Callable[[dict[str, Any]], str]:
    """minijinja; for what it does not know, jinja2's sandbox, which is slower. Raises ModelUnavailable if neither can.

    trim_blocks and lstrip_blocks as transformers has them; templates are written for that."""
    fast = Environment(
        templates={"chat": source},
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=FUEL,
        pycompat=True,
        keep_trailing_newline=True,
        auto_escape_callback=lambda _name: False,
        debug=False,
    )
    fast.add_filter("tojson", _tojson)
    fast.add_global("raise_exception", _raise)
    fast.add_global("strftime_now", _strftime_now)
    slow = _jinja2(source)
    try:
        fast.undeclared_variables_in_template("chat")
    except TemplateError as error:
        if isinstance(slow, jinja2.TemplateError):
            raise ModelUnavailable(f"the chat template does not compile: {error}; nor by jinja2: {slow}") from slow
        return slow

    def render(variables: dict[str, Any]) -> str:
        try:
            return fast.render_template("chat", **variables)
        except TemplateError as error:
            if error.kind not in UNKNOWN_TO_MINIJINJA or isinstance(slow, jinja2.TemplateError):
                raise
            return slow(variables)

    return render


def _jinja2(source: str) -> Callable[[dict[str, Any]], str] | jinja2.TemplateError:
    """The same template in jinja2's sandbox, or why it does not compile there."""
    slow = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, extensions=["jinja2.ext.loopcontrols"]
    )
    slow.filters["tojson"] = _tojson
    slow.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    try:
        compiled = slow.from_string(source)
    except jinja2.TemplateError as error:
        return error
    return lambda variables: compiled.render(variables | {"range": Steps().range})


class Steps:
    """`range` for one rendering in jinja2, which has no bound of its own on the steps of a template."""

    def __init__(self) -> None:
        self._left = RANGE_STEPS

    def range(self, *bounds: int) -> range:
        """Raises ValueError when the template has counted for too long."""
        steps = range(*bounds)
        self._left -= len(steps) + 1
        if self._left < 0:
            raise ValueError("the template runs for too long")
        return steps


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _token(value: Any) -> str:
    """A special token is a string, or an object with its content."""
    return value.get("content", "") if isinstance(value, dict) else value or ""


def _tojson(value: Any, indent: int | None = None) -> str:
    """As transformers has it: no HTML escapes, since models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


class TemplateRefusal(Exception):
    """The template itself called raise_exception()."""


def _strftime_now(form: str) -> str:
    """The date that some templates put into their system turn, in local time as transformers has it."""
    return datetime.datetime.now().astimezone().strftime(form)


def _raise(message: str) -> None:
    raise TemplateRefusal(message)
