"""Role x endpoint x own and foreign resource, made from the table in auth/roles.py and the handlers themselves: an
endpoint that is new is in it, and one without a rule is for the whole installation alone."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from litestar.handlers import HTTPRouteHandler

from billing import accounts
from billing.accounts import Scope, Window
from billing.db import writing
from gateway.admin.auth import memberships
from gateway.admin.auth.memberships import Held
from gateway.admin.auth.roles import CONCERNS, OPEN, PERMITTED, Of, Own, Role, Seen
from gateway.admin.routes import HANDLERS
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import USD, World, traffic

GUARDED = [each for each in HANDLERS if each.name not in OPEN]
ROLES = [role for role in Role if role is not Role.MEMBER]


async def member(
    made: World, scope: str, scope_id: str, role: Role, *, models: tuple[str, ...] | None = None
) -> Browser:
    """A browser of somebody new who holds this and nothing else."""
    token = await made.link(Role.MEMBER)
    browser = Browser(made.app())
    await browser.sign_in(token)
    async with writing(made.engine) as db:
        held = Held(browser.session["user_id"], scope, scope_id, memberships.MANUAL, role, models)
        await memberships.put(db, held, at_ns=made.now_ns)
    return browser


@pytest.fixture
async def tenants(small: World, tmp_path: Path) -> World:
    """org_1 with Shop (in team_a) and Search, org_2 with Other; requests, keys and budgets in each."""
    async with writing(small.engine) as db:
        await accounts.create_team(db, "team_a", "org_1", "Team A", at_ns=1)
        await accounts.join_team(db, "proj_shop", "team_a")
        await accounts.create_organisation(db, "org_2", "Foreign Ltd", at_ns=1)
        await accounts.create_team(db, "team_z", "org_2", "Foreign Team", at_ns=1)
        await accounts.create_project(db, "proj_other", "org_2", "Foreign Project", at_ns=1)
    for project in ("proj_search", "proj_other"):
        new = await small.keys.create_key(
            project_id=project, name=f"key of {project}", actor="ann", now_ns=small.now_ns,
            budgets=[(Window.DAY, 5 * USD)],
        )  # fmt: skip
        small.key_ids[project] = new.key_id
        await small.keys.set_budget(Scope.PROJECT, project, Window.DAY, 9 * USD, actor="ann", now_ns=small.now_ns)
    await traffic(small, tmp_path / "journal", 60)
    async with Browser(small.app()) as owner:
        await owner.sign_in(await small.link(Role.OWNER))
        for scope, ident in (("organisation", "org_2"), ("project", "proj_search")):
            await owner.send("POST", f"/members/{scope}/{ident}", {"name": f"stranger of {ident}", "role": "viewer"})
    return small


def _calls(handler: HTTPRouteHandler, ids: dict[str, str]) -> tuple[str, str, dict[str, Any] | None]:
    """Method, path and body of a call about these ids. What is asked for may be too little: who is let in is then told
    so by 422, who is not by 403 or 404."""
    method, path = next(iter(handler.http_methods)), next(iter(handler.paths))
    fill = {"level": "project", "scope_id": ids["project"], "key_id": ids["key"], "project_id": ids["project"],
            "window": "month", "organisation_id": ids["organisation"], "month": "2026-11"}  # fmt: skip
    for part in path.split("/"):
        if part.startswith("{"):
            name = part.strip("{}").partition(":")[0]
            path = path.replace(part, fill.get(name, "none"))
    if handler.name == "requests.tail":
        path += "?seconds=0"  # Else it goes on for half a minute.
    concern = CONCERNS.get(handler.name or "")
    if isinstance(concern, Of) and concern.where == "body":
        return method, path, {concern.field: ids[concern.kind]}
    return method, path, None if method in ("GET", "DELETE") else {}


def _outside(answer: httpx.Response, concern: Of, ids: dict[str, str]) -> bool:
    """Told by the guard that there is no such thing; a handler says so of other things."""
    kind = "project" if concern.kind == "scope" else concern.kind
    return answer.status_code == 404 and answer.json()["detail"] == f"no {kind} {ids[kind]!r}"


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_in_a_project_reaches_that_project_and_nothing_else(tenants: World, role: Role) -> None:
    own = {"project": "proj_shop", "key": tenants.key_ids["web-production"], "organisation": "org_1",
           "project's organisation": "proj_shop"}  # fmt: skip
    foreign = {"project": "proj_search", "key": tenants.key_ids["proj_search"], "organisation": "org_2",
               "project's organisation": "proj_search"}  # fmt: skip
    secrets = ["proj_search", "proj_other", "org_2", "Foreign", "Search", "stranger", "nightly-batch", "key of",
               tenants.key_ids["proj_search"], tenants.key_ids["ci"]]  # fmt: skip
    wrong = []
    async with await member(tenants, "project", "proj_shop", role) as browser:
        # Signing out last: the session is needed until then.
        for handler in sorted(GUARDED, key=lambda each: each.name == "session.end"):
            name = handler.name or ""
            concern, permitted = CONCERNS.get(name), role in PERMITTED[name]
            for ids in (own, foreign):
                if name == "session.end" and ids is foreign:
                    continue
                answer = await browser.call(*_calls(handler, ids), **{"idempotency-key": "matrix-0001"})
                refused = answer.status_code == 403 and answer.json()["type"].endswith("role-not-permitted")
                good = answer.status_code not in (401, 405) and answer.status_code < 500
                match concern:
                    case None:
                        good &= refused
                    case Own() | Seen():
                        good &= refused is not permitted
                    case Of() if not permitted:
                        good &= refused
                    case Of():
                        # An organisation is above a project: nobody has it by a role in one.
                        beyond = ids is foreign or "organisation" in concern.kind
                        bound = name.startswith("budgets.") and role is Role.TEAM_LEAD
                        good &= _outside(answer, concern, ids) is beyond
                        good &= refused is (bound and not beyond)
                if not isinstance(concern, Of) or ids is foreign:
                    told = answer.text.replace(ids["project"], "") if isinstance(concern, Of) else answer.text
                    good &= not (answer.is_success and any(secret in told for secret in secrets))
                if not good:
                    wrong.append((name, "own" if ids is own else "foreign", answer.status_code, answer.text[:200]))
    assert not wrong


async def test_what_is_seen_is_there_to_be_seen(tenants: World) -> None:
    """The other side of the test above: a list that shows nothing to anybody would pass it."""
    async with await member(tenants, "project", "proj_shop", Role.VIEWER) as browser:
        assert {key["project_id"] for key in (await browser.get("/keys"))["items"]} == {"proj_shop"}
        assert [each["id"] for each in await browser.get("/projects")] == ["proj_shop"]
        assert [each["scope_id"] for each in await browser.get("/budgets")] == ["proj_shop"]
        items = (await browser.get("/requests", limit=500))["items"]
        assert {each["project_id"] for each in items} == {"proj_shop"}
        usage = await browser.get("/usage", by="project", **{"from": "2026-10-01T00:00:00Z"})
        assert [group["name"] for group in usage["groups"]] == ["proj_shop"]
        assert usage["total"]["requests"] == len(items)
        asked = await browser.get("/usage", by="key", project="proj_search", **{"from": "2026-10-01T00:00:00Z"})
        assert asked["total"]["requests"] == 0
        detail = await browser.get(f"/requests/{items[0]['id']}")
        assert (detail["cost_usd"], detail["postings"]) == (None, [])
        held = browser.session["memberships"]
        assert held == []  # Signed in before it was made a member.
        assert (await browser.get("/auth/session"))["memberships"] == [
            {"scope": "project", "scope_id": "proj_shop", "role": "viewer"}
        ]


async def test_a_role_goes_down_to_teams_and_projects_and_not_up(tenants: World) -> None:
    async with await member(tenants, "organisation", "org_1", Role.FINANCE) as finance:
        assert {each["id"] for each in await finance.get("/projects")} == {"proj_shop", "proj_search"}
        balances = await finance.get("/ledger/balances")
        assert [each["account"] for each in balances["accounts"]] == ["customer:org_1"]
        postings = (await finance.get("/ledger/transfers", limit=500))["items"]
        assert postings
        assert all("customer:org_1" in (each["debit"], each["credit"]) for each in postings)
        assert (await finance.call("PUT", "/budgets/organisation/org_1/month", {"limit_usd": "900"})).is_success
        # What is paid in, others say: the till is not in the customer's hands.
        paid = {"organisation_id": "org_1", "amount_usd": "1", "note": "n"}
        assert (
            await finance.call("POST", "/ledger/top-ups", paid, **{"idempotency-key": "self-0001"})
        ).status_code == 403
    async with await member(tenants, "team", "team_a", Role.TEAM_LEAD) as lead:
        assert [each["id"] for each in await lead.get("/projects")] == ["proj_shop"]
        assert [each["id"] for each in await lead.get("/teams")] == ["team_a"]
        assert [each["id"] for each in await lead.get("/organisations")] == ["org_1"]
        assert (await lead.call("PUT", "/budgets/project/proj_shop/day", {"limit_usd": "3"})).is_success
        assert (await lead.call("PUT", "/budgets/team/team_a/day", {"limit_usd": "3"})).status_code == 403
        assert (await lead.call("PUT", "/budgets/organisation/org_1/day", {"limit_usd": "3"})).status_code == 404
        assert (await lead.call("PUT", "/projects/proj_shop/team", {"team_id": None})).status_code == 403
        assert (await lead.call("POST", "/projects", {"name": "P"})).status_code == 403
    async with await member(tenants, "organisation", "org_2", Role.ADMIN) as admin:
        made = await admin.send("POST", "/projects", {"name": "Second"})  # Into the only organisation that they have.
        assert made["organisation_id"] == "org_2"
        moved = await admin.call("PUT", f"/projects/{made['id']}/team", {"team_id": "team_a"})
        assert (moved.status_code, moved.json()["field"]) == (422, "team_id")
        assert (await admin.call("PUT", f"/projects/{made['id']}/team", {"team_id": "team_z"})).status_code == 204
        for path in ("/users", "/settings", "/audit/verify"):
            assert (await admin.call("GET", path)).status_code == 403


async def test_nobody_hands_out_more_than_they_hold_where_they_hold_it(tenants: World) -> None:
    async with await member(tenants, "team", "team_a", Role.TEAM_LEAD) as lead:
        invited = await lead.send("POST", "/members/project/proj_shop", {"name": "bob", "role": "developer"})
        assert "#token=" in invited["url"]
        for role in ("admin", "owner", "finance", "member"):
            refused = await lead.call("POST", "/members/project/proj_shop", {"name": "eve", "role": role})
            assert (refused.status_code, refused.json()["field"]) == (422, "role")
        assert (
            await lead.call("POST", "/members/project/proj_search", {"name": "eve", "role": "viewer"})
        ).status_code == 404
        members = await lead.get("/members")
        assert {(each["name"], each["scope_id"], each["role"]) for each in members} >= {
            ("bob", "proj_shop", "developer")
        }
        # Who stands higher is not theirs to demote or to put out.
        async with await member(tenants, "project", "proj_shop", Role.ADMIN) as admin:
            above = f"/members/project/proj_shop/{admin.session['user_id']}"
            assert (await lead.call("PUT", above, {"role": "viewer"})).status_code == 422
            assert (await lead.call("DELETE", above)).status_code == 422
        bob = f"/members/project/proj_shop/{invited['user_id']}"
        assert (await lead.send("PUT", bob, {"role": "viewer"}))["role"] == "viewer"
        assert (await lead.call("DELETE", bob)).status_code == 204
        assert (await lead.call("DELETE", bob)).status_code == 404


async def test_a_token_is_cut_to_what_its_maker_holds_in_each_place(tenants: World) -> None:
    async with await member(tenants, "project", "proj_shop", Role.ADMIN) as admin:
        async with writing(tenants.engine) as db:
            also = Held(admin.session["user_id"], "project", "proj_search", "manual", Role.VIEWER, None)
            await memberships.put(db, also, at_ns=1)
        issued = await admin.send("POST", "/tokens", {"name": "ci", "role": "developer"})
        assert (await admin.call("POST", "/tokens", {"name": "root", "role": "owner"})).status_code == 422
        async with Browser(tenants.app()) as machine:
            machine.http.headers["authorization"] = f"Bearer {issued['secret']}"
            assert (await machine.call("POST", "/keys", {"project_id": "proj_shop", "name": "k"})).is_success
            # A viewer there makes no keys, and no token of theirs does.
            elsewhere = await machine.call("POST", "/keys", {"project_id": "proj_search", "name": "k"})
            assert elsewhere.status_code == 404
            assert (
                await machine.call("POST", "/members/project/proj_shop", {"name": "b", "role": "viewer"})
            ).status_code == 403
            async with writing(tenants.engine) as db:
                for each in await memberships.rows(db, user_id=admin.session["user_id"]):
                    await memberships.remove(db, each)
            assert (await machine.call("GET", "/keys")).status_code == 401


async def test_a_key_grants_no_more_than_its_maker_may(tenants: World) -> None:
    await tenants.keys.set_rate_limit(Scope.PROJECT, "proj_shop", "requests", 100, actor="ann", now_ns=tenants.now_ns)
    async with await member(tenants, "project", "proj_shop", Role.DEVELOPER, models=("gpt-*", "llama-4-scout")) as dev:
        key = {"project_id": "proj_shop", "name": "k"}
        for models in (["*"], ["claude-sonnet-5"], ["gp*"], ["gpt-5-mini", "gemini-*"]):
            refused = await dev.call("POST", "/keys", {**key, "models": models})
            assert (refused.status_code, refused.json()["field"]) == (422, "models"), models
        inherits = (await dev.send("POST", "/keys", key))["key"]
        assert inherits["models"] == ["gpt-*", "llama-4-scout"]
        narrower = (await dev.send("POST", "/keys", {**key, "models": ["gpt-5-*", "gpt-5-mini"]}))["key"]
        assert (await dev.call("PATCH", f"/keys/{narrower['id']}", {"models": None})).json()["models"] == inherits[
            "models"
        ]
        assert (await dev.call("PATCH", f"/keys/{narrower['id']}", {"models": ["*"]})).status_code == 422
        playground = await dev.send("POST", "/playground/key", {"project_id": "proj_shop"})
        assert playground["key"]["models"] == inherits["models"]
        for wish, field in (
            ({"budgets": [{"limit_usd": "201", "window": "month"}]}, "budgets"), ({"rpm": 101}, "rpm"),
            ({"weight": 2}, "weight"),
        ):  # fmt: skip
            refused = await dev.call("POST", "/keys", {**key, **wish})
            assert (refused.status_code, refused.json()["field"]) == (422, field)
        assert (await dev.call("PATCH", f"/keys/{narrower['id']}", {"rpm": 101})).status_code == 422
        good = {"budgets": [{"limit_usd": "200", "window": "month"}], "rpm": 100}
        assert (await dev.call("POST", "/keys", {**key, **good})).is_success
        # Nor does a person pass on more models than they have.
        async with await member(tenants, "project", "proj_shop", Role.TEAM_LEAD, models=("gpt-*",)) as lead:
            said = await lead.send("POST", "/members/project/proj_shop", {"name": "zoe", "role": "developer"})
            shown = {each["user_id"]: each["models"] for each in await lead.get("/members")}
            assert shown[said["user_id"]] == ["gpt-*"]


async def test_a_role_over_the_installation_stays_what_it_was(tenants: World) -> None:
    async with Browser(tenants.app()) as viewer:
        await viewer.sign_in(await tenants.link(Role.VIEWER))
        assert len(await viewer.get("/projects")) == 3
        # And a membership adds to it in its place alone.
        async with writing(tenants.engine) as db:
            held = Held(viewer.session["user_id"], "project", "proj_shop", "manual", Role.DEVELOPER, None)
            await memberships.put(db, held, at_ns=1)
        assert (await viewer.call("POST", "/keys", {"project_id": "proj_shop", "name": "k"})).is_success
        other = await viewer.call("POST", "/keys", {"project_id": "proj_search", "name": "k"})
        assert other.status_code == 403


async def test_a_change_keeps_its_reason(tenants: World) -> None:
    async with Browser(tenants.app()) as owner:
        await owner.sign_in(await tenants.link(Role.OWNER))
        reason = {"x-farebox-why": "New hire, ticket 4711"}
        await owner.send("POST", "/members/team/team_a", {"name": "ida", "role": "developer"}, **reason)
        row = (await owner.get("/audit", action="members.set", limit=1))["items"][0]
        assert (row["note"], row["subject"], row["after"]["role"]) == (
            reason["x-farebox-why"],
            "team:team_a",
            "developer",
        )
        long = await owner.call("POST", "/teams", {"name": "T"}, **{"x-farebox-why": "x" * 501})
        assert (long.status_code, long.json()["field"]) == (422, "x-farebox-why")


def test_every_list_takes_what_it_may_show() -> None:
    for handler in GUARDED:
        if isinstance(CONCERNS.get(handler.name or ""), Seen):
            assert "sight" in inspect.signature(handler.fn).parameters, handler.name
    assert set(CONCERNS) <= set(PERMITTED)


async def test_a_person_who_belongs_nowhere_sees_nothing(tenants: World) -> None:
    async with Browser(tenants.app()) as nobody:
        await nobody.sign_in(await tenants.link(Role.MEMBER))
        for path in ("/keys", "/usage", "/models", "/overview", "/members"):
            assert (await nobody.call("GET", path)).status_code == 403


async def test_a_rotated_key_is_shown_once_and_only_to_who_could_have_made_it(tenants: World) -> None:
    key = tenants.key_ids["web-production"]
    async with await member(tenants, "project", "proj_shop", Role.DEVELOPER) as dev:
        said = await dev.send("POST", f"/keys/{key}/rotate", {"overlap_hours": 2})
        assert (said["key"]["id"], said["key"]["warning"]) == (key, "the old secret ends in 2 hours")
        assert said["secret"].startswith(said["key"]["shown"])
        assert said["secret"] not in (await dev.call("GET", "/keys")).text
        assert (await dev.call("POST", f"/keys/{tenants.key_ids['ci']}/rotate", {})).status_code == 404
        assert (await dev.call("POST", f"/keys/{key}/rotate", {"overlap_hours": 2161})).status_code == 422
    async with await member(tenants, "project", "proj_shop", Role.DEVELOPER, models=("gpt-*",)) as narrow:
        # The key may ask for every model; its secret would be more than this one may grant.
        refused = await narrow.call("POST", f"/keys/{key}/rotate", {})
        assert (refused.status_code, refused.json()["field"]) == (422, "models")
        own = await narrow.send("POST", "/keys", {"project_id": "proj_shop", "name": "own"})
        assert (await narrow.call("POST", f"/keys/{own['key']['id']}/rotate", {})).is_success


async def test_an_organisations_admin_reads_its_own_rows_of_the_audit(tenants: World) -> None:
    """What was done to its keys, budgets, projects, members and guardrails, by whomever; the rest is not there."""
    async with Browser(tenants.app()) as owner:
        await owner.sign_in(await tenants.link(Role.OWNER))
        for project in ("proj_shop", "proj_other"):
            await owner.send("PUT", f"/budgets/project/{project}/month", {"limit_usd": "3"})
            rule = {"name": "pii", "spec": {"kind": "pii"}, "scope": "project", "scope_id": project}
            await owner.send("POST", "/guardrails", rule)
        await owner.send("PUT", "/budgets/end_user/proj_shop/day", {"limit_usd": "3"})
        await owner.send("POST", "/ledger/top-ups", {"organisation_id": "org_2", "amount_usd": "5", "note": "paid"},
                         **{"idempotency-key": "paid-0001"})  # fmt: skip
        everything = (await owner.get("/audit", limit=500))["items"]
        assert (await owner.get("/audit/verify"))["intact"]
    assert {None, "org_1", "org_2"} == {row["organisation_id"] for row in everything}
    for mine in ("org_1", "org_2"):
        async with await member(tenants, "organisation", mine, Role.ADMIN) as admin:
            rows = (await admin.get("/audit", limit=500))["items"]
            assert rows == [row for row in everything if row["organisation_id"] == mine]
            lines = (await admin.call("GET", "/audit/export")).content.splitlines()
            assert {msgspec.json.decode(line)["organisation_id"] for line in lines} == {mine}
            assert (await admin.call("GET", "/audit/verify")).status_code == 403
            told = {row["action"] for row in rows}
            assert {"guardrails.create", "key.create", "members.set", "project.budget"} <= told, told
            assert ("ledger.top_up" in told) is (mine == "org_2")
    async with await member(tenants, "team", "team_a", Role.ADMIN) as narrow:
        assert (await narrow.get("/audit", limit=500))["items"] == []


async def test_the_audit_goes_out_as_lines(small: World) -> None:
    async with Browser(small.app()) as owner:
        await owner.sign_in(await small.link(Role.OWNER))
        await owner.send("POST", "/teams", {"name": "T"}, **{"x-farebox-why": "reorganisation"})
        answer = await owner.call("GET", "/audit/export?why=REORG")
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        rows = [msgspec.json.decode(line) for line in answer.content.splitlines()]
        assert [(row["action"], row["note"]) for row in rows] == [("teams.create", "reorganisation")]
        assert len((await owner.call("GET", "/audit/export")).content.splitlines()) == len(
            (await owner.get("/audit", limit=500))["items"]
        )
