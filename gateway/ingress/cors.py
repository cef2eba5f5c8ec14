"""Pages of other origins that may ask the data plane from a browser (`server.cors_origins`).

Never with credentials: a key stands in a header that the page itself sets, and cookies mean nothing here. The office
answers no other origin's page. Source: WHATWG Fetch, "HTTP CORS protocol", read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from gateway.exchange import Headers

_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,4096}")
_KEPT_S: Final = 600


class Cors(Struct, frozen=True):
    origins: frozenset[str]

    @classmethod
    def of(cls, origins: tuple[str, ...]) -> Cors | None:
        return cls(frozenset(origins)) if origins else None

    def headers(self, asked: Mapping[str, str]) -> Headers:
        """What an answer says to the page. asked: the request's headers, names in lower case."""
        allowed: Headers
        if "*" in self.origins:
            allowed = [("access-control-allow-origin", "*")]
        elif (origin := asked.get("origin")) in self.origins and origin is not None:
            allowed = [("vary", "origin"), ("access-control-allow-origin", origin)]
        else:
            return [("vary", "origin")]  # A cache must not give this answer to a page that is welcome.
        # Request ids, limits, what was dropped: clients' libraries read them.
        return [*allowed, ("access-control-expose-headers", "*")]

    def preflight(self, asked: Mapping[str, str], methods: str) -> Headers:
        """What the answer to OPTIONS says. methods: which are served at that path."""
        told = list(self.headers(asked))
        if told[-1][0] == "vary" or "access-control-request-method" not in asked:
            return told
        told += [("access-control-allow-methods", methods), ("access-control-max-age", str(_KEPT_S))]
        # By name: `*` would not cover Authorization.
        names = asked.get("access-control-request-headers", "")
        return [*told, ("access-control-allow-headers", names)] if _NAMES.fullmatch(names) else told
