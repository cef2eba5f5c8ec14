"""The guide under /docs: gateway/docs/*.md as pages, from the wheel, without a script and without a network."""

from __future__ import annotations

import html
import secrets
from functools import cache
from pathlib import Path
from typing import Final

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.admin.static import SECURITY

PAGES: Final = Path(__file__).parents[1] / "docs"

# Folder -> its heading in the list of pages, in this order.
_SECTIONS: Final = {"": "Farebox", "clients": "Clients", "providers": "Providers"}
_FIRST: Final = ("index", "command-line", "operations", "security", "migrate-from-litellm", "comparison")


def guide_routes() -> list[HTTPRouteHandler]:
    @get(["/docs", "/docs/{path:path}"], name="guide", include_in_schema=False)
    async def guide(path: FromPath[str] = "") -> Response[str]:
        name = path.strip("/").removesuffix(".md") or "index"
        if name not in pages():
            raise NotFoundException
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src 'self'; base-uri 'none'; " \
            "form-action 'none'; frame-ancestors 'none'"  # fmt: skip
        headers = {"cache-control": "no-cache", "content-security-policy": policy, **SECURITY}
        return Response(render(name).replace("__NONCE__", nonce), media_type="text/html", headers=headers)

    return [guide]


@cache
def pages() -> dict[str, str]:
    """Name without .md -> title, in the order of the list."""
    found = {path.relative_to(PAGES).with_suffix("").as_posix(): path for path in PAGES.rglob("*.md")}

    def order(name: str) -> tuple[int, int, str]:
        folder = name.rpartition("/")[0]
        first = _FIRST.index(name) if name in _FIRST else len(_FIRST)
        return list(_SECTIONS).index(folder), first, name

    return {name: _title(found[name]) for name in sorted(found, key=order)}


@cache
def render(name: str) -> str:
    """The whole page; `__NONCE__` stands where the policy's nonce goes. name: one of `pages`."""
    from markdown_it import MarkdownIt

    # Raw HTML is off: what a page says stays text.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    folder = name.rpartition("/")[0]
    for token in tokens:
        for child in token.children or ():
            if child.type == "link_open":
                child.attrSet("href", _address(str(child.attrGet("href") or ""), folder))
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    body = body.replace("<pre>", '<pre tabindex="0">')
    return _PAGE.format(title=html.escape(pages()[name]), nav=_nav(name), body=body)


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _address(href: str, folder: str) -> str:
    """A link between the files is one between the pages."""
    target, mark, fragment = href.partition("#")
    if "://" in target or target.startswith("/") or not target.endswith(".md"):
        return href
    parts: list[str] = folder.split("/") if folder else []
    for part in target.removesuffix(".md").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    name = "/".join(parts)
    return f"/docs/{'' if name == 'index' else name}{mark}{fragment}"


def _nav(current: str) -> str:
    lines = []
    for folder, heading in _SECTIONS.items():
        lines.append(f"<p>{heading}</p><ul>")
        for name, title in pages().items():
            if name.rpartition("/")[0] == folder:
                here = ' aria-current="page"' if name == current else ""
                address = "/docs" if name == "index" else f"/docs/{name}"
                lines.append(f'<li><a href="{address}"{here}>{html.escape(title)}</a></li>')
        if not folder:
            lines.append('<li><a href="/ui/reference">API reference</a></li>')
        lines.append("</ul>")
    return "".join(lines)


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title} · Farebox</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style nonce="__NONCE__">
:root{{color-scheme:light dark;--line:light-dark(#d8dee4,#3a4048);--soft:light-dark(#f4f6f8,#1d2126);
--text:light-dark(#1c2126,#e4e8ec);--back:light-dark(#fff,#14171a);--link:light-dark(#0b5cad,#7db8f0)}}
body{{margin:0;font:16px/1.6 system-ui,sans-serif;color:var(--text);background:var(--back)}}
.page{{display:grid;grid-template-columns:15rem minmax(0,46rem);gap:2.5rem;max-width:68rem;
margin:0 auto;padding:1.5rem}}
nav{{font-size:.9rem}}nav p{{font-weight:600;margin:1rem 0 .2rem}}nav ul{{list-style:none;margin:0;padding:0}}
nav a{{display:block;padding:.15rem .5rem;border-radius:.3rem;text-decoration:none}}
nav a[aria-current]{{background:var(--soft);font-weight:600}}
a{{color:var(--link)}}h1{{font-size:1.7rem;line-height:1.25;margin-top:.4rem}}h2{{font-size:1.2rem;margin-top:2rem}}
code{{font:.88em ui-monospace,monospace;background:var(--soft);padding:.1em .3em;border-radius:.25rem}}
pre{{background:var(--soft);border:1px solid var(--line);border-radius:.4rem;padding:.8rem 1rem;overflow-x:auto}}
pre code{{background:none;padding:0}}.wide{{overflow-x:auto}}table{{border-collapse:collapse;font-size:.93rem}}
th,td{{border-bottom:1px solid var(--line);padding:.35rem .8rem .35rem 0;text-align:left;vertical-align:top}}
@media(max-width:52rem){{.page{{grid-template-columns:minmax(0,1fr)}}nav{{order:2;border-top:1px solid var(--line)}}}}
</style>
<div class="page"><nav aria-label="Pages">{nav}</nav><main>{body}</main></div></html>"""
