"""How one provider's opaque thinking rides through a client of another dialect and back.

Clients return the opaque field of their own dialect unread: `encrypted_content` of a Responses reasoning item,
`thoughtSignature` of a Gemini part. What a model of another dialect sealed (Anthropic's signature, Gemini's
thoughtSignature, ...) is put there under a mark of ours, so that the next turn finds it again without a store. Nothing
here is secret: it is what the provider gave the client anyway.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from msgspec import Struct

_MARK = "fbx1."
_LIMIT_CHARS = 4 << 20


class Sealed(Struct, frozen=True, omit_defaults=True):
    """dialect: whose seal it is. tool_call_id or text: the part that `signature` belongs to, when it is no thinking."""

    dialect: str | None = None
    signature: str | None = None
    redacted: str | None = None
    id: str | None = None
    tool_call_id: str | None = None
    text: bool = False


_decoder = msgspec.json.Decoder(Sealed)


def seal(value: Sealed) -> str:
    return _MARK + base64.urlsafe_b64encode(msgspec.json.encode(value)).decode()


def unseal(encrypted_content: str | None) -> Sealed | None:
    """None when it is not ours: then it is OpenAI's own, and opaque. A damaged one of ours says nothing any more."""
    if encrypted_content is None or not encrypted_content.startswith(_MARK):
        return None
    if len(encrypted_content) > _LIMIT_CHARS:
        return Sealed()
    try:
        return _decoder.decode(base64.b64decode(encrypted_content[len(_MARK) :], altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        return Sealed()
