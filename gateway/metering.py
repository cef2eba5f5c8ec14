"""From what a dialect reports to what is charged: the one file that speaks the providers' and the till's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from billing.usage import Meter, Outcome
from gateway import errors as ours
from providers import errors as theirs
from providers.neutral import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
)
from providers.neutral.content import Part

# Text nobody counted: three bytes of UTF-8 a token is on the dear side for every tokenizer in PROVIDERS.md 5.
_BYTES_PER_TOKEN = 3


class Size(Struct, frozen=True):
    """What an estimate of the input rests on: bytes of text and numbers of images, sounds and files. unseen: documents
    that the request only names."""

    text_bytes: int
    images: int = 0
    attachments: int = 0
    unseen: int = 0


def size_of(request: ChatRequest) -> Size:
    """Everything that the model will read, tools and schema included."""
    text = images = attachments = unseen = 0
    for message in request.messages:
        text += 4
        for part in message.content:
            match part:
                case TextPart():
                    text += len(part.text.encode())
                case ImagePart():
                    images += 1
                case FilePart(url=str()) | FilePart(file_id=str()):
                    unseen += 1
                case AudioPart() | FilePart():
                    attachments += len(part.data or "") + len(getattr(part, "text", None) or "")
                case ToolCallPart():
                    text += len(part.name) + len(part.arguments.encode())
                case ToolResultPart():
                    for inner in part.content:
                        if isinstance(inner, TextPart):
                            text += len(inner.text.encode())
                        elif isinstance(inner, ImagePart):
                            images += 1
                case _:
                    text += len(part.text.encode())
    for tool in request.tools:
        text += len(tool.name) + len(tool.description or "") + len(str(tool.parameters or tool.raw or ""))
    if request.response_format is not None and request.response_format.schema is not None:
        text += len(str(request.response_format.schema))
    return Size(text, images, attachments, unseen)


def part_bytes(part: Part) -> int:
    """Of text that a part came with."""
    match part:
        case TextPart() | ReasoningPart() | RefusalPart():
            return len(part.text.encode())
        case ToolCallPart():
            return len(part.arguments.encode())
        case _:
            return 0


def size_of_texts(texts: Sequence[str | tuple[int, ...]]) -> Size:
    """What is to be embedded. A token that came as its number counts for the bytes that one usually stands for."""
    return Size(sum(len(text.encode()) if isinstance(text, str) else 4 * len(text) for text in texts))


def quantities(usage: Usage) -> dict[Meter, int]:
    """Undo the nesting of Usage, so that each token stands under exactly one meter.

    A sub-count that exceeds its total (a provider's slip) is cut to what is left, so the sum never exceeds the totals.
    """
    counts: dict[Meter, int] = {}
    written_1h = usage.cache_write_1h_tokens or 0
    rest = usage.input_tokens or 0
    for meter, count in (
        (Meter.CACHE_READ_TOKENS, usage.cache_read_tokens),
        (Meter.CACHE_WRITE_1H_TOKENS, written_1h),
        (Meter.CACHE_WRITE_5M_TOKENS, (usage.cache_write_tokens or 0) - written_1h),
        (Meter.INPUT_AUDIO_TOKENS, usage.input_audio_tokens),
        (Meter.INPUT_IMAGE_TOKENS, usage.input_image_tokens),
    ):
        if count:
            rest -= _put(counts, meter, count, rest)
    if rest > 0:
        counts[Meter.INPUT_TOKENS] = rest
    rest = usage.output_tokens or 0
    for meter, count in (
        (Meter.REASONING_TOKENS, usage.reasoning_tokens),
        (Meter.OUTPUT_AUDIO_TOKENS, usage.output_audio_tokens),
    ):
        if count:
            rest -= _put(counts, meter, count, rest)
    if rest > 0:
        counts[Meter.OUTPUT_TOKENS] = rest
    if usage.searches:
        counts[Meter.SEARCHES] = usage.searches
    counts[Meter.REQUESTS] = 1
    return counts


def _put(counts: dict[Meter, int], meter: Meter, count: int, room: int) -> int:
    taken = max(0, min(count, room))
    if taken:
        counts[meter] = taken
    return taken


def estimated_usage(known: Usage, estimated_input: int, output_bytes: int, max_output: int) -> Usage:
    """What a stream that died without usage is taken to have used: reported counts where there are any, else the
    input estimate and the text that came, never above the most the model may write."""
    output = min(max_output, tokens_of(output_bytes))
    return Usage(
        input_tokens=known.input_tokens if known.input_tokens is not None else estimated_input,
        output_tokens=max(known.output_tokens or 0, output),
        cache_read_tokens=known.cache_read_tokens,
        cache_write_tokens=known.cache_write_tokens,
        cache_write_1h_tokens=known.cache_write_1h_tokens,
        reasoning_tokens=known.reasoning_tokens,
    )


def tokens_of(output_bytes: int) -> int:
    """About how many tokens so much text is."""
    return -(-output_bytes // _BYTES_PER_TOKEN)


def outcome_of(error: BaseException) -> Outcome:
    """How a usage row words the end of a request that failed."""
    if isinstance(error, ours.NoRouteLeft) and error.last is not None:
        return outcome_of(error.last)
    if isinstance(error, theirs.TimedOut):
        return Outcome.TIMED_OUT
    if isinstance(error, theirs.Rejected | theirs.BadRequest | theirs.Unsupported | ours.GatewayError):
        return Outcome.REJECTED
    return Outcome.UPSTREAM_FAILED
