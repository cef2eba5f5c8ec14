"""Google's tokens: a real service account flow against a token endpoint on loopback, and when a token is renewed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from providers.auth.google import google_token
from providers.auth.refreshed import RefreshedToken, Token
from providers.base import Credential
from providers.errors import AuthFailed, Unreachable
from tests.emulators.server import Emulator, Out, Request


class TokenEndpoint(Emulator):
    status = 200

    async def handle(self, request: Request, out: Out) -> None:
        if self.status != 200:
            await out.json(self.status, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
            return
        token = {"access_token": f"ya29.{len(self.requests)}", "expires_in": 3600, "token_type": "Bearer"}
        await out.json(200, token)


@pytest.fixture
async def endpoint() -> AsyncIterator[TokenEndpoint]:
    async with TokenEndpoint() as server:
        yield server


@pytest.fixture(scope="module")
def key() -> str:
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    return made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def service_account(key: str, uri: str) -> Credential:
    info = {
        "type": "service_account",
        "client_email": "farebox@p.iam.gserviceaccount.com",
        "private_key_id": "k1",
        "private_key": key,
        "token_uri": uri,
        "project_id": "p",
    }
    return Credential({"service_account_json": json.dumps(info)})


async def test_service_account(endpoint: TokenEndpoint, key: str) -> None:
    token = google_token(service_account(key, f"{endpoint.url}/token"))
    assert await asyncio.gather(*(token.get() for _ in range(5))) == ["ya29.1"] * 5
    assert b"grant_type=urn" in endpoint.last.body
    await token.aclose()


async def test_refused_service_account_is_ours_to_fix(endpoint: TokenEndpoint, key: str) -> None:
    endpoint.status = 400
    with pytest.raises(AuthFailed, match="Invalid JWT Signature"):
        await google_token(service_account(key, f"{endpoint.url}/token")).get()


async def test_unreachable_token_endpoint(key: str) -> None:
    with pytest.raises(Unreachable):
        await google_token(service_account(key, "http://127.0.0.1:9/token")).get()


async def test_given_token_and_bad_json() -> None:
    assert await google_token(Credential({"access_token": "t"})).get() == "t"
    with pytest.raises(ValueError, match="service_account_json"):
        google_token(Credential({"service_account_json": "not json"}))


class Source:
    """A fetch that waits to be let go, and a clock that is set."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.count = 0
        self.fails = False
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> Token:
        assert self.go.wait(10)
        self.count += 1
        if self.fails:
            raise AuthFailed("no")
        return Token(f"t{self.count}", self.now_s + 3600)


async def settled(token: RefreshedToken) -> None:
    renewal = token._renewal
    assert renewal is not None
    await asyncio.gather(renewal, return_exceptions=True)


async def test_renewal_does_not_hold_up_a_request() -> None:
    source = Source()
    token = RefreshedToken(source, lambda: source.now_s)
    assert await token.get() == "t1"
    source.now_s = 3200
    assert await token.get() == "t1"
    source.now_s = 3400  # less than five minutes left
    source.go.clear()
    assert await token.get() == "t1"
    assert await token.get() == "t1"
    source.go.set()
    await settled(token)
    assert await token.get() == "t2"
    assert source.count == 2


async def test_failed_renewal_is_told_only_when_the_token_has_ended() -> None:
    source = Source()
    token = RefreshedToken(source, lambda: source.now_s)
    await token.get()
    source.fails = True
    source.now_s = 3400
    assert await token.get() == "t1"
    await settled(token)
    assert await token.get() == "t1"
    assert source.count == 2  # not asked again for half a minute
    source.now_s = 3440
    assert await token.get() == "t1"
    await settled(token)
    assert source.count == 3
    source.now_s = 3600
    with pytest.raises(AuthFailed):
        await token.get()
    source.fails = False
    assert await token.get() == "t5"
