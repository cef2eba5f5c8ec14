"""Typed reading of a client's JSON: the field that is wrong is named, in the words of the client's own body."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from providers.errors import BadRequest

T = TypeVar("T")

_AT = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises: BadRequest, with `param` naming the field path ("messages[0].content") where a type is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from error


def invalid(message: str) -> BadRequest:
    """msgspec's message as ours: `Expected `int`, got `str` - at `$.n`` -> param "n"."""
    at = _AT.search(message)
    path = at["path"] if at is not None else ""
    text = message[: at.start()] if at is not None else message
    missing = _MISSING.search(text)
    if missing is not None:
        path = f"{path}.{missing['name']}" if path else missing["name"]
    return BadRequest(f"{text} at {path}" if path else text, param=path or None)
