"""Where engines join and leave: `PUT` and `DELETE /replicas/{provider}/{name}` with the token of `replicas.token`.

A plain ASGI callable, on the admin port where there is one: renewals come every few seconds, and must not be what loads
the front office."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.config_parts import Secret
from gateway.errors import Unavailable
from gateway.offered import ProviderSettings
from gateway.routing.replicas import QUIET_S, ReplicaName, Replicas, Said

PATH: Final = re.compile(r"/replicas/([^/]+)/([^/]+)")
BODY_MAX: Final = 64 * 1024
_NAME: Final = msgspec.json.Decoder(ReplicaName)


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Joining:
    """token: None where nobody may join. providers: in force now."""

    def __init__(
        self, replicas: Replicas, token: Secret | None, providers: Callable[[], Mapping[str, ProviderSettings]]
    ) -> None:
        self._replicas = replicas
        self._token = token
        self._providers = providers

    @staticmethod
    def knows(scope: Mapping[str, Any]) -> bool:
        return scope["method"] in ("PUT", "DELETE") and PATH.fullmatch(scope["path"]) is not None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI, for what it knows."""
        status, headers = 200, []
        try:
            told = await self._serve(scope, receive)
        except Refused as refused:
            status, told = refused.status, {"error": {"message": str(refused), "code": refused.code}}
        except Unavailable as away:
            status, told = 503, {"error": {"message": away.message, "code": away.code}}
            headers = [(b"retry-after", b"1")]
        body = msgspec.json.encode(told)
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _serve(self, scope: Any, receive: Any) -> dict[str, Any]:
        body = await _body(receive)
        self._check(dict(scope["headers"]).get(b"authorization", b""))
        found = PATH.fullmatch(scope["path"])
        assert found is not None
        provider, name = found.groups()
        said = self._providers().get(provider)
        if said is None or not said.enabled or not said.replicas:
            raise Refused(404, "no_such_provider", f"no provider {provider!r} takes replicas; set `replicas = true`")
        try:
            _NAME.decode(msgspec.json.encode(name))
        except msgspec.ValidationError as error:
            raise Refused(422, "bad_name", f"{name!r} is no name for a replica: {error}") from error
        if scope["method"] == "DELETE":
            await self._replicas.leave(provider, name)
            # Until all gateways know, some may still send: who leaves goes on answering for so long.
            return {"quiet_s": QUIET_S}
        await self._replicas.join(provider, name, await _said(body))
        return {"lease_s": self._replicas.lease_s, "renew_s": self._replicas.renew_s}

    def _check(self, header: bytes) -> None:
        if self._token is None:
            raise Refused(403, "no_replicas", "this installation takes no replicas; set `replicas.token`")
        scheme, _, shown = header.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self._token.reveal().encode()):
            raise Refused(401, "bad_token", "show the token of `replicas.token` as `Authorization: Bearer ...`")


async def _said(body: bytes) -> Said:
    """Raises: Refused."""
    from gateway.catalogue.faults import address_fault
    from providers.base import checked_base_url

    try:
        said = msgspec.json.decode(body, type=Said)
        checked_base_url("replica", said.base_url)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Refused(422, "bad_body", f"{error}; send base_url, with its version, and models") from error
    fault = await asyncio.to_thread(address_fault, "base_url", said.base_url, allow_private=True)
    if fault is not None:
        raise Refused(422, "bad_address", f"{fault.problem}; {fault.todo}")
    for name in ("kv_events", "kv_events_replay"):
        _check_events(name, getattr(said, name), said.base_url)
    return said


def _check_events(name: str, address: str | None, base_url: str) -> None:
    """Every gateway will connect there: to the engine itself and to nobody else, whoever holds the token.

    Raises: Refused."""
    if address is None:
        return
    try:
        told, engine = urlsplit(address), urlsplit(base_url)
        if told.scheme != "tcp" or not told.port or told.path or told.query or told.fragment:
            raise ValueError("another form")
    except ValueError as error:
        raise Refused(422, "bad_address", f"{name} is {address!r}; send it as tcp://host:port") from error
    if told.hostname != engine.hostname or "@" in told.netloc:
        raise Refused(422, "bad_address", f"{name} is not on the host of base_url; name it as {engine.hostname}")


async def _body(receive: Any) -> bytes:
    """Raises: Refused."""
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "gone", "the request broke off")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > BODY_MAX:
            raise Refused(413, "body_too_large", f"more than {BODY_MAX} bytes")
        more = message.get("more_body", False)
    return b"".join(pieces)
