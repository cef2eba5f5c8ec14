"""One request among the guardrails of its key: what each of them said, in order, and where it is written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.guardrails.guard import Guard, refusal
from gateway.guardrails.policy import Remote, Rule
from gateway.guardrails.screening import Finding, Screen
from gateway.guardrails.texts import Edit, edited_part, edited_parts, texts_of, with_texts
from gateway.observe.metrics import METRICS
from providers.base import Call
from providers.dialects.base import Dialect, EventDecoder
from providers.neutral import ChatRequest, ChatResponse, TextPart
from providers.neutral.content import Part

if TYPE_CHECKING:
    from gateway.guardrails.stream import GuardedStream

log = structlog.get_logger(__name__)

Stage = Literal["input", "output"]


class Verdict(Struct, frozen=True):
    """What somebody who was asked said. texts: as many as were shown, edited; None: leave them as they are."""

    outcome: Literal["passed", "redacted", "blocked"]
    texts: tuple[str, ...] | None = None
    found: dict[str, int] = {}
    reason: str | None = None


class NoVerdict(Exception):
    """Nobody answered, or nothing that could be understood."""


class Asker(Protocol):
    async def ask(self, rule: Rule, stage: Stage, texts: Sequence[str], about: About) -> Verdict:
        """Raises: NoVerdict; ProviderError, httpx.HTTPError, OSError for a service that is away."""


class About(Struct, frozen=True):
    """Whose request it is, for who is asked and for what is written down."""

    request_id: str
    organisation_id: str
    project_id: str
    key_id: str
    alias: str
    at_ns: int


class Report(Struct, frozen=True):
    """What all guardrails made of one request, in order."""

    about: About
    findings: tuple[Finding, ...]


class Visit:
    """Use as a context: what was found is handed over at its end, or at the end of the stream that began within."""

    def __init__(
        self, guard: Guard, about: About, asker: Callable[[], Asker], report: Callable[[Report], None]
    ) -> None:
        """asker: made on first use: most guardrails ask nobody."""
        self._guard = guard
        self._about = about
        self._asker = asker
        self._report = report
        self._findings: list[Finding] = []
        self._screens: list[tuple[Rule, Screen]] = []
        self._output: dict[str, Finding] = {}
        self._streams = False
        self._closed = False
        self.message: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._streams:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._tell_of_screens()
        self._findings.extend(self._output.values())
        if self._findings:
            self._report(Report(self._about, tuple(self._findings)))

    def note(self, finding: Finding) -> None:
        self._findings.append(finding)
        METRICS.guarded(finding.rule, finding.stage, finding.outcome)

    # The prompt.

    def request(self, request: ChatRequest) -> ChatRequest:
        """Past what looks here. Raises: Blocked."""
        return self._guard.look_at_request(request, self.note)

    def texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """As for a request, of what is no conversation. Raises: Blocked."""
        return self._guard.look_at_texts(texts, self.note)

    @property
    def asks_about_input(self) -> bool:
        return bool(self._guard.remote_input)

    async def asked_request(self, request: ChatRequest) -> ChatRequest:
        """Past those who are asked. Raises: Blocked."""
        if not self._guard.remote_input:
            return request
        return with_texts(request, await self.asked_texts(texts_of(request)))

    async def asked_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Raises: Blocked."""
        texts = tuple(texts)
        for rule in self._guard.remote_input:
            verdict = await self._verdict(rule, "input", texts)
            if verdict.outcome == "blocked":
                raise refusal(rule, verdict.reason or "its service says no")
            texts = verdict.texts or texts
        return texts

    # The answer.

    @property
    def watches_output(self) -> bool:
        return self._guard.watches_output

    @property
    def asks_about_output(self) -> bool:
        return bool(self._guard.remote_output)

    @property
    def every(self) -> int:
        """After how many characters those who are asked are shown an answer that streams."""
        specs = (rule.spec for rule in self._guard.remote_output)
        return min(spec.every for spec in specs if isinstance(spec, Remote))

    def stream(self, decoder: EventDecoder, client: Dialect, call: Call, now_s: int) -> GuardedStream:
        from gateway.guardrails.stream import GuardedStream

        return GuardedStream(decoder, client.event_encoder(call.request), self, now_s)

    def streams(self) -> None:
        """The answer goes on after the context: who passes it on calls `end`."""
        self._streams = True

    def end(self, stream: object) -> None:
        """Of the stream that was passed on; another one may have been begun before."""
        self._screens += getattr(stream, "screens", ())
        self.close()

    def screens(self, *, json: bool) -> list[tuple[Rule, Screen]]:
        """Anew for each part of an answer, in order."""
        return [(looks.rule, looks.screen(json=json)) for looks in self._guard.output]

    def quiet_edit(self, text: str, *, json: bool = False) -> str:
        """A text whose pieces have been looked at already: edited as they were, and not counted again."""
        for looks in self._guard.output:
            text = looks.screen(json=json).feed(text, final=True)
        return text

    async def ask_about_output(self, texts: list[str]) -> tuple[str, ...] | None:
        """None: nothing of it may leave."""
        said = tuple(texts)
        for rule in self._guard.remote_output:
            verdict = await self._verdict(rule, "output", said)
            if verdict.outcome == "blocked":
                self.message = rule.message
                return None
            said = verdict.texts or said
        return said

    async def response(self, response: ChatResponse) -> ChatResponse:
        """A whole answer; the same object if nothing was changed. One that is blocked has nothing left in it."""
        for candidate in response.candidates:
            for part in candidate.content:
                if (rule := self._look(part)) is not None:
                    self.message = rule.message
                    return self._withheld(response)
        edited = _edited(response, self.quiet_edit)
        if self._guard.remote_output:
            texts: list[str] = []

            def see(text: str, *, json: bool = False) -> str:
                texts.append(text)
                return text

            _edited(edited, see)
            said = await self.ask_about_output(texts) if any(texts) else tuple(texts)
            if said is None:
                return self._withheld(response)
            left = iter(said)
            edited = _edited(edited, lambda text, *, json=False: next(left))
        if edited == response and not any(each.logprobs for each in response.candidates):
            return response
        return replace(edited, candidates=tuple(replace(each, logprobs=()) for each in edited.candidates))

    def _look(self, part: Part) -> Rule | None:
        """Counts what is found in a part; returns the rule that it is blocked by."""
        blocked: list[Rule] = []

        def look(text: str, *, json: bool = False) -> str:
            made = self.screens(json=json)
            self._screens += made
            for rule, screen in made:
                text = screen.feed(text, final=True)
                if screen.blocked is not None:
                    blocked.append(rule)
                    break
            return text

        edited_part(part, look)
        return blocked[0] if blocked else None

    def _withheld(self, response: ChatResponse) -> ChatResponse:
        content = (TextPart(self.message),) if self.message else ()
        held = (
            replace(each, content=content, finish_reason="content_filter", native_reason=None, logprobs=())
            for each in response.candidates
        )
        return replace(response, candidates=tuple(held))

    def _tell_of_screens(self) -> None:
        """One finding for each rule, of all parts together."""
        found: dict[str, dict[str, int]] = {}
        blocked: set[str] = set()
        for rule, screen in self._screens:
            counts = found.setdefault(rule.id, {})
            for name, count in screen.found.items():
                counts[name] = counts.get(name, 0) + count
            if screen.blocked is not None:
                blocked.add(rule.id)
        for rule in (looks.rule for looks in self._guard.output):
            if rule.id not in found:
                continue
            edits = "redacted" if rule.action == "redact" else "flagged"
            outcome = "blocked" if rule.id in blocked else edits if found[rule.id] else "passed"
            self.note(Finding(rule.id, rule.name, "output", outcome, found[rule.id]))

    # Those who are asked.

    async def _verdict(self, rule: Rule, stage: Stage, texts: Sequence[str]) -> Verdict:
        """As the rule lets it stand: who does not answer in time is taken for `on_failure`."""
        spec = rule.spec
        assert isinstance(spec, Remote)
        began = time.monotonic()
        try:
            async with asyncio.timeout(spec.timeout_s):
                verdict = await self._asker().ask(rule, stage, texts, self._about)
            if verdict.texts is not None and len(verdict.texts) != len(texts):
                raise NoVerdict(f"{len(verdict.texts)} texts came back for {len(texts)}")
        except Exception as error:
            # Whatever it is: a guardrail that cannot answer is a written decision, not an error of the client's.
            verdict = self._without_answer(rule, stage, spec, error)
        else:
            if rule.action == "flag" and verdict.outcome != "passed":
                self._noted(rule, stage, "flagged", verdict)
                verdict = Verdict("passed")
            elif rule.action == "block" and verdict.outcome == "redacted":
                verdict = replace(verdict, outcome="blocked", texts=None)
                self._noted(rule, stage, "blocked", verdict)
            else:
                self._noted(rule, stage, verdict.outcome, verdict)
        finally:
            METRICS.guardrail_asked(rule.kind, time.monotonic() - began)
        return verdict

    def _without_answer(self, rule: Rule, stage: Stage, spec: Remote, error: Exception) -> Verdict:
        reason = f"{type(error).__name__}: {error}"[:300]
        log.warning("guardrail not asked", guardrail=rule.id, request_id=self._about.request_id, reason=reason)
        if spec.on_failure == "open":
            METRICS.failed_open("guardrail")
            self._noted(rule, stage, "failed_open", Verdict("passed", reason=reason))
            return Verdict("passed")
        self._noted(rule, stage, "failed_closed", Verdict("blocked", reason=reason))
        return Verdict("blocked", reason="nobody could be asked whether it may pass; try again later")

    def _noted(self, rule: Rule, stage: Stage, outcome: str, verdict: Verdict) -> None:
        if stage == "input":
            self.note(Finding(rule.id, rule.name, stage, outcome, verdict.found, verdict.reason))
            return
        # A stream is shown in pieces: one finding for all of them, by the worst of what was said.
        before = self._output.get(rule.id)
        found = dict(before.found) if before is not None else {}
        for name, count in verdict.found.items():
            found[name] = found.get(name, 0) + count
        worst = outcome if before is None else max(before.outcome, outcome, key=_RANK.__getitem__)
        self._output[rule.id] = Finding(rule.id, rule.name, stage, worst, found, verdict.reason)
        METRICS.guarded(rule.name, stage, outcome)


_RANK: Final[Mapping[str, int]] = {
    name: place
    for place, name in enumerate(("passed", "failed_open", "flagged", "redacted", "failed_closed", "blocked"))
}


def _edited(response: ChatResponse, edit: Edit) -> ChatResponse:
    candidates = (replace(each, content=edited_parts(each.content, edit)) for each in response.candidates)
    return replace(response, candidates=tuple(candidates))
