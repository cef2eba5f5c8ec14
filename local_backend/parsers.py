"""The text of an answer -> what it means: thoughts, calls of tools, and what is said.

Two state machines: one for marks around plain text (`Format`, a table in `tools.py`), one for harmony, where every
message has a head. However the text is sliced, the events are the same but for where a run of text is cut; the golden
streams in the tests are fed in every slicing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct

from local_backend.json_calls import Balance, CallObject
from local_backend.tokenizer import overlap
from local_backend.tools import Format


class Said(Struct, frozen=True):
    """Text for the user."""

    text: str


class Thought(Struct, frozen=True):
    """Text of the model's reasoning."""

    text: str


class CallStart(Struct, frozen=True):
    """A call of a tool begins."""

    index: int
    name: str


class CallArguments(Struct, frozen=True):
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


Event = Said | Thought | CallStart | CallArguments


class Parser(Protocol):
    """What reads one answer."""

    @property
    def called(self) -> bool:
        """True once a call has begun."""
        ...

    def feed(self, text: str) -> list[Event]:
        """What is certain now."""
        ...

    def finish(self) -> list[Event]:
        """The end of the answer: what was held back is what it looks like now."""
        ...


class Base:
    """Buffer in, events out; a mode is a method that makes one move over the buffer and says if it could."""

    def __init__(self) -> None:
        self._buffer = ""
        self._events: list[Event] = []
        self._calls = 0
        self._space = ""  # white space at the end of a run: dropped if a call or the other kind of text follows
        self._fresh = False  # white space that would begin the next run is dropped
        self._mode: Callable[[], bool] = self._never

    @property
    def called(self) -> bool:
        """See Parser."""
        return self._calls > 0

    def feed(self, text: str) -> list[Event]:
        """See Parser."""
        self._buffer += text
        while self._buffer and self._mode():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """See Parser."""
        events = self.feed("")
        rest, self._buffer = self._buffer, ""
        self._end(rest)
        if not self._calls:
            self._emit(Said(self._space))
        return events + self._events

    def _never(self) -> bool:
        raise AssertionError

    def _end(self, rest: str) -> None:
        """The answer ended with `rest` in the buffer."""

    def _emit(self, event: Event) -> None:
        if isinstance(event, CallStart) or event.text:
            self._events.append(event)

    def _run(self, kind: type[Said | Thought], text: str) -> None:
        if self._fresh:
            text = text.lstrip()
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._fresh = False
            self._emit(kind(kept))

    def _break(self) -> None:
        """A run of text ended at a mark."""
        self._space, self._fresh = "", True

    def _begin_call(self, name: str) -> None:
        self._break()
        self._emit(CallStart(self._calls, name))
        self._calls += 1

    def _arguments(self, text: str) -> None:
        self._emit(CallArguments(self._calls - 1, text))

    def _until(self, marks: tuple[str, ...], say: Callable[[str], None]) -> str | None:
        """Say what comes before the first mark and take both off the buffer; what may begin a mark stays there.

        Returns: the mark, or None if it has not come."""
        at, mark = min(((found, m) for m in marks if (found := self._buffer.find(m)) >= 0), default=(-1, ""))
        if at < 0:
            at = len(self._buffer) - max((overlap(self._buffer, m) for m in marks), default=0)
        text, self._buffer = self._buffer[:at], self._buffer[at + len(mark) :]
        say(text)
        return mark or None


class MarkedParser(Base):
    """Plain text with marks: `<think>` around thoughts, a section for calls."""

    def __init__(
        self,
        format_: Format | None,
        *,
        think: tuple[str, str] | None = None,
        thinking: bool = False,
        schemas: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """format_: how calls are written, None if none are looked for. think: the marks around reasoning; thinking:
        the prompt has already opened it. schemas: of the tools, by name."""
        super().__init__()
        self._format = format_
        self._think = think
        self._thinking = thinking and think is not None
        self._schemas = schemas or {}
        self._object = CallObject()
        self._balance = Balance()
        self._tool = ""  # whose parameters are read
        self._parameters = 0
        self._mode = self._start

    def _start(self) -> bool:
        """Only white space so far: what comes next may depend on how it begins."""
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if self._thinking:
            assert self._think is not None
            opening = self._think[0]
            if stripped != opening and opening.startswith(stripped):
                return False
            self._buffer = stripped.removeprefix(opening)  # some models repeat what the prompt has opened
            self._thinking, self._mode = False, self._in_thought
            self._break()
        elif self._format is not None and self._format.bare and stripped[0] == "{" and not self._calls:
            self._buffer, self._object, self._mode = stripped, CallObject(), self._in_bare_object
        else:
            self._mode = self._in_text
        return True

    def _in_thought(self) -> bool:
        assert self._think is not None
        if self._until((self._think[1],), lambda text: self._run(Thought, text)) is None:
            return False
        self._break()
        self._mode = self._start
        return True

    def _in_text(self) -> bool:
        marks = [] if self._think is None else [self._think[0]]
        marks += [] if self._format is None else [self._format.begin]
        mark = self._until(tuple(marks), lambda text: self._run(Said, text))
        if mark is None:
            return False
        self._break()
        self._mode = self._between_calls if self._format and mark == self._format.begin else self._in_thought
        return True

    def _between_calls(self) -> bool:
        """Skip to the next call, past its head if it has one, or to the end of the section."""
        assert self._format is not None
        end, element, brace = self._format.end, FUNCTION.search(self._buffer), self._buffer.find("{")
        closed = self._buffer.find(end) if end else -1
        places = [at for at in (brace, closed, element.start() if element else -1) if at >= 0]
        if not places:
            return False
        if element is not None and element.start() == min(places):
            self._tool, self._parameters = element[1], 0
            self._begin_call(self._tool)
            self._buffer, self._mode = self._buffer[element.end() :], self._in_parameters
        elif closed == min(places):
            self._buffer, self._mode = self._buffer[closed + len(end) :], self._start
        else:
            head = self._format.head.search(self._buffer[:brace]) if self._format.head else None
            self._buffer = self._buffer[brace:]
            if head is not None:
                self._begin_call(head[1])
                self._balance, self._mode = Balance(), self._in_arguments
            else:
                self._object, self._mode = CallObject(), self._in_object
        return True

    def _in_bare_object(self) -> bool:
        """An answer that begins with a brace is a call if it names one of the tools, and else an answer."""
        self._buffer = self._buffer[self._object.feed(self._buffer) :]
        name = self._object.name
        if name in self._schemas:
            self._mode = self._in_object
            return self._in_object()
        if name is None and not self._object.done:
            return False
        self._run(Said, self._object.raw)
        self._mode = self._in_text
        return True

    def _in_object(self) -> bool:
        call = self._object
        if not call.done:
            self._buffer = self._buffer[call.feed(self._buffer) :]
        if call.name is not None and (call.pending or call.done):
            if not call.begun:
                call.begun = True
                self._begin_call(call.name)
            self._arguments(call.take())
        elif call.done:
            self._fresh = False
            self._run(Said, call.raw)  # no call after all
        if call.done:
            self._mode = self._between_calls
        return call.done

    def _in_arguments(self) -> bool:
        used = self._balance.feed(self._buffer)
        self._arguments(self._buffer[:used])
        self._buffer = self._buffer[used:]
        if self._balance.done:
            self._mode = self._between_calls
        return self._balance.done

    def _in_parameters(self) -> bool:
        """`<parameter=key>` elements, whose values have no types but those of the schema.

        Source: the chat template of Qwen3-Coder, read 2026-11."""
        if (found := PARAMETER.match(self._buffer)) is not None:
            value = typed(found[2], self._schemas.get(self._tool, {}), found[1])
            comma = ", " if self._parameters else "{"
            self._arguments(f"{comma}{json.dumps(found[1])}: {json.dumps(value, ensure_ascii=False)}")
            self._parameters += 1
            self._buffer = self._buffer[found.end() :]
            return True
        if (closed := FUNCTION_END.match(self._buffer)) is not None:
            self._arguments("}" if self._parameters else "{}")
            self._buffer, self._mode = self._buffer[closed.end() :], self._between_calls
            return True
        return False

    def _end(self, rest: str) -> None:
        if self._mode == self._in_thought:
            self._run(Thought, rest)
            self._break()
        elif self._mode in (self._in_object, self._in_bare_object):
            if not self._object.begun:
                self._run(Said, self._object.raw)
        elif self._mode == self._between_calls:
            self._run(Said, rest.strip(" \n\r\t[],;"))
        elif self._mode in (self._start, self._in_text):
            self._run(Said, rest)


class HarmonyParser(Base):
    """The form of gpt-oss: every message has a head that says whom it is for.

    Source: "OpenAI harmony response format", read 2026-11."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = self._in_head

    def _in_head(self) -> bool:
        at = self._buffer.find(MESSAGE)
        if at < 0:
            return False
        head, self._buffer = self._buffer[:at], self._buffer[at + len(MESSAGE) :]
        self._break()
        if tool := TO_FUNCTION.search(head):
            self._begin_call(tool[1])
            self._mode = self._in_call
        else:
            self._mode = self._in_analysis if "<|channel|>analysis" in head else self._in_text
        return True

    def _in_call(self) -> bool:
        return self._message(self._arguments)

    def _in_analysis(self) -> bool:
        return self._message(lambda text: self._run(Thought, text))

    def _in_text(self) -> bool:
        return self._message(lambda text: self._run(Said, text))

    def _message(self, say: Callable[[str], None]) -> bool:
        if self._until(MESSAGE_ENDS, say) is None:
            return False
        self._mode = self._in_head
        return True

    def _end(self, rest: str) -> None:
        if self._mode == self._in_call:
            self._arguments(rest)
        elif self._mode == self._in_analysis:
            self._run(Thought, rest)
            self._break()
        elif self._mode == self._in_text or "<|" not in rest:  # a model that does not keep to the form
            self._run(Said, rest)


MESSAGE = "<|message|>"
MESSAGE_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
TO_FUNCTION = re.compile(r"to=functions\.([\w.-]+)")
FUNCTION = re.compile(r"<function=([^<>\n]+)>")
FUNCTION_END = re.compile(r"\s*</function>")
PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def typed(text: str, schema: Mapping[str, Any], key: str) -> Any:
    """A parameter written without type: text where the schema says string or nothing else fits, else JSON."""
    kind = (schema.get("properties") or {}).get(key, {})
    if isinstance(kind, dict) and kind.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
