"""Guardrails in SQL: read with a key, changed by administrators, each change audited and felt within a second."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
from msgspec import Struct
from sqlalchemy import RowMapping, delete, insert, select, update

from billing.db import AsyncConnection, AsyncEngine, reading, writing
from billing.schema import organisations, projects
from gateway import audit
from gateway.errors import Blocked, InvalidRequest, NotFound
from gateway.guardrails.guard import Guard, guard_of
from gateway.guardrails.policy import ALL, Rule, Scope, Spec, Stage, check, spec_of
from gateway.guardrails.screening import Action, Finding
from gateway.guardrails.texts import texts_of
from gateway.guardrails.visit import Report
from gateway.schema import guardrail_reports, guardrails, virtual_keys
from providers.neutral import ChatRequest, ChatResponse, Message, TextPart, Usage
from providers.neutral.response import Candidate

if TYPE_CHECKING:
    from gateway.guardrails.watch import Watch

MOST_RULES: Final = 500
_SCOPE_TABLES: Final = {"organisation": organisations, "project": projects, "key": virtual_keys}
_OUTCOMES: Final = ("passed", "failed_open", "flagged", "redacted", "failed_closed", "blocked")


class NewRule(Struct, frozen=True, forbid_unknown_fields=True):
    """A guardrail to be made, or what one is to become. scope_id: None for `all`."""

    name: str
    spec: Spec
    action: Action = "redact"
    stage: Stage = "both"
    scope: Scope = "all"
    scope_id: str | None = None
    position: int = 0
    enabled: bool = True
    message: str | None = None

    def rule(self, ident: str) -> Rule:
        """Raises: InvalidRequest with what to change."""
        scope_id = ALL if self.scope == "all" else self.scope_id or ""
        rule = Rule(
            ident, self.name.strip(), self.scope, scope_id, self.stage, self.action, self.spec, self.position,
            self.enabled, self.message,
        )  # fmt: skip
        if not 1 <= len(rule.name) <= 100:
            raise InvalidRequest("a guardrail's name has 1 to 100 characters", param="name")
        if len(rule.message or "") > 1000:
            raise InvalidRequest("a message has at most 1000 characters", param="message")
        if self.scope == "all" and self.scope_id not in (None, ALL):
            raise InvalidRequest("the scope all takes no id", param="scope_id")
        try:
            check(rule)
        except ValueError as error:
            raise InvalidRequest(str(error), param="spec") from None
        return rule


def guard_of_rows(rows: Sequence[RowMapping]) -> Guard:
    """In any order."""
    rules = sorted((rule_of(row) for row in rows), key=lambda rule: rule.order)
    return guard_of(msgspec.json.encode(rules, order="deterministic"))


class GuardrailAdmin:
    """changed: has every process read its keys again (`KeyAdmin.changed`)."""

    def __init__(self, engine: AsyncEngine, changed: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._changed = changed

    async def rules(self) -> list[Rule]:
        """In the order they look."""
        async with reading(self._engine) as db:
            rows = (await db.execute(select(guardrails))).mappings().all()
        return sorted((rule_of(row) for row in rows), key=lambda rule: rule.order)

    async def rule(self, ident: str) -> Rule:
        """Raises: NotFound."""
        async with reading(self._engine) as db:
            return rule_of(await _find(db, ident))

    async def create(self, new: NewRule, *, actor: str, now_ns: int) -> Rule:
        """Raises: InvalidRequest, NotFound for a scope's id that nobody has."""
        rule = new.rule(f"guard_{secrets.token_hex(6)}")
        async with writing(self._engine) as db:
            await _known(db, rule)
            if len((await db.execute(select(guardrails.c.id).limit(MOST_RULES))).all()) >= MOST_RULES:
                raise InvalidRequest(f"there are {MOST_RULES} guardrails already; remove one first")
            await db.execute(insert(guardrails).values(_row(rule) | {"created_at_ns": now_ns}))
            await audit.append(
                db,
                actor=actor,
                action="guardrails.create",
                subject=rule.id,
                at_ns=now_ns,
                after=_told(rule),
                of=rule.scope_id,
            )
        await self._changed()
        return rule

    async def replace(self, ident: str, new: NewRule, *, actor: str, now_ns: int) -> Rule:
        """Raises: InvalidRequest, NotFound."""
        rule = new.rule(ident)
        async with writing(self._engine) as db:
            await audit.hold(db, ident)
            before = rule_of(await _find(db, ident))
            await _known(db, rule)
            await db.execute(update(guardrails).where(guardrails.c.id == ident).values(_row(rule)))
            await audit.append(
                db, actor=actor, action="guardrails.update", subject=ident, at_ns=now_ns,
                before=_told(before), after=_told(rule), of=rule.scope_id,
            )  # fmt: skip
        await self._changed()
        return rule

    async def remove(self, ident: str, *, actor: str, now_ns: int) -> None:
        """Raises: NotFound."""
        async with writing(self._engine) as db:
            await audit.hold(db, ident)
            before = rule_of(await _find(db, ident))
            await db.execute(delete(guardrails).where(guardrails.c.id == ident))
            await audit.append(
                db,
                actor=actor,
                action="guardrails.remove",
                subject=ident,
                at_ns=now_ns,
                before=_told(before),
                of=before.scope_id,
            )
        await self._changed()

    async def reports(self, request_id: str) -> list[Finding]:
        """What they said of one request, in order."""
        query = select(guardrail_reports.c.findings).where(guardrail_reports.c.request_id == request_id)
        async with reading(self._engine) as db:
            rows = (await db.execute(query.order_by(guardrail_reports.c.id))).scalars().all()
        return [msgspec.convert(each, Finding) for row in rows for each in row]

    async def lately(self, *, outcomes: Sequence[str] = (), limit: int = 100) -> list[RowMapping]:
        """Reports, the newest first."""
        query = select(guardrail_reports).order_by(guardrail_reports.c.id.desc()).limit(limit)
        if outcomes:
            query = query.where(guardrail_reports.c.outcome.in_(outcomes))
        async with reading(self._engine) as db:
            return list((await db.execute(query)).mappings().all())


async def tried(watch: Watch, rules: Sequence[Rule], stage: Literal["input", "output"], text: str) -> Trial:
    """What rules would make of a text, as a prompt or as an answer. Nothing is written down."""
    reports: list[Report] = []
    left: str | None = None
    with watch.trial(guard_of(msgspec.json.encode(list(rules))), reports.append) as visit:
        try:
            if stage == "input":
                asked = ChatRequest("trial", (Message("user", (TextPart(text),)),))
                left = texts_of(await visit.asked_request(visit.request(asked)))[0]
            else:
                answer = ChatResponse("trial", "trial", (Candidate((TextPart(text),), "stop"),), Usage())
                answer = await visit.response(answer)
                blocked = answer.candidates[0].finish_reason == "content_filter"
                left = (
                    None
                    if blocked
                    else "".join(part.text for part in answer.candidates[0].content if isinstance(part, TextPart))
                )
        except Blocked:
            pass  # Told by its finding.
    return Trial(left, tuple(finding for report in reports for finding in report.findings))


class Trial(Struct, frozen=True):
    """left: what would go on; None: nothing."""

    left: str | None
    findings: tuple[Finding, ...]


def report_row(report: Report) -> dict[str, Any]:
    about = report.about
    worst = max((finding.outcome for finding in report.findings), key=_OUTCOMES.index)
    return {
        "request_id": about.request_id,
        "at_ns": about.at_ns,
        "organisation_id": about.organisation_id,
        "project_id": about.project_id,
        "key_id": about.key_id,
        "alias": about.alias[:200],
        "outcome": worst,
        "findings": msgspec.to_builtins(report.findings),
    }


async def forget_reports(engine: AsyncEngine, *, before_ns: int) -> int:
    """The chore. Returns: how many went."""
    async with writing(engine) as db:
        done = await db.execute(delete(guardrail_reports).where(guardrail_reports.c.at_ns < before_ns))
    return done.rowcount


def rule_of(row: RowMapping) -> Rule:
    return Rule(
        row["id"], row["name"], cast(Scope, row["scope"]), row["scope_id"], cast(Stage, row["stage"]),
        cast(Action, row["action"]), spec_of(row["spec"]), row["position"], row["enabled"], row["message"],
    )  # fmt: skip


def _row(rule: Rule) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(rule)
    return said


def _told(rule: Rule) -> dict[str, Any]:
    """For the audit, which takes no floats."""
    said = _row(rule)
    if "timeout_s" in said["spec"]:
        said["spec"] = said["spec"] | {"timeout_s": str(said["spec"]["timeout_s"])}
    return said


async def _find(db: AsyncConnection, ident: str) -> RowMapping:
    row = (await db.execute(select(guardrails).where(guardrails.c.id == ident))).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no guardrail {ident!r}", param="guardrail")
    return row


async def _known(db: AsyncConnection, rule: Rule) -> None:
    table = _SCOPE_TABLES.get(rule.scope)
    if table is not None and (await db.execute(select(table.c.id).where(table.c.id == rule.scope_id))).first() is None:
        raise NotFound(f"no {rule.scope} {rule.scope_id!r}", param="scope_id")
