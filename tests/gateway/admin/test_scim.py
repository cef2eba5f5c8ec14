"""SCIM 2.0 as Okta and Entra speak it: people, groups, what ends with a person, and what the wire may not say."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from billing.db import reading, writing
from gateway.admin.auth import memberships, people
from gateway.admin.auth.roles import Role
from gateway.admin.scim import wire
from gateway.admin.scim.wire import ScimError, apply, parse_filter, parse_patch
from gateway.chores import chores_of
from gateway.signing_in import AdminSettings, GrantSettings
from tests.gateway.admin.client import BASE, Browser
from tests.gateway.admin.world import World

Opener = Callable[[World], Browser]
GRANTS = (
    GrantSettings(group="Admins", role="admin"),
    GrantSettings(group="Shop", role="developer", scope="project", scope_id="proj_shop"),
)
ANN = {
    "schemas": [wire.USER, wire.ENTERPRISE], "userName": "Ann@House.test", "externalId": "ext-1",
    "name": {"givenName": "Ann", "familyName": "Lee"},
    "emails": [{"value": "ann@house.test", "type": "work", "primary": True}],
    "active": True, wire.ENTERPRISE: {"department": "Books"},
}  # fmt: skip


class Scim:
    """What a provisioning client does."""

    def __init__(self, made: World, secret: str) -> None:
        transport = httpx.ASGITransport(app=made.app(), raise_app_exceptions=False)  # type: ignore[arg-type]
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/scim+json"}
        self.http = httpx.AsyncClient(transport=transport, base_url=f"{BASE}/scim/v2", headers=headers)

    async def __call__(self, method: str, path: str, body: Any = None, status: int = 200, **query: Any) -> Any:
        answer = await self.http.request(method, path, json=body, params=query)
        assert answer.status_code == status, answer.text
        if status == 204:
            return None
        assert answer.headers["content-type"] == "application/scim+json"
        said = answer.json()
        if status >= 400:
            assert (said["schemas"], said["status"]) == ([wire.ERROR], str(status))
        return said


@pytest.fixture
async def owner(small: World) -> AsyncIterator[Browser]:
    admin = AdminSettings(grants=GRANTS)
    small.services = dataclasses.replace(small.services, settings=replace(small.services.settings, admin=admin))
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link(Role.OWNER, "olga"))
        yield browser


@pytest.fixture
async def scim(small: World, owner: Browser) -> AsyncIterator[Scim]:
    issued = await owner.send("POST", "/scim-tokens", {"name": "Entra"})
    client = Scim(small, issued["secret"])
    yield client
    await client.http.aclose()


def patch(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"schemas": [wire.PATCH], "Operations": list(operations)}


async def test_a_persons_life(small: World, owner: Browser, scim: Scim, opened: Opener) -> None:
    assert (await scim("GET", "/Users", filter='userName eq "ann@house.test"'))["totalResults"] == 0
    made = await scim("POST", "/Users", ANN, 201)
    ident = made["id"]
    assert made["meta"]["location"].endswith(f"/scim/v2/Users/{ident}")
    assert (made["userName"], made["externalId"], made["name"], made["active"]) == (
        "Ann@House.test", "ext-1", ANN["name"], True,
    )  # fmt: skip
    assert made[wire.ENTERPRISE] == {"department": "Books"}
    for query in ('userName eq "ANN@house.TEST"', 'externalId eq "ext-1" and active eq true', f'id eq "{ident}"',
                  'emails.value eq "ann@house.test"', 'name.familyName sw "l" and userName pr'):  # fmt: skip
        assert [each["id"] for each in (await scim("GET", "/Users", filter=query))["Resources"]] == [ident], query
    for query in ('userName eq "ann"', 'externalId eq "EXT-1"', 'userName eq "ann@house.test" and active eq false'):
        assert (await scim("GET", "/Users", filter=query))["totalResults"] == 0, query
    taken = await scim("POST", "/Users", {**ANN, "userName": "ann@house.test"}, 409)
    assert taken["scimType"] == "uniqueness"
    # A group grants; the person signs in by a link and makes a token.
    group = await scim("POST", "/Groups", {"displayName": "Shop", "members": [{"value": ident}]}, 201)
    assert group["members"] == [{"value": ident, "display": "Ann@House.test", "$ref": made["meta"]["location"]}]
    assert [each["display"] for each in (await scim("GET", f"/Users/{ident}"))["groups"]] == ["Shop"]
    async with writing(small.engine) as db:
        link = await people.issue_link(db, ident, at_ns=small.now_ns)
    ann = opened(small)
    await ann.sign_in(link)
    assert ann.session["memberships"] == [{"scope": "project", "scope_id": "proj_shop", "role": "developer"}]
    issued = await ann.send("POST", "/tokens", {"name": "ci", "role": "developer"})
    machine = opened(small)
    machine.http.headers["authorization"] = f"Bearer {issued['secret']}"
    assert "items" in await machine.get("/keys")
    # Off, as Entra says it: sessions end, tokens are revoked for good.
    off = await scim("PATCH", f"/Users/{ident}", patch({"op": "Replace", "path": "active", "value": "False"}))
    assert off["active"] is False
    assert await ann.get("/auth/session") is None
    assert (await machine.call("GET", "/keys")).status_code == 401
    await scim("PATCH", f"/Users/{ident}", patch({"op": "replace", "value": {"active": True}}))
    assert (await machine.call("GET", "/keys")).status_code == 401
    assert await ann.get("/auth/session") is None
    # Gone: not to be found, its name free, its trace there.
    await scim("DELETE", f"/Users/{ident}", status=204)
    await scim("GET", f"/Users/{ident}", status=404)
    await scim("DELETE", f"/Users/{ident}", status=404)
    assert (await scim("GET", f"/Groups/{group['id']}"))["members"] == []
    assert (await scim("POST", "/Users", ANN, 201))["id"] != ident
    actions = [row["action"] for row in (await owner.get("/audit", actor="scim (Entra)"))["items"]]
    assert {"users.create", "users.update", "users.remove", "groups.set", "users.grants"} <= set(actions)


async def test_groups_grant_as_long_as_one_is_in_them(small: World, owner: Browser, scim: Scim) -> None:
    ids = [(await scim("POST", "/Users", {"userName": f"p{n}@house.test"}, 201))["id"] for n in range(3)]

    async def roles() -> dict[str, list[str]]:
        members = await owner.get("/members")
        return {ident: [each["role"] for each in members if each["user_id"] == ident] for ident in ids}

    group = (await scim("POST", "/Groups", {"displayName": "Books", "externalId": "g-1"}, 201))["id"]
    add = [{"value": each} for each in ids[:2]]
    await scim("PATCH", f"/Groups/{group}", patch({"op": "Add", "path": "members", "value": add}))
    assert await roles() == {ids[0]: [], ids[1]: [], ids[2]: []}
    # A name that is granted something, from now on; and one that is not, again.
    await scim("PATCH", f"/Groups/{group}", patch({"op": "replace", "value": {"id": group, "displayName": "Shop"}}))
    assert await roles() == {ids[0]: ["developer"], ids[1]: ["developer"], ids[2]: []}
    await scim("PATCH", f"/Groups/{group}", patch(
        {"op": "remove", "path": f'members[value eq "{ids[0]}"]'},
        {"op": "add", "path": "members", "value": [{"value": ids[2]}, {"value": ids[1]}]},
    ))  # fmt: skip
    assert await roles() == {ids[0]: [], ids[1]: ["developer"], ids[2]: ["developer"]}
    # Entra removes with a value.
    out = {"op": "Remove", "path": "members", "value": [{"value": ids[1]}]}
    assert len((await scim("PATCH", f"/Groups/{group}", patch(out)))["members"]) == 1
    for query in (
        'displayName eq "shop"',
        'externalId eq "g-1"',
        f'members eq "{ids[2]}"',
        f'members.value eq "{ids[2]}"',
    ):
        assert (await scim("GET", "/Groups", filter=query, excludedAttributes="members"))["totalResults"] == 1, query
    listed = (await scim("GET", "/Groups", excludedAttributes="members"))["Resources"][0]
    assert "members" not in listed
    unknown = patch({"op": "add", "path": "members", "value": [{"value": "user_none"}]})
    assert (await scim("PATCH", f"/Groups/{group}", unknown, 400))["scimType"] == "invalidValue"
    assert (await scim("POST", "/Groups", {"displayName": "shop"}, 409))["scimType"] == "uniqueness"
    # An owner of this place is no member that a directory can add.
    outside = patch({"op": "add", "path": "members", "value": [{"value": owner.session["user_id"]}]})
    await scim("PATCH", f"/Groups/{group}", outside, 400)
    await scim("PUT", f"/Groups/{group}", {"displayName": "Admins", "members": [{"value": ids[0]}]})
    assert (await roles())[ids[2]] == []
    await scim("DELETE", f"/Groups/{group}", status=204)
    assert await roles() == {ids[0]: [], ids[1]: [], ids[2]: []}


async def test_grants_that_changed_reach_people_before_any_request_of_scims(small: World, scim: Scim) -> None:
    """A gateway that starts with other settings; nobody has to sign in or be provisioned again."""
    ident = (await scim("POST", "/Users", ANN, 201))["id"]
    await scim("POST", "/Groups", {"displayName": "Shop", "members": [{"value": ident}]}, 201)
    to_lead = GrantSettings(group="Shop", role="team_lead", scope="project", scope_id="proj_search")
    for grants, held, changed in (
        (GRANTS, ("proj_shop", Role.DEVELOPER), 0),
        ((to_lead,), ("proj_search", Role.TEAM_LEAD), 1),
        ((), None, 1),
    ):
        settings = replace(small.services.settings, admin=AdminSettings(grants=grants))
        async with chores_of(settings, small.engine) as listed:
            (chore,) = [each for each in listed if each.name == "grants of groups"]
            assert [await chore.do(small.now_ns), await chore.do(small.now_ns)] == [changed, 0]
        async with reading(small.engine) as db:
            found = [(each.scope_id, each.role) for each in await memberships.rows(db, user_id=ident)]
        assert found == ([] if held is None else [held])


async def test_pages_attributes_and_what_the_server_says_of_itself(small: World, scim: Scim) -> None:
    for n in range(5):
        small.now_ns += 1  # Listed in the order they came.
        await scim("POST", "/Users", {"userName": f"p{n}"}, 201)
    page = await scim("GET", "/Users", startIndex=2, count=2)
    assert (page["totalResults"], page["startIndex"], page["itemsPerPage"]) == (5, 2, 2)
    assert [each["userName"] for each in page["Resources"]] == ["p1", "p2"]
    assert (await scim("GET", "/Users", count=0))["Resources"] == []
    assert (await scim("GET", "/Users", startIndex=-3, count=-1))["itemsPerPage"] == 0
    assert (await scim("GET", "/Users", startIndex=9))["Resources"] == []
    only = (await scim("GET", "/Users", attributes="userName"))["Resources"][0]
    assert set(only) == {"schemas", "id", "userName"}
    config = await scim("GET", "/ServiceProviderConfig")
    assert (config["patch"]["supported"], config["bulk"]["supported"]) == (True, False)
    assert [each["id"] for each in (await scim("GET", "/ResourceTypes"))["Resources"]] == ["User", "Group"]
    assert (await scim("GET", f"/Schemas/{wire.USER}"))["name"] == "User"
    await scim("GET", "/Schemas/urn:none", status=404)


async def test_patches_of_a_person_in_every_dress(scim: Scim) -> None:
    ident = (await scim("POST", "/Users", ANN, 201))["id"]
    done = await scim("PATCH", f"/Users/{ident}", patch(
        {"op": "replace", "path": "name.givenName", "value": "Anna"},
        {"op": "Replace", "path": 'emails[type eq "work"].value', "value": "anna@house.test"},
        {"op": "Add", "path": 'phoneNumbers[type eq "mobile"].value', "value": "+49 1"},
        {"op": "add", "path": f"{wire.ENTERPRISE}:department", "value": "Maps"},
        {"op": "replace", "value": {"name.familyName": "Leigh", "title": "Lead", "USERNAME": "anna@house.test"}},
        {"op": "remove", "path": "externalId"},
    ))  # fmt: skip
    assert done["name"] == {"givenName": "Anna", "familyName": "Leigh"}
    assert done["emails"] == [{"value": "anna@house.test", "type": "work", "primary": True}]
    assert done["phoneNumbers"] == [{"type": "mobile", "value": "+49 1"}]
    assert (done["userName"], done["title"], done[wire.ENTERPRISE]) == (
        "anna@house.test",
        "Lead",
        {"department": "Maps"},
    )
    assert "externalId" not in done
    whole = await scim("PUT", f"/Users/{ident}", {"userName": "anna@house.test", "externalId": "ext-2"})
    assert ("emails" in whole, whole["externalId"], whole["active"]) == (False, "ext-2", True)
    for bad, kind in (
        (patch(), "invalidSyntax"),
        (patch({"op": "frob", "path": "title", "value": "x"}), "invalidSyntax"),
        (patch({"op": "remove"}), "noTarget"),
        (patch({"op": "replace", "path": "a[b", "value": 1}), "invalidPath"),
        (patch({"op": "replace", "path": "active", "value": "maybe"}), "invalidValue"),
        (patch({"op": "replace", "path": "userName", "value": ""}), "invalidValue"),
        (patch({"op": "remove", "path": "userName"}), "invalidValue"),
        ([], "invalidSyntax"),
    ):
        assert (await scim("PATCH", f"/Users/{ident}", bad, 400))["scimType"] == kind
    assert (await scim("GET", "/Users", filter="userName xx 1", status=400))["scimType"] == "invalidFilter"


async def test_only_its_own_tokens_and_only_its_own_people(small: World, owner: Browser, scim: Scim) -> None:
    # Whoever was made by hand is not seen and cannot be taken over, the owner least of all.
    olga = owner.session["user_id"]
    await scim("GET", f"/Users/{olga}", status=404)
    await scim("PATCH", f"/Users/{olga}", patch({"op": "replace", "path": "active", "value": False}), 404)
    await scim("DELETE", f"/Users/{olga}", status=404)
    assert (await scim("POST", "/Users", {"userName": "olga"}, 409))["scimType"] == "uniqueness"
    # A session or an API token is none of SCIM's, nor the other way round.
    issued = await owner.send("POST", "/tokens", {"name": "ci", "role": "owner"})
    for wrong in (issued["secret"], "", "fbs-nothing"):
        other = Scim(small, wrong)
        await other("GET", "/Users", status=401)
        await other.http.aclose()
    async with Browser(small.app()) as machine:
        machine.http.headers["authorization"] = scim.http.headers["authorization"]
        assert (await machine.call("GET", "/users")).status_code == 401
    shown = (await owner.get("/provisioning"))["scim_tokens"][0]
    assert (shown["name"], shown["revoked"], shown["last_used_at"] is not None) == ("Entra", False, True)
    assert (await owner.call("DELETE", f"/scim-tokens/{shown['id']}")).status_code == 204
    await scim("GET", "/Users", status=401)
    for _ in range(people.MAX_FAILURES):
        await scim.http.get("/Users")
    await scim("GET", "/Users", status=429)


async def test_the_last_owner_cannot_be_provisioned_away(small: World, owner: Browser, scim: Scim) -> None:
    ident = (await scim("POST", "/Users", ANN, 201))["id"]
    await owner.send("PATCH", f"/users/{ident}", {"role": "owner"})
    async with writing(small.engine) as db:
        await people.set_disabled(db, owner.session["user_id"], small.now_ns)
    off = patch({"op": "replace", "path": "active", "value": False})
    assert (await scim("PATCH", f"/Users/{ident}", off, 409))["scimType"] == "mutability"
    async with reading(small.engine) as db:
        kept = await people.user(db, ident)
    assert kept is not None
    assert kept.disabled_at_ns is None


@pytest.mark.parametrize(
    "text",
    ["", "userName", "userName eq", 'userName eq "a" or active eq true', '(userName eq "a")', "userName eq a",
     'userName eq "a" and', 'user..name eq "a"', 'userName eq "a', "x" * 2001, 'a[b eq "c"] pr'],
)  # fmt: skip
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(ScimError) as refused:
        parse_filter(text)
    assert refused.value.kind == "invalidFilter"


def test_a_patch_changes_a_copy_and_finds_names_in_any_case() -> None:
    have = {"userName": "a", "emails": [{"type": "work", "value": "x"}], "name": {"givenName": "A"}}
    (step,) = parse_patch(patch({"op": "REPLACE", "path": "NAME.GIVENNAME", "value": "B"}))
    assert apply(have, step)["name"] == {"givenName": "B"}
    assert have["name"] == {"givenName": "A"}
    (quoted,) = parse_filter(r'userName eq "say \"and\" (twice)"')
    assert quoted.value == 'say "and" (twice)'
