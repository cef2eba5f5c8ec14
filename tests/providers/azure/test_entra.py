"""Entra for Azure by azure-identity itself, against an authority on a TLS socket of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from providers.azure_ai import AzureAI
from providers.base import Call, Credential, Endpoint
from providers.dialects import load
from providers.errors import AuthFailed
from providers.transport.http1 import Http1Transport
from tests.emulators.azure import AzureEmulator
from tests.emulators.entra import ASSERTION_TYPE, CLIENT, SECRET, TENANT, EntraEmulator
from tests.emulators.tls import certificate, server_side

APPLICATION = {"tenant_id": TENANT, "client_id": CLIENT}
FEDERATED = "eyJhbGciOiJSUzI1NiJ9.a-service-account.of-kubernetes"


@pytest.fixture
async def entra(tmp_path: Path) -> AsyncIterator[EntraEmulator]:
    async with EntraEmulator(federated=FEDERATED, tls=server_side(certificate(tmp_path / "ca.pem"))) as authority:
        yield authority


@pytest.fixture
async def azure() -> AsyncIterator[AzureEmulator]:
    async with AzureEmulator(api_key=None) as emulator:
        yield emulator


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[Http1Transport]:
    transport = Http1Transport(ca_file=str(tmp_path / "ca.pem"))
    yield transport
    await transport.aclose()


def provider_at(
    azure: AzureEmulator, entra: EntraEmulator, transport: Http1Transport, fields: dict[str, str], **options: Any
) -> AzureAI:
    options = {"authority": entra.url, **options}
    return AzureAI(
        Endpoint("azure_ai", azure.url, credential=Credential(APPLICATION | fields), options=options), transport
    )


async def ask(provider: AzureAI) -> None:
    raw = json.dumps({"model": "alias", "messages": [{"role": "user", "content": "say hi"}]}).encode()
    answer = await provider.send(
        Call("chat", "openai_chat", load("openai_chat").decode_request(raw), raw, "req"), "gpt-4o-mini"
    )
    await answer.read()
    await answer.aclose()


async def test_a_client_secret(azure: AzureEmulator, entra: EntraEmulator, transport: Http1Transport) -> None:
    provider = provider_at(azure, entra, transport, {"client_secret": SECRET})
    for _ in range(2):
        await ask(provider)
        assert azure.last.headers["authorization"] == "Bearer entra-1"
    assert "api-key" not in azure.last.headers
    (form,) = entra.asked
    assert "https://cognitiveservices.azure.com/.default" in form["scope"].split()
    await provider.aclose()


async def test_a_workload_identity(
    azure: AzureEmulator, entra: EntraEmulator, transport: Http1Transport, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(FEDERATED)
    fields = {"federated_token_file": str(tmp_path / "token")}
    provider = provider_at(azure, entra, transport, fields, scope="https://cognitiveservices.azure.us/.default")
    await ask(provider)
    assert azure.last.headers["authorization"] == "Bearer entra-1"
    (form,) = entra.asked
    assert (form["client_assertion"], form["client_assertion_type"]) == (FEDERATED, ASSERTION_TYPE)
    assert "https://cognitiveservices.azure.us/.default" in form["scope"].split()
    await provider.aclose()


async def test_renewal_goes_on_beside_the_requests(
    azure: AzureEmulator, entra: EntraEmulator, transport: Http1Transport
) -> None:
    entra.expires_in = 290  # so each is due for renewal as soon as it is had
    provider = provider_at(azure, entra, transport, {"client_secret": SECRET})
    await ask(provider)
    entra.open.clear()
    for _ in range(3):
        await ask(provider)  # Entra answers nobody, and nobody waits for it
        assert azure.last.headers["authorization"] == "Bearer entra-1"
    async with asyncio.timeout(60):
        while len(entra.asked) < 2:
            await asyncio.sleep(0.01)
        entra.open.set()
        while azure.last.headers["authorization"] == "Bearer entra-1":
            await asyncio.sleep(0.01)
            await ask(provider)
    await provider.aclose()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"client_secret": "wrong"}, f"gave no token to {CLIENT}.*AADSTS7000215: Invalid client secret"),
        ({"client_secret": SECRET, "client_id": "another"}, "to another.*AADSTS700016"),
        ({"federated_token_file": "{}/stale"}, "AADSTS700213: No matching federated identity"),
        ({"federated_token_file": "{}/missing"}, "federated token cannot be read.*missing"),
        ({"client_secret": SECRET, "tenant_id": ""}, "tenant_id should be"),
    ],
)
async def test_what_is_wrong_is_told(
    azure: AzureEmulator,
    entra: EntraEmulator,
    transport: Http1Transport,
    tmp_path: Path,
    fields: dict[str, str],
    says: str,
) -> None:
    (tmp_path / "stale").write_text("another issuer's")
    fields = {name: value.format(tmp_path) for name, value in fields.items()}
    with pytest.raises(AuthFailed, match=says):
        await ask(provider_at(azure, entra, transport, fields))
    assert azure.requests == []


def test_an_authority_without_tls_is_refused() -> None:
    endpoint = Endpoint("azure_ai", "https://r.test", options={"authority": "http://login.test"})
    with pytest.raises(ValueError, match="authority"):
        AzureAI(endpoint, Http1Transport())
