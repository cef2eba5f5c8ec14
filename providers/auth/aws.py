"""Where AWS keys come from: the endpoint's own settings, or botocore's chain (environment, profile, SSO, web identity,
container, instance), which blocks and so runs in a thread, off the request path once the first keys are there. A role
that is named is assumed with these keys (STS AssumeRole), and again before the keys that it gives end. And where AWS'
hosts are, and how a request to one of them is signed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from msgspec.structs import replace

from providers.auth.bearer import bearer
from providers.auth.sigv4 import MAX_TOKEN_LIFE_S, Keys, mint_bearer, sign
from providers.base import Endpoint
from providers.errors import AuthFailed
from providers.transport.base import HttpRequest

# botocore renews 15 minutes before the end and insists at 10, so keys it just gave are good for ten minutes more.
_RENEW_AFTER_S = 60.0
_STALE_AFTER_S = 540.0
_ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}")
_SESSION: Final = "farebox"
"""How AWS' own logs call our sessions of a role."""
# By how a region begins; the longer beginning first. Source: openai-python 3.54 `providers/bedrock.py` and botocore
# 1.44 `partitions`, read 2026-11.
_SUFFIXES: Final = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
    "us-iso-": "c2s.ic.gov",
    "eu-isoe-": "cloud.adc-e.uk",
}
_REGION: Final = re.compile(r"[a-z]{2,5}(?:-[a-z]+){1,3}-[0-9]{1,2}")


def host(service: str, region: str) -> str:
    """Where AWS has a service, but for the hosts below `api.aws`."""
    suffix = next((suffix for beginning, suffix in _SUFFIXES.items() if region.startswith(beginning)), "amazonaws.com")
    return f"https://{service}.{region}.{suffix}"


def region_of(endpoint: Endpoint) -> str:
    """As configured, else as its host or an ARN in options["profiles"] tells it. Raises: ValueError where nothing does:
    neither a host nor a signature can be made without one."""
    options = endpoint.options
    if said := endpoint.region or endpoint.credential.fields.get("region") or options.get("region"):
        return str(said)
    hostname = urlsplit(endpoint.base_url or "").hostname or ""
    labels = hostname.split(".") if hostname.endswith((".api.aws", ".amazonaws.com", *_SUFFIXES.values())) else []
    told: list[str] = [*labels, *(arn.split(":")[3] for arn in options.get("profiles") or () if arn.count(":") > 4)]
    if region := next((each for each in told if _REGION.fullmatch(each)), None):
        return region
    if endpoint.base_url and endpoint.credential.fields.get("api_key"):
        return ""  # the host is given, and a bearer key signs nothing
    raise ValueError(f"{endpoint.provider}: region is missing")


def guardrail_headers(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """options["guardrail"] as InvokeModel and the OpenAI dialects take it."""
    guardrail = options.get("guardrail") or {}
    wanted = (
        ("x-amzn-bedrock-guardrailidentifier", guardrail.get("id")),
        ("x-amzn-bedrock-guardrailversion", guardrail.get("version")),
        ("x-amzn-bedrock-trace", str(guardrail["trace"]).upper() if "trace" in guardrail else None),
    )
    return tuple((name, str(value)) for name, value in wanted if value)


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


class Signer:
    """A request to one AWS service with its credential: `api_key` as it is; with options["auth"] "minted" a short-term
    one in its place; else a signature. Close it with `aclose`.

    service: what signatures are for. API keys are Bedrock's, whichever of its hosts takes them."""

    def __init__(self, endpoint: Endpoint, *, service: str, region: str, clock: Callable[[], float]) -> None:
        self._service, self._region, self._clock = service, region, clock
        self._bearer = bearer(endpoint.credential)
        self._keys = key_source(endpoint, clock)
        self._mint: BearerMint | None = None
        if endpoint.options.get("auth") == "minted":
            self._mint = BearerMint(self._keys, service="bedrock", region=region, clock=clock)

    async def signed(self, request: HttpRequest) -> HttpRequest:
        """Content type and x-amz-* are signed, so all headers of ours stand in the request before."""
        if self._bearer:
            return replace(request, headers=request.headers + self._bearer)
        if self._mint is not None:
            token = f"Bearer {await self._mint.token()}"
            return replace(request, headers=(*request.headers, ("authorization", token)))
        added = sign(
            request.method,
            request.url,
            request.headers,
            request.body,
            keys=await self._keys.keys(),
            region=self._region,
            service=self._service,
            now_s=self._clock(),
        )
        return replace(request, headers=request.headers + added)

    async def aclose(self) -> None:
        await self._keys.aclose()


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
