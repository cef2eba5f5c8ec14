"""One request's whole way as an operator sees it: it shows the moment it ends, with plan, tries, price and postings."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from billing.db import writing
from gateway.admin.auth import people
from gateway.admin.auth.roles import Role
from tests.e2e.harness import House


@pytest.fixture
async def office(gateway: House) -> AsyncIterator[httpx.AsyncClient]:
    """An owner's admin API."""
    async with writing(gateway.engine) as db:
        user = await people.create_user(db, "ann", Role.OWNER, at_ns=time.time_ns())
        link = await people.issue_link(db, user.id, at_ns=time.time_ns())
    async with httpx.AsyncClient(base_url=f"{gateway.url}/admin/v1", timeout=60) as client:
        assert (await client.post("/auth/link", json={"token": link})).status_code == 200
        yield client


async def asked(gateway: House, model: str) -> str:
    """Returns: the request's id."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(f"{gateway.v1}/chat/completions", json=body, headers=headers)
    return answer.headers["x-request-id"]


async def told(stream: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in stream.aiter_lines():
        if line.startswith("data:"):
            yield json.loads(line[5:])


async def test_the_tail_shows_a_request_as_it_ends_and_once(gateway: House, office: httpx.AsyncClient) -> None:
    first = await asked(gateway, "echo")
    await gateway.shipped()
    async with asyncio.timeout(60), office.stream("GET", "/requests/tail?alias=echo") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = told(stream)
        assert (await anext(events))["id"] == first
        await asked(gateway, "spare")  # Not what is looked for.
        second = await asked(gateway, "echo")
        seen = await anext(events)
        assert (seen["id"], seen["outcome"], seen["alias"]) == (second, "completed", "echo")


async def test_what_failed_on_the_way_is_kept_with_the_request(gateway: House, office: httpx.AsyncClient) -> None:
    request_id = await asked(gateway, "spare")
    found = (await office.get(f"/requests/{request_id}")).json()
    way = found["way"]
    assert [leg["deployment"] for leg in way["legs"]] == ["up/fault-503", "up/echo-1"]
    assert all(leg["why"] for leg in way["legs"])
    assert [(each["deployment"], each["result"]) for each in way["tries"]] == [
        ("up/fault-503", "Overloaded 503"), ("up/echo-1", "ok"),
    ]  # fmt: skip
    assert (found["request"]["attempts"], found["deployment"]) == (2, "up/echo-1")
    assert {posting["kind"] for posting in found["postings"]} == {"charge", "cost"}


async def test_one_that_nobody_answered_says_who_was_asked(gateway: House, office: httpx.AsyncClient) -> None:
    request_id = await asked(gateway, "fault-500")
    found = (await office.get(f"/requests/{request_id}")).json()
    assert found["request"]["outcome"] == "upstream_failed"
    assert {each["deployment"] for each in found["way"]["tries"]} == {"up/fault-500"}
    assert found["request"]["attempts"] == len(found["way"]["tries"])
    assert found["postings"] == []


async def test_a_plain_request_keeps_no_way(gateway: House, office: httpx.AsyncClient) -> None:
    request_id = await asked(gateway, "echo")
    assert (await office.get(f"/requests/{request_id}")).json()["way"] is None
