"""Sound and images as the OpenAI API has them: what a request asks for, and what an answer says it used.

Bodies go through as they are but for the model's name, so only what estimate and charge rest on is read here.
Source: openai-python 3.54 and groq-python 1.7 `types/audio`, `types/image*`, Azure OpenAI 2025-04-01-preview, read
2026-11.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from providers.dialects.openai_common import errors
from providers.errors import BadRequest
from providers.wire import jsonio, multipart
from providers.wire.sse import SseDecoder

Medium = Literal["transcriptions", "translations", "speech", "images", "image_edits"]
PATHS: dict[Medium, str] = {
    "transcriptions": "/audio/transcriptions",
    "translations": "/audio/translations",
    "speech": "/audio/speech",
    "images": "/images/generations",
    "image_edits": "/images/edits",
}
OPERATIONS: tuple[Medium, ...] = get_args(Medium)
IN_FORMS = frozenset({"transcriptions", "translations", "image_edits"})
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class MediaRequest(Struct, frozen=True):
    """text: to be spoken, or what is to be drawn. sound: the file to be written down. given_images: to be edited.
    size, quality: of an image, as the client said them. pixels: None where the model chooses."""

    model: str
    operation: Medium
    stream: bool = False
    text: str = ""
    sound: bytes = b""
    given_images: int = 0
    images: int = 0
    size: str = ""
    pixels: int | None = None
    quality: str = "auto"
    partial_images: int = 0
    response_format: str = ""


class MediaUsage(Struct, frozen=True):
    """What an answer says it used. None: not told. Tokens nest: totals include sound and images."""

    seconds: float | None = None
    input_tokens: int | None = None
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int | None = None
    output_text_tokens: int | None = None
    images: int | None = None


class _InputDetails(Struct):
    audio_tokens: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None


class _Usage(Struct):
    seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_token_details: _InputDetails | None = None  # of sound
    input_tokens_details: _InputDetails | None = None  # of images
    output_tokens_details: _InputDetails | None = None


class _Answer(Struct):
    usage: _Usage | None = None
    duration: float | str | None = None
    data: list[msgspec.Raw] | None = None
    error: msgspec.Raw = msgspec.Raw()


_answer = msgspec.json.Decoder(_Answer)


def decode_request(body: bytes, content_type: str, operation: Medium, model: str | None) -> MediaRequest:
    """model: where the path carries it. Raises: BadRequest naming the field."""
    if operation in IN_FORMS:
        boundary = multipart.boundary_of(content_type)
        if boundary is None:
            raise BadRequest("send multipart/form-data with a boundary", param="content-type")
        try:
            parts = multipart.split(body, boundary)
        except ValueError as error:
            raise BadRequest(f"not a form: {error}") from error
        files = [part for part in parts if part.filename is not None]
        fields: dict[str, Any] = {}
        for part in parts:
            if part.filename is None and not part.name.endswith("[]"):
                if part.name in fields:  # whoever is behind us might take the other one
                    raise BadRequest(f"{part.name} is there twice", param=part.name)
                fields[part.name] = part.body.decode("utf-8", "replace")
    else:
        try:
            fields = {name: jsonio.plain(value) for name, value in jsonio.split_object(body).items()}
        except msgspec.MsgspecError as error:
            raise BadRequest(f"the body is not a JSON object: {error}") from error
        files = []
    read = _Fields(fields)
    name = model or read.text("model")
    if not name:
        raise BadRequest("model is required", param="model")
    stream = read.flag("stream") or read.text("stream_format") == "sse"
    request = MediaRequest(name, operation, stream, response_format=read.text("response_format") or "")
    if operation in ("transcriptions", "translations"):
        sounds = [part.body for part in files if part.name == "file"]
        if len(sounds) != 1:
            raise BadRequest("file must be one sound file", param="file")
        return msgspec.structs.replace(request, sound=sounds[0], text=read.text("prompt") or "")
    if operation == "speech":
        if not (said := read.text("input")):
            raise BadRequest("input is required", param="input")
        return msgspec.structs.replace(request, text=said)
    prompt = read.text("prompt")
    if not prompt:
        raise BadRequest("prompt is required", param="prompt")
    size = _SIZE.fullmatch(read.text("size") or "")
    given = sum(part.name in ("image", "image[]", "mask") for part in files)
    if operation == "image_edits" and not given:
        raise BadRequest("image is required", param="image")
    return msgspec.structs.replace(
        request,
        text=prompt,
        given_images=given,
        images=read.number("n", 1, 1, 10),
        size=size[0] if size else "",
        pixels=int(size[1]) * int(size[2]) if size else None,
        quality=read.text("quality") or "auto",
        partial_images=read.number("partial_images", 0, 0, 3),
    )


def with_model(body: bytes, content_type: str, operation: Medium, model: str) -> bytes:
    """The client's body with the deployment's own name in it. Raises: ValueError, which `decode_request` told."""
    if operation not in IN_FORMS:
        return jsonio.joined(jsonio.split_object(body) | {"model": model})
    boundary = multipart.boundary_of(content_type) or b""
    parts = [part for part in multipart.split(body, boundary) if part.name != "model"]
    return multipart.joined([multipart.field("model", model), *parts], boundary)


def with_text(body: bytes, content_type: str, operation: Medium, text: str) -> bytes:
    """The client's body with another text to speak, to draw or to listen by."""
    name = "input" if operation == "speech" else "prompt"
    if operation not in IN_FORMS:
        return jsonio.joined(jsonio.split_object(body) | {name: text})
    boundary = multipart.boundary_of(content_type) or b""
    parts = [part for part in multipart.split(body, boundary) if part.name != name]
    return multipart.joined([multipart.field(name, text), *parts], boundary)


def usage_in(body: bytes) -> MediaUsage:
    """Of a JSON answer, or of an event of a stream; of anything else nothing. Raises: a ProviderError kind for an error
    object behind a 200."""
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return MediaUsage()
    if bytes(answer.error) not in (b"", b"null"):
        raise errors.from_object(msgspec.json.decode(body), body=body)
    images = None if answer.data is None else len(answer.data)
    used = answer.usage
    if used is None:
        return MediaUsage(_number(answer.duration), images=images)
    given = used.input_token_details or used.input_tokens_details or _InputDetails()
    made = used.output_tokens_details
    return MediaUsage(
        seconds=used.seconds if used.seconds is not None else _number(answer.duration),
        input_tokens=used.input_tokens,
        input_audio_tokens=given.audio_tokens or 0,
        input_image_tokens=given.image_tokens or 0,
        output_tokens=used.output_tokens,
        output_text_tokens=None if made is None else made.text_tokens,
        images=images,
    )


class EventWatch:
    """Reads the usage out of a stream of events; the bytes themselves go on unread."""

    def __init__(self) -> None:
        self._frames = SseDecoder()
        self.usage = MediaUsage()
        self.images = 0

    def feed(self, data: bytes) -> None:
        """Raises: a ProviderError kind for an error sent in the stream, before the bytes that carry it leave."""
        for frame in self._frames.feed(data):
            if not frame.data or frame.data == b"[DONE]":
                continue
            found = usage_in(frame.data)
            if found.input_tokens is not None or found.seconds is not None:
                self.usage = found


class _Fields:
    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def text(self, name: str) -> str | None:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{name} must be a text", param=name)
        return value

    def flag(self, name: str) -> bool:
        return self._fields.get(name) in (True, "true", "True", "1")

    def number(self, name: str, otherwise: int, least: int, most: int) -> int:
        value = self._fields.get(name)
        if value is None:
            return otherwise
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = least - 1
        if not least <= number <= most:
            raise BadRequest(f"{name} must be {least} to {most}", param=name)
        return number


def _number(value: float | str | None) -> float | None:
    """Azure and older engines write the duration as text."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
