"""The state of Google's Interactions API: `store`, `previous_interaction_id`, and stored ones read and deleted.

As in `responses.py` the gateway keeps it, whoever answers, in the same table: a turn goes out with the whole
conversation before it. Source: Google's OpenAPI of the API inside llm-comply 0.5, google-genai 3.4, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.admission import Principal
from gateway.errors import InvalidRequest, NotFound
from gateway.exchange import Inbound, Reply
from gateway.responses import Way
from gateway.routing.explaining import DRY_RUN
from gateway.stored import INTERACTION, Store, Stored, watched
from providers.dialects.gemini_interactions.request import steps_of
from providers.wire import jsonio

_ENDS: Final = frozenset({"interaction.completed"})


class Interactions:
    """The chat way, for clients that leave the memory to us."""

    def __init__(self, chat: Way, store: Store, clock: Callable[[], int]) -> None:
        self._chat = chat
        self._store = store
        self._clock = clock

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        members = jsonio.split_object(inbound.body)
        previous = jsonio.plain(members.pop("previous_interaction_id", None))
        keeps = jsonio.plain(members.get("store")) is not False
        if not keeps and previous is None:
            return await self._chat.serve(inbound, who)
        said = steps_of(jsonio.plain(members.get("input")))
        if previous is not None:
            said = await self._before(previous, who, inbound.now_ns) + said
            inbound = replace(inbound, body=jsonio.joined({**members, "input": said}))
        reply = await self._chat.serve(inbound, who)
        if not keeps or DRY_RUN in inbound.headers:
            return reply
        if isinstance(reply.body, bytes):
            await self._keep(msgspec.json.decode(reply.body), said, who)
            return reply

        async def keep(event: bytes) -> None:
            await self._keep(msgspec.json.decode(event, type=_Ended).interaction, said, who)

        return replace(reply, body=watched(reply.body, _ENDS, keep))

    async def _before(self, previous: Any, who: Principal, now_ns: int) -> list[Any]:
        if not isinstance(previous, str):
            raise InvalidRequest("previous_interaction_id must be a string", param="previous_interaction_id")
        found = await _found(self._store, previous, who, now_ns)
        before: list[Any] = msgspec.json.decode(found.conversation)
        return before

    async def _keep(self, answer: dict[str, Any], said: list[Any], who: Principal) -> None:
        conversation = msgspec.json.encode([*said, *answer["steps"]])
        stored = Stored(answer["id"], conversation, msgspec.json.encode(answer))
        await self._store.keep_at_best(who.project_id, stored, self._clock())


class StoredInteractions:
    """A stored interaction read, deleted, and asked to stop."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        ident = inbound.route.item or ""
        headers = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
        found = await _found(self._store, ident, who, inbound.now_ns)
        match inbound.route.operation:
            case "interaction_delete":
                await self._store.forget(who.project_id, ident)
                return Reply(200, headers, b"{}")
            case "interaction_cancel":
                raise InvalidRequest("this interaction is whole: only one made in the background can be cancelled")
        asked = {name: values[-1] for name, values in parse_qs(inbound.route.query).items()}
        if asked.get("stream") == "true":
            raise InvalidRequest("a stored interaction is read whole: leave stream out", param="stream")
        if asked.get("include_input") != "true":
            return Reply(200, headers, found.body)
        whole = msgspec.json.decode(found.body)
        said = msgspec.json.decode(found.conversation)
        whole["input"] = said[: len(said) - len(whole["steps"])]
        return Reply(200, headers, msgspec.json.encode(whole))


class _Ended(Struct):
    interaction: dict[str, Any]


async def _found(store: Store, ident: str, who: Principal, now_ns: int) -> Stored:
    """Raises: NotFound."""
    found = await store.find(who.project_id, ident, now_ns) if ident.startswith(INTERACTION) else None
    if found is None:
        raise NotFound(
            f"no interaction {ident[:200]!r} is stored for this project; it was not stored, or is past its time",
            code="not_found",
            param="id",
        )
    return found
