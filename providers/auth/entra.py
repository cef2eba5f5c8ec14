"""Microsoft Entra's bearer for Azure: a client secret, a workload identity's federated token, or whatever
azure-identity's default chain finds (managed identity, workload identity, environment, CLI).

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


def entra_token(
    credential: Credential,
    scope: str = SCOPE,
    clock: Callable[[], float] = time.time,
    *,
    authority: str = "",
    ca_file: str | None = None,
) -> RefreshedToken:
    """Fields: `access_token`; or `tenant_id` and `client_id` with `client_secret`, or with `federated_token_file`, the
    path of a token that somebody renews (a Kubernetes service account's); or `client_id` alone for a user-assigned
    managed identity; or none of them for the default chain.

    authority: https address of a sovereign or private cloud's Entra. Empty: the public one, or AZURE_AUTHORITY_HOST's.
    ca_file: certificates to trust in place of the system's."""
    if token := credential.fields.get("access_token"):
        fixed = Token(token, float("inf"))
        return RefreshedToken(lambda: fixed, clock)
    # The field is where it stood before it was an option.
    more: dict[str, Any] = {"authority": at} if (at := authority or credential.fields.get("authority", "")) else {}
    if ca_file is not None:
        more["connection_verify"] = ca_file
    return RefreshedToken(_Fetch(credential.fields, scope, more), clock)


class _Fetch:
    """Called in a thread, one call at a time. The credential caches too, up to 5 minutes before the token ends."""

    def __init__(self, fields: Mapping[str, str], scope: str, more: Mapping[str, Any]) -> None:
        self._fields = fields
        self._scope = scope
        self._more = more
        self._credential: Any = None

    def __call__(self) -> Token:
        try:
            identity = import_module("azure.identity")
            exceptions = import_module("azure.core.exceptions")
        except ModuleNotFoundError:
            raise AuthFailed("azure-identity is not installed; it comes with the `azure` extra") from None
        try:
            if self._credential is None:
                self._credential = _make(identity, self._fields, self._more)
            found = self._credential.get_token(self._scope)
        except (exceptions.ServiceRequestError, exceptions.ServiceResponseError) as error:
            raise Unreachable(f"Entra cannot be reached: {error}") from error
        except (exceptions.AzureError, ValueError) as error:
            whom = f" to {client}" if (client := self._fields.get("client_id")) else ""
            raise AuthFailed(f"Entra gave no token{whom}: {error}") from error
        except OSError as error:
            raise AuthFailed(f"the federated token cannot be read: {error}") from error
        return Token(found.token, float(found.expires_on))


def _make(identity: Any, fields: Mapping[str, str], more: Mapping[str, Any]) -> Any:
    tenant, client = fields.get("tenant_id", ""), fields.get("client_id", "")
    if path := fields.get("federated_token_file"):
        return identity.WorkloadIdentityCredential(tenant_id=tenant, client_id=client, token_file_path=path, **more)
    if "authority" in more:
        # The public cloud would be asked whether it knows the named one: it knows no private one, and a network of
        # that kind does not reach it.
        more = {**more, "disable_instance_discovery": True}
    if secret := fields.get("client_secret"):
        return identity.ClientSecretCredential(tenant, client, secret, **more)
    if client:
        return identity.ManagedIdentityCredential(client_id=client)
    return identity.DefaultAzureCredential(exclude_interactive_browser_credential=True, **more)
