"""What a message is made of: one frozen struct per kind of part, tagged so that golden files can be read back."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class CachePoint(Struct, frozen=True, omit_defaults=True):
    """A prompt-cache marker: everything up to and including the part that carries it may be cached.

    ttl: "5m" or "1h"; None leaves it to the provider.
    """

    ttl: Literal["5m", "1h"] | None = None


class Citation(Struct, frozen=True, omit_defaults=True):
    """Where a span of text came from. `raw` is the provider's own object, for the dialect named in `dialect`."""

    url: str | None = None
    title: str | None = None
    quote: str | None = None
    start: int | None = None
    end: int | None = None
    dialect: str | None = None
    raw: Any = None


class TextPart(Struct, frozen=True, tag="text", omit_defaults=True):
    """Plain text.

    signature: opaque bytes (base64 text) that Gemini ties to a text part; it goes back verbatim, and only to `dialect`.
    """

    text: str
    cache: CachePoint | None = None
    citations: tuple[Citation, ...] = ()
    signature: str | None = None


class ImagePart(Struct, frozen=True, tag="image", omit_defaults=True):
    """An image, either inline or by reference: exactly one of `data` (base64 text) and `url` is set."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None
    cache: CachePoint | None = None


class AudioPart(Struct, frozen=True, tag="audio", omit_defaults=True):
    """Sound, inline as base64 text. format: "wav", "mp3", ... ; `id` names an earlier answer's audio (OpenAI)."""

    format: str | None = None
    data: str | None = None
    id: str | None = None
    transcript: str | None = None


class FilePart(Struct, frozen=True, tag="file", omit_defaults=True):
    """A document or video: one of `data` (base64 text), `text`, `url`, `file_id` (the provider's store) is set."""

    media_type: str | None = None
    name: str | None = None
    data: str | None = None
    text: str | None = None
    url: str | None = None
    file_id: str | None = None
    cache: CachePoint | None = None


def is_document(file: FilePart) -> bool:
    """Whether a model must know files to read it: text goes anywhere, pictures and films are other skills."""
    return file.text is None and not (file.media_type or "").startswith(("image/", "video/"))


class ToolCallPart(Struct, frozen=True, tag="tool_call", omit_defaults=True):
    """The model asks for a tool. `arguments` is the JSON text as the model wrote it: parsing is the target's affair.

    kind: "function" takes JSON, "custom" takes free text (OpenAI), "server" ran at the provider.
    signature: Gemini's thought signature (base64 text), which must go back on this very part.
    """

    id: str
    name: str
    arguments: str
    kind: Literal["function", "custom", "server"] = "function"
    signature: str | None = None
    cache: CachePoint | None = None


class ToolResultPart(Struct, frozen=True, tag="tool_result", omit_defaults=True):
    """What a tool answered. `content` holds text, image and file parts; name is known where the dialect carries it."""

    tool_call_id: str
    content: tuple[Part, ...]
    name: str | None = None
    is_error: bool = False
    cache: CachePoint | None = None


class ReasoningPart(Struct, frozen=True, tag="reasoning", omit_defaults=True):
    """The model's thinking. `signature`/`redacted` are opaque and only valid for `dialect` (who sealed them).

    redacted: encrypted thinking without readable text (Anthropic redacted_thinking, OpenAI encrypted_content).
    """

    text: str = ""
    signature: str | None = None
    redacted: str | None = None
    id: str | None = None
    dialect: str | None = None


class RefusalPart(Struct, frozen=True, tag="refusal", omit_defaults=True):
    """The model declines, in words."""

    text: str


Part = TextPart | ImagePart | AudioPart | FilePart | ToolCallPart | ToolResultPart | ReasoningPart | RefusalPart
