"""Microsoft Entra's bearer for Azure: a client secret, or whatever azure-identity's default chain finds (managed
identity, workload identity, environment, CLI).

azure-identity is imported on the first fetch, in its thread: its asynchronous face would bring aiohttp along.
Source: azure-identity 1.27 (get_token, AccessToken.expires_on), read 2026-11.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from providers.auth.refreshed import RefreshedToken, Token
from providers.base import Credential
from providers.errors import AuthFailed, Unreachable

SCOPE = "https://cognitiveservices.azure.com/.default"
FOUNDRY_SCOPE = "https://ai.azure.com/.default"


def entra_token(credential: Credential, scope: str = SCOPE, clock: Callable[[], float] = time.time) -> RefreshedToken:
    """Fields: `access_token`; or `tenant_id`, `client_id`, `client_secret` (and `authority`); or `client_id` alone for
    a user-assigned managed identity; or none of them for the default chain."""
    if token := credential.fields.get("access_token"):
        fixed = Token(token, float("inf"))
        return RefreshedToken(lambda: fixed, clock)
    return RefreshedToken(_Fetch(credential.fields, scope), clock)


class _Fetch:
    """Called in a thread, one call at a time. The credential caches too, up to 5 minutes before the token ends."""

    def __init__(self, fields: Mapping[str, str], scope: str) -> None:
        self._fields = fields
        self._scope = scope
        self._credential: Any = None

    def __call__(self) -> Token:
        try:
            identity = import_module("azure.identity")
            exceptions = import_module("azure.core.exceptions")
        except ModuleNotFoundError:
            raise AuthFailed("azure-identity is not installed; it comes with the `azure` extra") from None
        try:
            if self._credential is None:
                self._credential = _make(identity, self._fields)
            found = self._credential.get_token(self._scope)
        except (exceptions.ServiceRequestError, exceptions.ServiceResponseError) as error:
            raise Unreachable(f"Entra cannot be reached: {error}") from error
        except (exceptions.AzureError, ValueError) as error:
            raise AuthFailed(f"Entra gave no token: {error}") from error
        return Token(found.token, float(found.expires_on))


def _make(identity: Any, fields: Mapping[str, str]) -> Any:
    more: dict[str, Any] = {"authority": fields["authority"]} if "authority" in fields else {}
    if fields.get("client_secret"):
        tenant, client, secret = (fields.get(name, "") for name in ("tenant_id", "client_id", "client_secret"))
        return identity.ClientSecretCredential(tenant, client, secret, **more)
    if client_id := fields.get("client_id"):
        return identity.ManagedIdentityCredential(client_id=client_id)
    return identity.DefaultAzureCredential(exclude_interactive_browser_credential=True, **more)
