"""OpenAI's dialect, inwards: the turns of a conversation -> what chat templates expect."""

from __future__ import annotations

import json
from typing import Any

from local_backend.errors import InvalidRequest, Unsupported
from local_backend.images import Album, Picture
from local_backend.model_config import ModelConfig
from local_backend.openai_bodies import Message


def template_messages(messages: list[Message], config: ModelConfig) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Turns of plain text, or of parts where there are images, and these in their order.

    Raises InvalidRequest, or Unsupported for audio, files, and images where the model has no eyes."""
    album = Album(config)
    return [_template_message(message, at, album) for at, message in enumerate(messages)], album.pictures


def _template_message(message: Message, at: int, album: Album) -> dict[str, Any]:
    """What templates expect: text, or parts with places for images, and the roles that open models know."""
    content: Any = message.content
    if isinstance(content, list):
        shown = False
        for n, part in enumerate(content):
            if part.get("type") == "image_url" and album.is_open and message.role == "user":
                album.add(part, f"messages[{at}].content[{n}]")
                shown = True
                continue
            if part.get("type") not in ("text", "refusal"):
                reads = "text, and images in turns of users" if album.is_open else "text alone"
                raise Unsupported(
                    f"content of type {part.get('type')!r} is not served here: this model reads {reads}",
                    param=f"messages[{at}].content[{n}]",
                )
            if not isinstance(part.get(part["type"]), str):
                raise InvalidRequest("a text part needs its text", param=f"messages[{at}].content[{n}].text")
        texts = [part.get(part["type"]) for part in content]
        if shown:
            content = [
                {"type": "image"} if part["type"] == "image_url" else {"type": "text", "text": text}
                for part, text in zip(content, texts, strict=True)
            ]
        else:
            content = "".join(texts)
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.role not in ("system", "developer", "user", "assistant", "tool"):
        raise InvalidRequest(f"unknown role {message.role!r}", param=f"messages[{at}].role")
    for field in ("name", "tool_call_id"):
        if (value := getattr(message, field)) is not None:
            turn[field] = value
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(call, f"messages[{at}].tool_calls[{n}]") for n, call in enumerate(message.tool_calls)
        ]
    if (thought := message.reasoning_content or message.reasoning) is not None and message.role == "assistant":
        turn["reasoning_content"] = thought
    return turn


def _call(call: Any, param: str) -> dict[str, Any]:
    """A call that was made before, its arguments as an object: templates write them with `tojson`."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest('a call is {"id", "type": "function", "function": {"name", "arguments"}}', param=param)
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise InvalidRequest(
                "arguments are the text of a JSON object", param=f"{param}.function.arguments"
            ) from None
    if not isinstance(arguments, dict):
        raise InvalidRequest("arguments are the text of a JSON object", param=f"{param}.function.arguments")
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}
