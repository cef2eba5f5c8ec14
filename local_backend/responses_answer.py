"""OpenAI's Responses dialect, outwards: deltas -> items, their events, and the whole response.

Source: OpenAI API reference, Responses and their streaming events, read 2026-11.
"""

from __future__ import annotations

from typing import Any

from local_backend.errors import EngineError
from local_backend.generate import Delta, TokenInfo, Totals
from local_backend.openai_response import encode, token_entry, top_of
from local_backend.parsers import CallArguments, CallStart, Event, Said, Thought
from local_backend.responses_request import ResponsesBody
from local_backend.tokenizer import Tokenizer

PART = {"message": "output_text", "reasoning": "reasoning_text"}
"""What the one part of an item's content is."""


class ResponsesEncoder:
    """The answer of one request. An item grows by deltas until another kind of thing is said."""

    def __init__(self, id_: str, body: ResponsesBody, created: int, tokenizer: Tokenizer) -> None:
        self._id, self._tokenizer = id_, tokenizer
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._finish: str | None = None
        self._thought = ""
        self._number = 0
        self._head: dict[str, Any] = {
            "id": f"resp_{id_}",
            "object": "response",
            "created_at": created,
            "model": body.model,
            "background": False,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is True,
            "previous_response_id": None,
            "reasoning": body.reasoning or {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "user": body.user,
        }

    def opening(self, answers: int) -> bytes:
        """The stream's first events."""
        started = self._response("in_progress")
        return self._event("response.created", response=started) + self._event("response.in_progress", response=started)

    def piece(self, delta: Delta) -> bytes:
        """The events of one delta."""
        self._finish = delta.finish
        out = b""
        entries = [self._entry(token) for token in delta.tokens]
        for event in [Said(delta.text)] * bool(delta.text) if delta.events is None else delta.events:
            out += self._said(event, entries)
            entries = []
        return out

    def closing(self, totals: Totals, *, include_usage: bool) -> bytes:
        """The stream's last events; usage is always among them."""
        done = self._close()
        response = self._ended(totals)
        return done + self._event(f"response.{response['status']}", response=response)

    def failing(self, error: EngineError) -> bytes:
        """The end of a stream that broke."""
        failed = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        said = self._event("error", code=error.code, message=error.message, param=error.param)
        return said + self._event("response.failed", response=failed)

    def whole(self, answers: list[list[Delta]], totals: Totals) -> dict[str, Any]:
        """The answer in one body."""
        for delta in answers[0]:
            self.piece(delta)
        self._close()
        return self._ended(totals)

    def _said(self, event: Event, entries: list[dict[str, Any]]) -> bytes:
        out = b""
        match event:
            case Said(text):
                out += self._opened("message")
                self._text(text)["logprobs"] += entries
                out += self._at("response.output_text.delta", content_index=0, delta=text, logprobs=entries)
            case Thought(text):
                out += self._opened("reasoning")
                self._text(text)
                self._thought += text
                out += self._at("response.reasoning_text.delta", content_index=0, delta=text)
            case CallStart(_, name):
                out += self._close() + self._opened("function_call", name=name)
            case CallArguments(_, text):
                assert self._open is not None
                self._open["arguments"] += text
                out += self._at("response.function_call_arguments.delta", delta=text)
        return out

    def _opened(self, kind: str, name: str = "") -> bytes:
        """An item of the kind is open; its first events if it is a new one."""
        if self._open is not None and self._open["type"] == kind:
            return b""
        out = self._close()
        at = f"{self._id[-24:]}{len(self._output):02d}"
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        match kind:
            case "message":
                item |= {"id": f"msg_{at}", "role": "assistant", "content": []}
            case "reasoning":
                item |= {"id": f"rs_{at}", "summary": [], "content": []}
            case _:
                item |= {"id": f"fc_{at}", "call_id": f"call_{at}", "name": name, "arguments": ""}
        self._open = item
        self._output.append(item)
        out += self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)
        if kind in PART:
            part: dict[str, Any] = {"type": PART[kind], "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
            out += self._at("response.content_part.added", content_index=0, part=part)
            item["content"].append(part)
        return out

    def _text(self, more: str) -> dict[str, Any]:
        assert self._open is not None
        part: dict[str, Any] = self._open["content"][0]
        part["text"] += more
        return part

    def _close(self) -> bytes:
        """The last events of the item that is open, if one is."""
        if (item := self._open) is None:
            return b""
        out = b""
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            out += self._at("response.function_call_arguments.done", **done)
        else:
            part = item["content"][0]
            extra = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            out += self._at(f"response.{part['type']}.done", content_index=0, text=part["text"], **extra)
            out += self._at("response.content_part.done", content_index=0, part=part)
        # Cut short by a bound: the last item is as unfinished as the response.
        item["status"] = "incomplete" if self._finish == "length" else "completed"
        out += self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)
        self._open = None
        return out

    def _ended(self, totals: Totals) -> dict[str, Any]:
        cut = self._finish == "length"
        response = self._response("incomplete" if cut else "completed")
        thought = len(self._tokenizer.encode(self._thought, special=False)) if self._thought else 0
        usage = {
            "input_tokens": totals.prompt_tokens,
            "input_tokens_details": {"cached_tokens": totals.cached_tokens},
            "output_tokens": totals.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": totals.prompt_tokens + totals.completion_tokens,
        }
        return response | {"usage": usage, "incomplete_details": {"reason": "max_output_tokens"} if cut else None}

    def _response(self, status: str) -> dict[str, Any]:
        return self._head | {"status": status, "output": self._output, "incomplete_details": None, "usage": None}

    def _at(self, kind: str, **fields: Any) -> bytes:
        """An event about the item that is open."""
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=len(self._output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = encode({"type": kind, "sequence_number": self._number} | fields)
        self._number += 1
        return f"event: {kind}\ndata: ".encode() + body + b"\n\n"

    def _entry(self, info: TokenInfo) -> dict[str, Any]:
        tops = [token_entry(self._tokenizer, *top) for top in top_of(info)]
        return token_entry(self._tokenizer, info.token, info.logprobs.chosen) | {"top_logprobs": tops}
