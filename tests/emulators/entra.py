"""Microsoft Entra's token endpoint for applications: a client secret, or for a workload identity another issuer's
token.

It is https alone, as azure-identity wants it, so it is given a certificate. Source: learn.microsoft.com "OAuth 2.0
client credentials flow" and "AADSTS error codes", azure-identity 1.27 and msal 1.37, read 2026-11.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qsl

from tests.emulators.server import Emulator, Out, Request

TENANT, CLIENT, SECRET = "11111111-2222-3333-4444-555555555555", "99999999-8888-7777-6666-555555555555", "s3cret~value"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class EntraEmulator(Emulator):
    """federated: the one token of another issuer that it takes. expires_in: seconds its own tokens last. open: cleared,
    token requests wait."""

    name = "entra"

    def __init__(self, *, federated: str = "", expires_in: int = 3600, **server: Any) -> None:
        super().__init__(**server)
        self.federated, self.expires_in = federated, expires_in
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[dict[str, str]] = []
        """The forms of token requests."""

    async def handle(self, request: Request, out: Out) -> None:
        match request.path.removeprefix(f"/{TENANT}"):
            case "/v2.0/.well-known/openid-configuration":
                root = f"{self.url}/{TENANT}"
                document = {"issuer": f"{root}/v2.0", "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
                            "token_endpoint": f"{root}/oauth2/v2.0/token"}  # fmt: skip
                await out.json(200, document)
            case "/oauth2/v2.0/token":
                form = dict(parse_qsl(request.body.decode()))
                self.asked.append(form)
                number = len(self.asked)
                await self.open.wait()
                if (wrong := self._objection(form)) is not None:
                    await out.json(401, {"error": "invalid_client", "error_description": wrong})
                    return
                said = {"token_type": "Bearer", "expires_in": self.expires_in, "access_token": f"entra-{number}"}
                await out.json(200, said)
            case _:
                await out.json(404, {"error": "not_found"})

    def _objection(self, form: dict[str, str]) -> str | None:
        if form["client_id"] != CLIENT or form["grant_type"] != "client_credentials":
            return f"AADSTS700016: Application with identifier '{form['client_id']}' was not found in the directory."
        if "client_assertion" in form:
            good = self.federated and form["client_assertion"] == self.federated
            if not good or form["client_assertion_type"] != ASSERTION_TYPE:
                return "AADSTS700213: No matching federated identity record found for presented assertion subject."
        elif form.get("client_secret") != SECRET:
            return (
                "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the "
                "client secret value, not the client secret ID, for a secret added to app."
            )
        return None
