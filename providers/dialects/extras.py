"""Fields of a request that have no neutral meaning, kept by their path so that another dialect refuses them by name and
their own puts them back: `context_management`, `messages[0].content[1].citations`; a whole unknown block by its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from providers.dialects.losses import Losses
from providers.errors import BadRequest

T = TypeVar("T")
Extras = dict[str, Any]

_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")


def read(value: Any, kind: type[T], path: str) -> T:
    """Raises: BadRequest naming the very field that is wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        param = (path + where.rstrip("`")).lstrip(".")
        raise BadRequest(f"{param}: {text}", param=param or None) from error


def leftovers(block: Mapping[str, Any], kind: type[msgspec.Struct], path: str, extras: Extras) -> None:
    """Keep what `kind` has no field for."""
    known = kind.__struct_fields__
    for name, value in block.items():
        if name not in known and value is not None:
            extras[f"{path}.{name}" if path else name] = value


def restore(body: dict[str, Any], extras: Mapping[str, Any], roots: frozenset[str], losses: Losses) -> None:
    """Put everything back, in the order found, so that earlier places exist by then.

    roots: the top-level members that paths lead into; any other key is a member of its own, whatever its name."""
    for key, value in extras.items():
        root = re.split(r"[.\[]", key, maxsplit=1)[0]
        if root == key or root not in roots:
            body.setdefault(key, value)
        elif not _place(body, key, value):
            losses.tell(key)  # the messages were edited since, and its place is gone


def _place(body: dict[str, Any], path: str, value: Any) -> bool:
    steps: list[str | int] = [int(index) if index else name for name, index in _STEP.findall(path)]
    at: Any = body
    for step in steps[:-1]:
        if isinstance(step, str) and isinstance(at, dict) and (step == "content" or step in at):
            at = at.setdefault(step, [])
        elif isinstance(step, int) and isinstance(at, list) and step < len(at):
            at = at[step]
        else:
            return False
    last = steps[-1]
    if isinstance(last, str) and isinstance(at, dict):
        at.setdefault(last, value)
    elif isinstance(last, int) and isinstance(at, list) and last <= len(at):
        at.insert(last, value)
    else:
        return False
    return True
