"""What a browser does, as far as the admin API can tell: keeps cookies, and sends the session's token with changes."""

from __future__ import annotations

from typing import Any, Self

import httpx
from litestar import Litestar

BASE = "http://farebox.test"


class Browser:
    def __init__(self, app: Litestar) -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
        self.http = httpx.AsyncClient(transport=transport, base_url=f"{BASE}/admin/v1")
        self.session: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.http.aclose()

    async def sign_in(self, token: str) -> None:
        answer = await self.http.post("/auth/link", json={"token": token})
        assert answer.status_code == 200, answer.text
        self.session = answer.json()

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        if self.session and method != "GET":
            headers.setdefault("x-csrf-token", self.session["csrf"])
        more: dict[str, Any] = {} if body is None else {"json": body}
        return await self.http.request(method, path, headers=headers, **more)

    async def get(self, path: str, **query: object) -> Any:
        """The JSON of a good answer."""
        answer = await self.http.get(path, params={name: value for name, value in query.items() if value is not None})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        answer = await self.call(method, path, body, **headers)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None
