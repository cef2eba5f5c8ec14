"""Guardrails: the rules, a trial of them, and what they said lately. Never what they found, only how often."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct
from sqlalchemy.engine import RowMapping

from gateway.admin.problems import invalid
from gateway.admin.services import Services
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office
from gateway.guardrails.policy import Rule, Scope, Stage, spec_of
from gateway.guardrails.screening import Action
from gateway.guardrails.store import GuardrailAdmin, NewRule, tried

Outcome = Literal["passed", "failed_open", "flagged", "redacted", "failed_closed", "blocked"]


class Guardrail(Struct, frozen=True):
    """spec: what it looks for, by its `kind`: patterns, pii, topics, tools, webhook, bedrock or azure. Those for all
    look first, then an organisation's, a project's, a key's, each by `position`; what asks somebody else looks last."""

    id: str
    name: str
    kind: str
    scope: Scope
    scope_id: str | None
    stage: Stage
    action: Action
    position: int
    enabled: bool
    message: str | None
    spec: dict[str, Any]


class GuardrailChange(Struct, frozen=True, forbid_unknown_fields=True):
    """action: redact takes matches out, block stops the request or the answer, flag only counts. message: what a client
    is told whose request is blocked. scope_id: null for the scope `all`."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    spec: dict[str, Any]
    action: Action = "redact"
    stage: Stage = "both"
    scope: Scope = "all"
    scope_id: Annotated[str, Meta(max_length=64)] | None = None
    position: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    enabled: bool = True
    message: Annotated[str, Meta(max_length=1000)] | None = None


class GuardrailTrial(Struct, frozen=True, forbid_unknown_fields=True):
    """rules: ids, in place of one that is not kept yet. Neither: every rule for all."""

    text: Annotated[str, Meta(max_length=100_000)]
    stage: Literal["input", "output"] = "input"
    guardrail: GuardrailChange | None = None
    rules: list[str] | None = None


class GuardrailFinding(Struct, frozen=True):
    """found: how often, by what. reason: of a service that was asked, or why it could not be."""

    rule_id: str
    rule: str
    stage: str
    outcome: str
    found: dict[str, int]
    reason: str | None


class GuardrailTried(Struct, frozen=True):
    """left: what would go on; null: nothing would."""

    left: str | None
    findings: list[GuardrailFinding]


class GuardrailReport(Struct, frozen=True):
    request_id: str
    at: Stamp
    project_id: str
    key_id: str
    alias: str
    outcome: str
    findings: list[GuardrailFinding]


@get("/guardrails", name="guardrails.list")
async def list_rules(services: Office) -> list[Guardrail]:
    """In the order they look."""
    return [_view(rule) for rule in await _admin(services).rules()]


@post("/guardrails", name="guardrails.create")
async def create_rule(data: JSONBody[GuardrailChange], actor: Caller, services: Office) -> Guardrail:
    """In force within a second, in every process."""
    return _view(await _admin(services).create(_new(data), actor=actor.name, now_ns=services.clock()))


@put("/guardrails/{rule_id:str}", name="guardrails.update")
async def replace_rule(
    rule_id: FromPath[str], data: JSONBody[GuardrailChange], actor: Caller, services: Office
) -> Guardrail:
    """The whole of it is replaced."""
    return _view(await _admin(services).replace(rule_id, _new(data), actor=actor.name, now_ns=services.clock()))


@delete("/guardrails/{rule_id:str}", name="guardrails.remove")
async def remove_rule(rule_id: FromPath[str], actor: Caller, services: Office) -> None:
    await _admin(services).remove(rule_id, actor=actor.name, now_ns=services.clock())


@post("/guardrails/test", name="guardrails.test", status_code=200)
async def try_rules(data: JSONBody[GuardrailTrial], services: Office) -> GuardrailTried:
    """What rules would make of a text. Those that ask somebody are asked; nothing is written down."""
    rules = await _admin(services).rules()
    if data.guardrail is not None:
        rules = [_new(data.guardrail).rule("trial")]
    else:
        rules = [r for r in rules if (r.scope == "all" and r.enabled if data.rules is None else r.id in data.rules)]
    trial = await tried(services.watch, rules, data.stage, data.text)
    return GuardrailTried(trial.left, findings_of(msgspec.to_builtins(trial.findings)))


@get("/guardrails/reports", name="guardrails.reports")
async def list_reports(
    services: Office,
    outcome: FromQuery[list[Outcome] | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100,
) -> list[GuardrailReport]:
    """What they said of requests lately, the newest first. outcome: the worst of a request's."""
    found = await _admin(services).lately(outcomes=outcome or (), limit=limit)
    return [_report(row) for row in found]


guardrail_handlers: list[HTTPRouteHandler] = [
    list_rules,
    create_rule,
    replace_rule,
    remove_rule,
    try_rules,
    list_reports,
]


def findings_of(said: list[dict[str, Any]]) -> list[GuardrailFinding]:
    return [msgspec.convert({"reason": None, **each}, GuardrailFinding) for each in said]


def _admin(services: Services) -> GuardrailAdmin:
    return GuardrailAdmin(services.engine, services.keys.changed)


def _new(data: GuardrailChange) -> NewRule:
    try:
        spec = spec_of(data.spec)
    except ValueError as error:
        raise invalid("spec", str(error), "See the kinds in the description of Guardrail.") from error
    return NewRule(
        data.name, spec, data.action, data.stage, data.scope, data.scope_id, data.position, data.enabled, data.message
    )


def _view(rule: Rule) -> Guardrail:
    return Guardrail(
        rule.id, rule.name, rule.kind, rule.scope, None if rule.scope == "all" else rule.scope_id, rule.stage,
        rule.action, rule.position, rule.enabled, rule.message, msgspec.to_builtins(rule.spec),
    )  # fmt: skip


def _report(row: RowMapping) -> GuardrailReport:
    return GuardrailReport(
        row["request_id"], stamp(row["at_ns"]), row["project_id"], row["key_id"], row["alias"], row["outcome"],
        findings_of(row["findings"]),
    )  # fmt: skip
