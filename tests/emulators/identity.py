"""An OpenID Connect provider: discovery, keys, authorization (everybody there is signed in already), token, userinfo,
logout. It is as strict as real ones are with codes, clients, redirect addresses and PKCE, and lies when told to.

Sources: OpenID Connect Core 1.0, Discovery 1.0, RP-Initiated Logout 1.0, RFC 7636, read 2026-11.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.emulators.server import Emulator, Out, Request

CLIENT, SECRET = "farebox client", "s3cret/with:odd+chars"


class IdentityProvider(Emulator):
    """person: claims of whoever comes by next. lies: put over the claims of the ID token (None takes one out).

    forge: "" signs as it should; "none", "hs256" (with the public key as secret), "stranger" (a key nobody published),
    "broken" (a flipped bit). in_token: whether groups stand in the token or at userinfo alone."""

    def __init__(self, *, client_id: str = CLIENT, client_secret: str | None = SECRET) -> None:
        super().__init__()
        self.client_id, self.client_secret = client_id, client_secret
        self.person: dict[str, Any] = {"sub": "subject-1", "email": "ann@house.test", "email_verified": True}
        self.lies: dict[str, Any] = {}
        self.forge = ""
        self.in_token = True
        self.away = False
        self.userinfo_lies: dict[str, Any] = {}
        self.now_s = 0
        self.basic = True
        self.issuer_said: str | None = None
        self.keys: list[RSAKey | ECKey] = [RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})]
        self.fetched_keys = 0
        self._codes: dict[str, dict[str, Any]] = {}
        self._access: dict[str, dict[str, Any]] = {}

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/house"

    def rotate(self, *, keep: bool = False) -> None:
        """A new signing key, of another kind; keep: the one before is still published."""
        new = ECKey.generate_key("P-256", {"kid": f"key-{secrets.token_hex(4)}", "use": "sig"})
        self.keys = [new, *(self.keys if keep else [])]

    async def handle(self, request: Request, out: Out) -> None:
        if self.away:
            await out.json(503, {"error": "temporarily_unavailable"})
            return
        match request.path.removeprefix("/realms/house"):
            case "/.well-known/openid-configuration":
                await out.json(200, self._document())
            case "/authorize":
                await self._authorize(request, out)
            case "/token":
                status, said = self._token(request)
                await out.json(status, said)
            case "/keys":
                self.fetched_keys += 1
                await out.json(200, {"keys": [key.as_dict(private=False) for key in self.keys]})
            case "/userinfo":
                person = self._access.get(request.headers.get("authorization", "").removeprefix("Bearer "))
                await out.json(401 if person is None else 200, {**(person or {}), **self.userinfo_lies})
            case _:
                await out.json(404, {"error": "not_found"})

    def _document(self) -> dict[str, Any]:
        methods = ["client_secret_basic", "client_secret_post"] if self.basic else ["client_secret_post"]
        return {
            "issuer": self.issuer_said or self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize?tenant=house",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "end_session_endpoint": f"{self.issuer}/logout",
            "token_endpoint_auth_methods_supported": methods,
            "code_challenge_methods_supported": ["S256"],
        }

    async def _authorize(self, request: Request, out: Out) -> None:
        query = request.query
        good = query["client_id"] == self.client_id and query["response_type"] == "code"
        assert good, query
        assert (query["code_challenge_method"], "openid" in query["scope"].split()) == ("S256", True)
        code = secrets.token_urlsafe(16)
        self._codes[code] = {**query, "person": dict(self.person)}
        back = urlencode({"code": code, "state": query["state"], "iss": self.issuer})
        await out.whole(302, b"", {"location": f"{query['redirect_uri']}?{back}"})

    def _token(self, request: Request) -> tuple[int, dict[str, Any]]:
        form = dict(parse_qsl(request.body.decode()))
        given: tuple[str | None, str | None] = form.get("client_id"), form.get("client_secret")
        if (header := request.headers.get("authorization", "")).startswith("Basic "):
            name, _, secret = base64.b64decode(header[6:]).decode().partition(":")
            given = unquote(name), unquote(secret)
        if given != (self.client_id, self.client_secret):
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form["code"], None)  # Each is good once.
        proof = _base64(hashlib.sha256(form["code_verifier"].encode()).digest())
        if asked is None or asked["redirect_uri"] != form["redirect_uri"] or asked["code_challenge"] != proof:
            return 400, {"error": "invalid_grant"}
        access = secrets.token_urlsafe(64)
        self._access[access] = asked["person"]
        shown = {name: value for name, value in asked["person"].items() if self.in_token or name != "groups"}
        claims = {"iss": self.issuer, "aud": self.client_id, "iat": self.now_s, "exp": self.now_s + 300,
                  "nonce": asked["nonce"], **shown, **self.lies}  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        return 200, {"token_type": "Bearer", "access_token": access, "expires_in": 300, "id_token": self._sign(claims)}

    def _sign(self, claims: dict[str, Any]) -> str:
        key = self.keys[0]
        algorithm = "RS256" if isinstance(key, RSAKey) else "ES256"
        header = {"alg": algorithm, "kid": key.kid}
        match self.forge:
            case "none":
                return f"{_unsigned({**header, 'alg': 'none'}, claims)}."
            case "hs256":
                # Whoever checks HMAC with what the provider publishes as its key finds this one good.
                text = _unsigned({**header, "alg": "HS256"}, claims)
                return f"{text}.{_base64(hmac.digest(key.as_pem(private=False), text.encode(), 'sha256'))}"
            case "stranger":
                return jwt.encode(header, claims, type(key).generate_key(), algorithms=[algorithm])
        token = jwt.encode(header, claims, key, algorithms=[algorithm])
        if self.forge == "broken":
            head, body, mark = token.split(".")
            return f"{head}.{body}.{'A' if mark[0] != 'A' else 'B'}{mark[1:]}"
        return token


def _unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    return ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
