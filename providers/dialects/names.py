"""Tool names and call ids that must cross into a narrower alphabet. A name comes back in the model's call, so its
mapping carries its own way home; no table is kept. An id only has to be the same on a call and on its result.
"""

from __future__ import annotations

import hashlib
import re

from providers.neutral import ToolCallPart

_MARK = "fbx-"
_PLAIN_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_PLAIN_ID = re.compile(r"[a-zA-Z0-9_.:-]+")
_STRICT_ID = re.compile(r"[a-zA-Z0-9_-]+")
_TO_ESCAPE = re.compile(rb"[^a-zA-Z0-9_]")
_ESCAPED = re.compile(r"-([0-9a-f]{2})")

_SIGNATURE_MARK = "~"  # in no id of any provider's, nor in base64


def narrow_name(name: str, limit: int) -> str | None:
    """A tool name in `[a-zA-Z0-9_-]{1,limit}`; `widen_name` undoes it. None when it does not fit: a hash would have
    no way home, and a model's call under it could not be told to the client."""
    if not _PLAIN_NAME.fullmatch(name) or name.startswith(_MARK):
        name = _escape(name)
    return name if 0 < len(name) <= limit else None


def widen_name(name: str) -> str:
    return _unescape(name)


def narrow_id(ident: str, limit: int, *, dots: bool = True) -> str:
    """A tool-call id in `[a-zA-Z0-9_-]` (with `dots`: also `.` and `:`), at most `limit` characters. One too long is
    hashed: a call and its result still meet, since both map alike, and that is all an id is for."""
    plain = _PLAIN_ID if dots else _STRICT_ID
    if not plain.fullmatch(ident) or ident.startswith(_MARK):
        ident = _escape(ident)
    if len(ident) > limit:
        ident = "h-" + hashlib.sha256(ident.encode()).hexdigest()[: min(limit, 64) - 2]
    return ident


def id_with_signature(call: ToolCallPart) -> str:
    """Gemini seals a tool call with a signature that must come back on it. Dialects without a place for one carry it
    behind the id, which every client echoes."""
    return f"{call.id}{_SIGNATURE_MARK}{call.signature}" if call.signature else call.id


def split_signature(ident: str) -> tuple[str, str | None]:
    plain, mark, signature = ident.partition(_SIGNATURE_MARK)
    return (plain, signature) if mark and plain and signature else (ident, None)


def _escape(text: str) -> str:
    escaped = _TO_ESCAPE.sub(lambda m: b"-%02x" % m[0][0], text.encode("utf-8", "surrogatepass"))
    return _MARK + escaped.decode("ascii")


def _unescape(text: str) -> str:
    """Text that we did not escape, though it bears the mark, is left as it is."""
    if not text.startswith(_MARK):
        return text
    body = text.removeprefix(_MARK)
    raw = _ESCAPED.sub(lambda m: chr(int(m[1], 16)), body).encode("latin-1", "replace")
    try:
        original = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return text
    return original if _escape(original) == text else text
