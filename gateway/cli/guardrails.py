"""`farebox guardrails`: what may not go in or come out, per key, project, organisation or for all."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from billing.db import AsyncEngine
from gateway.cli.common import CHANGES, DEFAULTS, OK, WRONG_USAGE, Changes, Common, Problem, database, emit, make_table
from gateway.cli.keys import key_admin
from gateway.cli.site import acting

if TYPE_CHECKING:
    from gateway.guardrails.policy import Rule
    from gateway.guardrails.store import GuardrailAdmin

app = App(name="guardrails")
ACTOR = "cli"
_COLUMNS = ["id", "name", "kind", "scope", "scope_id", "stage", "action", "enabled"]


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the rules in the order they look."""
    async with database(common.settings()) as engine, _admin(common, engine) as admin:
        rows = [_plain(rule) for rule in await admin.rules()]
    emit(common, {"guardrails": rows}, lambda: make_table(_COLUMNS, [[row[c] for c in _COLUMNS] for row in rows]))
    return OK


@app.command(name="set")
async def set_(
    name: str,
    spec: str,
    /,
    *,
    action: Literal["redact", "block", "flag"] = "redact",
    stage: Literal["input", "output", "both"] = "both",
    scope: Literal["all", "organisation", "project", "key"] = "all",
    scope_id: str | None = None,
    position: int = 0,
    message: str | None = None,
    off: bool = False,
    id: str | None = None,  # noqa: A002 - the flag is called --id.
    common: Changes = CHANGES,
) -> int:
    """Make a rule, or with --id replace one. In force within a second.

    Parameters
    ----------
    name:
        What you call it; it is a label of the metrics.
    spec:
        What it looks for, as JSON: {"kind": "pii"}, {"kind": "patterns", "patterns": ["falcon"]}, {"kind": "topics",
        "deny": ["weather"]}, {"kind": "tools", "allow": ["get_*"]}, {"kind": "webhook", "url": "https://..."},
        {"kind": "bedrock", "guardrail_id": "..."} or {"kind": "azure"}.
    action:
        redact takes matches out, block stops the request or the answer, flag only counts.
    stage:
        Whether it looks at prompts, at answers, or at both.
    scope:
        Whom it concerns.
    scope_id:
        Which organisation, project or key.
    position:
        Among the rules of its scope; lower looks first.
    message:
        What a client is told whose request is blocked.
    off:
        Keep it, but have it look at nothing.
    id:
        The rule to replace.
    """
    from gateway.guardrails.policy import spec_from_text
    from gateway.guardrails.store import NewRule

    try:
        said = spec_from_text(spec)
    except ValueError as error:
        raise Problem(str(error), fix="see `farebox guardrails set --help`", code=WRONG_USAGE) from error
    new = NewRule(name, said, action, stage, scope, scope_id, position, not off, message)
    async with database(common.settings(), dry=common.dry_run) as engine, _admin(common, engine) as admin:
        if id is None:
            rule = await admin.create(new, actor=acting(ACTOR), now_ns=time.time_ns())
        else:
            rule = await admin.replace(id, new, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, _plain(rule), lambda: f"{rule.id}: {rule.name} looks at {rule.stage} of {rule.scope} {rule.scope_id}")
    return OK


@app.command
async def remove(rule_id: str, /, *, common: Changes = CHANGES) -> int:
    """Take a rule back."""
    async with database(common.settings(), dry=common.dry_run) as engine, _admin(common, engine) as admin:
        await admin.remove(rule_id, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"removed": rule_id}, lambda: f"{rule_id} is gone")
    return OK


@app.command(name="test")
async def try_(
    text: str,
    /,
    *rule_ids: str,
    stage: Literal["input", "output"] = "input",
    common: Common = DEFAULTS,
) -> int:
    """Show what rules make of a text. Nothing is written down.

    Rules that ask a service are left out here: a running gateway asks them (POST /admin/v1/guardrails/test).

    Parameters
    ----------
    text:
        As a prompt, or as an answer.
    rule_ids:
        The rules to try. Default: every rule for all.
    """
    from gateway.guardrails.policy import REMOTE
    from gateway.guardrails.store import tried
    from gateway.guardrails.watch import Watch

    settings = common.settings()
    async with database(settings) as engine, _admin(common, engine) as admin:
        known = await admin.rules()
    if missing := [ident for ident in rule_ids if all(rule.id != ident for rule in known)]:
        raise Problem(f"no guardrail {missing[0]!r}", fix="`farebox guardrails list` shows them")
    chosen = [r for r in known if (r.id in rule_ids if rule_ids else r.scope == "all" and r.enabled)]
    watch = Watch(None, settings.guardrails, None)
    trial = await tried(watch, [rule for rule in chosen if not isinstance(rule.spec, REMOTE)], stage, text)
    findings = [
        {"rule": each.rule, "outcome": each.outcome, "found": each.found, "reason": each.reason}
        for each in trial.findings
    ]
    rows = [[each.rule, each.outcome, ", ".join(f"{n} {name}" for name, n in each.found.items())]
            for each in trial.findings]  # fmt: skip
    emit(
        common,
        {"left": trial.left, "findings": findings},
        lambda: make_table(["guardrail", "outcome", "found", "left"],
                           [[*row, "nothing" if trial.left is None else trial.left] for row in rows]),
    )  # fmt: skip
    return OK


@asynccontextmanager
async def _admin(common: Common, engine: AsyncEngine) -> AsyncIterator[GuardrailAdmin]:
    from gateway.guardrails.store import GuardrailAdmin

    async with key_admin(common.settings(), engine) as keys:
        yield GuardrailAdmin(engine, keys.changed)


def _plain(rule: Rule) -> dict[str, Any]:
    import msgspec

    said: dict[str, Any] = msgspec.to_builtins(rule)
    return {**said, "kind": rule.kind}
