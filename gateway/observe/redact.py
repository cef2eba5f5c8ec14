"""Keeps secrets and people's words out of logs: by the name of a field, then by the look of a value.

Names are the first line: an Authorization header is hidden whatever it holds. Looks are the second: keys that slipped
into a message or an error's text. Bodies are not logged at all, so nobody has to guess what is personal in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

HIDDEN = "[hidden]"

SECRET_NAMES = frozenset(
    {
        "api-key",
        "authorization",
        "client-secret",
        "cookie",
        "credential",
        "engine-key",
        "key-pepper",
        "password",
        "proxy-authorization",
        "secret",
        "secret-access-key",
        "session-token",
        "set-cookie",
        "sign-in-link",
        "token",
        "x-amz-security-token",
        "x-api-key",
        "x-goog-api-key",
    }
)
BODY_NAMES = frozenset({"arguments", "body", "choices", "content", "input", "messages", "output", "prompt", "text"})

# Source: the key formats in each provider's console and documentation, read 2026-11. A key keeps its public start, by
# which its owner can tell which one it was.
_LOOKS = re.compile(
    r"""
      (?P<keep>fbx-[A-Za-z0-9]{4,16})[-_A-Za-z0-9]{8,}          # our own: public id, then secret and checksum
    | (?P<sk>sk-(?:ant-|proj-|or-)?)[-_A-Za-z0-9]{8,}           # OpenAI, Anthropic and many others
    | (?P<gsk>gsk_|csk-|xai-|hf_|AIza|ya29\.|pplx-)[-_.A-Za-z0-9]{8,}
    | (?P<aws>AKIA|ASIA|ABSK)[A-Za-z0-9+/=]{12,}
    | (?P<bearer>[Bb]earer\s+)[-._~+/A-Za-z0-9]{8,}=*
    | (?P<query>[?&](?:key|api[-_]?key|token|sig)=)[^&\s"']+
    | (?P<url>://[^:/@\s]*:)[^@/\s]+(?=@)
    """,
    re.VERBOSE,
)


def redact_text(text: str) -> str:
    """The text with what looks like a credential cut to its public start."""
    return _LOOKS.sub(lambda found: f"{found[found.lastgroup] if found.lastgroup else ''}{HIDDEN}", text)


def redact_value(name: str, value: Any) -> Any:
    """One field of a log line, by its name and, inside it, by names and looks."""
    plain = name.lower().replace("_", "-")
    if plain in SECRET_NAMES:
        return HIDDEN
    if plain in BODY_NAMES:
        return f"[{len(value)} not logged]" if isinstance(value, str | bytes | list | tuple | dict) else HIDDEN
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes | bytearray):
        return f"[{len(value)} bytes]"
    if isinstance(value, Mapping):
        return {str(key): redact_value(str(key), below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 2 and isinstance(value[0], str):  # A header as a pair.
            return [value[0], redact_value(value[0], value[1])]
        return [redact_value(name, below) for below in value]
    if isinstance(value, BaseException):
        return redact_text(f"{type(value).__name__}: {value}")
    return value


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: runs last before rendering, so that nothing is added after it."""
    for name, value in event.items():
        event[name] = redact_text(value) if name == "event" and isinstance(value, str) else redact_value(name, value)
    return event
