"""OpenID Connect as a client: discovery, keys, the way there with PKCE, and what comes back, believed only when signed.

Source: OpenID Connect Core 1.0, Discovery 1.0, RP-Initiated Logout 1.0; RFC 6749, 7636 (PKCE), 9207 (iss), 9700 (best
practice); read 2026-11. Nothing here knows people or roles: see auth/sign_on.py.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec
import structlog
from msgspec import Struct

from gateway.config_parts import ConfigError
from gateway.signing_in import OidcSettings, is_safe

log = structlog.get_logger(__name__)

T = TypeVar("T")

_S: Final = 10**9
DISCOVERY_NS: Final = 3_600 * _S
"""How long a provider's discovery document and keys are taken from memory."""
REFETCH_NS: Final = 10 * _S
"""A key that nobody knows makes us ask for the keys again, so often at most."""
LEEWAY_S: Final = 60
"""What clocks may differ by."""
BYTES_MAX: Final = 1 << 20
_KTY: Final = {"R": "RSA", "P": "RSA", "E": "EC"}


class SignOnFailed(Exception):
    """kind: what the sign-in page says of it, out of its own list; the message is for the log alone."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Document(Struct, frozen=True):
    """What we use of a discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class Tokens(Struct, frozen=True):
    id_token: str
    access_token: str | None = None

    def __repr__(self) -> str:
        return "Tokens()"


class SignOn:
    """Every configured provider, by name. http: belongs to whoever made it."""

    def __init__(self, said: Sequence[OidcSettings], http: httpx.AsyncClient) -> None:
        self._providers = {each.name: Provider(each, http) for each in said}

    def provider(self, name: str) -> Provider:
        """Raises: SignOnFailed for one that is not configured."""
        try:
            return self._providers[name]
        except KeyError:
            raise SignOnFailed("unknown-provider", f"no provider {name!r}") from None

    @property
    def all(self) -> list[Provider]:
        return list(self._providers.values())


class Provider:
    def __init__(self, said: OidcSettings, http: httpx.AsyncClient) -> None:
        self.said = said
        self._http = http
        self._document: tuple[int, Document] | None = None
        self._keys: tuple[int, list[dict[str, Any]]] | None = None

    async def authorize_url(self, *, state: str, nonce: str, verifier: str, redirect_uri: str, now_ns: int) -> str:
        """Where to send the browser. Raises: SignOnFailed."""
        document = await self.document(now_ns)
        query = {
            "response_type": "code",
            "client_id": self.said.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.said.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": _unpadded(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }
        return _with_query(document.authorization_endpoint, query)

    async def exchange(self, code: str, *, verifier: str, redirect_uri: str, now_ns: int) -> Tokens:
        """The code for tokens. Raises: SignOnFailed."""
        document = await self.document(now_ns)
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri,
                "code_verifier": verifier, "client_id": self.said.client_id}  # fmt: skip
        headers = {"accept": "application/json"}
        if self.said.client_secret is not None:
            try:
                secret = self.said.client_secret.reveal()
            except ConfigError as error:
                raise SignOnFailed("misconfigured", str(error)) from error
            if "client_secret_basic" in document.token_endpoint_auth_methods_supported:
                # RFC 6749, section 2.3.1: both halves are form-encoded first.
                pair = f"{quote(self.said.client_id, safe='')}:{quote(secret, safe='')}"
                headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
                del form["client_id"]
            else:
                form["client_secret"] = secret
        answer = await self._ask("POST", document.token_endpoint, data=form, headers=headers)
        if answer.status_code in (400, 401):
            said = _json(answer).get("error")
            kind = "misconfigured" if said in ("invalid_client", "unauthorized_client") else "refused"
            raise SignOnFailed(kind, f"token endpoint: {str(said)[:200]}")
        return _convert(_good(answer), Tokens)

    async def claims(self, tokens: Tokens, *, nonce: str, now_ns: int) -> dict[str, Any]:
        """Of the ID token, verified. Where it has no groups they are asked for. Raises: SignOnFailed."""
        claims = await self.verify(tokens.id_token, nonce=nonce, now_ns=now_ns)
        document = await self.document(now_ns)
        if _dig(claims, self.said.groups_claim) is None and tokens.access_token and document.userinfo_endpoint:
            headers = {"authorization": f"Bearer {tokens.access_token}", "accept": "application/json"}
            # Asked anew for each sign-in: a memory keyed by less than the whole token once gave people each other's.
            more = _json(_good(await self._ask("GET", document.userinfo_endpoint, headers=headers)))
            if more.get("sub") != claims["sub"]:
                raise SignOnFailed("bad-token", "userinfo is about somebody else")
            claims = more | claims
        return claims

    async def verify(self, id_token: str, *, nonce: str, now_ns: int) -> dict[str, Any]:
        """Signature, issuer, audience, times, nonce. Raises: SignOnFailed."""
        claims = await self._signed(id_token, now_ns)
        now_s = now_ns // _S
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        checks = {
            "iss": claims.get("iss") == self.said.issuer,
            "aud": self.said.client_id in audiences,
            "azp": claims.get("azp", self.said.client_id) == self.said.client_id
            and (len(audiences) == 1 or "azp" in claims),
            "exp": _number(claims.get("exp")) > now_s - LEEWAY_S,
            "iat": 0 < _number(claims.get("iat")) <= now_s + LEEWAY_S,
            "nbf": "nbf" not in claims or 0 <= _number(claims["nbf"]) <= now_s + LEEWAY_S,
            "nonce": hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()),
            "sub": isinstance(claims.get("sub"), str) and 0 < len(claims["sub"]) <= 255,
        }
        if wrong := [name for name, good in checks.items() if not good]:
            raise SignOnFailed("bad-token", f"ID token: wrong {', '.join(wrong)}")
        return claims

    def groups(self, claims: dict[str, Any]) -> set[str]:
        """Text or a list of it; anything else is nobody's group."""
        found = _dig(claims, self.said.groups_claim)
        several = found if isinstance(found, list) else [found]
        return {each for each in several if isinstance(each, str)}

    async def logout_url(self, id_token: str, *, back_to: str, now_ns: int) -> str | None:
        """Where the browser goes to sign out there too. None: the provider cannot, or shall not."""
        if not self.said.logout:
            return None
        try:
            document = await self.document(now_ns)
        except SignOnFailed:
            return None  # Signed out here in any case.
        if document.end_session_endpoint is None:
            return None
        query = {"id_token_hint": id_token, "client_id": self.said.client_id, "post_logout_redirect_uri": back_to}
        return _with_query(document.end_session_endpoint, query)

    async def document(self, now_ns: int) -> Document:
        """Raises: SignOnFailed."""
        if self._document is not None and 0 <= now_ns - self._document[0] < DISCOVERY_NS:
            return self._document[1]
        url = f"{self.said.issuer.rstrip('/')}/.well-known/openid-configuration"
        document = _convert(_good(await self._ask("GET", url)), Document)
        if document.issuer != self.said.issuer:
            raise SignOnFailed("misconfigured", f"discovery names the issuer {document.issuer!r}")
        for endpoint in (document.authorization_endpoint, document.token_endpoint, document.jwks_uri,
                         document.userinfo_endpoint, document.end_session_endpoint):  # fmt: skip
            if endpoint is not None and not is_safe(endpoint):
                raise SignOnFailed("misconfigured", f"discovery names an endpoint without TLS: {endpoint!r}")
        self._document = (now_ns, document)
        return document

    async def _signed(self, token: str, now_ns: int) -> dict[str, Any]:
        """The payload, if a key of the provider has signed it by an algorithm that we accept. Raises: SignOnFailed."""
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self.said.algorithms:
            # `none`, and HMAC under a public key, end here: what is accepted is our choice, not the token's.
            raise SignOnFailed("bad-token", f"ID token: algorithm {str(algorithm)[:20]!r} is not accepted")
        fresh = self._keys is not None and 0 <= now_ns - self._keys[0] < DISCOVERY_NS
        if not fresh:
            await self._fetch_keys(now_ns)
        found = self._candidates(algorithm, kid)
        if not found and self._keys is not None and now_ns - self._keys[0] >= REFETCH_NS:
            await self._fetch_keys(now_ns)
            found = self._candidates(algorithm, kid)
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import import_key

        for key in found:
            try:
                return jwt.decode(token, import_key(key), algorithms=[algorithm]).claims
            except (JoseError, ValueError) as error:
                log.info("sign-in: signature refused", provider=self.said.name, reason=type(error).__name__)
        raise SignOnFailed("bad-token", "ID token: no key of the provider has signed this")

    def _candidates(self, algorithm: str, kid: object) -> list[dict[str, Any]]:
        keys = [] if self._keys is None else self._keys[1]
        wanted = _KTY.get(algorithm[0], "OKP") if algorithm != "EdDSA" else "OKP"
        return [
            key
            for key in keys
            if key.get("kty") == wanted and key.get("use", "sig") == "sig" and (kid is None or key.get("kid") == kid)
        ][:8]

    async def _fetch_keys(self, now_ns: int) -> None:
        document = await self.document(now_ns)
        keys = _json(_good(await self._ask("GET", document.jwks_uri))).get("keys")
        if not isinstance(keys, list):
            raise SignOnFailed("away", "the provider's keys cannot be read")
        self._keys = (now_ns, [key for key in keys if isinstance(key, dict)])

    async def _ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, url, follow_redirects=False, **more)
        except httpx.HTTPError as error:
            raise SignOnFailed("away", f"{self.said.name}: {type(error).__name__}") from error
        if len(answer.content) > BYTES_MAX:
            raise SignOnFailed("away", f"{self.said.name}: an answer of more than a megabyte")
        return answer


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        raise SignOnFailed("away", f"{answer.request.url.host} answered {answer.status_code}")
    return answer


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SignOnFailed("away", f"{answer.request.url.host} sent no JSON object") from error


def _convert(answer: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise SignOnFailed("misconfigured", f"{answer.request.url.host}: {error}") from error


def _header(token: str) -> dict[str, Any]:
    if token.count(".") != 2 or len(token) > BYTES_MAX:
        raise SignOnFailed("bad-token", "ID token: is no signed token")
    first = token.partition(".")[0]
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)), type=dict[str, Any])
    except (ValueError, msgspec.DecodeError) as error:
        raise SignOnFailed("bad-token", "ID token: has no header") from error


def _dig(claims: dict[str, Any], path: str) -> Any:
    """`realm_access.roles` goes into an object; a claim whose own name has dots is found first."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else -1


def _with_query(url: str, query: dict[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
