"""OpenAI's dialect, outwards: deltas -> answers, stream chunks and error envelopes.

Source: OpenAI API reference, chat completions and completions, read 2026-11.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from local_backend.errors import EngineError
from local_backend.generate import Delta, TokenInfo, Totals
from local_backend.parsers import CallArguments, CallStart, Event, Said, Thought
from local_backend.tokenizer import Tokenizer

encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"


def error_body(error: EngineError) -> bytes:
    """The envelope that OpenAI's SDKs read."""
    return encode({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def usage(totals: Totals) -> dict[str, Any]:
    """Token counts; a cached prompt token is one of the prompt tokens."""
    return {
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": totals.cached_tokens}
        | ({"image_tokens": totals.image_tokens} if totals.image_tokens else {}),
    }


class Encoder(Protocol):
    """What the server asks of a dialect's answers."""

    def opening(self, answers: int) -> bytes: ...

    def piece(self, delta: Delta) -> bytes: ...

    def closing(self, totals: Totals, *, include_usage: bool) -> bytes: ...

    def failing(self, error: EngineError) -> bytes: ...

    def whole(self, answers: list[list[Delta]], totals: Totals) -> dict[str, Any]: ...


class Chunked(ABC):
    """Streams of chunks that look like the whole answer, ended by [DONE]."""

    @abstractmethod
    def start(self, answers: int) -> list[dict[str, Any]]:
        """First chunks."""

    @abstractmethod
    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """Those of one piece."""

    @abstractmethod
    def usage_chunk(self, totals: Totals) -> dict[str, Any]:
        """The last one, for those who asked for it."""

    def opening(self, answers: int) -> bytes:
        """The stream's first events."""
        return b"".join(map(sse, self.start(answers)))

    def piece(self, delta: Delta) -> bytes:
        """The events of one delta; none if it says nothing yet."""
        return b"".join(map(sse, self.chunks(delta)))

    def closing(self, totals: Totals, *, include_usage: bool) -> bytes:
        """The stream's last events."""
        return (sse(self.usage_chunk(totals)) if include_usage else b"") + DONE

    def failing(self, error: EngineError) -> bytes:
        """The end of a stream that broke: its status has gone out as 200, so the error is an event, and no [DONE]."""
        return b"data: " + error_body(error) + b"\n\n"


class ChatEncoder(Chunked):
    """Answers of one chat request."""

    def __init__(self, id_: str, model: str, created: int, tokenizer: Tokenizer) -> None:
        self._head: dict[str, Any] = {"id": "chatcmpl-" + id_, "created": created, "model": model}
        self._tokenizer = tokenizer

    def start(self, answers: int) -> list[dict[str, Any]]:
        """First chunks: the role of each answer."""
        return [self._chunk(i, {"role": "assistant", "content": ""}, None, None) for i in range(answers)]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """One piece: a chunk for each thing that it says, the last one with how it ends; none if nothing yet."""
        events = [Said(delta.text)] * bool(delta.text) if delta.events is None else delta.events
        pieces = [_piece(event, self._call_id(delta.index, event)) for event in events]
        if not pieces and (delta.finish is not None or delta.tokens):
            pieces = [{}]
        ends = [None] * (len(pieces) - 1) + [delta.finish]
        logprobs = [self._logprobs(delta.tokens)] + [None] * len(pieces)
        return [
            self._chunk(delta.index, piece, at, end)
            for piece, at, end in zip(pieces, logprobs[: len(pieces)], ends[: len(pieces)], strict=True)
        ]

    def usage_chunk(self, totals: Totals) -> dict[str, Any]:
        """The last one, without choices."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage(totals)}

    def whole(self, answers: list[list[Delta]], totals: Totals) -> dict[str, Any]:
        """The answer in one body."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "refusal": None} | self._message(i, deltas),
                "logprobs": self._logprobs([t for d in deltas for t in d.tokens]),
                "finish_reason": deltas[-1].finish,
            }
            for i, deltas in enumerate(answers)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage(totals)}

    def _message(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        """What the answer says, thinks and calls."""
        if all(delta.events is None for delta in deltas):
            return {"content": "".join(delta.text for delta in deltas)}
        events = [event for delta in deltas for event in delta.events or ()]
        said = "".join(event.text for event in events if isinstance(event, Said))
        thought = "".join(event.text for event in events if isinstance(event, Thought))
        calls = [
            {
                "id": self._call_id(index, start),
                "type": "function",
                "function": {
                    "name": start.name,
                    "arguments": "".join(
                        e.text for e in events if isinstance(e, CallArguments) and e.index == start.index
                    ),
                },
            }
            for start in events
            if isinstance(start, CallStart)
        ]
        message: dict[str, Any] = {"content": said if said or not calls else None}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        return message

    def _call_id(self, answer: int, event: Event) -> str:
        """Unique among all calls of all requests."""
        at = event.index if isinstance(event, CallStart | CallArguments) else 0
        return f"call_{self._head['id'][-16:]}{answer:02d}{at:02d}"

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: list[TokenInfo]) -> dict[str, Any] | None:
        if not tokens:
            return None

        def entry(token: int, logprob: float) -> dict[str, Any]:
            return token_entry(self._tokenizer, token, logprob)

        return {
            "content": [
                entry(t.token, t.logprobs.chosen) | {"top_logprobs": [entry(*top) for top in top_of(t)]} for t in tokens
            ],
            "refusal": None,
        }


class CompletionEncoder(Chunked):
    """Answers of one request to the older endpoint."""

    def __init__(self, id_: str, model: str, created: int, tokenizer: Tokenizer, echo: Callable[[int], str]) -> None:
        """echo: the text to put before the answer with this index; empty unless the client asked for its prompt."""
        self._head = {"id": "cmpl-" + id_, "object": "text_completion", "created": created, "model": model}
        self._tokenizer = tokenizer
        self._echo = echo

    def start(self, answers: int) -> list[dict[str, Any]]:
        """First chunks: the prompt, where it is to be echoed."""
        texts = [(i, self._echo(i)) for i in range(answers)]
        return [self._head | {"choices": [self._choice(i, text, [], None)]} for i, text in texts if text]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """One piece."""
        return [self._head | {"choices": [self._choice(delta.index, delta.text, delta.tokens, delta.finish)]}]

    def usage_chunk(self, totals: Totals) -> dict[str, Any]:
        """The last one, without choices."""
        return self._head | {"choices": [], "usage": usage(totals)}

    def whole(self, answers: list[list[Delta]], totals: Totals) -> dict[str, Any]:
        """The answer in one body."""
        choices = []
        for i, deltas in enumerate(answers):
            text = self._echo(i) + "".join(d.text for d in deltas)
            choices.append(self._choice(i, text, [t for d in deltas for t in d.tokens], deltas[-1].finish))
        return self._head | {"choices": choices, "usage": usage(totals)}

    def _choice(self, index: int, text: str, tokens: list[TokenInfo], finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": finish}

    def _logprobs(self, tokens: list[TokenInfo]) -> dict[str, Any] | None:
        if not tokens:
            return None

        def name(token: int) -> str:
            return self._tokenizer.raw_bytes(token).decode("utf-8", "replace")

        return {
            "tokens": [name(t.token) for t in tokens],
            "token_logprobs": [_finite(t.logprobs.chosen) for t in tokens],
            "top_logprobs": [{name(token): _finite(logprob) for token, logprob in top_of(t)} for t in tokens],
            "text_offset": [t.text_offset for t in tokens],
        }


def _piece(event: Event, call_id: str) -> dict[str, Any]:
    """What a chunk says, in the form of its `delta`."""
    match event:
        case Said(text):
            return {"content": text}
        case Thought(text):
            return {"reasoning_content": text}
        case CallStart(index, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def token_entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """A token with its logprob; bytes, for one token need not be whole characters."""
    raw = tokenizer.raw_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def top_of(info: TokenInfo) -> list[tuple[int, float]]:
    """The likeliest tokens at its place, with their logprobs."""
    return list(zip(info.logprobs.top_ids, info.logprobs.top_logprobs, strict=True))


def _finite(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes -9999 for a token that cannot be."""
    return max(logprob, -9999.0)
