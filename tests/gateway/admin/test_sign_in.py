"""Getting in, staying in, and not getting in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import select

from billing.db import reading, writing
from gateway import schema
from gateway.admin.auth import people
from gateway.admin.auth.guard import COOKIE
from gateway.admin.auth.roles import Role
from tests.gateway.admin.client import BASE, Browser
from tests.gateway.admin.world import World

Opener = Callable[[World], Browser]


async def test_a_link_works_once_and_its_secret_is_nowhere_in_the_database(made: World, opened: Opener) -> None:
    token = await made.link()
    first, second = opened(made), opened(made)
    await first.sign_in(token)
    again = await second.call("POST", "/auth/link", {"token": token})
    assert (again.status_code, again.json()["type"]) == (401, "urn:farebox:problem:link-spent")
    cookie = first.http.cookies[COOKIE]
    async with reading(made.engine) as db:
        for table in (schema.sign_in_links, schema.admin_sessions):
            kept = (await db.execute(select(table.c.token_hash))).scalars().all()
            assert {people.hashed(token), people.hashed(cookie)} & set(kept)
            assert not {token.encode(), cookie.encode()} & set(kept)


async def test_the_cookie_cannot_be_read_nor_sent_from_elsewhere_and_stays_off_the_data_plane(
    small: World, opened: Opener
) -> None:
    answer = await opened(small).call("POST", "/auth/link", {"token": await small.link()})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/admin" in cookie


async def test_a_link_ends_with_its_day(small: World, opened: Opener) -> None:
    token = await small.link()
    small.now_ns += people.LINK_NS
    assert (await opened(small).call("POST", "/auth/link", {"token": token})).status_code == 401


async def test_a_password_brings_one_back_and_ends_every_other_session(made: World, opened: Opener) -> None:
    here, elsewhere = opened(made), opened(made)
    await here.sign_in(await made.link(name="ann"))
    async with writing(made.engine) as db:
        token = await people.issue_link(db, here.session["user_id"], at_ns=made.now_ns)
    await elsewhere.sign_in(token)
    await here.send("PUT", "/auth/password", {"password": "correct horse battery"})
    assert (await elsewhere.get("/auth/session")) is None
    assert (await here.get("/auth/session"))["has_password"]
    fresh = opened(made)
    wrong = await fresh.call("POST", "/auth/password", {"name": "ann", "password": "incorrect horse"})
    assert (wrong.status_code, wrong.json()["type"]) == (401, "urn:farebox:problem:wrong-password")
    assert (await fresh.call("POST", "/auth/password", {"name": "ann", "password": "correct horse battery"})).is_success
    # A second change needs the first password.
    kept = await here.call("PUT", "/auth/password", {"password": "another one entirely"})
    assert (kept.status_code, kept.json()["field"]) == (403, "current")


async def test_guessing_is_cut_short_even_for_the_right_password(small: World, opened: Opener) -> None:
    browser = opened(small)
    await browser.sign_in(await small.link(name="ann"))
    await browser.send("PUT", "/auth/password", {"password": "correct horse battery"})
    guesser = opened(small)
    for _ in range(people.MAX_FAILURES):
        assert (await guesser.call("POST", "/auth/password", {"name": "ann", "password": "x"})).status_code == 401
    good = {"name": "ann", "password": "correct horse battery"}
    refused = await guesser.call("POST", "/auth/password", good)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "900")
    small.now_ns += people.FAILURES_NS
    assert (await guesser.call("POST", "/auth/password", good)).is_success


async def test_signing_out_ends_the_session_on_the_server(small: World, opened: Opener) -> None:
    browser = opened(small)
    await browser.sign_in(await small.link())
    cookie = browser.http.cookies[COOKIE]
    assert (await browser.call("DELETE", "/auth/session")).status_code == 200
    browser.http.cookies.set(COOKIE, cookie)
    assert (await browser.get("/auth/session")) is None
    assert (await browser.call("GET", "/keys")).status_code == 401


@pytest.mark.parametrize("later", [people.IDLE_NS, people.SESSION_NS])
async def test_a_session_ends_by_itself(small: World, opened: Opener, later: int) -> None:
    browser = opened(small)
    await browser.sign_in(await small.link())
    if later == people.SESSION_NS:
        for _ in range(6):  # In use all the time, and still not for ever.
            small.now_ns += people.SESSION_NS // 6
            if small.now_ns < small.started_ns + people.SESSION_NS:
                assert await browser.get("/auth/session")
    else:
        small.now_ns += later
    assert (await browser.get("/auth/session")) is None


async def test_a_change_needs_the_token_that_only_our_page_knows(small: World, opened: Opener) -> None:
    browser = opened(small)
    await browser.sign_in(await small.link())
    for wrong in ("", "0" * 32):
        forged = await browser.call("POST", "/projects", {"name": "Stolen"}, **{"x-csrf-token": wrong})
        assert (forged.status_code, forged.json()["type"]) == (403, "urn:farebox:problem:forged-request")
    foreign = await browser.call("POST", "/projects", {"name": "Stolen"}, origin="http://evil.test")
    assert (foreign.status_code, foreign.json()["type"]) == (403, "urn:farebox:problem:foreign-origin")
    assert (await browser.call("POST", "/projects", {"name": "Ours"}, origin=BASE)).is_success


async def test_a_disabled_person_is_out_at_once_and_the_last_owner_stays(small: World, opened: Opener) -> None:
    owner, viewer = opened(small), opened(small)
    await owner.sign_in(await small.link(Role.OWNER))
    await viewer.sign_in(await small.link(Role.VIEWER))
    await owner.send("PATCH", f"/users/{viewer.session['user_id']}", {"disabled": True})
    assert (await viewer.get("/auth/session")) is None
    for change in ({"disabled": True}, {"role": "viewer"}):
        refused = await owner.call("PATCH", f"/users/{owner.session['user_id']}", change)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:farebox:problem:last-owner")


async def test_of_two_owners_who_shut_each_other_out_at_once_one_stays(made: World, opened: Opener) -> None:
    one, other = opened(made), opened(made)
    for each in (one, other):
        await each.sign_in(await made.link(Role.OWNER))
    await asyncio.gather(
        one.call("PATCH", f"/users/{other.session['user_id']}", {"disabled": True}),
        other.call("PATCH", f"/users/{one.session['user_id']}", {"disabled": True}),
    )
    async with reading(made.engine) as db:
        assert await people.owners_besides(db, "nobody") == 1


async def test_a_token_does_what_its_role_may_and_no_more_than_its_person(small: World, opened: Opener) -> None:
    owner = opened(small)
    await owner.sign_in(await small.link(Role.OWNER))
    admin = opened(small)
    await admin.sign_in(await small.link(Role.ADMIN))
    issued = await admin.send("POST", "/tokens", {"name": "ci", "role": "developer", "days": 1})
    machine = opened(small)
    machine.http.headers["authorization"] = f"Bearer {issued['secret']}"
    assert "items" in await machine.get("/keys")
    assert (await machine.call("POST", "/projects", {"name": "P"})).status_code == 403
    key = {"project_id": "proj_shop", "name": "by machine"}
    assert (await machine.call("POST", "/keys", key)).is_success  # No cookie, so no forged request to fear.
    refused = await admin.call("POST", "/tokens", {"name": "root", "role": "owner"})
    assert (refused.status_code, refused.json()["field"]) == (422, "role")
    # Whoever is demoted takes their tokens along.
    await owner.send("PATCH", f"/users/{admin.session['user_id']}", {"role": "viewer"})
    assert (await machine.call("GET", "/keys")).status_code == 401
    await owner.send("PATCH", f"/users/{admin.session['user_id']}", {"role": "admin"})
    assert (await machine.call("GET", "/keys")).is_success
    small.now_ns += 86_400 * 10**9
    assert (await machine.call("GET", "/keys")).status_code == 401


async def test_a_start_offers_a_link_until_the_owner_has_a_password(small: World) -> None:
    async with writing(small.engine) as db:
        first = await people.first_link(db, at_ns=small.now_ns)
        second = await people.first_link(db, at_ns=small.now_ns)
        assert first
        assert second
        users = await people.users(db)
        assert [(user.name, user.role) for user in users] == [("owner", Role.OWNER)]
        await people.set_password_hash(db, users[0].id, "$argon2id$...")
        assert await people.first_link(db, at_ns=small.now_ns) is None
