"""Settings as TOML text, in the shape that people write them. The standard library only reads TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_BARE: Final = re.compile(r"^[A-Za-z0-9_-]+$")


def dump(tree: Mapping[str, Any], comment: str = "") -> str:
    """tree: strings, numbers, booleans, lists and dicts; lists of dicts at the top become [[tables]]."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    plain = {name: value for name, value in tree.items() if not isinstance(value, Mapping) and not _is_tables(value)}
    lines += ["", *(f"{_key(name)} = {_value(value)}" for name, value in plain.items())] if plain else []
    for name, value in tree.items():
        if name in plain:
            continue
        if isinstance(value, Mapping):
            _section(lines, _key(name), value)
        else:
            for each in value:
                lines += ["", f"[[{_key(name)}]]", *_fields(each)]
    return "\n".join(lines).strip() + "\n"


def _section(lines: list[str], path: str, section: Mapping[str, Any]) -> None:
    """A section of sections has a header for each of those alone."""
    if section and all(isinstance(value, Mapping) for value in section.values()):
        for name, value in section.items():
            lines += ["", f"[{path}.{_key(name)}]", *_fields(value)]
        return
    lines += ["", f"[{path}]", *_fields(section)]


def _fields(section: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in section.items():
        if _is_tables(value):
            lines += [f"{_key(name)} = [", *(f"  {_value(each)}," for each in value), "]"]
        else:
            lines.append(f"{_key(name)} = {_value(value)}")
    return lines


def _is_tables(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return "[" + ", ".join(map(_value, value)) + "]"


def _key(name: str) -> str:
    return name if _BARE.match(name) else json.dumps(name, ensure_ascii=False)
