"""Secrets that stay with their managers: each read over a real socket, in the manager's own protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import boto3
import pytest

from gateway import config, references
from gateway.config import ConfigError, load
from gateway.config_parts import REMOTE, Secret
from gateway.references import NotHad, Values
from tests.emulators.secrets import AWS_KEYS, ROLE, VAULT_TOKEN, SecretsEmulator, service_account

SECRET = "sk-the-very-secret"
AWS = "aws-secretsmanager:prod/openai"


@pytest.fixture
async def manager() -> AsyncIterator[SecretsEmulator]:
    async with SecretsEmulator() as running:
        yield running
    references.VALUES.forget()


def aws(manager: SecretsEmulator) -> dict[str, str]:
    return {**AWS_KEYS, "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL_SECRETS_MANAGER": manager.url}


def vault(manager: SecretsEmulator) -> dict[str, str]:
    return {"VAULT_ADDR": manager.url, "VAULT_TOKEN": VAULT_TOKEN}


async def revealed(reference: str, environ: dict[str, str]) -> str:
    return await asyncio.to_thread(Secret(reference, environ).reveal)


async def test_aws_text_json_binary_and_arn(manager: SecretsEmulator) -> None:
    arn = "arn:aws:secretsmanager:us-east-2:123456789012:secret:prod/x-AbCdEf"
    manager.values = {"prod/openai": SECRET, "j": json.dumps({"api_key": SECRET}), arn: SECRET, "b": SECRET.encode()}
    environ = aws(manager)
    boto = boto3.client(
        "secretsmanager", endpoint_url=manager.url, region_name="eu-west-1",
        aws_access_key_id=AWS_KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=AWS_KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    # AWS's own client finds the same there, so what stands in for it is no friend of ours alone.
    assert (await asyncio.to_thread(boto.get_secret_value, SecretId="prod/openai"))["SecretString"] == SECRET
    assert await revealed(AWS, environ) == SECRET
    assert await revealed("aws-secretsmanager:j#api_key", environ) == SECRET
    assert await revealed("aws-secretsmanager:b", environ) == SECRET
    assert await revealed(f"aws-secretsmanager:{arn}", {**environ, "AWS_REGION": ""}) == SECRET
    assert "/us-east-2/secretsmanager/" in manager.last.headers["authorization"]


async def test_gcp_by_a_service_account(manager: SecretsEmulator, tmp_path: Path) -> None:
    manager.values = {"projects/p/secrets/s/versions/latest": SECRET, "projects/p/secrets/s/versions/2": "older"}
    key_file = tmp_path / "sa.json"
    key_file.write_text(service_account(manager.url))
    environ = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(key_file),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": manager.url,
    }
    assert await revealed("gcp-secret-manager:projects/p/secrets/s", environ) == SECRET
    assert await revealed("gcp-secret-manager:projects/p/secrets/s/versions/2", environ) == "older"


async def test_azure_by_a_managed_identity(manager: SecretsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.values = {"openai": SECRET}
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    # azure-identity reads these itself.
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{manager.url}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    assert await revealed(f"azure-key-vault:{manager.url}/secrets/openai", {}) == SECRET


async def test_vault_by_token_and_by_approle(manager: SecretsEmulator) -> None:
    manager.values = {"secret/team/openai": {"api_key": SECRET, "other": "x"}, "kv/one": {"value": SECRET}}
    role = {"VAULT_ADDR": manager.url, "VAULT_ROLE_ID": ROLE[0], "VAULT_SECRET_ID": ROLE[1], "VAULT_NAMESPACE": "ns"}
    assert await revealed("vault:secret/team/openai#api_key", vault(manager)) == SECRET
    references.VALUES.forget()
    assert await revealed("vault:secret/team/openai#api_key", role) == SECRET
    assert manager.last.headers["x-vault-namespace"] == "ns"
    assert await revealed("vault:kv/one", vault(manager)) == SECRET


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("vault:secret/none#a", "knows no such secret"),
        ("vault:secret/two", "several fields"),
        ("vault:secret/two#c", "no field 'c'"),
        ("vault:nothing", "no secret's path"),
        ("aws-secretsmanager:none", "knows no such secret"),
        ("aws-secretsmanager:plain#x", "no JSON object"),
        ("gcp-secret-manager:s", "no secret's name"),
        ("azure-key-vault:s", "no secret's name"),
    ],
)
async def test_what_cannot_be_had_is_told_with_what_to_do(manager: SecretsEmulator, reference: str, says: str) -> None:
    manager.values = {"secret/two": {"a": SECRET, "b": "x"}, "plain": SECRET}
    with pytest.raises(ConfigError, match=says) as caught:
        await revealed(reference, {**aws(manager), **vault(manager)})
    assert caught.value.fix
    assert SECRET not in str(caught.value)


async def test_who_is_refused_is_told_what_to_grant(manager: SecretsEmulator) -> None:
    for environ, reference, grant in (
        ({**aws(manager), "AWS_SECRET_ACCESS_KEY": "wrong"}, AWS, "GetSecretValue"),
        ({**vault(manager), "VAULT_TOKEN": "wrong"}, "vault:secret/x#a", "policy"),
        ({"VAULT_TOKEN": "t"}, "vault:secret/y#a", "VAULT_ADDR"),
        ({**vault(manager), "VAULT_ADDR": "http://127.0.0.1:9"}, "vault:secret/z#a", "network"),
    ):
        with pytest.raises(ConfigError) as caught:
            await revealed(reference, environ)
        assert grant in caught.value.fix
        assert "wrong" not in str(caught.value)


async def test_a_value_is_read_once_then_from_the_background_and_outlives_its_manager(manager: SecretsEmulator) -> None:
    now = [0.0]
    values = Values(ttl_s=60, clock=lambda: now[0])
    manager.values = {"secret/a": {"v": "one"}}

    async def get() -> str:
        return await asyncio.to_thread(values.get, "vault:secret/a", vault(manager))

    async def refreshed() -> bool:
        return await asyncio.to_thread(values.refresh)

    assert [await get(), await get()] == ["one", "one"]
    assert len(manager.requests) == 1
    manager.values["secret/a"] = {"v": "two"}
    assert not await refreshed()  # Not due.
    now[0] = 61
    assert await refreshed()
    assert await get() == "two"
    manager.away, now[0] = True, 122
    assert not await refreshed()
    assert (await get(), values.problem("vault:secret/a")) == ("two", "Vault answered 503")
    asked = len(manager.requests)
    assert not await refreshed()
    assert len(manager.requests) == asked  # Left alone for a while.
    manager.away, now[0] = False, 140
    manager.values["secret/a"] = {"v": "three"}
    assert await refreshed()
    assert (await get(), values.problem("vault:secret/a")) == ("three", "")


async def test_the_settings_file_takes_references_and_shows_no_value(manager: SecretsEmulator, tmp_path: Path) -> None:
    manager.values = {"secret/openai": {"api_key": SECRET}}
    file = tmp_path / "farebox.toml"
    file.write_text('[providers.openai]\ncredential = { api_key = "vault:secret/openai#api_key" }\n')
    settings = load(file, vault(manager))
    assert await asyncio.to_thread(settings.missing_secrets) == []
    assert await asyncio.to_thread(settings.providers["openai"].reveal) == {"api_key": SECRET}
    shown = f"{settings!r}{json.dumps(config.public(settings))}{references.VALUES._known}"
    assert SECRET not in shown
    assert VAULT_TOKEN not in shown
    assert "vault:secret/openai#api_key" in shown
    references.VALUES.forget()
    (missing,) = await asyncio.to_thread(load(file, {}).missing_secrets)
    assert "VAULT_ADDR" in str(missing)


def test_every_scheme_has_a_reader() -> None:
    assert tuple(references.SCHEMES) == REMOTE
    with pytest.raises(NotHad, match="no region"):
        references.aws_secrets_manager("x", {})
