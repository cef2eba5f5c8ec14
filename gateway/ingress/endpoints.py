"""Which dialect and operation a method and path mean, and what the path itself says about model and streaming.

Source: the clients' own requests, recorded 2026-11 (openai 3.54, anthropic 2.12, google-genai 3.4, boto3 1.44).
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qs, unquote

from msgspec import Struct

from providers.dialects import openai_media

Operation = Literal[
    "chat",
    "completions",
    "conversation",
    "embeddings",
    "models",
    "count_tokens",
    "rerank",
    "transcriptions",
    "translations",
    "speech",
    "images",
    "image_edits",
    "retrieve",
    "forget",
    "input_items",
    "cancel",
    "file_create",
    "file_list",
    "file_get",
    "file_content",
    "file_delete",
    "batch_create",
    "batch_list",
    "batch_get",
    "batch_cancel",
    "message_batch_create",
    "message_batch_list",
    "message_batch_get",
    "message_batch_cancel",
    "message_batch_results",
    "message_batch_delete",
    "interaction",
    "interaction_get",
    "interaction_delete",
    "interaction_cancel",
    "warming",
]
Envelope = Literal["", "json_array", "invoke_model", "raw_predict"]


# Dialects without errors of their own: they share those of their family.
_WORDED_BY = {"openai_embeddings": "openai_chat", "cohere_embed": "rerank"}


class Route(Struct, frozen=True):
    """model, stream: set where the path carries them, None where the body does.

    batch: several texts in Gemini's own batch form. envelope: what the dialect is wrapped in on this path, see
    `envelopes.py`. item: id of the stored thing that the path names. version: of an API whose answers tell it.
    query: raw, where it says which part of a list is wanted."""

    dialect: str
    operation: Operation
    model: str | None = None
    stream: bool | None = None
    batch: bool = False
    envelope: Envelope = ""
    item: str | None = None
    version: str = ""
    query: str = ""

    @property
    def error_dialect(self) -> str:
        """Who words a refusal: AWS's envelope has errors of its own, and embeddings share those of their family."""
        if self.envelope == "invoke_model":
            return "bedrock_converse"
        return _WORDED_BY.get(self.dialect, self.dialect)


CHAT = Route("openai_chat", "chat")
COMPLETIONS = Route("openai_completions", "completions")
EMBEDDINGS = Route("openai_embeddings", "embeddings")
RESPONSES = Route("openai_responses", "conversation")
RESPONSES_COUNT = Route("openai_responses", "count_tokens")
RERANK = Route("rerank", "rerank", version="1")
RERANK_V2 = Route("rerank", "rerank", version="2")
EMBED = Route("cohere_embed", "embeddings", version="1")
EMBED_V2 = Route("cohere_embed", "embeddings", version="2")
MESSAGES = Route("anthropic_messages", "chat")
MESSAGES_COUNT = Route("anthropic_messages", "count_tokens")

# Groq's SDK, Azure's v1 surface and Bedrock's OpenAI surface all say /openai/v1; some users leave /v1 out, and
# AzureOpenAI says /openai alone for what belongs to no deployment.
EXACT: dict[str, Route] = {
    prefix + path: route
    for prefix in ("/v1", "/openai/v1", "/openai", "")
    for path, route in (
        ("/chat/completions", CHAT),
        ("/completions", COMPLETIONS),
        ("/embeddings", EMBEDDINGS),
        ("/responses", RESPONSES),
        ("/responses/input_tokens", RESPONSES_COUNT),
        ("/messages", MESSAGES),
        ("/messages/count_tokens", MESSAGES_COUNT),
        *((path, Route("openai_chat", operation)) for operation, path in openai_media.PATHS.items()),
    )
} | {
    "/anthropic/v1/messages": MESSAGES,
    "/anthropic/v1/messages/count_tokens": MESSAGES_COUNT,
    "/models/chat/completions": CHAT,
    "/models/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/rerank": RERANK,
    "/v2/rerank": RERANK_V2,
    "/v1/embed": EMBED,
    "/v2/embed": EMBED_V2,
    "/providers/cohere/v2/rerank": RERANK_V2,  # as Azure's users know it
}

_GEMINI = re.compile(
    r"/v1(?:beta1?)?/(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/(?P<publisher>[^/]+)/)?models/(?P<model>.+)"
    r":(?P<verb>generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents)"
)
# Claude Code's base URL for Vertex ends before or after the version.
_VERTEX_CLAUDE = re.compile(
    r"(?:/v1(?:beta1)?)?/projects/[^/]+/locations/[^/]+/publishers/anthropic/models/(?P<model>.+)"
    r":(?P<verb>rawPredict|streamRawPredict)"
)
_BEDROCK = re.compile(
    r"/model/(?P<model>[^/]+)/(?P<verb>converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)"
)
_STORED = re.compile(r"(?:/openai)?(?:/v1)?/responses/(?P<id>(?!input_tokens$)[^/]+)(?P<of>/input_items|/cancel)?")
# Files and batches, by method and which of the path's parts are there.
_KEPT = re.compile(r"(?:/openai|(?:/openai)?/v1)/(?P<kind>files|batches)(?:/(?P<id>[^/]+)(?P<of>/content|/cancel)?)?")
_OF_KEPT: dict[tuple[str, str, bool, str | None], Operation] = {
    ("POST", "files", False, None): "file_create",
    ("GET", "files", False, None): "file_list",
    ("GET", "files", True, None): "file_get",
    ("GET", "files", True, "/content"): "file_content",
    ("DELETE", "files", True, None): "file_delete",
    ("POST", "batches", False, None): "batch_create",
    ("GET", "batches", False, None): "batch_list",
    ("GET", "batches", True, None): "batch_get",
    ("POST", "batches", True, "/cancel"): "batch_cancel",
}
_MESSAGE_BATCHES = re.compile(r"(?:(?:/anthropic)?/v1)?/messages/batches(?:/(?P<id>[^/]+)(?P<of>/cancel|/results)?)?")
_OF_MESSAGE_BATCHES: dict[tuple[str, bool, str | None], Operation] = {
    ("POST", False, None): "message_batch_create",
    ("GET", False, None): "message_batch_list",
    ("GET", True, None): "message_batch_get",
    ("POST", True, "/cancel"): "message_batch_cancel",
    ("GET", True, "/results"): "message_batch_results",
    ("DELETE", True, None): "message_batch_delete",
}
_INTERACTIONS = re.compile(
    r"/v1(?:alpha|beta1?)?/(?:projects/[^/]+/locations/[^/]+/)?interactions(?:/(?P<id>[^/]+)(?P<of>/cancel)?)?"
)
_OF_INTERACTIONS: dict[tuple[str, bool, str | None], Operation] = {
    ("POST", False, None): "interaction",
    ("GET", True, None): "interaction_get",
    ("DELETE", True, None): "interaction_delete",
    ("POST", True, "/cancel"): "interaction_cancel",
}
# What is done to a stored answer, by method and the rest of its path.
_OF_STORED: dict[tuple[str, str | None], Operation] = {
    ("GET", None): "retrieve",
    ("DELETE", None): "forget",
    ("GET", "/input_items"): "input_items",
    ("POST", "/cancel"): "cancel",
}
_AZURE = re.compile(
    r"/openai/deployments/(?P<model>[^/]+)(?P<path>/chat/completions|/completions|/embeddings|/audio/\w+|/images/\w+)"
)


def match(method: str, path: str, query: str = "") -> Route | None:
    """The route of an answering request, or None when the path is not for the data plane.

    path: raw, percent-encoded, without the query. A model in the path is decoded exactly once. query: raw; it decides
    only in which framing Gemini's clients want a stream."""
    if method == "POST" and (route := EXACT.get(path)) is not None:  # nearly every request
        return route
    if (found := _STORED.fullmatch(path)) and (operation := _OF_STORED.get((method, found["of"]))):
        return Route("openai_responses", operation, item=unquote(found["id"]), query=query)
    if found := _KEPT.fullmatch(path):
        kept = _OF_KEPT.get((method, found["kind"], found["id"] is not None, found["of"]))
        return (
            None if kept is None else Route("openai_chat", kept, item=found["id"] and unquote(found["id"]), query=query)
        )
    if found := _MESSAGE_BATCHES.fullmatch(path):
        of = _OF_MESSAGE_BATCHES.get((method, found["id"] is not None, found["of"]))
        return (
            None
            if of is None
            else Route("anthropic_messages", of, item=found["id"] and unquote(found["id"]), query=query)
        )
    if found := _INTERACTIONS.fullmatch(path):
        of = _OF_INTERACTIONS.get((method, found["id"] is not None, found["of"]))
        ident = found["id"] and unquote(found["id"])
        return None if of is None else Route("gemini_interactions", of, item=ident, query=query)
    if method != "POST":
        return None
    if found := _GEMINI.fullmatch(path):
        # google-genai in its Vertex form writes a name with a slash as publisher and model.
        publisher = unquote(found["publisher"] or "google")
        owned = "" if publisher == "google" else f"{publisher}/"
        return _gemini(owned + unquote(found["model"]), found["verb"], query)
    if found := _BEDROCK.fullmatch(path):
        return _bedrock(unquote(found["model"]), found["verb"])
    if (found := _AZURE.fullmatch(path)) and (route := EXACT.get(found["path"])) is not None:
        return Route(route.dialect, route.operation, unquote(found["model"]))
    if found := _VERTEX_CLAUDE.fullmatch(path):
        model = unquote(found["model"])
        if model == "count-tokens":  # a verb in the place of a model, which stands in the body then
            return Route("anthropic_messages", "count_tokens", envelope="raw_predict")
        stream = found["verb"] == "streamRawPredict"
        return Route("anthropic_messages", "chat", model, stream, envelope="raw_predict")
    return None


def _gemini(model: str, verb: str, query: str) -> Route:
    match verb:
        case "countTokens":
            return Route("gemini", "count_tokens", model)
        case "embedContent" | "batchEmbedContents":
            return Route("gemini", "embeddings", model, batch=verb == "batchEmbedContents")
        case "streamGenerateContent":
            wants_sse = "sse" in parse_qs(query).get("alt", ())
            return Route("gemini", "chat", model, True, envelope="" if wants_sse else "json_array")
    return Route("gemini", "chat", model, False)


def _bedrock(model: str, verb: str) -> Route:
    match verb:
        case "count-tokens":
            return Route("bedrock_converse", "count_tokens", model)
        case "invoke" | "invoke-with-response-stream":
            return Route("anthropic_messages", "chat", model, verb != "invoke", envelope="invoke_model")
    return Route("bedrock_converse", "chat", model, verb == "converse-stream")
