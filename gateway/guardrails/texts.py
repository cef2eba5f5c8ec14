"""Every text of a request or an answer, seen or replaced in place, whatever kind of part it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from providers.neutral import (
    ChatRequest,
    FilePart,
    Message,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from providers.neutral.content import Part


class Edit(Protocol):
    def __call__(self, text: str, *, json: bool = False) -> str:
        """json: of a tool's arguments. Raises: Blocked."""


def last_said(request: ChatRequest) -> str:
    """The text of the last message of the user."""
    for message in reversed(request.messages):
        if message.role == "user" and (texts := [p.text for p in message.content if isinstance(p, TextPart)]):
            return "\n".join(texts)
    return ""


def edited_request(request: ChatRequest, edit: Edit) -> ChatRequest:
    """With every text that the model will read as `edit` makes it; the same object if it changes none."""
    messages = tuple(edited_message(message, edit) for message in request.messages)
    changed = any(new is not old for new, old in zip(messages, request.messages, strict=True))
    return replace(request, messages=messages) if changed else request


def edited_message(message: Message, edit: Edit) -> Message:
    content = edited_parts(message.content, edit)
    return message if content is message.content else replace(message, content=content)


def edited_parts(parts: tuple[Part, ...], edit: Edit) -> tuple[Part, ...]:
    new = tuple(edited_part(part, edit) for part in parts)
    return new if any(a is not b for a, b in zip(new, parts, strict=True)) else parts


def edited_part(part: Part, edit: Edit) -> Part:
    """A signed thought goes back as it came or not at all: its seal would not fit another text."""
    match part:
        case TextPart() | RefusalPart():
            return part if (text := edit(part.text)) == part.text else replace(part, text=text)
        case ReasoningPart():
            if (text := edit(part.text)) == part.text:
                return part
            return replace(part, text=text, signature=None)
        case ToolCallPart():
            text = edit(part.arguments, json=part.kind != "custom")
            return part if text == part.arguments else replace(part, arguments=text)
        case ToolResultPart():
            content = edited_parts(part.content, edit)
            return part if content is part.content else replace(part, content=content)
        case FilePart(text=str(said)):
            return part if (text := edit(said)) == said else replace(part, text=text)
    return part


def texts_of(request: ChatRequest) -> tuple[str, ...]:
    """Every text that the model will read, in order."""
    found: list[str] = []

    def see(text: str, *, json: bool = False) -> str:
        found.append(text)
        return text

    edited_request(request, see)
    return tuple(found)


def with_texts(request: ChatRequest, texts: Sequence[str]) -> ChatRequest:
    """texts: as `texts_of` has them, edited."""
    new = iter(texts)
    return edited_request(request, lambda text, *, json=False: next(new))
