"""What clients see of Anthropic's Message Batches: the requests come in one body, the results as JSON lines.

Source: anthropic-python 2.12 `types/messages/message_batch*.py`, API reference "Message Batches", read 2026-11."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Raw, Struct
from sqlalchemy import Row

from gateway.admission import Principal
from gateway.batches.api import WINDOW_NS, streamed
from gateway.batches.lines import LINE_BYTES_MAX, LINES_MAX, MESSAGES, Line
from gateway.batches.store import LIVE, Store
from gateway.errors import InvalidRequest, NotFound
from gateway.exchange import Headers, Inbound, Reply

_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BETA: Final = "anthropic-beta"
_KINDS: Final = ("succeeded", "errored", "canceled", "expired")


class Kept(Struct, frozen=True, omit_defaults=True):
    """What stands in the batch's `metadata`: the betas that its creator named; how it ended, once it has."""

    betas: str = ""
    counts: dict[str, int] = {}


class MessageBatches:
    def __init__(self, store: Store, wake: asyncio.Event) -> None:
        """wake: as for `Batches`."""
        self._store = store
        self._wake = wake

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        match inbound.route.operation:
            case "message_batch_create":
                return _json(inbound, await self._create(inbound, who))
            case "message_batch_list":
                return _json(inbound, await self._list(inbound, who))
        row = await self._row(inbound, who)
        match inbound.route.operation:
            case "message_batch_cancel":
                if row.status not in LIVE:
                    raise InvalidRequest("this batch has ended, so it cannot be canceled", param="message_batch_id")
                await self._store.ask_to_cancel(row.id, inbound.now_ns)
                self._wake.set()
                row = await self._row(inbound, who)
            case "message_batch_results":
                if row.status in LIVE:
                    raise InvalidRequest(
                        "this batch has not ended: its results are there once processing_status says so"
                    )
                if row.output_file_id is None or not await self._store.file(
                    who.project_id, row.output_file_id, inbound.now_ns
                ):
                    raise NotFound("the results of this batch are past their time", param="message_batch_id")
                headers: Headers = [("content-type", "application/x-jsonl"), ("x-request-id", inbound.request_id)]
                return Reply(200, headers, streamed(self._store.blobs.read(row.output_file_id)))
            case "message_batch_delete":
                if row.status in LIVE:
                    raise InvalidRequest("this batch has not ended: cancel it first", param="message_batch_id")
                await self._store.forget_batch(who.project_id, row.id)
                return _json(inbound, {"id": row.id, "type": "message_batch_deleted"})
        return _json(inbound, await self._told(row, inbound.now_ns))

    async def _row(self, inbound: Inbound, who: Principal) -> Row[Any]:
        row = await self._store.batch(who.project_id, inbound.route.item or "")
        if row is None or row.endpoint != MESSAGES:
            raise NotFound(
                f"no message batch {(inbound.route.item or '')[:200]!r} in this project", param="message_batch_id"
            )
        return row

    async def _create(self, inbound: Inbound, who: Principal) -> dict[str, Any]:
        lines = await asyncio.to_thread(_lines_of, inbound.body)
        ident = f"msgbatch_{secrets.token_hex(12)}"
        row: dict[str, Any] = {
            "id": ident,
            "project_id": who.project_id,
            "key_id": who.key_id,
            "endpoint": MESSAGES,
            "input_file_id": "",
            "metadata": msgspec.json.encode(Kept(inbound.headers.get(_BETA, ""))),
            "status": "in_progress",
            "total": len(lines),
            "created_at_ns": inbound.now_ns,
            "expires_at_ns": inbound.now_ns + WINDOW_NS,
        }
        await self._store.add_batch(row, lines)
        self._wake.set()
        made = await self._store.batch(who.project_id, ident)
        assert made is not None
        return await self._told(made, inbound.now_ns)

    async def _list(self, inbound: Inbound, who: Principal) -> dict[str, Any]:
        asked = {name: values[-1] for name, values in parse_qs(inbound.route.query).items()}
        limit = asked.get("limit", "20")
        if not limit.isdigit() or not 1 <= int(limit) <= 1000:
            raise InvalidRequest("limit must be 1 to 1000", param="limit")
        if "before_id" in asked and "after_id" in asked:
            raise InvalidRequest("send before_id or after_id, not both", param="before_id")
        found = await self._store.batches(
            who.project_id, asked.get("after_id"), int(limit), MESSAGES, asked.get("before_id")
        )
        page = [await self._told(row, inbound.now_ns) for row in found[: int(limit)]]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"data": page, "has_more": len(found) > int(limit), **ends}

    async def _told(self, row: Row[Any], now_ns: int) -> dict[str, Any]:
        ended = row.status not in LIVE
        counts = dict.fromkeys(_KINDS, 0) | (kept_of(row.metadata).counts if ended else {})
        file = await self._store.file(row.project_id, row.output_file_id, now_ns) if row.output_file_id else None
        return {
            "id": row.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "canceling" if row.status == "cancelling" else "in_progress",
            "request_counts": {"processing": 0 if ended else row.total, **counts},
            "created_at": _rfc3339(row.created_at_ns),
            "expires_at": _rfc3339(row.expires_at_ns),
            "ended_at": _rfc3339(row.ended_at_ns),
            "cancel_initiated_at": _rfc3339(row.cancelling_at_ns),
            "archived_at": None,
            # Relative to the client's own base URL: which scheme leads to us from outside, a proxy may not tell.
            "results_url": f"/v1/messages/batches/{row.id}/results" if file is not None else None,
        }


def kept_of(metadata: bytes | None) -> Kept:
    return Kept() if not metadata else msgspec.json.decode(metadata, type=Kept)


class _Request(Struct):
    custom_id: str
    params: Raw


class _Create(Struct):
    requests: list[_Request]


class _Params(Struct):
    model: str
    stream: bool | None = None


_params: Final = msgspec.json.Decoder(_Params)


def _lines_of(body: bytes) -> list[Line]:
    """Each request's own faults come with its result, as at Anthropic; these would make the batch itself unreadable.

    Raises: InvalidRequest."""
    try:
        asked = msgspec.json.decode(body, type=_Create)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"not a message batch: {error}") from error
    if not 1 <= len(asked.requests) <= LINES_MAX:
        raise InvalidRequest(f"requests must be 1 to {LINES_MAX}", param="requests")
    seen: set[str] = set()
    lines = []
    for number, each in enumerate(asked.requests):
        here = f"requests.{number}"
        if not _CUSTOM_ID.fullmatch(each.custom_id):
            raise InvalidRequest(f"{here}.custom_id must be 1 to 64 letters, digits, - or _", param=f"{here}.custom_id")
        if each.custom_id in seen:
            raise InvalidRequest(f"{here}.custom_id: {each.custom_id!r} is there twice", param=f"{here}.custom_id")
        seen.add(each.custom_id)
        if len(bytes(each.params)) > LINE_BYTES_MAX:
            raise InvalidRequest(f"{here}.params has more than {LINE_BYTES_MAX} bytes", param=f"{here}.params")
        try:
            params = _params.decode(each.params)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{here}.params: {error}", param=f"{here}.params") from error
        if params.stream:
            raise InvalidRequest(f"{here}.params.stream has no meaning in a batch", param=f"{here}.params.stream")
        lines.append(Line(each.custom_id, bytes(each.params)))
    return lines


def _json(inbound: Inbound, value: dict[str, Any]) -> Reply:
    headers: Headers = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
    return Reply(200, headers, msgspec.json.encode(value))


def _rfc3339(ns: int | None) -> str | None:
    if ns is None:
        return None
    return datetime.fromtimestamp(ns / 10**9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
