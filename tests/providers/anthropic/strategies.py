"""Neutral requests and answers that Messages and Converse can both say without loss, for hypothesis."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from providers.neutral import (
    CachePoint,
    Candidate,
    ChatRequest,
    ChatResponse,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
    Usage,
)

TEXT = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
IDS = st.text("abcXYZ019_-", min_size=1, max_size=30).filter(lambda t: not t.startswith(("fbx-", "h-")))
CACHE = st.none() | st.builds(CachePoint, st.sampled_from([None, "5m", "1h"]))
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT
OBJECTS = st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=3), max_size=3)
ARGUMENTS = OBJECTS.map(lambda o: json.dumps(o, ensure_ascii=False, separators=(",", ":")))
SCHEMAS = OBJECTS.map(lambda o: {"type": "object", "properties": {key: {} for key in o}})

texts = st.builds(TextPart, TEXT, CACHE)
images = st.builds(ImagePart, st.sampled_from(["image/png", "image/jpeg"]), st.just("aaaa"), cache=CACHE)
files = st.builds(
    FilePart, st.just("application/pdf"), st.sampled_from(["Report", "a b"]), st.just("JVBERi0="), cache=CACHE
)


def reasonings(dialect: str) -> st.SearchStrategy[ReasoningPart]:
    return st.builds(ReasoningPart, TEXT, IDS, dialect=st.just(dialect)) | st.builds(
        ReasoningPart, redacted=st.just("b3BhcXVl"), dialect=st.just(dialect)
    )


calls = st.builds(ToolCallPart, IDS, IDS, ARGUMENTS, cache=CACHE)
results = st.builds(
    ToolResultPart,
    IDS,
    st.lists(texts.map(lambda t: TextPart(t.text)), min_size=1, max_size=2).map(tuple),
    is_error=st.booleans(),
    cache=CACHE,
)


def _parts(*kinds: st.SearchStrategy[Part]) -> st.SearchStrategy[tuple[Part, ...]]:
    return st.lists(st.one_of(*kinds), min_size=1, max_size=3).map(tuple)


def requests(dialect: str, **fixed: object) -> st.SearchStrategy[ChatRequest]:
    """Turns alternate, and every message says something: both APIs demand it."""
    asked = st.builds(Message, st.just("user"), _parts(texts, images, files, results))
    answered = st.builds(Message, st.just("assistant"), _parts(texts, calls, reasonings(dialect)))
    turns = st.lists(st.tuples(answered, asked), max_size=2)
    system = st.lists(st.builds(Message, st.just("system"), _parts(texts)), max_size=1)
    messages = st.builds(
        lambda system, first, rest: (*system, first, *(m for pair in rest for m in pair)), system, asked, turns
    )
    tools = st.lists(
        st.builds(Tool, IDS, st.none() | TEXT, SCHEMAS, st.none() | st.booleans(), CACHE), min_size=1, max_size=2
    ).map(tuple)
    choices = st.none() | st.sampled_from([ToolChoice("auto"), ToolChoice("required"), ToolChoice("named", "f")])
    return st.builds(
        ChatRequest,
        st.just("alias"),
        messages,
        st.booleans(),
        tools,
        choices,
        response_format=st.none() | st.builds(ResponseFormat, st.just("json_schema"), SCHEMAS),
        max_output_tokens=st.integers(1, 10_000),
        temperature=st.none() | st.sampled_from([0.0, 0.25, 1.0]),
        top_k=st.none() | st.integers(1, 100),
        stop=st.lists(TEXT, max_size=2).map(tuple),
        include_usage=st.just(True),
        service_tier=st.sampled_from([None, "default"]),
        **{name: st.just(value) for name, value in fixed.items()},
    )


def usages() -> st.SearchStrategy[Usage]:
    counts = st.integers(0, 1000)
    return st.builds(
        lambda fresh, read, hour, rest, output: Usage(
            fresh + read + hour + rest, output, read, hour + rest, hour if hour + rest else None
        ),
        *[counts] * 5,
    )


def responses(dialect: str) -> st.SearchStrategy[ChatResponse]:
    plain_calls = st.builds(ToolCallPart, IDS, IDS, ARGUMENTS)
    parts = st.lists(st.one_of(st.builds(TextPart, TEXT), plain_calls, reasonings(dialect)), max_size=4).map(tuple)
    reasons = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
    candidates = st.tuples(st.builds(Candidate, parts, reasons))
    return st.builds(ChatResponse, st.just("msg_1"), st.just("model"), candidates, usages())
