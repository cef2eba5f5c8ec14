"""AWS Signature Version 4: sign what we send, verify what clients sign, mint bearer tokens. Pure; no boto3, no clock.

Source: "Create a signed AWS API request" (IAM user guide), botocore 1.44 `auth.py`, whose signatures these equal, and
aws-bedrock-token-generator 1.1, read 2026-11.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote, urlsplit

from msgspec import Struct

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_S = 300.0
MAX_TOKEN_LIFE_S = 12 * 3600

_EMPTY_SHA256 = sha256(b"").hexdigest()
_DATE = "%Y%m%dT%H%M%SZ"
_AUTHORIZATION = re.compile(
    rf"{ALGORITHM}\s+Credential=(?P<scope>[^,\s]+),\s*SignedHeaders=(?P<headers>[^,\s]+),\s*Signature=(?P<signature>[0-9a-f]{{64}})\s*"
)


class Keys(Struct, frozen=True):
    """An AWS identity. `repr` never shows the secret."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Keys({self.access_key_id})"


class Scope(Struct, frozen=True):
    """What a client's signature says of itself, before it is believed."""

    access_key_id: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


def sign(
    method: str,
    url: str,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    *,
    keys: Keys,
    region: str,
    service: str,
    now_s: float,
) -> tuple[tuple[str, str], ...]:
    """The headers to add. Signed are host, content type and every x-amz-* header; headers: lower-case names."""
    stamp = _stamp(now_s)
    added = [("x-amz-date", stamp)]
    if keys.session_token:
        added.append(("x-amz-security-token", keys.session_token))
    split = urlsplit(url)
    signed = [(n, v) for n, v in (*headers, *added) if n == "content-type" or n.startswith("x-amz-")]
    signed.append(("host", host_of(url)))
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    canonical, names = _canonical_headers(signed)
    request = _canonical_request(method, split.path, split.query, canonical, names, sha256(body).hexdigest())
    signature = _signature(keys.secret_access_key, stamp, scope, request)
    credential = f"{ALGORITHM} Credential={keys.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return (*added, ("authorization", credential))


def scope_of(authorization: str) -> Scope | None:
    """What an `Authorization` header claims; None when it is no SigV4 signature. Its access key id finds the secret."""
    found = _AUTHORIZATION.fullmatch(authorization.strip()) if ALGORITHM in authorization else None
    if found is None:
        return None
    # An access key id may hold slashes; the scope behind it has exactly four.
    parts = found["scope"].rsplit("/", 4)
    if len(parts) != 5 or parts[4] != "aws4_request" or not parts[0]:
        return None
    return Scope(parts[0], parts[1], parts[2], parts[3], tuple(found["headers"].split(";")), found["signature"])


def verify(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
    secret: str,
    now_s: float,
    max_skew_s: float = MAX_SKEW_S,
) -> bool:
    """Whether this very request was signed with `secret`, and lately.

    path, query: raw, as on the wire. headers: lower-case names, values as they came. An unsigned payload is not
    accepted: the body is what costs money."""
    scope = scope_of(headers.get("authorization", ""))
    stamp = headers.get("x-amz-date", "")
    if scope is None or scope.date != stamp[:8]:
        return False
    if not {"host", "x-amz-date"} <= set(scope.signed_headers):
        return False
    signed_at_s = _read_stamp(stamp)
    if signed_at_s is None or abs(now_s - signed_at_s) > max_skew_s:
        return False
    digest = sha256(body).hexdigest()
    if headers.get("x-amz-content-sha256", digest) != digest:
        return False
    if any(name not in headers for name in scope.signed_headers):
        return False
    canonical, names = _canonical_headers((name, headers[name]) for name in scope.signed_headers)
    if names != ";".join(scope.signed_headers):
        return False
    request = _canonical_request(method, path, query, canonical, names, digest)
    full_scope = f"{scope.date}/{scope.region}/{scope.service}/aws4_request"
    return hmac.compare_digest(_signature(secret, stamp, full_scope, request), scope.signature)


def mint_bearer(keys: Keys, *, service: str, region: str, now_s: float, life_s: int = MAX_TOKEN_LIFE_S) -> str:
    """A short-term API key: a presigned CallWithBearerToken request, in base64. service: "bedrock" or "sagemaker".

    It needs no network, and is good for `life_s` (12 hours at most) or as long as the keys, whichever ends first."""
    host = f"{service}.amazonaws.com"
    stamp = _stamp(now_s)
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    members = [
        ("Action", "CallWithBearerToken"),
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{keys.access_key_id}/{scope}"),
        ("X-Amz-Date", stamp),
        ("X-Amz-Expires", str(min(life_s, MAX_TOKEN_LIFE_S))),
        ("X-Amz-SignedHeaders", "host"),
    ]
    if keys.session_token:
        members.append(("X-Amz-Security-Token", keys.session_token))
    query = "&".join(f"{name}={quote(value, safe='-._~')}" for name, value in members)
    canonical, names = _canonical_headers([("host", host)])
    request = _canonical_request("POST", "/", query, canonical, names, _EMPTY_SHA256)
    signature = _signature(keys.secret_access_key, stamp, scope, request)
    presigned = f"{host}/?{query}&X-Amz-Signature={signature}&Version=1"
    return f"{service}-api-key-{b64encode(presigned.encode()).decode()}"


def host_of(url: str) -> str:
    """The Host header that goes with this URL: the port only where it is not the scheme's own."""
    split = urlsplit(url)
    host = split.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    default = {"http": 80, "https": 443}.get(split.scheme)
    return host if split.port in (None, default) else f"{host}:{split.port}"


def _canonical_headers(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The canonical block, and the list of names."""
    joined: dict[str, list[str]] = {}
    for name, value in headers:
        joined.setdefault(name.lower().strip(), []).append(" ".join(value.split()))
    names = sorted(joined)
    return "".join(f"{name}:{','.join(joined[name])}\n" for name in names), ";".join(names)


def _canonical_request(method: str, path: str, query: str, headers: str, names: str, digest: str) -> str:
    # The path is encoded a second time, as every service but S3 expects.
    canonical_path = quote(_without_dots(path), safe="/~")
    return "\n".join((method.upper(), canonical_path, _canonical_query(query), headers, names, digest))


def _canonical_query(query: str) -> str:
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    return "&".join(f"{name}={value}" for name, value in sorted((name, value) for name, _, value in pairs))


def _without_dots(path: str) -> str:
    """RFC 3986 5.2.4, and doubled slashes become one."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if kept:
                kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    trailing = "/" if path.endswith("/") and kept else ""
    return "/" + "/".join(kept) + trailing


def _signature(secret: str, stamp: str, scope: str, request: str) -> str:
    key = f"AWS4{secret}".encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    text = f"{ALGORITHM}\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def _stamp(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime(_DATE)


def _read_stamp(stamp: str) -> float | None:
    try:
        return datetime.strptime(stamp, _DATE).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
