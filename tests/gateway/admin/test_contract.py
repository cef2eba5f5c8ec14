"""Every operation of the OpenAPI document, asked for nonsense: an answer that is no fault of ours, in our words.

The long form is `python -m tests.conformance.admin_api` (schemathesis against a whole gateway).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.admin.openapi import document
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World

# Ends the session that asks; or never ends, being a stream.
LEFT_OUT = {("DELETE", "/auth/session"), ("GET", "/requests/tail")}
BODIES: tuple[object, ...] = (None, {}, [], "x", 7, {"no_such_field": 1})
ODD = ("\u2603", "-1", "2410-09-04T03:36:54Z", "0041-03-26T16:36:15Z")
VALUES = ("none", "0", "-1", "a%2Fb", "%00", "\u00e9" * 40, "x" * 3000)


def operations() -> Iterator[tuple[str, str, list[dict[str, Any]], Any]]:
    for path, found in document()["paths"].items():
        for method, operation in found.items():
            named = (method.upper(), path.removeprefix("/admin/v1"))
            if method != "parameters" and named not in LEFT_OUT:
                schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
                yield (*named, operation.get("parameters", []), schema)


@pytest.mark.timeout(180)
async def test_nonsense_is_told_and_never_a_fault_of_ours(small: World) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        faults: list[str] = []
        room = asyncio.Semaphore(8)

        async def one(method: str, path: str, query: dict[str, str], body: object) -> None:
            async with room:
                answer = await browser.http.request(
                    method, path, params=query, json=body, headers={"x-csrf-token": browser.session["csrf"]}
                )
            kind = answer.headers.get("content-type", "")
            if answer.status_code >= 500 or (answer.status_code >= 400 and kind != "application/problem+json"):
                faults.append(f"{method} {path} {query} {body!r}: {answer.status_code} {answer.text[:200]}")

        asked = []
        for method, path, parameters, schema in operations():
            places = [each["name"] for each in parameters if each["in"] == "path"]
            queries = [each["name"] for each in parameters if each["in"] == "query"]
            for value in VALUES if places else VALUES[:1]:
                filled = path
                for name in places:
                    filled = filled.replace(f"{{{name}}}", value)
                bodies = BODIES if schema is not None and value == VALUES[0] else BODIES[:1]
                asked += [one(method, filled, {}, body) for body in bodies]
            bare = path.replace("{", "").replace("}", "")
            asked += [one(method, bare, {name: odd}, None) for name in queries for odd in ODD]
            asked.append(one("OPTIONS", bare, {}, None))
        await asyncio.gather(*asked)
    assert len(asked) > 500
    assert not faults, "\n".join(faults)
