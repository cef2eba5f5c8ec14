"""The API's own schema language (a subset of OpenAPI 3.0) to JSON Schema, and the few words that differ.

Only this way: what we send is always JSON Schema, in `parametersJsonSchema` and `responseJsonSchema`, which take it as
it is. Source: Gemini API reference "Schema", read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from providers.dialects.gemini.wire import camel

_NUMBERS: Final = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minimum", "maximum"}
)
_RENAMED: Final[Mapping[str, str]] = {"defs": "$defs", "ref": "$ref", "example": "examples"}
_DEPTH_LIMIT: Final = 200


def json_schema(schema: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Upper-case types become lower-case, `nullable` a type union, int64 written as text a number again.

    Raises: RecursionError for a schema nested beyond any use."""
    if depth > _DEPTH_LIMIT:
        raise RecursionError("a schema nested too deeply")
    out: dict[str, Any] = {}
    nullable = False
    for written, value in schema.items():
        key = camel(written)
        match key:
            case "nullable":
                nullable = value is True
            case "propertyOrdering":
                continue  # order only; JSON Schema has no word for it
            case "type" if isinstance(value, str):
                if value != "TYPE_UNSPECIFIED":
                    out["type"] = value.lower()
            case "properties" | "defs" if isinstance(value, dict):
                inner = {name: _inner(entry, depth) for name, entry in value.items()}
                out[_RENAMED.get(key, key)] = inner
            case "items" | "additionalProperties":
                out[key] = _inner(value, depth)
            case "anyOf" if isinstance(value, list):
                out[key] = [_inner(entry, depth) for entry in value]
            case "example":
                out["examples"] = [value]
            case _ if key in _NUMBERS and isinstance(value, str):
                out[key] = int(value) if value.lstrip("-").isdigit() else value
            case _:
                out[_RENAMED.get(key, key)] = value
    if nullable:
        if isinstance(out.get("type"), str):
            out["type"] = [out["type"], "null"]
        if isinstance(out.get("enum"), list) and None not in out["enum"]:
            out["enum"] = [*out["enum"], None]
    return out


def _inner(value: Any, depth: int) -> Any:
    return json_schema(value, depth + 1) if isinstance(value, dict) else value
