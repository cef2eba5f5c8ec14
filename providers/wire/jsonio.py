"""JSON objects edited at their top level: the keys that must change do, every other value keeps its very bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from providers.errors import BadRequest

_object = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()

encode = _encoder.encode


def split_object(body: bytes) -> dict[str, Any]:
    """The members of a JSON object, their values unread (`Raw`). A key given twice keeps its last value, as most
    parsers would, so that nobody behind us can read another value than we checked.

    Raises: BadRequest when the body is no JSON object."""
    try:
        return _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from error


def plain(value: Any) -> Any:
    """A member's value, read if it was not yet.

    Raises: BadRequest for what a first look over it could not see: a name that is no UTF-8."""
    if not isinstance(value, Raw):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error


def joined(members: Mapping[str, Any]) -> bytes:
    """The object again; `Raw` values go out as they came in."""
    return encode(members)
