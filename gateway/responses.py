"""The state of the Responses API: `store`, `previous_response_id`, and stored answers read and deleted.

The gateway keeps it, whoever answers: a turn is sent upstream with the whole conversation before it, so each turn may
go to another provider. Source: OpenAI API reference "Responses" and its 30 days of retention, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.admission import Principal
from gateway.background import Background, as_dry_run, is_under_way, runs_in_background
from gateway.errors import InvalidRequest, NotFound
from gateway.exchange import Inbound, Reply
from gateway.routing.explaining import DRY_RUN
from gateway.stored import INTERACTION, Store, Stored, Whole, says_something, watched
from providers.wire import jsonio

# The events that carry the whole answer.
_ENDS: Final = frozenset({"response.completed", "response.incomplete"})


class Way(Protocol):
    def serve(self, inbound: Inbound, who: Principal) -> Awaitable[Reply]: ...


_KEPT_ELSEWHERE: Final = {
    "conversation": "conversations are kept here by previous_response_id: send that, or the items themselves",
    "prompt": "stored prompts lie at OpenAI, and this gateway holds money for what it can read: send the text itself, "
    "as instructions or input",
}


class Conversation:
    """The chat way, for clients that leave the memory to us. One that says `store: false` and names no previous answer
    passes through untouched."""

    def __init__(self, chat: Way, store: Store, background: Background, clock: Callable[[], int]) -> None:
        self._chat = chat
        self._store = store
        self._background = background
        self._clock = clock

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        members = jsonio.split_object(inbound.body)
        previous = jsonio.plain(members.pop("previous_response_id", None))
        for name, advice in _KEPT_ELSEWHERE.items():
            if jsonio.plain(members.get(name)) is not None:
                raise InvalidRequest(f"{name} is not served: {advice}", code="unsupported_parameter", param=name)
        keeps = jsonio.plain(members.get("store")) is not False
        given = jsonio.plain(members.get("input"))
        named = isinstance(given, list) and any(map(_is_reference, given))
        later = runs_in_background(members)
        if previous is None and not keeps and not named:
            return await self._chat.serve(inbound, who)
        said = _items(given)
        if named:
            said = await self._resolved(said, who, inbound.now_ns)
        if previous is not None:
            said = await self._before(previous, who, inbound.now_ns) + said
        if later:
            plan = await self._chat.serve(as_dry_run(inbound, members, said), who)  # refused now, if it ever would be
            return plan if DRY_RUN in inbound.headers else await self._background.begin(inbound, members, said, who)
        if named or previous is not None:
            members["input"] = said
            inbound = replace(inbound, body=jsonio.joined(members))
        reply = await self._chat.serve(inbound, who)
        if not keeps or DRY_RUN in inbound.headers:
            return reply
        if isinstance(reply.body, bytes):
            await self._keep(jsonio.split_object(reply.body), said, who)
            return reply

        async def keep(event: bytes) -> None:
            await self._keep(msgspec.json.decode(event, type=_Ended).response, said, who)

        return replace(reply, body=watched(reply.body, _ENDS, keep))

    async def _resolved(self, said: list[Any], who: Principal, now_ns: int) -> list[Any]:
        """With the items themselves in place of their ids, which nobody behind us need know."""
        named = [item["id"] for item in said if _is_reference(item)]
        found = await self._store.items(who.project_id, named, now_ns)
        if missing := [ident for ident in named if ident not in found]:
            raise NotFound(
                f"no item {str(missing[0])[:200]!r} is stored for this project; send the item itself", param="input"
            )
        whole = [found[item["id"]] if _is_reference(item) else item for item in said]
        return [item for item in whole if item is not None]

    async def _before(self, previous: Any, who: Principal, now_ns: int) -> list[Any]:
        if not isinstance(previous, str):
            raise InvalidRequest("previous_response_id must be a string", param="previous_response_id")
        found = await _found(self._store, previous, who, now_ns)
        if found is None:
            raise NotFound(
                f"no response {previous[:200]!r} is stored for this project; it was not stored, or is past its time",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        if is_under_way(found):
            raise InvalidRequest(
                "the previous response is still being made in the background", param="previous_response_id"
            )
        before: list[Any] = msgspec.json.decode(found.conversation)
        return before

    async def _keep(self, answer: dict[str, Any], said: list[Any], who: Principal) -> None:
        output = [item for item in jsonio.plain(answer["output"]) if says_something(item)]
        stored = Stored(jsonio.plain(answer["id"]), msgspec.json.encode([*said, *output]), jsonio.joined(answer))
        await self._store.keep_at_best(who.project_id, stored, self._clock())


class Retrieval:
    """A stored answer read, deleted, and asked what it answered."""

    def __init__(self, store: Store, background: Background) -> None:
        self._store = store
        self._background = background

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        ident = inbound.route.item or ""
        headers = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
        if inbound.route.operation == "forget":
            going = await _found(self._store, ident, who, inbound.now_ns)
            if going is not None and is_under_way(going):
                await self._background.cancel(going, inbound.now_ns)
            if going is None or not await self._store.forget(who.project_id, ident):
                raise _not_found(ident)
            return Reply(200, headers, msgspec.json.encode({"id": ident, "object": "response", "deleted": True}))
        found = await _found(self._store, ident, who, inbound.now_ns)
        if found is None:
            raise _not_found(ident)
        match inbound.route.operation:
            case "cancel":
                return Reply(200, headers, await self._background.cancel(found, inbound.now_ns))
            case "retrieve" if parse_qs(inbound.route.query).get("stream", ["false"])[-1] == "true":
                return self._background.follow(inbound, found)
            case "input_items":
                return Reply(200, headers, _listed(found, inbound.route.query))
        return Reply(200, headers, found.body)


class _Ended(Struct):
    response: dict[str, msgspec.Raw]


def _listed(stored: Stored, query: str) -> bytes:
    """Everything before the answer itself, newest first unless `order=asc`. Raises: InvalidRequest."""
    asked = parse_qs(query)
    limit, after = asked.get("limit", ["20"])[-1], asked.get("after", [None])[-1]
    if not limit.isdigit() or not 1 <= int(limit) <= 100:
        raise InvalidRequest("limit must be 1 to 100", param="limit")
    said: list[Any] = msgspec.json.decode(stored.conversation)
    own = [item for item in msgspec.json.decode(stored.body, type=Whole).output if says_something(item)]
    items = [_told(item, stored.id, place) for place, item in enumerate(said[: len(said) - len(own)])]
    if asked.get("order", ["desc"])[-1] != "asc":
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        items = items[places[0] + 1 :] if places else []
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return msgspec.json.encode({"object": "list", "data": page, "has_more": len(items) > len(page), **ends})


def _told(item: Any, ident: str, place: int) -> dict[str, Any]:
    """As the API lists it: with an id and a type, a message's text as a part."""
    whole = {"id": f"item_{ident}_{place}", "type": "message", **(item if isinstance(item, dict) else {})}
    if whole["type"] == "message" and isinstance(whole.get("content"), str):
        kind = "output_text" if whole.get("role") == "assistant" else "input_text"
        whole["content"] = [{"type": kind, "text": whole["content"]}]
    return whole


def _is_reference(item: Any) -> bool:
    """The API takes one without a type as well."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return False
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item)


async def _found(store: Store, ident: str, who: Principal, now_ns: int) -> Stored | None:
    return None if ident.startswith(INTERACTION) else await store.find(who.project_id, ident, now_ns)


def _not_found(ident: str) -> NotFound:
    return NotFound(f"no response {ident[:200]!r} is stored for this project", param="response_id")


def _items(given: Any) -> list[Any]:
    """Raises: InvalidRequest for an input that no dialect takes either."""
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if isinstance(given, list):
        return given
    raise InvalidRequest("input must be a string or a list of items", param="input")
