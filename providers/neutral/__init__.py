"""The neutral form: frozen values that every dialect maps to and from. No I/O; imports nothing but msgspec.

Read `request.py` for what a client asks, `content.py` for what a message holds, `events.py` for what an answer is made
of, `usage.py` for what it consumed.
"""

from providers.neutral.content import (
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
from providers.neutral.events import (
    Event,
    Finish,
    FinishReason,
    Logprob,
    PartDelta,
    PartEnd,
    PartStart,
    ResponseStart,
    TokenLogprob,
)
from providers.neutral.request import ChatRequest, EmbeddingRequest, Message, ResponseFormat, Tool, ToolChoice
from providers.neutral.response import Candidate, ChatResponse, EmbeddingResponse, collect, replay
from providers.neutral.usage import Usage

__all__ = [
    "AudioPart",
    "CachePoint",
    "Candidate",
    "ChatRequest",
    "ChatResponse",
    "Citation",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "Event",
    "FilePart",
    "Finish",
    "FinishReason",
    "ImagePart",
    "Logprob",
    "Message",
    "Part",
    "PartDelta",
    "PartEnd",
    "PartStart",
    "ReasoningPart",
    "RefusalPart",
    "ResponseFormat",
    "ResponseStart",
    "TextPart",
    "TokenLogprob",
    "Tool",
    "ToolCallPart",
    "ToolChoice",
    "ToolResultPart",
    "Usage",
    "collect",
    "replay",
]
