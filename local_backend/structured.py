"""Constrained answers, the front's side: what a request asks for -> one grammar, known to be sound.

Source: OpenAI API reference (response_format), vLLM docs/features/structured_outputs.md (structured_outputs, guided_*),
read 2026-11.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from local_backend.errors import InvalidRequest
from local_backend.tokenizer import Tokenizer

MAX_GRAMMAR_CHARS = 1_000_000
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As models are trained to write tool calls."""
ROOMY: Any = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\r\t]{0,24}"}
"""White space is the model's choice, but bounded: small models otherwise fill the answer with line feeds."""


class Checker:
    """Finds unsound grammars before they reach the core. One for each model; knows the tokens, which takes a moment."""

    def __init__(self, model_dir: Path, eos_token_ids: tuple[int, ...]) -> None:
        self._model_dir = model_dir
        self._eos = eos_token_ids
        self._table: LLTokenizer | None = None
        self._lock = threading.Lock()

    def check(self, grammar: str, param: str) -> None:
        """Raises InvalidRequest if the grammar cannot be compiled, or no answer can meet it. Blocks for a moment."""
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(f"the constraint has over {MAX_GRAMMAR_CHARS} characters", param=param)
        with self._lock:
            if self._table is None:
                self._table = token_table(self._model_dir, self._eos)
        matcher = LLMatcher(self._table, grammar, log_level=0)
        first = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidRequest(
                f"the constraint cannot be used: {_short(matcher.get_error())}", param=param, code="invalid_constraint"
            )
        if not any(first) and not matcher.is_accepting():
            raise InvalidRequest("no answer can meet the constraint", param=param, code="invalid_constraint")


def schema_grammar(schema: Any, param: str, *, compact: bool = False) -> str:
    """Grammar of the JSON texts that meet a schema. Raises InvalidRequest if it is no schema."""
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON schema must be an object", param=param)
    try:
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT if compact else ROOMY))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the schema cannot be used: {error}", param=param, code="invalid_constraint") from None


def lark_json(schema: dict[str, Any]) -> str:
    """A schema as one term of a Lark grammar, written compactly."""
    return "%json " + json.dumps(schema | {"x-guidance": COMPACT})


def lark_literal(text: str, tokenizer: Tokenizer) -> str:
    """A fixed text as terms of a Lark grammar; special tokens in it by their id, for their text alone never matches."""
    return " ".join(
        f"<[{tokenizer.id_of(piece)}]>" if special else json.dumps(piece, ensure_ascii=False)
        for piece, special in tokenizer.split_special(text)
    )


def after_thought(grammar: str, think: tuple[str, str], tokenizer: Tokenizer, *, opened: bool) -> str:
    """The same constraint for a model that reasons first: its thoughts are free. opened: the prompt began them."""
    given = json.loads(grammar)["grammars"][0] if grammar.startswith("{") else {"lark_grammar": grammar}
    opening, closing = (lark_literal(mark, tokenizer) for mark in think)
    if opened:
        opening = ""
    # A special token never matches as text, so free text ends before it; else the thought ends at the first match.
    special = closing.startswith("<[")
    thought = f"{opening} {f'FREE {closing}' if special else 'thought'} BLANK"
    lark = f"""start: {thought if opened else f"({thought})?"} @answer
thought[lazy]: /(.|\\n)*/ {json.dumps(think[1])}
FREE: /(.|\\n)*/
BLANK: /[ \\n]*/
"""
    return json.dumps({"grammars": [{"name": "main", "lark_grammar": lark}, {**given, "name": "answer"}]})


def grammar_of(
    response_format: dict[str, Any] | None, structured: dict[str, Any] | None, guided: dict[str, Any]
) -> tuple[str, str] | None:
    """The one constraint of a request and the field that sets it; None if the answer is free.

    guided: vLLM's older fields by name. Raises InvalidRequest if there are several, or one is malformed."""
    found: list[tuple[str, str]] = []
    if response_format is not None and response_format.get("type") != "text":
        found.append((_response_format(response_format), "response_format"))
    named = {f"structured_outputs.{kind}": (kind, value) for kind, value in (structured or {}).items()}
    named |= {f"guided_{kind}": (kind, value) for kind, value in guided.items()}
    for param, (kind, value) in named.items():
        if value is not None and value is not False:
            found.append((_structured(kind, value, param), param))
    if len(found) > 1:
        raise InvalidRequest(f"give one constraint, not both {found[0][1]} and {found[1][1]}", param=found[1][1])
    return found[0] if found else None


def _response_format(value: dict[str, Any]) -> str:
    match value:
        case {"type": "json_object"}:
            return schema_grammar({"type": "object"}, "response_format")
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema_grammar(schema, "response_format.json_schema.schema")
        case {"type": "json_schema"}:
            raise InvalidRequest("json_schema needs its schema", param="response_format.json_schema.schema")
    raise InvalidRequest(
        f"unknown response format {value.get('type')!r}; known: text, json_object, json_schema",
        param="response_format.type",
    )


def _structured(kind: str, value: Any, param: str) -> str:
    match kind, value:
        case "json", str():
            try:
                return schema_grammar(json.loads(value), param)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InvalidRequest(f"the schema is not valid JSON: {error}", param=param) from None
        case "json", dict():
            return schema_grammar(value, param)
        case "json_object", True:
            return schema_grammar({"type": "object"}, param)
        case "regex", str():
            return str(LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(value)}/"))
        case "choice", list() if value and all(isinstance(choice, str) for choice in value):
            return str(LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in value)))
        case "grammar", str():
            return str(LLMatcher.grammar_from_lark(_lark(value, param)))
    raise InvalidRequest(
        "known are json, json_object, regex, choice (a list of texts) and grammar (Lark or GBNF)", param=param
    )


def _lark(text: str, param: str) -> str:
    """Lark as it is; llama.cpp's GBNF, which always has a `root ::=`, translated."""
    if "::=" not in text:
        return text
    try:
        return str(any_to_lark(text))
    except Exception as error:  # the translator raises whatever its hand-written parser meets
        raise InvalidRequest(
            f"the grammar is not valid GBNF: {error}", param=param, code="invalid_constraint"
        ) from None


def _short(message: str) -> str:
    """The first lines of a compiler's complaint; the rest repeats the grammar."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return " ".join(lines[:4])[:500]


def token_table(model_dir: Path, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """llguidance's view of a model's tokens: 0.2 s for 49k of them (2026-11)."""
    text = (model_dir / "tokenizer.json").read_text(encoding="utf-8")
    return LLTokenizer(text, eos_token=list(eos_token_ids) or None)
