"""Cache markers put into prompts whose client sent none, for the models that read a prompt anew unless they are told
where it may be kept. Only where the alias asks for it: writing a cache costs a quarter more than reading the text.

Source: docs.anthropic.com "Prompt caching" and Bedrock's "Prompt caching" (`cachePoint`), read 2026-11: four markers at
most, a prefix below about 1,024 tokens is read as ever, and an unmarked request caches nothing."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.routing.catalog import Deployment
from providers.base import Call
from providers.neutral import ChatRequest, FilePart, ImagePart, Message, TextPart, ToolResultPart
from providers.neutral.content import CachePoint

_WANT_MARKERS = frozenset({"anthropic", "bedrock"})


def wants_markers(deployment: Deployment) -> bool:
    """Claude in any cloud; the other families cache by themselves, and some hosts refuse a marker."""
    return deployment.kind in _WANT_MARKERS or "claude" in deployment.model


def marked_call(call: Call) -> Call:
    request = marked(call.request)
    return call if request is call.request else replace(call, request=request, body=b"")


def marked(request: ChatRequest) -> ChatRequest:
    """The system prompt's end and the last turn's: one prefix that all conversations share, and this conversation's.
    The request itself where the client has marked anything."""
    if any(tool.cache for tool in request.tools) or any(
        getattr(part, "cache", None) for message in request.messages for part in message.content
    ):
        return request
    messages = list(request.messages)
    system = [at for at, message in enumerate(messages) if message.role in ("system", "developer")]
    turns = [at for at, message in enumerate(messages) if message.role == "user"]
    for ends in (system, turns):
        if ends:
            messages[ends[-1]] = _ended(messages[ends[-1]])
    return replace(request, messages=tuple(messages))


def _ended(message: Message) -> Message:
    if not message.content:
        return message
    *before, last = message.content
    match last:
        case TextPart() | ImagePart() | FilePart() | ToolResultPart():
            return replace(message, content=(*before, replace(last, cache=CachePoint())))
        case _:
            return message
