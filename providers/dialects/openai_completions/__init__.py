"""Legacy completions: one prompt in, its continuation out. Kept small, as whoever still uses it does.

A single text prompt becomes one user message, so that a chat model can answer it; same-dialect targets (open engines)
get the client's own body and continue the text. What only they can do (several prompts, token ids, suffix, echo,
best_of) stays in `extensions` and is refused elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from providers.dialects.base import Dialect, Encoded, ErrorBody, Whole
from providers.dialects.openai_common import errors
from providers.dialects.openai_common.tap import StreamTap
from providers.dialects.openai_common.usage import usage_in, usage_out
from providers.dialects.openai_common.validation import decoded
from providers.dialects.openai_completions import wire
from providers.errors import BadRequest, Interrupted, ProviderError, Unsupported, WireError
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Event,
    Finish,
    FinishReason,
    Logprob,
    Message,
    PartDelta,
    PartEnd,
    PartStart,
    ResponseStart,
    TextPart,
    TokenLogprob,
    Usage,
)
from providers.wire import jsonio, sse

NAME = "openai_completions"

_request = msgspec.json.Decoder(wire.Request)
_answer = msgspec.json.Decoder(wire.Answer)
_KNOWN = frozenset(wire.Request.__struct_fields__)
_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "user",
)
_FINISH_IN: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "eos_token": "stop",
    "abort": "error",
    "error": "error",
}
_FINISH_OUT: Mapping[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "stop",
    "error": "length",
}


class OpenAICompletions(Whole):
    """See `providers.dialects.base.Dialect`."""

    name = NAME
    stream_media_type = "text/event-stream; charset=utf-8"

    def decode_request(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
        request = decoded(_request, body)
        name = model or request.model
        if not name:
            raise BadRequest("model is required", param="model")
        members = jsonio.split_object(body)
        extra = {key: jsonio.plain(value) for key, value in members.items() if key not in _KNOWN}
        extra = {key: value for key, value in extra.items() if value not in (None, False, "")}
        if extra.get("best_of") == (request.n or 1):
            del extra["best_of"]
        prompt = request.prompt if request.prompt is not None else ""
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            prompt = prompt[0]
        if not isinstance(prompt, str):
            extra["prompt"] = prompt
        return ChatRequest(
            model=name,
            messages=(Message("user", tuple(TextPart(text) for text in _texts(prompt))),),
            stream=bool(request.stream) if stream is None else stream,
            max_output_tokens=request.max_tokens if request.max_tokens is not None else wire.DEFAULT_MAX_TOKENS,
            stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
            candidates=request.n or 1,
            logprobs=True if request.logprobs is not None else None,
            top_logprobs=request.logprobs,
            include_usage=bool(request.stream_options and request.stream_options.include_usage),
            extensions={NAME: extra} if extra else {},
            **{key: getattr(request, key) for key in _SAME_NAME},
        )

    def encode_request(self, request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
        own = dict(request.extensions.get(NAME, {}))
        only = request.messages[0] if len(request.messages) == 1 else None
        texts = [part.text for part in only.content if isinstance(part, TextPart)] if only is not None else []
        if only is None or only.role != "user" or len(texts) != len(only.content) or request.tools:
            raise Unsupported(("messages",), NAME)
        body: dict[str, Any] = {"model": model, "prompt": own.pop("prompt", None) or "".join(texts)}
        body.update({key: value for key in _SAME_NAME if (value := getattr(request, key)) is not None})
        if request.max_output_tokens is not None:
            body["max_tokens"] = request.max_output_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        if request.candidates != 1:
            body["n"] = request.candidates
        if request.logprobs:
            body["logprobs"] = request.top_logprobs or 0
        if request.stream:
            body.update(stream=True, stream_options={"include_usage": True})
        lost = {"response_format": request.response_format, "reasoning": request.reasoning}
        dropped = [name for name, value in lost.items() if value is not None]
        dropped += [key for dialect, fields in request.extensions.items() if dialect != NAME for key in fields]
        if dropped and strict:
            raise Unsupported(tuple(dropped), NAME)
        return Encoded({**body, **own}, tuple(dropped))

    def decode_response(self, body: bytes) -> ChatResponse:
        answer = _read(body)
        if answer.choices is None:
            raise WireError("a completion without choices", body=body[:4096])
        return ChatResponse(
            id=answer.id or "",
            model=answer.model or "",
            candidates=tuple(
                Candidate(
                    content=(TextPart(choice.text),) if choice.text else (),
                    finish_reason=_FINISH_IN.get(choice.finish_reason or "", "stop"),
                    native_reason=choice.finish_reason,
                    logprobs=_logprobs_in(choice.logprobs),
                )
                for choice in sorted(answer.choices, key=lambda c: c.index)
            ),
            usage=usage_in(answer.usage) if answer.usage is not None else Usage(),
            created=int(answer.created) if answer.created is not None else None,
        )

    def encode_response(self, response: ChatResponse, request: ChatRequest) -> bytes:
        choices = [
            _choice(
                index,
                "".join(part.text for part in candidate.content if isinstance(part, TextPart)),
                candidate.logprobs,
                _FINISH_OUT[candidate.finish_reason],
            )
            for index, candidate in enumerate(response.candidates)
        ]
        head = _head(response.id, response.model, response.created)
        return msgspec.json.encode({**head, "choices": choices, "usage": usage_out(response.usage)})

    def event_decoder(self) -> EventDecoder:
        return EventDecoder()

    def event_encoder(self, request: ChatRequest) -> EventEncoder:
        return EventEncoder(request)

    def tap(self, request_included_usage: bool) -> StreamTap:
        return StreamTap(request_included_usage)

    def encode_error(self, error: ErrorBody) -> bytes:
        return errors.encode_error(error)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.decode_error(status, headers, body)


class EventDecoder:
    """One text part per choice; Finish waits for the end, since usage comes last."""

    def __init__(self) -> None:
        self._sse = sse.SseDecoder()
        self._parts: dict[int, int] = {}
        self._reasons: dict[int, str | None] = {}
        self._started = False
        self._done = False
        self.usage = Usage()

    def feed(self, data: bytes) -> Iterator[Event]:
        for frame in self._sse.feed(data):
            yield from self._frame(frame)

    def close(self) -> Iterator[Event]:
        try:
            for frame in self._sse.close():
                yield from self._frame(frame)
        except WireError as error:
            raise Interrupted("the stream was cut inside a frame") from error
        if not self._done:
            yield from self._finish()

    def _frame(self, frame: sse.Frame) -> Iterator[Event]:
        if not frame.data or self._done:
            return
        if frame.data == b"[DONE]":
            yield from self._finish()
            return
        chunk = _read(frame.data)
        if chunk.usage is not None:
            self.usage = self.usage.at_least(usage_in(chunk.usage))
        if not self._started:
            self._started = True
            created = int(chunk.created) if chunk.created is not None else None
            yield ResponseStart(chunk.id or "", chunk.model or "", created)
        for choice in chunk.choices or ():
            logprobs = _logprobs_in(choice.logprobs)
            self._reasons.setdefault(choice.index, None)
            if choice.text or logprobs:
                if choice.index not in self._parts:
                    self._parts[choice.index] = len(self._parts)
                    yield PartStart(self._parts[choice.index], TextPart(""), choice.index)
                yield PartDelta(self._parts[choice.index], choice.text or "", logprobs=logprobs)
            if choice.finish_reason is not None and self._reasons[choice.index] is None:
                self._reasons[choice.index] = choice.finish_reason
                if choice.index in self._parts:
                    yield PartEnd(self._parts[choice.index])

    def _finish(self) -> Iterator[Event]:
        self._done = True
        if not self._reasons or None in self._reasons.values():
            raise Interrupted("the stream ended before the answer did")
        last = max(self._reasons)
        for number, native in sorted(self._reasons.items()):
            reason = _FINISH_IN.get(native or "", "stop")
            yield Finish(reason, self.usage if number == last else None, number, native)


class EventEncoder:
    """Text alone: this dialect has no place for tools, thinking or pictures."""

    def __init__(self, request: ChatRequest) -> None:
        self._include_usage = request.include_usage
        self._head: dict[str, Any] = _head("", "", None)
        self._parts: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        self._usage = Usage()

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self._event, events))

    def close(self) -> bytes:
        usage = b""
        if self._include_usage:
            usage = sse.encode(msgspec.json.encode({**self._head, "choices": [], "usage": usage_out(self._usage)}))
        return usage + b"data: [DONE]\n\n"

    def fail(self, error: ErrorBody) -> bytes:
        return sse.encode(msgspec.json.encode({"error": errors.error_object(error)}))

    def _event(self, event: Event) -> bytes:
        match event:
            case ResponseStart(ident, model, created, usage):
                self._head = _head(ident, model, created)
                self._usage = usage or self._usage
            case PartStart(index, TextPart(text), number):
                self._parts[index] = number
                if text:
                    return self._chunk(number, text, (), None)
            case PartDelta(index, text, logprobs=logprobs) if index in self._parts:
                return self._chunk(self._parts[index], text, logprobs, None)
            case Finish(reason, usage, number):
                self._usage = self._usage.at_least(usage) if usage is not None else self._usage
                return self._chunk(number, "", (), _FINISH_OUT[reason])
        return b""

    def _chunk(self, number: int, text: str, logprobs: tuple[Logprob, ...], finish: str | None) -> bytes:
        offset = self._offsets.get(number, 0)
        self._offsets[number] = offset + len(text)
        chunk = {**self._head, "choices": [_choice(number, text, logprobs, finish, offset)]}
        if self._include_usage:
            chunk["usage"] = None
        return sse.encode(msgspec.json.encode(chunk))


def _read(body: bytes) -> wire.Answer:
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a completion: {error}", body=body[:4096]) from error
    if answer.error or answer.object == "error":
        raise errors.from_object(msgspec.json.decode(body), body=body)
    return answer


def _texts(prompt: Any) -> Iterable[str]:
    """The texts to estimate and to audit by; token ids count as one short word each."""
    if isinstance(prompt, str):
        return (prompt,) if prompt else ()
    return tuple(
        entry if isinstance(entry, str) else " ".join(map(str, entry if isinstance(entry, list) else (entry,)))
        for entry in prompt
    )


def _head(ident: str, model: str, created: int | None) -> dict[str, Any]:
    return {
        "id": ident if ident.startswith("cmpl-") else f"cmpl-{ident}",
        "object": "text_completion",
        "created": created or 0,
        "model": model,
    }


def _choice(
    index: int, text: str, logprobs: tuple[Logprob, ...], finish: str | None, offset: int = 0
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": _logprobs_out(logprobs, offset), "finish_reason": finish}


def _logprobs_in(found: wire.Logprobs | None) -> tuple[Logprob, ...]:
    if found is None or not found.tokens:
        return ()
    count = len(found.tokens)
    probs = found.token_logprobs or [None] * count
    tops = found.top_logprobs or [None] * count
    return tuple(
        Logprob(
            TokenLogprob(token, prob if prob is not None else 0.0),
            tuple(TokenLogprob(rival, logprob) for rival, logprob in (top or {}).items()),
        )
        for token, prob, top in zip(found.tokens, probs, tops, strict=False)
    )


def _logprobs_out(logprobs: tuple[Logprob, ...], offset: int) -> dict[str, Any] | None:
    if not logprobs:
        return None
    offsets = []
    for entry in logprobs:
        offsets.append(offset)
        offset += len(entry.sampled.token)
    return {
        "tokens": [entry.sampled.token for entry in logprobs],
        "token_logprobs": [entry.sampled.logprob for entry in logprobs],
        "top_logprobs": [{top.token: top.logprob for top in entry.top} for entry in logprobs],
        "text_offset": offsets,
    }


DIALECT: Dialect = OpenAICompletions()
