"""A whole answer, both ways, and what streams share with it: finish reasons, usage, citations, log-probabilities.

Source: see `wire.py`; how usage counts: recorded answers (prompt 5 + candidates 1 + thoughts 100 = total 106), 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from providers.dialects.gemini import wire
from providers.dialects.gemini.errors import error_in_answer
from providers.dialects.gemini.parts import (
    call_out,
    made_id,
    media_out,
    paired,
    part_in,
    server_call_out,
    server_result_out,
    text_out,
    thought_out,
)
from providers.dialects.gemini.request import last_call
from providers.errors import WireError
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Citation,
    FinishReason,
    Logprob,
    Part,
    ReasoningPart,
    TextPart,
    TokenLogprob,
    ToolCallPart,
    ToolResultPart,
    Usage,
)

_decoder: Final = msgspec.json.Decoder(wire.Answer, strict=False)

# STOP is also what a turn of function calls ends with. A word that is not here ends the answer as "stop" does: a new
# one must not turn a good answer into an error.
FINISH_IN: Final[Mapping[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "JAILBREAK": "content_filter",
    "ESCALATION": "content_filter",
    "PUP_LIMITED_DISABLED": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "MALFORMED_FUNCTION_CALL": "error",
    "UNEXPECTED_TOOL_CALL": "error",
    "TOO_MANY_TOOL_CALLS": "error",
    "MALFORMED_RESPONSE": "error",
    "MISSING_THOUGHT_SIGNATURE": "error",
    "IMAGE_OTHER": "error",
    "NO_IMAGE": "error",
    "OTHER": "error",
}
_FINISH_OUT: Final[Mapping[FinishReason, str]] = {
    "stop": "STOP",
    "tool_calls": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "error": "OTHER",
}
_TIERS: Final[Mapping[str, str]] = {
    "ON_DEMAND": "default",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "flex",
    "ON_DEMAND_PRIORITY": "priority",
    "PROVISIONED_THROUGHPUT": "provisioned",
    "standard": "default",
    "flex": "flex",
    "priority": "priority",
}


def read_answer(data: bytes) -> wire.Answer:
    """A whole response or one chunk. Raises: WireError; a ProviderError kind for an error object in its place."""
    try:
        if data.startswith(b"["):
            # Errors come wrapped in an array when the stream was asked for as one.
            found = msgspec.json.decode(data)
            data = msgspec.json.encode(found[0]) if found else b"{}"
        answer = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a generateContent response: {error}", body=data[:4096]) from None
    if answer.error is not None:
        raise error_in_answer(data)
    return answer


def decode_response(body: bytes) -> ChatResponse:
    answer = read_answer(body)
    if answer.candidates is None and answer.prompt_feedback is None:
        raise WireError("a response without candidates or promptFeedback", body=body[:4096])
    ident = answer.response_id or ""
    usage = usage_in(answer)
    candidates = [_candidate_in(found, ident) for found in sorted(answer.candidates or (), key=lambda c: c.index)]
    if not candidates:
        reason = block_reason(answer) or "BLOCK_REASON_UNSPECIFIED"
        candidates = [Candidate((), "content_filter", reason)]
    return ChatResponse(ident, answer.model_version or "", tuple(candidates), usage)


def block_reason(answer: wire.Answer) -> str | None:
    """The prompt itself was refused: there will be no candidate."""
    return answer.prompt_feedback.block_reason if answer.prompt_feedback is not None else None


def _candidate_in(found: wire.Candidate, ident: str) -> Candidate:
    parts: list[Part] = []
    for given in (found.content.parts if found.content is not None else None) or ():
        read = part_in(given, made_id(f"{ident}-{found.index}" if found.index else ident, len(parts)))
        if read is not None:
            add_part(parts, paired(read, last_call(parts)))
    citations = citations_in(found, "".join(part.text for part in parts if isinstance(part, TextPart)))
    if citations:
        for at in range(len(parts) - 1, -1, -1):
            part = parts[at]
            if isinstance(part, TextPart):
                parts[at] = replace(part, citations=citations)
                break
    return Candidate(
        tuple(parts), finish_in(found.finish_reason, has_calls(parts)), found.finish_reason, logprobs=logprobs_in(found)
    )


def add_part(parts: list[Part], part: Part) -> None:
    """A lone signature seals the text before it; everything else is a part of its own."""
    match part, parts[-1] if parts else None:
        case TextPart("", signature=str(signature)), TextPart(signature=None) as last:
            parts[-1] = replace(last, signature=signature)
        case TextPart("", signature=None), _:
            pass  # the empty text that a stream's last chunk holds
        case _:
            parts.append(part)


def has_calls(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, ToolCallPart) and part.kind != "server" for part in parts)


def finish_in(native: str | None, calls: bool) -> FinishReason:
    reason = FINISH_IN.get(native or "STOP", "stop")
    return "tool_calls" if reason == "stop" and calls else reason


def finish_out(reason: FinishReason, native: str | None) -> str:
    return native if native is not None and native in FINISH_IN else _FINISH_OUT[reason]


def usage_in(answer: wire.Answer) -> Usage:
    """The prompt count includes what was cached, but not what tools that ran there put into the prompt; candidates
    exclude thoughts."""
    found = answer.usage_metadata
    searches = sum(_searches(candidate, answer.model_version) for candidate in answer.candidates or ())
    if found is None:
        return Usage(searches=searches or None)
    written, thought = found.candidates_token_count, found.thoughts_token_count
    prompt, tools = found.prompt_token_count, found.tool_use_prompt_token_count
    return Usage(
        input_tokens=(prompt or 0) + (tools or 0) if prompt is not None or tools is not None else None,
        output_tokens=(written or 0) + (thought or 0) if written is not None or thought is not None else None,
        cache_read_tokens=found.cached_content_token_count,
        reasoning_tokens=thought,
        input_audio_tokens=_of_modality(found.prompt_tokens_details, "AUDIO"),
        output_audio_tokens=_of_modality(found.candidates_tokens_details, "AUDIO"),
        input_image_tokens=_of_modality(found.prompt_tokens_details, "IMAGE"),
        searches=searches or None,
        service_tier=_TIERS.get(found.traffic_type or found.service_tier or ""),
    )


def _searches(candidate: wire.Candidate, model: str | None) -> int:
    """Gemini 3 is billed by the query, models before by the prompt that was grounded. Source: pricing page, 2026-11."""
    grounding = candidate.grounding_metadata
    queries = len(grounding.web_search_queries or ()) if grounding is not None else 0
    return min(queries, 1) if (model or "").startswith(("gemini-1", "gemini-2")) else queries


def _of_modality(details: Sequence[wire.ModalityCount] | None, modality: str) -> int | None:
    counts = [entry.token_count or 0 for entry in details or () if entry.modality == modality]
    return sum(counts) if counts else None


def citations_in(found: wire.Candidate, text: str) -> tuple[Citation, ...]:
    """Segments count bytes of UTF-8; citations count characters."""
    citations: list[Citation] = []
    grounding = found.grounding_metadata
    if grounding is not None:
        chunks = grounding.grounding_chunks or []
        for support in grounding.grounding_supports or ():
            segment = support.segment or wire.Segment()
            for index in support.grounding_chunk_indices or ():
                if not 0 <= index < len(chunks):
                    continue
                source = chunks[index].web or chunks[index].retrieved_context or chunks[index].maps or wire.Web()
                start, end = _character(text, segment.start_index or 0), _character(text, segment.end_index)
                citations.append(Citation(source.uri, source.title, segment.text, start, end, wire.NAME))
    sources = found.citation_metadata
    if sources is not None:
        for entry in sources.citation_sources or sources.citations or ():
            start, end = _character(text, entry.start_index or 0), _character(text, entry.end_index)
            citations.append(Citation(entry.uri, entry.title, None, start, end, wire.NAME))
    return tuple(citations)


def _character(text: str, byte_at: int | None) -> int | None:
    if byte_at is None:
        return None
    return byte_at if text.isascii() else len(text.encode("utf-8", "replace")[:byte_at].decode("utf-8", "ignore"))


def logprobs_in(found: wire.Candidate) -> tuple[Logprob, ...]:
    result = found.logprobs_result
    if result is None:
        return ()
    tops = result.top_candidates or []
    return tuple(
        Logprob(
            TokenLogprob(chosen.token, chosen.log_probability),
            tuple(TokenLogprob(t.token, t.log_probability) for t in (tops[at].candidates or ()))
            if at < len(tops)
            else (),
        )
        for at, chosen in enumerate(result.chosen_candidates or ())
    )


# --- out --------------------------------------------------------------------------------------------------------------


def encode_response(response: ChatResponse, request: ChatRequest) -> bytes:
    candidates = [_candidate_out(candidate, index) for index, candidate in enumerate(response.candidates)]
    return msgspec.json.encode(envelope(response.id, response.model, candidates, response.usage))


def envelope(ident: str, model: str, candidates: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"candidates": candidates}
    if usage is not None:
        body["usageMetadata"] = usage_out(usage)
    return body | {"modelVersion": model, "responseId": ident}


def _candidate_out(candidate: Candidate, index: int) -> dict[str, Any]:
    parts = [written for part in candidate.content if (written := part_out(part)) is not None]
    found: dict[str, Any] = {
        "content": {"parts": parts, "role": "model"},
        "finishReason": finish_out(candidate.finish_reason, candidate.native_reason),
        "index": index,
    }
    citations = [c for part in candidate.content if isinstance(part, TextPart) for c in in_bytes(part)]
    return found | grounding_out(citations) | logprobs_out(candidate.logprobs)


def in_bytes(part: TextPart) -> tuple[Citation, ...]:
    """The part's citations, their places counted as this API counts: in bytes of UTF-8."""
    if part.text.isascii():
        return part.citations
    return tuple(
        replace(
            citation,
            start=None if citation.start is None else len(part.text[: citation.start].encode("utf-8", "replace")),
            end=None if citation.end is None else len(part.text[: citation.end].encode("utf-8", "replace")),
        )
        for citation in part.citations
    )


def part_out(part: Part) -> dict[str, Any] | None:
    """A part of an answer. None for what this dialect's clients have no eyes for."""
    match part:
        case TextPart():
            return text_out(part)
        case ReasoningPart():
            return thought_out(part)
        case ToolCallPart(kind="server"):
            return server_call_out(part)
        case ToolCallPart():
            return call_out(part)
        case ToolResultPart():
            return server_result_out(part)
    return media_out(part)


def grounding_out(citations: Sequence[Citation]) -> dict[str, Any]:
    """Citations of any dialect as Gemini shows its own: chunks, and supports that point at them."""
    cited = [citation for citation in citations if citation.url is not None]
    if not cited:
        return {}
    urls = list(dict.fromkeys(citation.url for citation in cited))
    titles = {citation.url: citation.title for citation in cited}
    chunks = [{"web": {"uri": url, "title": titles[url] or url}} for url in urls]
    supports = [
        {
            "segment": {"startIndex": c.start or 0, "endIndex": c.end or 0, "text": c.quote or ""},
            "groundingChunkIndices": [urls.index(c.url)],
        }
        for c in cited
    ]
    return {"groundingMetadata": {"groundingChunks": chunks, "groundingSupports": supports}}


def logprobs_out(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    if not logprobs:
        return {}
    chosen = [_token_out(entry.sampled) for entry in logprobs]
    result: dict[str, Any] = {"chosenCandidates": chosen}
    if any(entry.top for entry in logprobs):
        result["topCandidates"] = [{"candidates": [_token_out(top) for top in entry.top]} for entry in logprobs]
    average = sum(entry.sampled.logprob for entry in logprobs) / len(logprobs)
    return {"avgLogprobs": average, "logprobsResult": result}


def _token_out(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logProbability": token.logprob}


def usage_out(usage: Usage) -> dict[str, Any]:
    thought = usage.reasoning_tokens or 0
    out: dict[str, Any] = {
        "promptTokenCount": usage.input_tokens or 0,
        "candidatesTokenCount": max(0, (usage.output_tokens or 0) - thought),
        "totalTokenCount": usage.total_tokens,
    }
    if thought:
        out["thoughtsTokenCount"] = thought
    if usage.cache_read_tokens:
        out["cachedContentTokenCount"] = usage.cache_read_tokens
    details = [
        {"modality": modality, "tokenCount": count}
        for modality, count in (("AUDIO", usage.input_audio_tokens), ("IMAGE", usage.input_image_tokens))
        if count
    ]
    if details:
        rest = (usage.input_tokens or 0) - sum(int(str(entry["tokenCount"])) for entry in details)
        out["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": max(0, rest)}, *details]
    if usage.output_audio_tokens:
        out["candidatesTokensDetails"] = [{"modality": "AUDIO", "tokenCount": usage.output_audio_tokens}]
    return out
