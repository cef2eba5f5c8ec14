"""Where AWS keys come from: the endpoint's own settings, or botocore's chain (environment, profile, SSO, web identity,
container, instance), which blocks and so runs in a thread, off the request path once the first keys are there. A role
that is named is assumed with these keys (STS AssumeRole), and again before the keys that it gives end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from providers.auth.sigv4 import MAX_TOKEN_LIFE_S, Keys, mint_bearer
from providers.base import Endpoint
from providers.errors import AuthFailed

# botocore renews 15 minutes before the end and insists at 10, so keys it just gave are good for ten minutes more.
_RENEW_AFTER_S = 60.0
_STALE_AFTER_S = 540.0
_ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}")
_SESSION: Final = "farebox"
"""How AWS' own logs call our sessions of a role."""


class KeySource(Protocol):
    async def keys(self) -> Keys:
        """Raises: AuthFailed when there are none."""

    async def aclose(self) -> None: ...


class StaticKeys:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def keys(self) -> Keys:
        return self._keys

    async def aclose(self) -> None:
        """Nothing is held."""


class ChainKeys:
    """botocore's chain. `load` blocks and returns fresh keys; one call at a time runs."""

    def __init__(self, load: Callable[[], Keys], clock: Callable[[], float]) -> None:
        self._load = load
        self._clock = clock
        self._keys: Keys | None = None
        self._loaded_at_s = 0.0
        self._renewal: asyncio.Task[Keys] | None = None

    async def keys(self) -> Keys:
        age_s = self._clock() - self._loaded_at_s
        if self._keys is not None and age_s < _RENEW_AFTER_S:
            return self._keys
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew())
        if self._keys is not None and age_s < _STALE_AFTER_S:
            # Still good: this request does not wait. A renewal that fails is tried again by the next request, and
            # told by the first one that must wait for it.
            self._renewal.add_done_callback(_seen)
            return self._keys
        return await asyncio.shield(self._renewal)

    async def aclose(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    async def _renew(self) -> Keys:
        asked_at_s = self._clock()
        keys = await asyncio.to_thread(self._load)
        self._keys, self._loaded_at_s = keys, asked_at_s
        return keys


class BearerMint:
    """Short-term API keys made of AWS keys, each used for half its life: a stream outlives no token."""

    def __init__(self, source: KeySource, *, service: str, region: str, clock: Callable[[], float]) -> None:
        self._source = source
        self._service = service
        self._region = region
        self._clock = clock
        self._token = ""
        self._of: Keys | None = None
        self._minted_at_s = 0.0

    async def token(self) -> str:
        keys, now_s = await self._source.keys(), self._clock()
        if keys != self._of or now_s - self._minted_at_s > MAX_TOKEN_LIFE_S / 2:
            self._token = mint_bearer(keys, service=self._service, region=self._region, now_s=now_s)
            self._of, self._minted_at_s = keys, now_s
        return self._token

    async def aclose(self) -> None:
        await self._source.aclose()


def key_source(endpoint: Endpoint, clock: Callable[[], float]) -> KeySource:
    """From the credential's `access_key_id` and `secret_access_key` (and `session_token`), else botocore's chain, for
    the profile in options["profile"] if there is one. With options["role_arn"] these assume that role, showing
    options["external_id"] where its owner asks for one. Raises: ValueError for what is no role's ARN."""
    fields, options = endpoint.credential.fields, endpoint.options
    keys: Keys | None = None
    if fields.get("access_key_id") and fields.get("secret_access_key"):
        keys = Keys(fields["access_key_id"], fields["secret_access_key"], fields.get("session_token") or None)
    role = options.get("role_arn")
    if role is None:
        return ChainKeys(Chain(options.get("profile")), clock) if keys is None else StaticKeys(keys)
    if not _ROLE.fullmatch(str(role)):
        raise ValueError(f"{endpoint.provider}: role_arn {role!r} is no arn:aws:iam::<account>:role/<name>")
    region = endpoint.region or fields.get("region") or options.get("region")
    return ChainKeys(Role(Chain(options.get("profile"), keys), str(role), options.get("external_id"), region), clock)


class Chain:
    """botocore's chain, asked: blocks, and raises AuthFailed. botocore is imported here alone, and only where no keys
    were configured, or a role. keys: those of the settings, which stand before the chain."""

    def __init__(self, profile: str | None, keys: Keys | None = None) -> None:
        self._profile = profile
        self._keys = keys
        self.session: Any = None
        self._credentials: Any = None

    def __call__(self) -> Keys:
        return self.frozen(self.credentials)

    def frozen(self, of: Callable[[], Any]) -> Keys:
        """The keys that botocore has there now, renewed where that is due."""
        try:
            from botocore.exceptions import BotoCoreError, ClientError
            from botocore.session import Session
        except ImportError as error:
            message = "no AWS keys are configured, and botocore, which would look for some, is not installed"
            raise AuthFailed(message) from error
        try:
            self.session = self.session or Session(profile=self._profile)
            frozen = of().get_frozen_credentials()
        except (BotoCoreError, ClientError) as error:
            raise AuthFailed(f"AWS keys could not be had: {error}") from error
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or None)

    def credentials(self) -> Any:
        """botocore's object of them, asked for once."""
        if self._credentials is None and self._keys is not None:
            keys = self._keys
            self.session.set_credentials(keys.access_key_id, keys.secret_access_key, keys.session_token)
        if self._credentials is None:
            self._credentials = self.session.get_credentials()
        if self._credentials is None:
            raise AuthFailed("no AWS keys are configured and none were found on this machine")
        return self._credentials


class Role:
    """A role, assumed with a chain's keys: blocks, and raises AuthFailed. botocore assumes it again a quarter of an
    hour before its keys end."""

    def __init__(self, chain: Chain, role_arn: str, external_id: str | None, region: str | None) -> None:
        self._chain = chain
        self._role_arn = role_arn
        self._said = {"RoleSessionName": _SESSION, **({"ExternalId": external_id} if external_id else {})}
        self._region = region
        self._credentials: Any = None

    def __call__(self) -> Keys:
        return self._chain.frozen(self._assumed)

    def _assumed(self) -> Any:
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

        if self._credentials is None:
            fetcher = AssumeRoleCredentialFetcher(
                partial(self._chain.session.create_client, region_name=self._region),
                self._chain.credentials(), self._role_arn, extra_args=self._said,
            )  # fmt: skip
            self._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        return self._credentials


def _seen(task: asyncio.Task[Keys]) -> None:
    if not task.cancelled():
        task.exception()
