"""Known secrets are put everywhere that one can come in; afterwards all that was written is searched for them."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from billing.db import writing
from gateway.admin.auth import people
from gateway.admin.auth.roles import Role
from gateway.config import LogSettings, Secret, load
from gateway.observe import logs
from tests.e2e.harness import house, model, provider, settings_for
from tests.e2e.test_crash import prepare, written
from tests.e2e.test_door import CHAT
from tests.e2e.test_upgrade import serving
from tests.e2e.wire import ask, chat, request
from tests.emulators.openai import OpenAIEmulator
from tests.services import free_ports

PROVIDER_KEY = "sk-proj-PROVIDER0secret0PROVIDER0secret"
OTHER_KEY = "no-known-look-4f9c1d7ab2"  # a credential that no pattern could know
PEPPER = "pepper-0123456789-pepper"
PASSWORD = "correct horse battery 77"
IN_URL = "AIzaSyURLsecretURLsecretURL0"
WRONG_KEY = "fbx-Wrong1111_" + "Z" * 50
PROMPT = "the patient's name is Zebulon Quince"
HIDDEN = ("/admin/v1/keys", "/ui", "/docs", "/openapi.json", "/metrics", "/webhooks/../admin/v1/keys")
BEARER = "Bearer opaque-0a1b2c3d4e5f-opaque"


async def test_no_secret_reaches_a_log_the_journal_sql_metrics_or_an_error(
    tmp_path: Path, sqlite_template: Path, redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    seen: list[bytes] = []
    async with OpenAIEmulator() as upstream:
        settings = settings_for(
            tmp_path / "data",
            f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}",
            redis_url,
            {
                "up": provider("openai", f"{upstream.url}/v1", {"api_key": PROVIDER_KEY}),
                "odd": provider("openai_like", f"{upstream.url}/v1", {"api_key": OTHER_KEY}),
                "away": provider("openai_like", "http://127.0.0.1:9/v1", {"api_key": OTHER_KEY}),
            },
            tuple(
                model(name, place)
                for name, place in (
                    ("echo", "up/echo-1"), ("refused", "up/fault-401"), ("bad", "odd/fault-400"),
                    ("html", "odd/fault-502-html"), ("cut", "odd/fault-cut-mid-frame"), ("gone", "away/m"),
                )
            ),
            key_pepper=Secret(PEPPER, {}),
        )  # fmt: skip
        async with house(settings) as gateway:
            logs.configure(LogSettings(level="debug", format="json"))
            key = gateway.key

            async def say(data: bytes) -> None:
                if (answer := await ask(gateway.url, data)) is not None:
                    seen.append(json.dumps(answer.headers).encode() + answer.body)

            for alias in ("echo", "refused", "bad", "html", "cut", "gone", "nowhere"):
                for stream in (False, True):
                    await say(request(CHAT, chat(PROMPT, alias, stream=stream), key=key))
            for broken in (b"{" + PROMPT.encode(), json.dumps({"model": PROMPT}).encode(), b"\xff" + PROMPT.encode()):
                await say(request(CHAT, broken, key=key))
            google = {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}]}
            for secret in (IN_URL, key, WRONG_KEY):
                await say(request(f"/v1beta/models/echo:generateContent?key={secret}", google))
                await say(request(CHAT, chat(PROMPT), key=secret))
                await say(request(f"/nowhere/{secret}?token={secret}", None, method="GET", key=secret))
            more = f"cookie: session={IN_URL}\r\nx-api-key: {IN_URL}\r\n"
            await say(request(CHAT, chat(PROMPT), more=more + f"authorization: {BEARER}\r\n"))
            await say(request(CHAT, b"{}", more=f"x-pad: {IN_URL}{'a' * 70_000}\r\n"))
            cookie, link = await _office(gateway, seen)
            await gateway.rows(3)
            metrics = await ask(gateway.url, request("/metrics", None, method="GET"))
            assert metrics is not None
            seen.append(metrics.body)
            told = {IN_URL, WRONG_KEY, BEARER[7:], PASSWORD, PROVIDER_KEY, OTHER_KEY, PEPPER, cookie, link, PROMPT, key}
            _nowhere(told - {key, cookie, link}, seen, "an answer")
            sent = b"".join(json.dumps(dict(each.headers)).encode() + each.body for each in upstream.requests)
            for secret in (key, WRONG_KEY, IN_URL, PEPPER, cookie, PASSWORD):
                assert secret.encode() not in sent, f"the provider was told {secret}"
    out, err = capfd.readouterr()
    assert "request refused" in out + err  # something was logged at all
    _nowhere(told, [out.encode(), err.encode()], "a log line")
    files = [
        path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file() and "secrets" not in path.parts
    ]
    _nowhere(told, files, "a file of the data folder")
    dump = "\n".join(sqlite3.connect(tmp_path / "farebox.db").iterdump())
    _nowhere(told, [dump.encode()], "the database")


async def _office(gateway: Any, seen: list[bytes]) -> tuple[str, str]:
    """Signs in, sets a password, signs in with a wrong and the right one. Returns: session cookie and link's token."""

    now_ns = time.time_ns()
    async with writing(gateway.engine) as db:
        user = await people.create_user(db, "ann", Role.OWNER, at_ns=now_ns)
        token = await people.issue_link(db, user.id, at_ns=now_ns)
    async with httpx.AsyncClient(base_url=f"{gateway.url}/admin/v1") as http:
        session = (await http.post("/auth/link", json={"token": token})).json()
        headers = {"x-csrf-token": session["csrf"]}
        set_it = await http.put("/auth/password", json={"password": PASSWORD}, headers=headers)
        assert set_it.status_code == 204, set_it.text
        for name, password in (("ann", PASSWORD + "x"), ("ann", PASSWORD), (PASSWORD, PASSWORD)):
            answer = await http.post("/auth/password", json={"name": name, "password": password})
            seen.append(answer.content)
        for path in ("/keys", "/users", "/settings", "/deployments", "/audit"):
            answer = await http.get(path)
            seen.append(answer.content)
        cookie = next(iter(http.cookies.values()))
    return cookie, token


def _nowhere(secrets: set[str], places: list[bytes], where: str) -> None:
    for secret in secrets:
        for text in places:
            at = text.find(secret.encode())
            assert at < 0, f"{secret!r} stands in {where}: {text[max(0, at - 200) : at + 100]!r}"


async def test_the_office_is_only_on_its_own_port(tmp_path: Path, sqlite_template: Path, redis_url: str) -> None:
    port, admin = free_ports(2)
    url, office = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with OpenAIEmulator() as upstream:
        database = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
        config = written(tmp_path, upstream.url, database, redis_url, port)
        config.write_text(config.read_text().replace("[server]", f"[server]\nadmin_port = {admin}"))
        settings = load(config, {})
        assert settings.office_url == office
        key = await prepare(settings)
        for flags in ((), ("--workers", "2")):
            async with serving(config, url, *flags), httpx.AsyncClient() as http:
                for path in (
                    "/admin/v1/keys",
                    "/ui",
                    "/docs",
                    "/openapi.json",
                    "/metrics",
                    "/webhooks/../admin/v1/keys",
                ):
                    spoofed = {"host": f"127.0.0.1:{admin}", "x-forwarded-port": str(admin)}
                    assert (await http.get(url + path, headers=spoofed)).status_code == 404, path
                for path, status in (("/admin/v1/keys", 401), ("/ui", 200), ("/metrics", 200), ("/health", 200)):
                    assert (await http.get(office + path)).status_code == status, path
                assert (await http.get(f"{url}/health/readiness")).status_code == 200
                answer = await http.post(url + CHAT, json=chat(), headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == 200
