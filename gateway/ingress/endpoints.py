"""Which dialect and operation a method and path mean, and what the path itself says about model and streaming.

Source: the clients' own requests, recorded 2026-11 (openai 3.54, anthropic 2.12, google-genai 3.4, boto3 1.44).
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote

from msgspec import Struct

Operation = Literal["chat", "completions", "models", "count_tokens"]


class Route(Struct, frozen=True):
    """model, stream: set where the path carries them, None where the body does."""

    dialect: str
    operation: Operation
    model: str | None = None
    stream: bool | None = None


CHAT = Route("openai_chat", "chat")
COMPLETIONS = Route("openai_completions", "completions")
RESPONSES = Route("openai_responses", "chat")
MESSAGES = Route("anthropic_messages", "chat")

# Groq's SDK, Azure's v1 surface and Bedrock's OpenAI surface all say /openai/v1; some users leave /v1 out.
EXACT: dict[str, Route] = {
    prefix + path: route
    for prefix in ("/v1", "/openai/v1", "")
    for path, route in (
        ("/chat/completions", CHAT),
        ("/completions", COMPLETIONS),
        ("/responses", RESPONSES),
        ("/messages", MESSAGES),
    )
} | {"/anthropic/v1/messages": MESSAGES, "/models/chat/completions": CHAT}

_GEMINI = re.compile(
    r"/v1(?:beta1?)?/(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/google/)?models/(?P<model>.+)"
    r":(?P<verb>generateContent|streamGenerateContent)"
)
_BEDROCK = re.compile(r"/model/(?P<model>[^/]+)/(?P<verb>converse|converse-stream)")
_AZURE = re.compile(r"/openai/deployments/(?P<model>[^/]+)/(?P<verb>chat/completions|completions)")


def match(method: str, path: str) -> Route | None:
    """The route of an answering request, or None when the path is not for the data plane.

    path: raw, percent-encoded, without the query. A model in the path is decoded exactly once.
    """
    if method != "POST":
        return None
    if (route := EXACT.get(path)) is not None:
        return route
    if found := _GEMINI.fullmatch(path):
        return Route("gemini", "chat", unquote(found["model"]), found["verb"] == "streamGenerateContent")
    if found := _BEDROCK.fullmatch(path):
        return Route("bedrock_converse", "chat", unquote(found["model"]), found["verb"] == "converse-stream")
    if found := _AZURE.fullmatch(path):
        route = CHAT if found["verb"] == "chat/completions" else COMPLETIONS
        return Route(route.dialect, route.operation, unquote(found["model"]))
    return None
