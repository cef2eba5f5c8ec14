"""The way of a rerank request. No adapter offers reranking, so after the usual checks it is refused by name: a client
learns what is missing, not that a path is unknown."""

from __future__ import annotations

from gateway.admission import Principal
from gateway.desk import Desk
from gateway.errors import InvalidRequest, Unsupported
from gateway.exchange import Inbound, Reply
from providers.wire import jsonio


class Rerank:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        """Raises: always; ModelNotFound and Forbidden before Unsupported."""
        alias = jsonio.plain(jsonio.split_object(inbound.body).get("model"))
        if not isinstance(alias, str):
            raise InvalidRequest("model is required", param="model")
        self._desk.plan(alias, frozenset({"chat"}), who, inbound.now_ns)
        raise Unsupported(f"no deployment of {alias!r} supports rerank", ("rerank",))
