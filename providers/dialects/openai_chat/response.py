"""A whole answer, both ways, and the pieces that streams share with it: finish reasons, log-probabilities, calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from providers.dialects.openai_chat import wire
from providers.dialects.openai_chat.request import NAME, image_of, reasoning_parts, thought_signature
from providers.dialects.openai_common.content import texts_of
from providers.dialects.openai_common.errors import from_object
from providers.dialects.openai_common.usage import usage_in, usage_out
from providers.errors import ProviderError, WireError
from providers.neutral import (
    AudioPart,
    Candidate,
    ChatRequest,
    ChatResponse,
    Citation,
    FinishReason,
    ImagePart,
    Logprob,
    ReasoningPart,
    RefusalPart,
    TextPart,
    TokenLogprob,
    ToolCallPart,
    Usage,
)

FINISH_IN: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    # Engines and gateways with words of their own (TGI, Mistral, llama.cpp, OpenRouter).
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "max_tokens": "length",
    "model_length": "length",
    "error": "error",
    "abort": "error",
}

FINISH_OUT: Mapping[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    # The dialect has no word for a model that failed midway; "length" at least says that the answer is not whole.
    "error": "length",
}

SERVICE_TIERS = frozenset({"auto", "default", "flex", "scale", "priority"})

_answer = msgspec.json.Decoder(wire.Answer)


def read_answer(body: bytes) -> wire.Answer:
    """A whole answer or one chunk. Raises: WireError; a ProviderError kind for an error object in its place."""
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a chat completion: {error}", body=body[:4096]) from error
    if answer.error or answer.object == "error" or (answer.x_groq is not None and answer.x_groq.error):
        raise error_in(answer, body)
    return answer


def error_in(answer: wire.Answer, body: bytes) -> ProviderError:
    if not answer.error and answer.x_groq is not None and answer.x_groq.error:
        code = answer.x_groq.error  # Groq says "over_capacity" and the like, in one word
        return from_object({"error": {"message": str(code), "code": code}}, body=body)
    return from_object(msgspec.json.decode(body), body=body)


def ending(body: bytes) -> tuple[Usage, str | None]:
    """See `providers.dialects.base.Dialect.ending`."""
    answer, first = read_answer(body), None
    for choice in _choices(answer, body):
        if choice.message is None:
            raise WireError("a choice without message", body=body[:4096])
        if first is None or choice.index < first.index:
            first = choice
    if first is None or first.message is None:
        return usage_of(answer), None
    calls = bool(first.message.tool_calls or first.message.function_call)
    return usage_of(answer), finish_in(first.finish_reason, calls)


def _choices(answer: wire.Answer, body: bytes) -> list[wire.Choice]:
    if answer.choices is None:
        raise WireError("a chat completion without choices", body=body[:4096])
    return answer.choices


def decode_response(body: bytes) -> ChatResponse:
    answer = read_answer(body)
    return ChatResponse(
        id=answer.id or "",
        model=answer.model or "",
        candidates=tuple(_candidate(choice, body) for choice in sorted(_choices(answer, body), key=lambda c: c.index)),
        usage=usage_of(answer),
        created=int(answer.created) if answer.created is not None else None,
    )


def usage_of(answer: wire.Answer) -> Usage:
    found = answer.usage or (answer.x_groq.usage if answer.x_groq is not None else None)
    if found is None:
        return Usage(service_tier=answer.service_tier)
    return usage_in(found, answer.service_tier)


def finish_in(native: str | None, calls: bool) -> FinishReason:
    """calls: the answer holds tool calls. A forced call ends with "stop" here, by the reference; elsewhere that word
    would tell a client that there is nothing to run."""
    reason = FINISH_IN.get(native or "", "stop")
    return "tool_calls" if reason == "stop" and calls else reason


def logprobs_in(found: wire.ChoiceLogprobs | None) -> tuple[Logprob, ...]:
    if found is None:
        return ()
    return tuple(
        Logprob(
            TokenLogprob(token.token, token.logprob, _bytes(token.bytes)),
            tuple(TokenLogprob(top.token, top.logprob, _bytes(top.bytes)) for top in token.top_logprobs or ()),
        )
        for token in (*(found.content or ()), *(found.refusal or ()))
    )


def logprobs_out(logprobs: Iterable[Logprob]) -> dict[str, Any] | None:
    content = [{**_token(entry.sampled), "top_logprobs": [_token(top) for top in entry.top]} for entry in logprobs]
    return {"content": content, "refusal": None} if content else None


def citations_in(annotations: list[dict[str, Any]] | None) -> tuple[Citation, ...]:
    found = []
    for annotation in annotations or ():
        cited = annotation.get("url_citation")
        if not isinstance(cited, dict):
            cited = {}
        url, title, start, end = (cited.get(key) for key in ("url", "title", "start_index", "end_index"))
        found.append(
            Citation(
                url=url if isinstance(url, str) else None,
                title=title if isinstance(title, str) else None,
                start=start if isinstance(start, int) else None,
                end=end if isinstance(end, int) else None,
                dialect=NAME,
                raw=annotation,
            )
        )
    return tuple(found)


def annotations_out(citations: Iterable[Citation]) -> list[Any]:
    return [
        citation.raw
        if citation.dialect == NAME
        else {
            "type": "url_citation",
            "url_citation": {
                "url": citation.url or "",
                "title": citation.title or citation.quote or "",
                "start_index": citation.start or 0,
                "end_index": citation.end or 0,
            },
        }
        for citation in citations
    ]


def call_out(part: ToolCallPart) -> dict[str, Any]:
    if part.kind == "custom":
        call: dict[str, Any] = {"id": part.id, "type": "custom", "custom": {"name": part.name, "input": part.arguments}}
    else:
        function = {"name": part.name, "arguments": part.arguments}
        call = {"id": part.id, "type": "function", "function": function}
    if part.signature is not None:
        call["extra_content"] = {"google": {"thought_signature": part.signature}}
    return call


def sealed_thought(part: ReasoningPart, index: int) -> dict[str, Any] | None:
    """A `reasoning_details` entry, for thinking whose seal the client must bring back. None where there is no seal."""
    if part.signature is None and part.redacted is None and part.id is None:
        return None
    detail: dict[str, Any] = {"type": "reasoning.text", "text": part.text, "index": index}
    if part.redacted is not None:
        detail = {"type": "reasoning.encrypted", "data": part.redacted, "index": index}
        if part.text:
            detail["text"] = part.text
    for name, value in (("signature", part.signature), ("id", part.id), ("format", part.dialect)):
        if value is not None:
            detail[name] = value
    return detail


FINGERPRINT: Final = "fp_farebox"
"""Cerebras's SDK reads a chunk as no chunk without one. It says who wrote the answer, not what computed it."""


def chat_id(ident: str) -> str:
    """Clients and the published schema expect the prefix."""
    return ident if ident.startswith("chatcmpl-") else f"chatcmpl-{ident}"


def encode_response(response: ChatResponse, request: ChatRequest) -> bytes:
    """created is 0 where the provider's dialect has none: the edge, which knows the time, sets it before."""
    body: dict[str, Any] = {
        "id": chat_id(response.id),
        "object": "chat.completion",
        "created": response.created or 0,
        "model": response.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [_choice(candidate, index) for index, candidate in enumerate(response.candidates)],
        "usage": usage_out(response.usage),
    }
    if response.usage.service_tier in SERVICE_TIERS:
        body["service_tier"] = response.usage.service_tier
    return msgspec.json.encode(body)


def image_out(part: ImagePart) -> dict[str, Any]:
    """A generated picture, in OpenRouter's `images`: OpenAI's own dialect has no place for one."""
    url = part.url if part.data is None else f"data:{part.media_type or 'image/png'};base64,{part.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def audio_out(part: AudioPart) -> dict[str, Any]:
    return {"id": part.id or "", "data": part.data or "", "expires_at": 0, "transcript": part.transcript or ""}


def _candidate(choice: wire.Choice, body: bytes) -> Candidate:
    message = choice.message
    if message is None:
        raise WireError("a choice without message", body=body[:4096])
    text, thinking = texts_of(message.content)
    parts = reasoning_parts(message.reasoning_details, message.reasoning, message.reasoning_content or thinking)
    citations = citations_in(message.annotations)
    if text or citations:
        parts.append(TextPart(text, citations=citations))
    if message.refusal:
        parts.append(RefusalPart(message.refusal))
    if message.audio is not None:
        parts.append(AudioPart(data=message.audio.data, id=message.audio.id, transcript=message.audio.transcript))
    for image in message.images or ():
        parts.append(image_of(image.image_url.url))
    for number, call in enumerate(message.tool_calls or ()):
        parts.append(_call(call, number))
    if message.function_call is not None:
        parts.append(ToolCallPart("call_0", message.function_call.name or "", message.function_call.arguments or ""))
    return Candidate(
        content=tuple(parts),
        finish_reason=finish_in(choice.finish_reason, bool(message.tool_calls or message.function_call)),
        native_reason=choice.finish_reason,
        logprobs=logprobs_in(choice.logprobs),
    )


def _call(call: wire.AnsweredCall, number: int) -> ToolCallPart:
    ident = call.id or f"call_{number}"
    signature = thought_signature(call.extra_content)
    if call.custom is not None:
        return ToolCallPart(ident, call.custom.name or "", call.custom.input or "", "custom", signature)
    function = call.function or wire.AnsweredFunction()
    return ToolCallPart(ident, function.name or "", function.arguments or "", signature=signature)


def _choice(candidate: Candidate, index: int) -> dict[str, Any]:
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    lists: dict[str, list[Any]] = {"annotations": [], "images": [], "tool_calls": [], "reasoning_details": []}
    for part in candidate.content:
        match part:
            case TextPart(text, citations=citations):
                texts.append(text)
                lists["annotations"] += annotations_out(citations)
            case RefusalPart(text):
                refusals.append(text)
            case ReasoningPart(text):
                thoughts.append(text)
                if (detail := sealed_thought(part, len(lists["reasoning_details"]))) is not None:
                    lists["reasoning_details"].append(detail)
            case ToolCallPart(kind="function" | "custom"):
                lists["tool_calls"].append(call_out(part))
            case AudioPart():
                message["audio"] = audio_out(part)
            case ImagePart():
                lists["images"].append(image_out(part))
            case _:
                pass  # A server's own tool call, its result, a generated file: clients would try to run or open them.
    if texts or not (lists["tool_calls"] or refusals or "audio" in message):
        message["content"] = "".join(texts)
    if refusals:
        message["refusal"] = "".join(refusals)
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    message.update({name: entries for name, entries in lists.items() if entries})
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_out(candidate.logprobs),
        "finish_reason": FINISH_OUT[candidate.finish_reason],
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.bytes) if token.bytes is not None else None,
    }


def _bytes(found: list[int] | None) -> tuple[int, ...] | None:
    return tuple(found) if found is not None else None
