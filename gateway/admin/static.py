"""The dashboard's files under /ui: hashed ones for ever, the page itself never cached, everything under a strict CSP.

The build (deploy/hatch_build.py) puts them into dashboard/dist with .br and .gz beside them. Where it could not run,
a page says so and how to mend it; the admin API works without.
"""

from __future__ import annotations

import asyncio
import mimetypes
import secrets
from pathlib import Path
from typing import Any, Final

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct

DIST: Final = Path(__file__).with_name("dashboard") / "dist"
DOCUMENT: Final = DIST.with_name("openapi.json")
_NONCE: Final = b"__NONCE__"
_ENCODINGS: Final = (("br", ".br"), ("gzip", ".gz"))

SECURITY: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class _File(Struct, frozen=True):
    path: Path
    media_type: str
    encodings: dict[str, Path]


def dashboard_routes(dist: Path) -> list[HTTPRouteHandler]:
    """dist: the built files. Read once, at the start: what is not listed then is not served."""
    files = _listed(dist)
    document = DOCUMENT.read_bytes()
    page = (dist / "index.html").read_bytes() if (dist / "index.html").is_file() else None

    @get(["/ui", "/ui/{path:path}"], name="dashboard", include_in_schema=False)
    async def dashboard(request: Request[Any, Any, Any], path: FromPath[str] = "") -> Response[bytes]:
        name = path.lstrip("/")
        if (found := files.get(name)) is not None:
            return await _asset(found, name, request.headers.get("accept-encoding", ""))
        if name.startswith("assets/") or "." in name.rpartition("/")[2]:
            raise NotFoundException
        # Any other path is one of the pages, which the script in index.html tells apart.
        return _page(page)

    @get("/openapi.json", name="openapi", include_in_schema=False, sync_to_thread=False)
    def openapi() -> Response[bytes]:
        return Response(document, media_type="application/json", headers=SECURITY)

    return [dashboard, openapi]


def _listed(dist: Path) -> dict[str, _File]:
    files = {}
    for path in dist.rglob("*"):
        if not path.is_file() or path.suffix in (".br", ".gz") or path.name in ("index.html", "sources.sha256"):
            continue
        encodings = {
            encoding: packed
            for encoding, suffix in _ENCODINGS
            if (packed := path.with_name(path.name + suffix)).is_file()
        }
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        files[path.relative_to(dist).as_posix()] = _File(path, media_type, encodings)
    return files


async def _asset(file: _File, name: str, accepted: str) -> Response[bytes]:
    encoding = next((each for each in file.encodings if each in accepted), None)
    # A file under assets/ has the hash of its content in its name: another content has another name.
    age = "public, max-age=31536000, immutable" if name.startswith("assets/") else "no-cache"
    headers = {"cache-control": age, "vary": "accept-encoding", **SECURITY}
    path = file.path
    if encoding is not None:
        path, headers["content-encoding"] = file.encodings[encoding], encoding
    try:
        body = await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError as error:  # Another version was installed in its place; whoever asks reloads the page.
        raise NotFoundException from error
    return Response(body, media_type=file.media_type, headers=headers)


def _page(page: bytes | None) -> Response[bytes]:
    nonce = secrets.token_urlsafe(16)
    policy = "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            # Mantine writes its variables into a style element, which carries the nonce.
            f"style-src 'self' 'nonce-{nonce}'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {"cache-control": "no-store", "content-security-policy": policy, **SECURITY}
    body = _UNBUILT if page is None else page
    return Response(body.replace(_NONCE, nonce.encode()), media_type="text/html; charset=utf-8", headers=headers)


_UNBUILT: Final = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Farebox</title>
<meta name="viewport" content="width=device-width">
<style nonce="__NONCE__">body{font:16px/1.6 system-ui,sans-serif;max-width:38rem;margin:12vh auto;padding:0 1.5rem}
code{background:#8882;padding:.1em .3em;border-radius:.25em}</style>
<h1>The dashboard is not built here</h1>
<p>Farebox was installed where npm could not be reached, or with <code>FAREBOX_SKIP_UI=1</code>. The gateway, its
command line and the admin API under <code>/admin/v1</code> work as usual.</p>
<p>To have it, in a checkout: <code>pip install -e .</code> again with a network, or
<code>cd gateway/admin/dashboard &amp;&amp; npm ci &amp;&amp; npm run build</code>. Then start Farebox anew.</p>
</html>"""
