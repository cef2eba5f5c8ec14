"""Content blocks and neutral parts, both ways.

Source: anthropic-python 2.12 `types/content_block_param.py` and its members, read 2026-11.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from providers.dialects.anthropic_messages import wire
from providers.dialects.claude import SEALED_FOR_CLAUDE
from providers.dialects.extras import Extras, leftovers, read
from providers.dialects.losses import Losses
from providers.dialects.names import id_with_signature, narrow_id, narrow_name, split_signature, widen_name
from providers.dialects.sealed import Sealed, seal, unseal
from providers.errors import BadRequest
from providers.neutral import (
    AudioPart,
    CachePoint,
    Citation,
    FilePart,
    ImagePart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

NAME = "anthropic_messages"
MAX_NAME_CHARS = 128
MAX_ID_CHARS = 128

_WEB = ("https://", "http://")
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^,]*)?;base64,(?P<data>.*)", re.DOTALL)


_CALLED_DIRECTLY = ("caller", {"type": "direct"})


def parts_in(content: str | Sequence[wire.Block], path: str, extras: Extras) -> tuple[Part, ...]:
    """Raises: BadRequest."""
    if isinstance(content, str):
        return (TextPart(content),)
    parts = []
    for number, block in enumerate(content):
        here = f"{path}[{number}]"
        part = _part_in(block, here, extras)
        if part is None:
            extras[here] = block
        else:
            parts.append(part)
    return tuple(parts)


def cache_in(control: wire.CacheControl | None) -> CachePoint | None:
    return CachePoint(control.ttl) if control is not None else None


def cache_out(point: CachePoint | None) -> dict[str, Any]:
    """As the member(s) to add to a block."""
    if point is None:
        return {}
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": point.ttl} if point.ttl else {})}


def _part_in(block: wire.Block, path: str, extras: Extras) -> Part | None:
    """None for a block without a neutral meaning."""
    kind = block.get("type")
    match kind:
        case "text":
            text = read(block, wire.TextBlock, path)
            leftovers(block, wire.TextBlock, path, extras)
            return TextPart(text.text, cache_in(text.cache_control), tuple(map(citation_in, text.citations or ())))
        case "image" | "document":
            return _attachment_in(block, path, extras)
        case "tool_use":
            call = read(block, wire.ToolUseBlock, path)
            # Who called, where it is the model itself, goes without saying: clients send it back as we told them.
            told = {key: value for key, value in block.items() if (key, value) != _CALLED_DIRECTLY}
            leftovers(told, wire.ToolUseBlock, path, extras)
            ident, signature = split_signature(call.id)
            arguments = msgspec.json.encode(call.input).decode()
            return ToolCallPart(ident, call.name, arguments, signature=signature, cache=cache_in(call.cache_control))
        case "tool_result":
            result = read(block, wire.ToolResultBlock, path)
            leftovers(block, wire.ToolResultBlock, path, extras)
            return ToolResultPart(
                split_signature(result.tool_use_id)[0],
                parts_in(result.content or (), f"{path}.content", extras),
                is_error=bool(result.is_error),
                cache=cache_in(result.cache_control),
            )
        case "thinking":
            thinking = read(block, wire.ThinkingBlock, path)
            if (foreign := unseal(thinking.signature)) is not None:
                return ReasoningPart(
                    thinking.thinking, foreign.signature, foreign.redacted, foreign.id, foreign.dialect
                )
            return ReasoningPart(thinking.thinking, thinking.signature or None, dialect=NAME)
        case "redacted_thinking":
            return ReasoningPart(redacted=read(block, wire.RedactedThinkingBlock, path).data, dialect=NAME)
        case str():
            return None
        case _:
            raise BadRequest(f"{path}.type: a content block names its type", param=f"{path}.type")


def _attachment_in(block: wire.Block, path: str, extras: Extras) -> Part | None:
    if block["type"] == "image":
        image = read(block, wire.ImageBlock, path)
        source, cache = image.source, cache_in(image.cache_control)
        leftovers(block, wire.ImageBlock, path, extras)
        match source.type:
            case "base64" if source.data is not None:
                return ImagePart(media_type=source.media_type, data=source.data, cache=cache)
            case "url" if source.url is not None:
                return ImagePart(url=source.url, cache=cache)
            case "file" if source.file_id is not None:
                return FilePart(media_type="image/*", file_id=source.file_id, cache=cache)
    else:
        if isinstance(block.get("source"), dict) and block["source"].get("type") == "content":
            return None
        document = read(block, wire.DocumentBlock, path)
        source, cache, title = document.source, cache_in(document.cache_control), document.title
        leftovers(block, wire.DocumentBlock, path, extras)
        match source.type:
            case "base64" if source.data is not None:
                return FilePart(media_type=source.media_type, name=title, data=source.data, cache=cache)
            case "text" if source.data is not None:
                return FilePart(media_type=source.media_type, name=title, text=source.data, cache=cache)
            case "url" if source.url is not None:
                return FilePart(media_type="application/pdf", name=title, url=source.url, cache=cache)
            case "file" if source.file_id is not None:
                return FilePart(name=title, file_id=source.file_id, cache=cache)
    raise BadRequest(f"{path}.source: not a source of a known type", param=f"{path}.source")


def citation_in(raw: dict[str, Any]) -> Citation:
    def text(name: str) -> str | None:
        value = raw.get(name)
        return value if isinstance(value, str) else None

    title = text("title") or text("document_title")
    return Citation(text("url") or text("source"), title, text("cited_text"), dialect=NAME, raw=raw)


def citation_out(citation: Citation) -> dict[str, Any] | None:
    """None for a citation that says nothing an Anthropic client could read."""
    if citation.dialect == NAME and isinstance(citation.raw, dict):
        return citation.raw
    if citation.url is None:
        return None
    return {
        "type": "web_search_result_location",
        "url": citation.url,
        "title": citation.title,
        "cited_text": citation.quote or "",
        "encrypted_index": "",
    }


def blocks_out(parts: Sequence[Part], path: str, losses: Losses) -> list[wire.Block]:
    """Raises: BadRequest for tool arguments that are no JSON object."""
    blocks = []
    for number, part in enumerate(parts):
        block = _block_out(part, f"{path}[{number}]", losses)
        if block is not None:
            blocks.append(block)
    return blocks


def _block_out(part: Part, path: str, losses: Losses) -> wire.Block | None:
    match part:
        case TextPart(text, cache):
            if not text:
                return None  # refused there; OpenAI clients send "" beside tool calls
            block: wire.Block = {"type": "text", "text": text} | cache_out(cache)
            if own := [c.raw for c in part.citations if c.dialect == NAME]:
                block["citations"] = own
            return block
        case RefusalPart(text):
            return {"type": "text", "text": text} if text else None
        case ImagePart():
            return _image_out(part, path, losses)
        case FilePart():
            return _file_out(part, path, losses)
        case AudioPart():
            losses.refuse(f"{path}: audio")
            return None
        case ToolCallPart():
            return _tool_use_out(part, path, losses)
        case ToolResultPart():
            result: wire.Block = {"type": "tool_result", "tool_use_id": _id_out(part.tool_call_id)}
            if content := blocks_out(part.content, f"{path}.content", losses):
                result["content"] = content
            if part.is_error:
                result["is_error"] = True
            return result | cache_out(part.cache)
        case ReasoningPart():
            return reasoning_out(part, path, losses)


def reasoning_out(part: ReasoningPart, path: str, losses: Losses) -> wire.Block | None:
    """Thinking that Claude sealed. Another model's is left out: nobody but its own maker can use it."""
    if part.dialect in SEALED_FOR_CLAUDE:
        if part.redacted is not None:
            return {"type": "redacted_thinking", "data": part.redacted}
        if part.signature is not None:
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}
    losses.tell(f"{path}: reasoning of another model")
    return None


def _tool_use_out(call: ToolCallPart, path: str, losses: Losses) -> wire.Block | None:
    if call.kind != "function":
        losses.refuse(f"{path}: {call.kind} tool call")
        return None
    name = narrow_name(call.name, MAX_NAME_CHARS)
    if name is None:
        losses.refuse(f"{path}: tool name {call.name[:200]!r}")
        return None
    block = {
        "type": "tool_use",
        "id": _id_out(call.id),
        "name": name,
        "input": arguments_object(call.arguments, path),
    }
    return block | cache_out(call.cache)


def arguments_object(arguments: str, path: str) -> dict[str, Any]:
    """Raises: BadRequest: Anthropic takes an object, and inventing one would put words into the model's mouth."""
    try:
        found = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest(f"{path}: the tool call's arguments are not a JSON object", param=path)
    return found


def _id_out(ident: str) -> str:
    return narrow_id(ident, MAX_ID_CHARS, dots=False)


def _image_out(image: ImagePart, path: str, losses: Losses) -> wire.Block | None:
    if image.detail not in (None, "auto"):
        losses.drop(f"{path}: image detail")
    media_type, data, url = image.media_type, image.data, image.url
    if url is not None and (inline := _DATA_URL.fullmatch(url)) is not None:
        media_type, data = inline["type"], inline["data"]
    if data is None:
        if url is None or not url.startswith(_WEB):
            losses.refuse(f"{path}: image at {(url or '').partition(':')[0] or 'no address'}")
            return None
        return {"type": "image", "source": {"type": "url", "url": url}} | cache_out(image.cache)
    media_type = (media_type or sniff_image(data) or "").replace("image/jpg", "image/jpeg")
    if media_type not in ("image/jpeg", "image/png", "image/gif", "image/webp"):
        losses.refuse(f"{path}: image of type {media_type or 'unknown'}")
        return None
    source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "image", "source": source} | cache_out(image.cache)


def sniff_image(data: str) -> str | None:
    """The media type by the first bytes of base64 text."""
    for prefix, media_type in (
        ("iVBORw0KGgo", "image/png"),
        ("/9j/", "image/jpeg"),
        ("R0lGOD", "image/gif"),
        ("UklGR", "image/webp"),
    ):
        if data.startswith(prefix):
            return media_type
    return None


def _file_out(file: FilePart, path: str, losses: Losses) -> wire.Block | None:
    media_type = (file.media_type or "").partition(";")[0].strip().lower()
    kind = "image" if media_type.startswith("image/") else "document"
    source: dict[str, Any] | None = None
    if file.file_id is not None:
        # Another provider's file store uses other ids ("file-..."), and none of ours could read it.
        source = {"type": "file", "file_id": file.file_id} if file.file_id.startswith("file_") else None
    elif file.text is not None:
        source = {"type": "text", "media_type": "text/plain", "data": file.text}
    elif file.data is not None and kind == "image":
        source = {"type": "base64", "media_type": media_type, "data": file.data}
    elif file.data is not None and (media_type == "application/pdf" or file.data.startswith("JVBERi0")):
        source = {"type": "base64", "media_type": "application/pdf", "data": file.data}
    elif file.data is not None and media_type.startswith("text/"):
        source = _text_source(file.data)
    elif (
        file.url is not None
        and file.url.startswith(_WEB)
        and (kind == "image" or media_type in ("", "application/pdf"))
    ):
        source = {"type": "url", "url": file.url}
    if source is None:
        losses.refuse(f"{path}: file of type {media_type or 'unknown'}")
        return None
    title = {"title": file.name} if file.name and kind == "document" else {}
    return {"type": kind, "source": source} | title | cache_out(file.cache)


def _text_source(data: str) -> dict[str, Any] | None:
    try:
        text = base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return {"type": "text", "media_type": "text/plain", "data": text}


def response_part_in(block: wire.Block) -> Part | None:
    """A block of an answer. Raises: BadRequest (to be told as WireError) for a known block with wrong types."""
    match block.get("type"):
        case "server_tool_use":
            call = read(block, wire.ToolUseBlock, "content")
            return ToolCallPart(call.id, call.name, msgspec.json.encode(call.input).decode(), kind="server")
        case str() as kind if kind.endswith("_tool_result") and isinstance(block.get("tool_use_id"), str):
            return _server_result_in(block, kind)
        case "text" | "tool_use" | "thinking" | "redacted_thinking":
            part = _part_in(block, "content", {})
            return replace(part, name=widen_name(part.name)) if isinstance(part, ToolCallPart) else part
        case _:
            return None


def _server_result_in(block: wire.Block, kind: str) -> Part:
    """What a tool found that ran at the provider: the links of a search, and nothing that only they could read."""
    content = block.get("content")
    found = [
        FilePart(name=item.get("title"), url=item["url"])
        for item in (content if isinstance(content, list) else ())
        if isinstance(item, dict) and isinstance(item.get("url"), str)
    ]
    name = kind.removesuffix("_tool_result")
    failed = isinstance(content, dict) and str(content.get("type")).endswith("_error")
    return ToolResultPart(block["tool_use_id"], tuple(found), name=name, is_error=failed)


def response_block_out(part: Part) -> wire.Block | None:
    """A part of an answer for an Anthropic client; None for one that they have no block for (images, sounds)."""
    match part:
        case TextPart("") | RefusalPart(""):
            return None  # their clients send an answer back as it came, and an empty text is refused
        case TextPart(text):
            cited = [c for c in map(citation_out, part.citations) if c is not None]
            return {"type": "text", "text": text, "citations": cited or None}
        case RefusalPart(text):
            return {"type": "text", "text": text, "citations": None}
        case ReasoningPart():
            if is_redacted(part):
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": signature_out(part)}
        case ToolCallPart(kind="server"):
            return None
        case ToolCallPart():
            try:
                found = arguments_object(part.arguments, "arguments")
            except BadRequest:
                found = {"_malformed": part.arguments}  # the model's slip; the client's own schema check will say so
            ident = id_with_signature(part)
            return {"type": "tool_use", "id": ident, "name": part.name, "input": found, "caller": _CALLED_DIRECTLY[1]}
        case _:
            return None


def is_redacted(part: ReasoningPart) -> bool:
    """Thinking that Claude itself sealed away. Another model's rides in a signature, beside what can be read of it."""
    return part.redacted is not None and part.dialect in (None, *SEALED_FOR_CLAUDE)


def signature_out(part: ReasoningPart) -> str:
    """What an Anthropic client keeps for the next turn."""
    if part.dialect in (None, *SEALED_FOR_CLAUDE):
        return part.signature or ""
    if part.signature is None and part.redacted is None:
        return ""
    return seal(Sealed(part.dialect, part.signature, part.redacted, part.id))
