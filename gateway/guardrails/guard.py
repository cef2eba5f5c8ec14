"""The guardrails of one key, compiled: made when the key is looked up, asked on every request of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import Blocked
from gateway.guardrails.patterns import Detector
from gateway.guardrails.policy import REMOTE, Patterns, Pii, Rule, Tools, Topics, detectors_of
from gateway.guardrails.screening import Finding, Screen
from gateway.guardrails.texts import Edit, edited_request, last_said
from providers.neutral import (
    ChatRequest,
    Tool,
)

Note = Callable[[Finding], None]


class Looks(Struct, frozen=True):
    """A rule that looks for something in texts, with what it looks for."""

    rule: Rule
    detectors: tuple[Detector, ...]

    def screen(self, *, json: bool = False) -> Screen:
        return Screen(self.detectors, self.rule.action, json=json)


class Guard:
    """Everything that concerns one key. id: the same for the same rules, whoever has them."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.id = hashlib.blake2b(msgspec.json.encode(list(rules)), digest_size=12).hexdigest()
        ordered = sorted(rules, key=lambda rule: rule.order)
        looks = tuple(
            Looks(rule, found)
            for rule in ordered
            if isinstance(rule.spec, Patterns | Pii | Topics) and (found := detectors_of(rule.spec))
        )
        self._local = tuple(rule for rule in ordered if not isinstance(rule.spec, REMOTE) and rule.looks_at("input"))
        self._looks = {each.rule.id: each for each in looks}
        self.output = tuple(each for each in looks if each.rule.looks_at("output"))
        self.remote_input = _remote(ordered, "input")
        self.remote_output = _remote(ordered, "output")

    @property
    def watches_output(self) -> bool:
        return bool(self.output or self.remote_output)

    def look_at_request(self, request: ChatRequest, note: Note) -> ChatRequest:
        """The request as it may go on; the same object if nothing was changed. Raises: Blocked."""
        for rule in self._local:
            match rule.spec:
                case Tools():
                    request = _with_tools(request, rule, note)
                case Topics() if rule.spec.allow:
                    _on_topic(rule, rule.spec.allow, last_said(request), note)
            if (looks := self._looks.get(rule.id)) is not None:
                found: dict[str, int] = {}
                request = edited_request(request, _editor(looks, "input", note, found))
                _told(looks, "input", found, note)
        return request

    def look_at_texts(self, texts: Sequence[str], note: Note) -> tuple[str, ...]:
        """As for a request, of what has no conversation round it. Raises: Blocked."""
        for rule in self._local:
            if isinstance(rule.spec, Topics) and rule.spec.allow:
                for text in texts:
                    _on_topic(rule, rule.spec.allow, text, note)
            if (looks := self._looks.get(rule.id)) is not None:
                counts: dict[str, int] = {}
                edit = _editor(looks, "input", note, counts)
                texts = [edit(text) for text in texts]
                _told(looks, "input", counts, note)
        return tuple(texts)


def _remote(rules: Sequence[Rule], stage: Literal["input", "output"]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if isinstance(rule.spec, REMOTE) and rule.looks_at(stage))


@lru_cache(maxsize=1024)
def guard_of(rules: bytes) -> Guard:
    """rules: a JSON array of them. Many keys have the same."""
    return Guard(msgspec.json.decode(rules, type=list[Rule]))


def refusal(rule: Rule, reason: str) -> Blocked:
    return Blocked(rule.message or f"blocked by the guardrail {rule.name!r}: {reason}")


def _editor(looks: Looks, stage: Literal["input", "output"], note: Note, found: dict[str, int]) -> Edit:
    """One text through one rule. Raises: Blocked."""

    def edit(text: str, *, json: bool = False) -> str:
        screen = looks.screen(json=json)
        out = screen.feed(text, final=True)
        for name, count in screen.found.items():
            found[name] = found.get(name, 0) + count
        if screen.blocked is not None:
            note(Finding(looks.rule.id, looks.rule.name, stage, "blocked", found))
            raise refusal(looks.rule, f"it holds {screen.blocked}")
        return out

    return edit


def _told(looks: Looks, stage: Literal["input", "output"], found: dict[str, int], note: Note) -> None:
    outcome = "passed" if not found else "redacted" if looks.rule.action == "redact" else "flagged"
    note(Finding(looks.rule.id, looks.rule.name, stage, outcome, found))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _on_topic(rule: Rule, allowed: Sequence[str], text: str, note: Note) -> None:
    if any(_compiled(pattern).search(text) for pattern in allowed):
        return
    blocks = rule.action == "block"
    note(Finding(rule.id, rule.name, "input", "blocked" if blocks else "flagged", {"off topic": 1}))
    if blocks:
        raise refusal(rule, "the last message is of none of the topics that this key may talk about")


def _with_tools(request: ChatRequest, rule: Rule, note: Note) -> ChatRequest:
    spec = rule.spec
    assert isinstance(spec, Tools)
    kept = [tool for tool in request.tools if _may_have(spec, tool)]
    if spec.most is not None:
        kept = kept[: spec.most]
    gone = [tool.name for tool in request.tools if tool not in kept]
    if not gone:
        note(Finding(rule.id, rule.name, "input", "passed", {}))
        return request
    outcome = {"redact": "redacted", "block": "blocked", "flag": "flagged"}[rule.action]
    note(Finding(rule.id, rule.name, "input", outcome, {"tool": len(gone)}))
    if rule.action == "block":
        raise refusal(rule, f"the tool {gone[0]!r} may not be declared")
    if rule.action == "flag":
        return request
    choice = request.tool_choice
    if choice is not None and (not kept or choice.name in gone or set(choice.allowed) & set(gone)):
        choice = None
    return replace(request, tools=tuple(kept), tool_choice=choice)


def _may_have(spec: Tools, tool: Tool) -> bool:
    def named(globs: Sequence[str]) -> bool:
        return any(fnmatchcase(tool.name, glob) for glob in globs)

    return named(spec.allow) and not named(spec.deny)
