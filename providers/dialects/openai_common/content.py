"""What `content` may look like in an answer."""

from __future__ import annotations

from typing import Any


def texts_of(content: Any) -> tuple[str, str]:
    """Text and thinking of a `content`, which is a string but at Mistral, where it may be an array of parts."""
    if isinstance(content, str):
        return content, ""
    text, thinking = [], []
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str):
            text.append(part["text"])
        elif isinstance(inner := part.get("thinking"), list):
            thinking += [p["text"] for p in inner if isinstance(p, dict) and isinstance(p.get("text"), str)]
    return "".join(text), "".join(thinking)
