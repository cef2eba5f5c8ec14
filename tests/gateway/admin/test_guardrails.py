"""Guardrails through the admin API and the command: made, tried, changed, taken back, each with its trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World
from tests.gateway.cli.conftest import farebox


async def _audited(browser: Browser) -> dict[str, Any]:
    found: dict[str, Any] = (await browser.get("/audit", limit=1))["items"][0]
    return found


async def test_a_rule_is_made_tried_changed_and_taken_back(made: World, browser: Browser) -> None:
    rule = await browser.send("POST", "/guardrails", {"name": "personal data", "spec": {"kind": "pii"}})
    assert (rule["kind"], rule["scope"], rule["scope_id"], rule["action"]) == ("pii", "all", None, "redact")
    trace = await _audited(browser)
    assert (trace["action"], trace["subject"]) == ("guardrails.create", rule["id"])
    trial = await browser.send("POST", "/guardrails/test", {"text": "mail a.b@c.example"})
    assert trial["left"] == "mail [EMAIL]"
    assert [(each["rule"], each["outcome"]) for each in trial["findings"]] == [("personal data", "redacted")]
    new = {"name": "falcon", "spec": {"kind": "patterns", "patterns": ["falcon"]}, "action": "block"}
    trial = await browser.send("POST", "/guardrails/test", {"text": "a Falcon", "stage": "output", "guardrail": new})
    assert trial["left"] is None
    changed = await browser.send(
        "PUT", f"/guardrails/{rule['id']}", new | {"scope": "project", "scope_id": "proj_shop"}
    )
    assert (changed["id"], changed["kind"], changed["scope_id"]) == (rule["id"], "patterns", "proj_shop")
    trace = await _audited(browser)
    assert (trace["before"]["spec"]["kind"], trace["after"]["spec"]["kind"]) == ("pii", "patterns")
    assert [each["id"] for each in await browser.get("/guardrails")] == [rule["id"]]
    await browser.send("DELETE", f"/guardrails/{rule['id']}")
    assert await browser.get("/guardrails") == []
    assert await browser.get("/guardrails/reports") == []


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"spec": {"kind": "patterns", "patterns": ["(a+)+"]}}, 422, "at most 1000 characters"),
        ({"spec": {"kind": "pii", "detectors": ["shoe"]}}, 422, "no detector"),
        ({"spec": {"kind": "what"}}, 422, "what"),
        ({"spec": {"kind": "topics", "deny": ["x"]}, "action": "redact"}, 422, "choose block or flag"),
        ({"spec": {"kind": "tools"}, "stage": "output"}, 422, "stage input"),
        ({"spec": {"kind": "webhook", "url": "ftp://x"}}, 422, "url"),
        ({"spec": {"kind": "pii"}, "scope": "project", "scope_id": "none"}, 404, "no project"),
        ({"spec": {"kind": "pii"}, "scope": "project"}, 404, "no project"),
    ],
)
async def test_a_rule_that_cannot_be_is_refused_with_what_to_change(
    made: World, browser: Browser, change: dict[str, Any], status: int, says: str
) -> None:
    answer = await browser.call("POST", "/guardrails", {"name": "x", **change})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_the_command_does_the_same(tmp_path: Path) -> None:
    farebox("migrate", "--data", "data", cwd=tmp_path)
    where = ("--data", "data", "--json")
    done = farebox(
        "guardrails", "set", "no falcons", '{"kind": "patterns", "patterns": ["falcon"]}', *where, cwd=tmp_path
    )
    ident = json.loads(done.stdout)["id"]
    listed = json.loads(farebox("guardrails", "list", *where, cwd=tmp_path).stdout)["guardrails"]
    assert [(each["id"], each["kind"]) for each in listed] == [(ident, "patterns")]
    trial = json.loads(farebox("guardrails", "test", "a falcon flies", *where, cwd=tmp_path).stdout)
    assert trial["left"] == "a [REDACTED] flies"
    farebox("guardrails", "set", "x", '{"kind": "patterns", "patterns": ["a+$"]}', *where, cwd=tmp_path, check=1)
    farebox("guardrails", "set", "x", "{", *where, cwd=tmp_path, check=2)
    farebox("guardrails", "remove", ident, *where, cwd=tmp_path)
    assert json.loads(farebox("guardrails", "list", *where, cwd=tmp_path).stdout)["guardrails"] == []
