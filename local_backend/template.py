"""Chat messages -> prompt text, through the template that the model brings.

A template is code of a stranger's: minijinja runs it without access to Python, and with a bound on its steps.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from minijinja import Environment, TemplateError

from local_backend.errors import InvalidRequest, ModelUnavailable
from local_backend.model_config import read_json

FUEL = 5_000_000  # template steps; a long chat takes some thousands, an endless loop is ended


class ChatTemplate:
    """One model's template, compiled once."""

    def __init__(self, model_dir: Path) -> None:
        config_path = model_dir / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name: the one for plain chat
            source = next((t["template"] for t in source if t.get("name") == "default"), None)
        beside = model_dir / "chat_template.jinja"
        if source is None and beside.exists():
            source = beside.read_text(encoding="utf-8")
        self.present = source is not None
        self._tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token")}
        # trim_blocks and lstrip_blocks as transformers has them; templates are written for that.
        self._environment = Environment(
            templates={"chat": source or ""},
            trim_blocks=True,
            lstrip_blocks=True,
            fuel=FUEL,
            pycompat=True,
            keep_trailing_newline=True,
            auto_escape_callback=lambda _name: False,
            debug=False,
        )
        self._environment.add_filter("tojson", _tojson)
        self._environment.add_global("raise_exception", _raise)
        self._environment.add_global("strftime_now", _strftime_now)
        if self.present:
            try:
                self._environment.undeclared_variables_in_template("chat")
            except TemplateError as error:
                raise ModelUnavailable(f"the chat template does not compile: {error}") from error

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Prompt text up to where the answer begins. Raises InvalidRequest if the template rejects the messages."""
        if not self.present:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions", param="messages", code="no_chat_template"
            )
        try:
            return self._environment.render_template(
                "chat", messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._tokens
            )
        except (TemplateError, TemplateRefusal) as error:
            raise InvalidRequest(
                f"the model's chat template rejects these messages: {error}", param="messages"
            ) from error


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
