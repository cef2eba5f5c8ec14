"""Input items to messages and back.

An assistant turn is several items here (reasoning, message, function_call) and one message in the neutral form; tool
outputs are items of their own here and parts of a user message there. A custom tool takes free text here; everywhere
else it is a function with one text argument, `input`, so that any provider's model can be given it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from providers.dialects.losses import Losses
from providers.dialects.names import narrow_id, narrow_name
from providers.dialects.openai_responses import wire
from providers.dialects.sealed import unseal
from providers.errors import BadRequest
from providers.neutral import (
    AudioPart,
    CachePoint,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from providers.neutral.request import Role

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
}


class RawItem(Struct, frozen=True):
    """An item that only this dialect knows. at: how many neutral parts stand before it in the conversation."""

    at: int
    item: Mapping[str, Any]


# --- in ---------------------------------------------------------------------------------------------------------------


def messages_in(items: Sequence[Any]) -> tuple[tuple[Message, ...], dict[str, list[RawItem]]]:
    """Messages, and by type the items that have no neutral form (item_reference, hosted tool calls, compaction ...).

    Raises: BadRequest naming the item."""
    turns: list[tuple[Role, list[Part]]] = []
    raw: dict[str, list[RawItem]] = {}
    signatures: dict[str, str | None] = {}
    last_kind = ""
    count = 0
    for number, given in enumerate(items):
        where = f"input[{number}]"
        if not isinstance(given, dict):
            raise BadRequest(f"{where} must be an object", param=where)
        kind = given.get("type") or ("message" if "role" in given else "item_reference")
        if not isinstance(kind, str):
            raise BadRequest(f"{where}.type must be a string", param=f"{where}.type")
        if kind == "item_reference" and not isinstance(given.get("id"), str):
            raise BadRequest(f"{where} needs a type, a role or, as a reference, an id", param=where)
        if kind not in _KINDS:
            raw.setdefault(kind, []).append(RawItem(count, given))
            continue
        item = _convert(given, where)
        if kind == "reasoning" and (seal := unseal(item.encrypted_content)) is not None:
            if seal.tool_call_id is not None:
                signatures[seal.tool_call_id] = seal.signature
                continue
            if seal.text:
                _sign_last_text(turns, seal.signature)
                continue
        role, part_kind, parts = _turn(item, kind, where)
        if not parts and role == "assistant":
            continue
        count += len(parts)
        if part_kind == last_kind and part_kind != "message":
            turns[-1][1].extend(parts)
        else:
            turns.append((role, parts))
        last_kind = part_kind
    messages = (Message(role, tuple(_signed(part, signatures) for part in parts)) for role, parts in turns)
    return tuple(messages), raw


_KINDS: Final = frozenset(
    {
        "message",
        "function_call",
        "custom_tool_call",
        "function_call_output",
        "custom_tool_call_output",
        "reasoning",
    }
)


def _convert(given: Mapping[str, Any], where: str) -> wire.Item:
    try:
        return msgspec.convert(given, wire.Item)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{where}: {error}", param=where) from None


def _turn(item: wire.Item, kind: str, where: str) -> tuple[Role, str, list[Part]]:
    """Whose turn it is, what joins it (only neighbours of one kind join; messages never do), and its parts."""
    match kind:
        case "message":
            role = _ROLES.get(item.role or "")
            if role is None:
                raise BadRequest(f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role")
            if item.content is None:
                raise BadRequest(f"{where}.content is missing", param=f"{where}.content")
            return role, "assistant" if role == "assistant" else "message", content_in(item.content, f"{where}.content")
        case "reasoning":
            part = reasoning_in(item)
            return "assistant", "assistant", [part] if part is not None else []
        case "function_call" | "custom_tool_call":
            if not item.call_id or item.name is None:
                raise BadRequest(f"{where} needs call_id and name", param=where)
            arguments = wrap_text(item.input or "") if kind == "custom_tool_call" else item.arguments or ""
            return "assistant", "assistant", [ToolCallPart(item.call_id, joined_name(item), arguments)]
        case _:
            if not item.call_id or item.output is None:
                raise BadRequest(f"{where} needs call_id and output", param=where)
            content = tuple(content_in(item.output, f"{where}.output"))
            return "user", "outputs", [ToolResultPart(item.call_id, content, name=item.name)]


def joined_name(item: wire.Item) -> str:
    """A tool of a namespace goes by both names in the neutral form, as everywhere else."""
    return f"{item.namespace}__{item.name}" if item.namespace else item.name or ""


def reasoning_in(item: wire.Item) -> ReasoningPart | None:
    """OpenAI's own thinking stays sealed as it is; what we sealed for another dialect is opened again."""
    entries = item.summary or (item.content if isinstance(item.content, list) else None) or ()
    text = "\n\n".join(entry.text for entry in entries if entry.text)
    seal = unseal(item.encrypted_content)
    if seal is None:
        return ReasoningPart(text, redacted=item.encrypted_content, id=item.id, dialect=wire.NAME)
    part = ReasoningPart(text, seal.signature, seal.redacted, seal.id, seal.dialect)
    return None if part == ReasoningPart() else part


def content_in(content: str | Sequence[wire.Content], where: str) -> list[Part]:
    if isinstance(content, str):
        return [TextPart(content)]
    return [_part_in(entry, f"{where}[{number}]") for number, entry in enumerate(content)]


def _part_in(entry: wire.Content, where: str) -> Part:
    cache = CachePoint() if entry.prompt_cache_breakpoint else None
    match entry.type:
        case "input_text" | "output_text" | "text" | "summary_text":
            if entry.text is None:
                raise BadRequest(f"{where}.text is missing", param=f"{where}.text")
            return TextPart(entry.text, cache=cache)
        case "refusal":
            return RefusalPart(entry.refusal or "")
        case "input_image":
            if entry.image_url is not None:
                media_type, data = _inline(entry.image_url)
                url = entry.image_url if data is None else None
                return ImagePart(media_type, data, url, entry.detail, cache)
            if entry.file_id is not None:
                return FilePart(media_type="image/*", file_id=entry.file_id, cache=cache)
            raise BadRequest(f"{where} needs image_url or file_id", param=where)
        case "input_file":
            if entry.file_data is not None:
                media_type, data = _inline(entry.file_data)
                return FilePart(media_type, entry.filename, data if data is not None else entry.file_data, cache=cache)
            if entry.file_url is None and entry.file_id is None:
                raise BadRequest(f"{where} needs file_data, file_url or file_id", param=where)
            return FilePart(name=entry.filename, url=entry.file_url, file_id=entry.file_id, cache=cache)
        case "input_audio" if entry.input_audio is not None:
            return AudioPart(entry.input_audio.format, entry.input_audio.data)
    raise BadRequest(f"{where}.type {entry.type!r} is not known", param=f"{where}.type")


def _inline(url: str) -> tuple[str | None, str | None]:
    """Media type and base64 text of a data URL; (None, None) for any other URL."""
    if not url.startswith("data:"):
        return None, None
    head, comma, data = url.partition(",")
    media_type, _, coding = head[5:].partition(";")
    return (media_type or None, data) if comma and coding.endswith("base64") else (None, None)


def _sign_last_text(turns: list[tuple[Role, list[Part]]], signature: str | None) -> None:
    if turns and turns[-1][0] == "assistant":
        parts = turns[-1][1]
        for at in range(len(parts) - 1, -1, -1):
            part = parts[at]
            if isinstance(part, TextPart):
                parts[at] = replace(part, signature=signature)
                return


def _signed(part: Part, signatures: Mapping[str, str | None]) -> Part:
    if isinstance(part, ToolCallPart) and part.id in signatures:
        return replace(part, signature=signatures[part.id])
    return part


# --- out --------------------------------------------------------------------------------------------------------------


def items_out(
    messages: Sequence[Message],
    raw: Sequence[RawItem],
    custom_tools: frozenset[str],
    spaces: Mapping[str, tuple[str, str]],
    losses: Losses,
    *,
    stored: bool = False,
) -> list[dict[str, Any]]:
    """spaces: as `request.namespaced` tells them. stored: OpenAI keeps the items of this conversation, so thinking can
    be named by its id alone; else an id without the sealed text is an error there."""
    items: list[dict[str, Any]] = []
    waiting = sorted(raw, key=lambda entry: entry.at, reverse=True)
    custom_calls: set[str] = set()
    count = 0
    for message in messages:
        open_message: list[dict[str, Any]] | None = None
        for part in message.content:
            while waiting and waiting[-1].at <= count:
                items.append(dict(waiting.pop().item))
                open_message = None
            count += 1
            match part:
                case ToolResultPart():
                    items.append(_output_out(part, part.tool_call_id in custom_calls, losses))
                case ToolCallPart(kind="server"):
                    losses.tell("server_tool_call")  # it ran elsewhere; its result is in the text that follows
                    continue
                case ToolCallPart():
                    if part.kind == "custom" or part.name in custom_tools:
                        custom_calls.add(part.id)
                    call = _call_out(part, part.id in custom_calls, losses)
                    if part.name in spaces:
                        call["namespace"], call["name"] = spaces[part.name]
                    items.append(call)
                case ReasoningPart():
                    if part.dialect != wire.NAME or not (part.redacted or (stored and part.id)):
                        losses.tell("reasoning")
                        continue
                    items.append(_reasoning_out(part))
                case _:
                    if open_message is None:
                        open_message = []
                        items.append({"type": "message", "role": message.role, "content": open_message})
                    open_message.append(_part_out(part, message.role == "assistant", losses))
                    continue
            open_message = None
        if not message.content:
            items.append({"type": "message", "role": message.role, "content": []})
    while waiting:
        items.append(dict(waiting.pop().item))
    return items


# OpenAI's own bounds on names and ids. Source: API reference and its 400 answers, read 2026-11.
_NAME_CHARS: Final = 64
_ID_CHARS: Final = 64


def sent_name(name: str, losses: Losses) -> str:
    narrow = narrow_name(name, _NAME_CHARS)
    if narrow is None:
        losses.refuse(f"tool name {name}")
        return name
    return narrow


def _call_out(part: ToolCallPart, is_custom: bool, losses: Losses) -> dict[str, Any]:
    known = {"call_id": narrow_id(part.id, _ID_CHARS), "name": sent_name(part.name, losses)}
    if is_custom:
        text = part.arguments if part.kind == "custom" else unwrap_text(part.arguments)
        return {"type": "custom_tool_call", **known, "input": text}
    return {"type": "function_call", **known, "arguments": part.arguments}


def _output_out(part: ToolResultPart, is_custom: bool, losses: Losses) -> dict[str, Any]:
    if part.is_error:
        losses.tell("tool_result.is_error")  # the text says it too
    if part.cache is not None:
        losses.tell("cache_control")
    output: str | list[dict[str, Any]]
    if len(part.content) == 1 and isinstance(part.content[0], TextPart) and part.content[0].cache is None:
        output = part.content[0].text
    else:
        output = [_part_out(inner, False, losses) for inner in part.content]
    kind = "custom_tool_call_output" if is_custom else "function_call_output"
    return {"type": kind, "call_id": narrow_id(part.tool_call_id, _ID_CHARS), "output": output}


def _reasoning_out(part: ReasoningPart) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "reasoning"}
    if part.id is not None:
        item["id"] = part.id
    item["summary"] = [{"type": "summary_text", "text": part.text}] if part.text else []
    if part.redacted is not None:
        item["encrypted_content"] = part.redacted
    return item


def _part_out(part: Part, by_assistant: bool, losses: Losses) -> dict[str, Any]:
    if getattr(part, "cache", None) is not None:
        losses.tell("cache_control")
    match part:
        case TextPart(text):
            if by_assistant:
                return {"type": "output_text", "text": text, "annotations": []}
            return {"type": "input_text", "text": text}
        case RefusalPart(text):
            return {"type": "refusal", "refusal": text}
        case ImagePart():
            url = part.url if part.data is None else f"data:{part.media_type or 'image/png'};base64,{part.data}"
            return {"type": "input_image", "image_url": url, "detail": part.detail or "auto"}
        case FilePart(media_type="image/*", file_id=str()):
            return {"type": "input_image", "file_id": part.file_id, "detail": "auto"}
        case FilePart(text=str()):
            return {"type": "input_text", "text": part.text}
        case FilePart():
            return _file_out(part)
        case AudioPart(data=str()):
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format or "wav"}}
    losses.refuse(f"{type(part).__name__.removesuffix('Part').lower()} in this place")
    return {}


def _file_out(part: FilePart) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "input_file"}
    if part.name is not None:
        item["filename"] = part.name
    if part.data is not None:
        item["file_data"] = f"data:{part.media_type};base64,{part.data}" if part.media_type else part.data
        # The API refuses inline files without a name.
        item.setdefault("filename", "file." + (part.media_type or "application/pdf").rpartition("/")[2])
    elif part.url is not None:
        item["file_url"] = part.url
    else:
        item["file_id"] = part.file_id
    return item


# --- custom tools -----------------------------------------------------------------------------------------------------

CUSTOM_PARAMETERS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


def wrap_text(text: str) -> str:
    return msgspec.json.encode({"input": text}).decode()


def unwrap_text(arguments: str) -> str:
    """The text inside a custom tool's arguments; a model that wrote something else is shown as it wrote."""
    try:
        found = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    inner = found.get("input") if isinstance(found, dict) else None
    return inner if isinstance(inner, str) else arguments
