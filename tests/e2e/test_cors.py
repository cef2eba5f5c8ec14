"""Pages of other origins: named ones may ask the data plane, others and the office's are as if nothing was set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.e2e.harness import House
from tests.e2e.test_door import CHAT, fortress
from tests.e2e.wire import ask, chat, request

PAGE, STRANGER = "https://app.example", "https://evil.example"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("cors")
    async with fortress(folder, sqlite_template, _valkey, cors_origins=(PAGE, "http://localhost:5173")) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def browser(gateway: House) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {gateway.key}"}) as client:
        yield client


def cors(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def preflight(origin: str) -> dict[str, str]:
    wanted = "authorization,content-type,x-stainless-lang"
    return {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": wanted}


async def test_a_preflight_names_methods_and_headers(browser: httpx.AsyncClient) -> None:
    told = await browser.options(CHAT, headers=preflight(PAGE))
    assert (told.status_code, told.headers["vary"]) == (204, "origin")
    said = cors(told.headers)
    assert said["access-control-allow-origin"] == PAGE
    assert "POST" in said["access-control-allow-methods"].split(", ")
    assert said["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    assert "access-control-allow-credentials" not in said


async def test_whole_streamed_refused_and_astray_are_all_readable(browser: httpx.AsyncClient) -> None:
    page = {"origin": PAGE}
    whole = await browser.post(CHAT, json=chat(), headers=page)
    stream = await browser.post(CHAT, json=chat(stream=True), headers=page)
    keyless = await browser.post(CHAT, json=chat(), headers={**page, "authorization": "Bearer fbx-wrong"})
    malformed = await browser.post(CHAT, content=b"{", headers=page)
    listed = await browser.get("/v1/models", headers=page)
    astray = await browser.post("/v1/nothing", json={}, headers=page)
    assert stream.text.endswith("data: [DONE]\n\n")
    answers = (whole, stream, keyless, malformed, listed, astray)
    assert [each.status_code for each in answers] == [200, 200, 401, 400, 200, 404]
    for each in answers:
        said = {"access-control-allow-origin": PAGE, "access-control-expose-headers": "*"}
        assert (cors(each.headers), each.headers["vary"]) == (said, "origin")


@pytest.mark.parametrize(
    ("path", "more", "status", "origin", "allowed"),
    [
        (CHAT, f"x-pad: {'a' * 100_000}\r\n", 431, PAGE, PAGE),
        (CHAT, "content-length: 2\r\ncontent-length: 3\r\n", 400, PAGE, PAGE),
        (CHAT, "content-length: 2\r\n x: folded\r\n", 400, PAGE, PAGE),
        (CHAT, "content-length: 2\r\ncontent-length: 3\r\n", 400, STRANGER, None),
        ("/admin/v1/keys", "content-length: 2\r\ncontent-length: 3\r\n", 400, PAGE, None),
    ],
)
async def test_what_is_refused_at_the_door_is_readable_too(
    gateway: House, path: str, more: str, status: int, origin: str, allowed: str | None
) -> None:
    answer = await ask(gateway.url, request(path, None, key=gateway.key, more=f"Origin: {origin}\r\n{more}") + b"{}")
    assert answer is not None
    assert answer.status == status
    assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize("origin", [STRANGER, "https://app.example.evil.example", "null", "http://app.example", None])
async def test_others_are_told_nothing(browser: httpx.AsyncClient, origin: str | None) -> None:
    sent = {} if origin is None else {"origin": origin}
    asked = {**preflight(""), **sent} if sent else {}
    for answer in (
        await browser.options(CHAT, headers=asked),
        await browser.post(CHAT, json=chat(), headers=sent),
        await browser.post(CHAT, json=chat(stream=True), headers=sent),
    ):
        assert answer.status_code in (200, 204)
        assert cors(answer.headers) == {}


async def test_the_office_is_not_for_other_origins(browser: httpx.AsyncClient) -> None:
    for answer in (
        await browser.options("/admin/v1/keys", headers=preflight(PAGE)),
        await browser.get("/admin/v1/keys", headers={"origin": PAGE}),
    ):
        assert cors(answer.headers) == {}


async def test_any_origin_or_none_at_all(tmp_path: Path, sqlite_template: Path, redis_url: str) -> None:
    for at, (origins, said) in enumerate(((("*",), "*"), ((), None))):
        async with (
            fortress(tmp_path / str(at), sqlite_template, redis_url, cors_origins=origins) as built,
            httpx.AsyncClient(headers={"origin": STRANGER, "authorization": f"Bearer {built.key}"}) as client,
        ):
            for answer in (
                await client.post(built.url + CHAT, json=chat()),
                await client.options(built.url + CHAT, headers=preflight(STRANGER)),
            ):
                assert answer.headers.get("access-control-allow-origin") == said
                assert "vary" not in answer.headers
