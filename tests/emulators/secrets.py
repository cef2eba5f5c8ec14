"""The four secret managers on one loopback address, as far as reading a secret goes, with their sign-ins.

AWS: GetSecretValue in JSON 1.1, the signature checked. GCP: Google's token endpoint (a service account's signed JWT)
and versions:access. Azure: a managed identity's endpoint and Get Secret. Vault: KV version 2, tokens, AppRole.
Sources as in gateway.references, and App Service's managed identity endpoint (2019-08-01), read 2026-11.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from providers.auth import sigv4
from tests.emulators.server import Emulator, Out, Request

AWS_KEYS = {"AWS_ACCESS_KEY_ID": "AKIDSECRETS", "AWS_SECRET_ACCESS_KEY": "aws-secret"}
GOOGLE_TOKEN, AZURE_TOKEN, VAULT_TOKEN = "google-token", "azure-token", "hvs.vault-token"
ROLE = ("role-1", "secret-id-1")


class SecretsEmulator(Emulator):
    """values: what is kept, by name: text for the clouds, for Vault `mount/path` -> fields. away: answers 503."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}
        self.away = False

    async def handle(self, request: Request, out: Out) -> None:
        status, said = (503, {"message": "away"}) if self.away else self._answer(request)
        await out.json(status, said)

    def _answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        if (target := request.headers.get("x-amz-target")) is not None:
            return self._aws(request, target)
        match request.path.strip("/").split("/"):
            case ["token"]:
                return 200, {"access_token": GOOGLE_TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            case ["msi", "token"]:
                until = str(int(time.time()) + 3600)
                return 200, {"access_token": AZURE_TOKEN, "expires_on": until, "token_type": "Bearer"}
            case ["v1", "projects", *_]:
                return self._gcp(request)
            case ["secrets", name, *version]:
                return self._azure(request, "/".join([name, *version]))
            case ["v1", "auth", "approle", "login"]:
                given = request.json()
                if (given["role_id"], given["secret_id"]) != ROLE:
                    return 400, {"errors": ["invalid role or secret ID"]}
                return 200, {"auth": {"client_token": VAULT_TOKEN}}
            case ["v1", mount, "data", *path]:
                return self._vault(request, f"{mount}/{'/'.join(path)}")
        return 404, {"errors": []}

    def _aws(self, request: Request, target: str) -> tuple[int, dict[str, Any]]:
        secret = AWS_KEYS["AWS_SECRET_ACCESS_KEY"]
        signed = sigv4.verify("POST", request.raw_path, "", request.headers, request.body, secret, time.time())
        if not signed or target != "secretsmanager.GetSecretValue":
            return 400, {"__type": "com.amazon.coral.service#InvalidSignatureException"}
        name = request.json()["SecretId"]
        if name not in self.values:
            return 400, {"__type": "ResourceNotFoundException", "Message": "not there"}
        kept = self.values[name]
        body = {"SecretBinary": base64.b64encode(kept).decode()} if isinstance(kept, bytes) else {"SecretString": kept}
        return 200, {"ARN": name, "Name": name, "VersionId": "1" * 32, **body}

    def _gcp(self, request: Request) -> tuple[int, dict[str, Any]]:
        name = request.path.removeprefix("/v1/").removesuffix(":access")
        if request.headers.get("authorization") != f"Bearer {GOOGLE_TOKEN}":
            return 401, {"error": {"code": 401, "status": "UNAUTHENTICATED"}}
        if name not in self.values:
            return 404, {"error": {"code": 404, "status": "NOT_FOUND"}}
        return 200, {"name": name, "payload": {"data": base64.b64encode(self.values[name].encode()).decode()}}

    def _azure(self, request: Request, name: str) -> tuple[int, dict[str, Any]]:
        if request.headers.get("authorization") != f"Bearer {AZURE_TOKEN}" or not request.query.get("api-version"):
            return 401, {"error": {"code": "Unauthorized"}}
        if name not in self.values:
            return 404, {"error": {"code": "SecretNotFound"}}
        return 200, {"value": self.values[name], "id": f"{self.url}/secrets/{name}"}

    def _vault(self, request: Request, path: str) -> tuple[int, dict[str, Any]]:
        if request.headers.get("x-vault-token") != VAULT_TOKEN:
            return 403, {"errors": ["permission denied"]}
        if path not in self.values:
            return 404, {"errors": []}
        return 200, {"data": {"data": self.values[path], "metadata": {"version": 1}}}


def service_account(url: str) -> str:
    """A key file that google-auth signs in with, at the emulator's token endpoint."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": pem,
            "client_email": "farebox@p.iam.gserviceaccount.com",
            "token_uri": f"{url}/token",
        }
    )
