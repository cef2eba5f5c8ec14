"""Providers, credentials, deployments and aliases through the admin API, against an emulated Bedrock and OpenAI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select

from billing.db import reading
from gateway.admin.auth.roles import Role
from gateway.schema import audit as audit_table
from tests.emulators.bedrock import ACCESS_KEY_ID, MODELS, SECRET_ACCESS_KEY, BedrockEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World

KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}


@pytest.fixture
async def bedrock() -> AsyncIterator[BedrockEmulator]:
    async with BedrockEmulator() as running:
        yield running


@pytest.fixture
async def admin(small: World) -> AsyncIterator[Browser]:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link(Role.ADMIN))
        yield browser
    await small.services.yard.transport.aclose()


def asked(bedrock: BedrockEmulator, **more: Any) -> dict[str, Any]:
    said = {"kind": "bedrock", "region": "us-east-1", "base_url": bedrock.url, "allow_private": True}
    return {**said, "credential_fields": KEYS, **more}


async def test_a_bedrock_is_tried_added_asked_for_its_models_and_removed(
    admin: Browser, bedrock: BedrockEmulator, small: World
) -> None:
    tried = await admin.send("POST", "/provider-tests", asked(bedrock))
    assert (tried["ok"], tried["stage"], tried["models"]) == (True, "done", len(MODELS) + 2)
    added = await admin.call("PUT", "/providers/east", asked(bedrock), **{"if-none-match": "*"})
    assert added.status_code == 200, added.text
    detail = added.json()
    assert (detail["source"], detail["credential"], detail["etag"]) == ("database", "east", added.headers["etag"][1:-1])
    # The emulator's secret is too short for its last letters to be told.
    assert set(detail["credential_fields"]) == set(KEYS)
    assert SECRET_ACCESS_KEY not in added.text
    again = await admin.call("PUT", "/providers/east", asked(bedrock), **{"if-none-match": "*"})
    assert (again.status_code, again.json()["faults"][0]["path"]) == (422, "providers.east")
    # The credential stays when a change leaves it out.
    changed = await admin.send("PUT", "/providers/east", asked(bedrock, credential="east", credential_fields=None))
    assert changed["credential"] == "east"
    tested = await admin.send("POST", "/providers/east/test", {"model": MODELS[1]})
    assert (tested["ok"], tested["says"]) == (True, f"{MODELS[1]} answered.")
    found = {each["model"]: each for each in await admin.get("/providers/east/models")}
    assert set(MODELS) <= set(found)
    # What the shipped list prices can be asked for at once; the rest says that it has no price.
    assert {each["priced"] for each in found.values()} == {True, False}
    assert all(each["priced"] == (each["input_usd"] is not None) >= each["offered"] for each in found.values())
    assert [each["name"] for each in await admin.get("/credentials")] == ["east"]
    (listed,) = [each for each in await admin.get("/providers") if each["name"] == "east"]
    assert (listed["source"], listed["kind"], listed["state"], listed["ill"]) == ("database", "bedrock", "idle", {})
    refused = await admin.call("DELETE", "/credentials/east")
    assert (refused.status_code, refused.json()["faults"][0]["path"]) == (422, "providers.east.credential")
    assert (await admin.call("DELETE", "/providers/east")).status_code == 204
    assert (await admin.call("DELETE", "/credentials/east")).status_code == 204
    assert (await admin.call("GET", "/providers/east")).status_code == 404
    async with reading(small.engine) as db:
        trail = str([dict(row) for row in (await db.execute(select(audit_table))).mappings()])
    assert "providers.put" in trail
    assert "credentials.remove" in trail
    assert SECRET_ACCESS_KEY not in trail


async def test_what_is_wrong_is_told_in_an_operators_words(admin: Browser, bedrock: BedrockEmulator) -> None:
    async def trial(**more: Any) -> tuple[str, str]:
        found = await admin.send("POST", "/provider-tests", asked(bedrock, **more))
        assert not found["ok"]
        assert found["todo"]
        return found["stage"], found["says"]

    wrong = await trial(credential_fields={**KEYS, "secret_access_key": "wrong"})
    assert wrong[0] == "sign in"
    assert "refuses the credential" in wrong[1]
    assert (await trial(base_url="http://127.0.0.1:9"))[0] == "connect"
    assert (await trial(region=None))[1] == "bedrock: region is missing"
    assert "private network" in (await trial(allow_private=False))[1]
    assert "link-local" in (await trial(base_url="http://169.254.169.254"))[1]
    assert "403" in (await trial(kind="openai_like", credential_fields={"api_key": "x"}))[1]
    assert (await trial(credential_fields={"api_key": "env:NOT_THERE"}))[0] == "settings"
    problem = await admin.call("POST", "/provider-tests", asked(bedrock, credential_fields={"api_key": "file:/etc/x"}))
    assert problem.status_code == 422
    assert "only files below" in problem.json()["detail"]


async def test_an_alias_is_made_previewed_and_put_back(admin: Browser, small: World) -> None:
    async with OpenAIEmulator() as one, OpenAIEmulator() as two:
        for name, emulator in (("one", one), ("two", two)):
            said = {"kind": "openai_like", "base_url": f"{emulator.url}/v1", "allow_private": True}
            await admin.send("PUT", f"/providers/{name}", said)
            cheap = {"input": "1" if name == "one" else "2", "output": "3"}
            place = {"provider": name, "model": "echo-1", "price": cheap, "capabilities": ["tools"]}
            await admin.send("PUT", f"/deployments/{name}/echo-1", place)
    entry = {"targets": [{"deployment": "two/echo-1"}, {"deployment": "one/echo-1"}], "strategy": "lowest_cost"}
    dry = await admin.send("POST", "/route/preview", {"alias": "fast", "entry": entry, "needs": ["tools"]})
    assert [leg["deployment"] for leg in dry["legs"]] == ["one/echo-1", "two/echo-1"]
    assert dry["legs"][0]["why"]
    assert (await admin.call("POST", "/route/preview", {"alias": "fast"})).status_code == 422  # Nothing was kept.
    made = await admin.call("PUT", "/aliases/fast", entry)
    tag = made.headers["etag"]
    assert (await admin.send("POST", "/route/preview", {"alias": "fast"}))["legs"][0]["deployment"] == "one/echo-1"
    left = await admin.call("POST", "/route/preview", {"alias": "fast", "needs": ["image_input"]})
    assert left.status_code == 422
    weighted = {**entry, "strategy": "priority"}
    assert (await admin.call("PUT", "/aliases/fast", weighted, **{"if-match": tag})).status_code == 200
    stale = await admin.call("PUT", "/aliases/fast", entry, **{"if-match": tag})
    assert (stale.status_code, stale.json()["type"]) == (412, "urn:farebox:problem:changed-meanwhile")
    bad = await admin.call("PUT", "/aliases/fast", {"targets": [{"deployment": "x"}, {"deployment": "y"}]})
    assert [fault["path"] for fault in bad.json()["faults"]] == [
        f"aliases.fast.targets[{at}].deployment" for at in (0, 1)
    ]
    typo = await admin.call("PUT", "/aliases/fast", {**entry, "strategie": "auto"})
    assert typo.status_code in (400, 422)
    catalogue = await admin.get("/catalogue")
    assert catalogue["in_force"] == catalogue["newest"] == 6
    assert catalogue["history"][0]["change"] == "aliases.put fast"
    back = await admin.send("POST", "/catalogue/restore", {"number": 5})
    assert back["newest"] == 7
    (row,) = [each for each in await admin.get("/aliases") if each["alias"] == "fast"]
    assert (row["entry"]["strategy"], row["source"]) == ("lowest_cost", "database")
    assert (await admin.call("DELETE", "/deployments/one/echo-1")).status_code == 422
    assert (await admin.call("DELETE", "/aliases/fast")).status_code == 204
    assert (await admin.call("DELETE", "/deployments/one/echo-1")).status_code == 204


async def test_every_kind_says_what_it_needs(admin: Browser) -> None:
    from providers.registry import names

    kinds = {each["kind"]: each for each in await admin.get("/provider-kinds")}
    assert set(kinds) == set(names()) - {"local"}
    assert kinds["bedrock"]["region"]
    assert kinds["openai"]["default_base_url"] == "https://api.openai.com/v1"
