"""Google's OAuth bearer: a service account, Application Default Credentials (which include workload identity and the
metadata server), or a token given as it is.

google-auth is imported on the first fetch, in its thread; its HTTP goes over httpx, which we have anyway.
Source: google-auth 2.62 (credentials, transport.Request), read 2026-11.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from importlib import import_module
from typing import Any

import httpx

from providers.auth.refreshed import RefreshedToken, Token
from providers.base import Credential
from providers.errors import AuthFailed, Unreachable

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT_S = 20.0


def google_token(credential: Credential, clock: Callable[[], float] = time.time) -> RefreshedToken:
    """Fields: `access_token`, or `service_account_json` (the key file's text), or `credentials_file` (its path, of any
    kind that google-auth loads), or none of them for the defaults of the machine.

    Raises: ValueError for a service account that is no JSON object."""
    fields = credential.fields
    if token := fields.get("access_token"):
        fixed = Token(token, float("inf"))
        return RefreshedToken(lambda: fixed, clock)
    info: Mapping[str, Any] | None = None
    if text := fields.get("service_account_json"):
        try:
            info = json.loads(text)
        except ValueError:
            info = None
        if not isinstance(info, dict):
            raise ValueError("service_account_json is not a JSON object")
    return RefreshedToken(_Fetch(info, fields.get("credentials_file")), clock)


class _Fetch:
    """Called in a thread, one call at a time."""

    def __init__(self, info: Mapping[str, Any] | None, path: str | None) -> None:
        self._info = info
        self._path = path
        self._credentials: Any = None

    def __call__(self) -> Token:
        try:
            exceptions = import_module("google.auth.exceptions")
        except ModuleNotFoundError:
            raise AuthFailed("google-auth is not installed; it comes with the `vertex` extra") from None
        try:
            with httpx.Client(timeout=_TIMEOUT_S) as client:
                request = _Request(client, exceptions.TransportError)
                if self._credentials is None:
                    self._credentials = self._load(request)
                self._credentials.refresh(request)
        except exceptions.TransportError as error:
            raise Unreachable(f"Google's token endpoint cannot be reached: {error}") from error
        except (exceptions.GoogleAuthError, OSError, ValueError) as error:
            raise AuthFailed(f"Google gave no token: {error}") from error
        expiry = self._credentials.expiry  # naive UTC
        return Token(self._credentials.token, expiry.replace(tzinfo=UTC).timestamp() if expiry else float("inf"))

    def _load(self, request: _Request) -> Any:
        if self._info is not None:
            service_account = import_module("google.oauth2.service_account")
            return service_account.Credentials.from_service_account_info(self._info, scopes=[SCOPE])
        auth = import_module("google.auth")
        if self._path is not None:
            credentials, _ = auth.load_credentials_from_file(self._path, scopes=[SCOPE], request=request)
        else:
            credentials, _ = auth.default(scopes=[SCOPE], request=request)
        return credentials


class _Request:
    """google-auth's `transport.Request`: a callable that returns status, headers and data."""

    def __init__(self, client: httpx.Client, failure: type[Exception]) -> None:
        self._client = client
        self._failure = failure

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> _Response:
        try:
            found = self._client.request(
                method, url, content=body, headers=dict(headers or {}), timeout=timeout or _TIMEOUT_S
            )
        except httpx.HTTPError as error:
            raise self._failure(error) from error
        return _Response(found)


class _Response:
    def __init__(self, found: httpx.Response) -> None:
        self.status = found.status_code
        self.headers = found.headers
        self.data = found.content
