"""Content blocks and neutral parts, both ways. A cache point is a block of its own here and a mark on the part before
it in the neutral form. What has no neutral meaning is kept by its path, as in the other dialects.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from providers.dialects.bedrock_converse import wire
from providers.dialects.claude import SEALED_FOR_CLAUDE
from providers.dialects.extras import Extras, leftovers, read
from providers.dialects.losses import Losses
from providers.dialects.names import narrow_id, narrow_name, split_signature
from providers.dialects.sealed import unseal
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

NAME = "bedrock_converse"
MAX_NAME_CHARS = 64
MAX_ID_CHARS = 64

DOCUMENT_TYPES: Mapping[str, str] = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
_DOCUMENT_FORMATS = {media_type: name for name, media_type in DOCUMENT_TYPES.items()}
_IMAGE_FORMATS = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
}
_VIDEO_FORMATS = ("mkv", "mov", "mp4", "webm", "flv", "mpeg", "mpg", "wmv", "three_gp")
_AUDIO_FORMATS = (
    *("mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "mkv", "mka"),
    *("x-aac", "m4a", "mpeg", "mpga", "pcm", "webm"),
)

_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^,]*)?;base64,(?P<data>.*)", re.DOTALL)
_NOT_IN_DOCUMENT_NAME = re.compile(r"[^a-zA-Z0-9\s\-()\[\]]+")


def cache_in(raw: Any, path: str) -> CachePoint:
    return CachePoint(read(raw, wire.CachePoint, path).ttl)


def cache_block(point: CachePoint) -> wire.Block:
    return {"cachePoint": {"type": "default"} | ({"ttl": point.ttl} if point.ttl else {})}


def parts_in(blocks: Sequence[wire.Block], path: str, extras: Extras) -> tuple[Part, ...]:
    """Raises: BadRequest."""
    parts: list[Part] = []
    for number, block in enumerate(blocks):
        here = f"{path}[{number}]"
        if "cachePoint" in block:
            point = cache_in(block["cachePoint"], f"{here}.cachePoint")
            if parts and not isinstance(parts[-1], ReasoningPart | RefusalPart | AudioPart):
                parts[-1] = replace(parts[-1], cache=point)
            else:
                extras[here] = block
            continue
        part = _part_in(block, here, extras)
        if part is None:
            extras[here] = block
        else:
            parts.append(part)
    return tuple(parts)


def _part_in(block: wire.Block, path: str, extras: Extras) -> Part | None:
    """None for a block without a neutral meaning."""
    kind, value = next(iter(block.items()), ("", {}))
    here = f"{path}.{kind}"
    match kind:
        case "text":
            return TextPart(read(value, str, here))
        case "image" | "document" | "video" | "audio":
            return _media_in(kind, value, here)
        case "toolUse":
            return tool_use_in(value, here)
        case "toolResult":
            result = read(value, wire.ToolResult, here)
            leftovers(value, wire.ToolResult, here, extras)
            content: list[Part] = []
            for number, inner in enumerate(result.content):
                if "json" in inner:
                    content.append(TextPart(msgspec.json.encode(inner["json"]).decode()))
                elif (part := _part_in(inner, f"{here}.content[{number}]", extras)) is not None:
                    content.append(part)
                else:
                    extras[f"{here}.content[{number}]"] = inner
            ident = split_signature(result.toolUseId)[0]
            return ToolResultPart(ident, tuple(content), is_error=result.status == "error")
        case "reasoningContent":
            return reasoning_in(read(value, wire.Reasoning, here))
        case "citationsContent":
            return cited_text_in(value, here)
        case "":
            raise BadRequest(f"{path}: a content block has one member", param=path)
        case _:
            return None


def tool_use_in(value: Any, path: str) -> ToolCallPart:
    call = read(value, wire.ToolUse, path)
    ident, signature = split_signature(call.toolUseId)
    kind = "server" if call.type == "server_tool_use" else "function"
    arguments = msgspec.json.encode(call.input if call.input is not None else {}).decode()
    return ToolCallPart(ident, call.name, arguments, "server" if kind == "server" else "function", signature)


def reasoning_in(value: wire.Reasoning) -> ReasoningPart | None:
    if value.redactedContent is not None:
        return ReasoningPart(redacted=value.redactedContent, dialect=NAME)
    if value.reasoningText is None:
        return None
    text, signature = value.reasoningText.text, value.reasoningText.signature
    if (foreign := unseal(signature)) is not None:
        return ReasoningPart(text, foreign.signature, foreign.redacted, foreign.id, foreign.dialect)
    return ReasoningPart(text, signature or None, dialect=NAME)


def cited_text_in(value: Any, path: str) -> TextPart:
    cited = read(value, wire.CitationsContent, path)
    text = "".join(piece.text or "" for piece in cited.content or ())
    return TextPart(text, citations=tuple(map(citation_in, cited.citations or ())))


def citation_in(raw: dict[str, Any]) -> Citation:
    location = raw.get("location")
    web = location.get("web") if isinstance(location, dict) else None
    url = web.get("url") if isinstance(web, dict) else None
    quoted = raw.get("sourceContent")
    quote = "".join(str(piece.get("text", "")) for piece in quoted or () if isinstance(piece, dict))
    title = raw.get("title")
    return Citation(
        url=url if isinstance(url, str) else None,
        title=title if isinstance(title, str) else None,
        quote=quote or None,
        dialect=NAME,
        raw=raw,
    )


def _media_in(kind: str, value: Any, path: str) -> Part | None:
    media = read(value, wire.Media, path)
    source = media.source
    url = source.s3Location.uri if source.s3Location is not None else None
    owned = url is not None and "bucketOwner" in value["source"]["s3Location"]
    if owned or not value.keys() <= set(wire.Media.__struct_fields__):
        return None  # a bucket owner, a citations switch: nothing could keep them but the block itself
    if source.bytes is None and url is None and source.text is None:
        return None
    name = media.format or ""
    match kind:
        case "image":
            return ImagePart(media_type=f"image/{name}", data=source.bytes, url=url)
        case "audio":
            return AudioPart(name, source.bytes) if source.bytes is not None else None
        case "video":
            return FilePart(media_type=f"video/{name}", data=source.bytes, url=url)
        case _:
            media_type = DOCUMENT_TYPES.get(name, "text/plain" if source.text is not None else None)
            return FilePart(media_type, media.name, source.bytes, source.text, url)


def blocks_out(parts: Sequence[Part], path: str, losses: Losses) -> list[wire.Block]:
    """Raises: BadRequest for tool arguments that are no JSON object."""
    blocks: list[wire.Block] = []
    for number, part in enumerate(parts):
        block = _block_out(part, f"{path}[{number}]", losses)
        if block is None:
            continue
        blocks.append(block)
        if (point := getattr(part, "cache", None)) is not None:
            blocks.append(cache_block(point))
    return blocks


def _block_out(part: Part, path: str, losses: Losses) -> wire.Block | None:
    match part:
        case TextPart(text) | RefusalPart(text):
            return {"text": text} if text else None  # an empty text is refused there
        case ImagePart():
            return _image_out(part, path, losses)
        case FilePart():
            return _file_out(part, path, losses)
        case AudioPart():
            if part.data is not None and part.format in _AUDIO_FORMATS:
                return {"audio": {"format": part.format, "source": {"bytes": part.data}}}
            losses.refuse(f"{path}: audio by reference" if part.data is None else f"{path}: audio format {part.format}")
            return None
        case ToolCallPart():
            return _tool_use_out(part, path, losses)
        case ToolResultPart():
            content = [
                block
                for number, inner in enumerate(part.content)
                if (block := _block_out(inner, f"{path}.content[{number}]", losses)) is not None
            ]
            result: dict[str, Any] = {"toolUseId": narrow_id(part.tool_call_id, MAX_ID_CHARS), "content": content}
            if part.is_error:
                result["status"] = "error"
            return {"toolResult": result}
        case ReasoningPart():
            return _reasoning_out(part, path, losses)


def _reasoning_out(part: ReasoningPart, path: str, losses: Losses) -> wire.Block | None:
    """Thinking that Claude sealed, or that a model of Bedrock's wrote in the open."""
    if part.dialect in SEALED_FOR_CLAUDE:
        if part.redacted is not None:
            return {"reasoningContent": {"redactedContent": part.redacted}}
        if part.signature is not None:
            return {"reasoningContent": {"reasoningText": {"text": part.text, "signature": part.signature}}}
        if part.dialect == NAME and part.text:
            return {"reasoningContent": {"reasoningText": {"text": part.text}}}
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
    ident = narrow_id(call.id, MAX_ID_CHARS)
    return {"toolUse": {"toolUseId": ident, "name": name, "input": arguments_object(call.arguments, path)}}


def arguments_object(arguments: str, path: str) -> dict[str, Any]:
    """Raises: BadRequest: Bedrock takes an object, and inventing one would put words into the model's mouth."""
    try:
        found = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest(f"{path}: the tool call's arguments are not a JSON object", param=path)
    return found


def _source(data: str | None, url: str | None) -> dict[str, Any] | None:
    """Bytes, or an object in S3; nothing else is fetched there."""
    if data is not None:
        return {"bytes": data}
    if url is not None and url.startswith("s3://"):
        return {"s3Location": {"uri": url}}
    return None


def _image_out(image: ImagePart, path: str, losses: Losses) -> wire.Block | None:
    if image.detail not in (None, "auto"):
        losses.drop(f"{path}: image detail")
    media_type, data, url = image.media_type, image.data, image.url
    if url is not None and (inline := _DATA_URL.fullmatch(url)) is not None:
        media_type, data = inline["type"], inline["data"]
    source = _source(data, url)
    if source is None:
        losses.refuse(f"{path}: image by URL")
        return None
    name = _IMAGE_FORMATS.get(media_type or "") or _sniffed_format(data or "") or _extension(url or "", "png")
    if name not in _IMAGE_FORMATS.values():
        losses.refuse(f"{path}: image of type {media_type or 'unknown'}")
        return None
    return {"image": {"format": name, "source": source}}


def _sniffed_format(data: str) -> str | None:
    """The format by the first bytes of base64 text."""
    for prefix, name in (("iVBORw0KGgo", "png"), ("/9j/", "jpeg"), ("R0lGOD", "gif"), ("UklGR", "webp")):
        if data.startswith(prefix):
            return name
    return None


def _extension(name: str, otherwise: str) -> str:
    found = name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else otherwise
    return "jpeg" if found == "jpg" else found


def _file_out(file: FilePart, path: str, losses: Losses) -> wire.Block | None:
    media_type = (file.media_type or "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") and file.file_id is None:
        return _image_out(ImagePart(media_type, file.data, file.url), path, losses)
    data = file.data
    if file.text is not None:
        data, media_type = base64.b64encode(file.text.encode()).decode(), media_type or "text/plain"
    source = _source(data, file.url)
    if source is None:
        losses.refuse(f"{path}: file by {'id' if file.file_id is not None else 'URL'}")
        return None
    if media_type.startswith("video/"):
        name = media_type.removeprefix("video/")
        if name in _VIDEO_FORMATS:
            return {"video": {"format": name, "source": source}}
    name = _DOCUMENT_FORMATS.get(media_type) or _extension(file.name or file.url or "", "")
    if not name and (data or "").startswith("JVBERi0"):
        name = "pdf"
    if name not in DOCUMENT_TYPES and media_type.startswith("text/"):
        name = "txt"
    if name not in DOCUMENT_TYPES:
        losses.refuse(f"{path}: file of type {media_type or 'unknown'}")
        return None
    return {"document": {"format": name, "name": document_name(file.name, path), "source": source}}


def document_name(name: str | None, path: str) -> str:
    """Required, and told to the model; dots and most other signs are refused there."""
    cleaned = " ".join(_NOT_IN_DOCUMENT_NAME.sub("-", name or "").split())[:200].strip()
    return cleaned or "document " + "-".join(re.findall(r"\d+", path))


def valid_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
