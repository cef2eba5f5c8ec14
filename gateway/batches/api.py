"""What clients see of files and batches: OpenAI's `/v1/files` and `/v1/batches`.

Source: openai-python 3.54 `types/file_object.py`, `types/batch.py` and the API reference, read 2026-11."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct
from sqlalchemy import Row

from gateway.admission import Principal
from gateway.batches.lines import ENDPOINTS, read_lines
from gateway.batches.store import LIVE, Store, faults_as, faults_of
from gateway.errors import InvalidRequest, NotFound, Unsupported
from gateway.exchange import Headers, Inbound, Reply
from gateway.sections import BatchSettings
from providers.wire import multipart

_S: Final = 10**9
WINDOW_NS: Final = 24 * 3600 * _S
_METADATA_MAX: Final = 16


class Files:
    """Uploaded once, read and deleted by its project alone. The one purpose is a batch."""

    def __init__(self, store: Store, settings: BatchSettings) -> None:
        self._store = store
        self._keep_ns = settings.retention_days * 24 * 3600 * _S

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        route, now_ns = inbound.route, inbound.now_ns
        match route.operation:
            case "file_create":
                return _json(inbound, await self._upload(inbound, who))
            case "file_list":
                limit, after, asked = _page_asked(route.query, 10_000)
                found = await self._store.files(who.project_id, now_ns, after, limit, asked.get("purpose", ""))
                return _json(inbound, _page([_file(row) for row in found], limit))
            case "file_delete":
                if not await self._store.forget_file(who.project_id, route.item or ""):
                    raise _no_file(route.item)
                return _json(inbound, {"id": route.item, "object": "file", "deleted": True})
        row = await self._store.file(who.project_id, route.item or "", now_ns)
        if row is None:
            raise _no_file(route.item)
        if route.operation == "file_content":
            headers = [("content-type", "application/octet-stream"), ("x-request-id", inbound.request_id)]
            return Reply(200, headers, streamed(self._store.blobs.read(row.id)))
        return _json(inbound, _file(row))

    async def _upload(self, inbound: Inbound, who: Principal) -> dict[str, Any]:
        boundary = multipart.boundary_of(inbound.headers.get("content-type", ""))
        if boundary is None:
            raise InvalidRequest("send multipart/form-data with a boundary", param="content-type")
        try:
            parts = multipart.split(inbound.body, boundary)
        except ValueError as error:
            raise InvalidRequest(f"not a form: {error}") from error
        fields = {part.name: part.body.decode("utf-8", "replace") for part in parts if part.filename is None}
        if fields.get("purpose") != "batch":
            raise Unsupported(
                "the one purpose served here is `batch`; images and documents go into the request itself",
                ("purpose",),
                param="purpose",
            )
        given = [part for part in parts if part.name == "file" and part.filename is not None]
        if len(given) != 1 or not given[0].body.strip():
            raise InvalidRequest("file must be one file with something in it", param="file")
        keep_ns = self._keep_ns
        if (seconds := fields.get("expires_after[seconds]")) is not None:
            if not seconds.isdigit() or not 3600 <= int(seconds) <= 2_592_000:
                raise InvalidRequest("expires_after.seconds must be 3600 to 2592000", param="expires_after")
            keep_ns = min(keep_ns, int(seconds) * _S)
        ident = f"file-{secrets.token_hex(12)}"
        row = file_row(ident, who.project_id, given[0].filename or "", "batch", inbound.now_ns, keep_ns)
        row["size_bytes"] = await self._store.blobs.put(ident, _once(given[0].body))
        await self._store.add_file(row)
        return _file(row)


class Batches:
    def __init__(self, store: Store, wake: asyncio.Event) -> None:
        """wake: set when there is work, so that this process begins it at once."""
        self._store = store
        self._wake = wake

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        route = inbound.route
        match route.operation:
            case "batch_create":
                return _json(inbound, await self._create(inbound, who))
            case "batch_list":
                limit, after, _ = _page_asked(route.query, 100)
                found = await self._store.batches(who.project_id, after, limit)
                return _json(inbound, _page([await self._told(row) for row in found], limit))
        row = await self._store.batch(who.project_id, route.item or "")
        if row is None or row.endpoint not in ENDPOINTS:
            raise NotFound(f"no batch {(route.item or '')[:200]!r} in this project", param="batch_id")
        if route.operation == "batch_cancel":
            if row.status not in ("in_progress", "cancelling"):
                raise InvalidRequest(f"a batch that is {row.status} cannot be cancelled", param="batch_id")
            await self._store.ask_to_cancel(row.id, inbound.now_ns)
            self._wake.set()
            row = await self._store.batch(who.project_id, row.id) or row
        return _json(inbound, await self._told(row))

    async def _create(self, inbound: Inbound, who: Principal) -> dict[str, Any]:
        try:
            asked = msgspec.json.decode(inbound.body, type=_Create)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"not a batch: {error}") from error
        if asked.endpoint not in ENDPOINTS:
            raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
        if asked.metadata is not None and len(asked.metadata) > _METADATA_MAX:
            raise InvalidRequest(f"metadata has at most {_METADATA_MAX} members", param="metadata")
        file = await self._store.file(who.project_id, asked.input_file_id, inbound.now_ns)
        if file is None or file.purpose != "batch":
            raise _no_file(asked.input_file_id, "input_file_id")
        content = b"".join([piece async for piece in self._store.blobs.read(file.id)])
        lines, faults = await asyncio.to_thread(read_lines, content, asked.endpoint)
        row: dict[str, Any] = {
            "id": f"batch_{secrets.token_hex(12)}",
            "project_id": who.project_id,
            "key_id": who.key_id,
            "endpoint": asked.endpoint,
            "input_file_id": file.id,
            "metadata": None if asked.metadata is None else msgspec.json.encode(asked.metadata),
            "errors": faults_as(faults) if faults else None,
            "status": "failed" if faults else "in_progress",
            "total": 0 if faults else len(lines),
            "created_at_ns": inbound.now_ns,
            "expires_at_ns": inbound.now_ns + WINDOW_NS,
            "ended_at_ns": inbound.now_ns if faults else None,
        }
        await self._store.add_batch(row, [] if faults else lines)
        self._wake.set()
        made = await self._store.batch(who.project_id, row["id"])
        assert made is not None
        return await self._told(made)

    async def _told(self, row: Row[Any]) -> dict[str, Any]:
        completed, failed = row.completed, row.failed
        if row.status in LIVE:
            completed, failed = await self._store.counts(row.id)
        faults = [
            {"code": f.code, "message": f.message, "line": f.line, "param": f.param} for f in faults_of(row.errors)
        ]
        told: dict[str, Any] = {
            "id": row.id,
            "object": "batch",
            "endpoint": row.endpoint,
            "errors": {"object": "list", "data": faults} if faults else None,
            "input_file_id": row.input_file_id,
            "completion_window": "24h",
            "status": row.status,
            "output_file_id": row.output_file_id,
            "error_file_id": row.error_file_id,
            "created_at": row.created_at_ns // _S,
            "in_progress_at": None if row.status == "failed" else row.created_at_ns // _S,
            "expires_at": row.expires_at_ns // _S,
            "finalizing_at": _s(row.finalizing_at_ns),
            "cancelling_at": _s(row.cancelling_at_ns),
            "request_counts": {"total": row.total, "completed": completed, "failed": failed},
            "metadata": None if row.metadata is None else msgspec.Raw(row.metadata),
        }
        for status in ("completed", "failed", "expired", "cancelled"):
            told[f"{status}_at"] = _s(row.ended_at_ns) if row.status == status else None
        return told


class _Create(Struct):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


def file_row(ident: str, project_id: str, filename: str, purpose: str, now_ns: int, keep_ns: int) -> dict[str, Any]:
    """As the table has it, but for its size."""
    return {
        "id": ident,
        "project_id": project_id,
        "filename": filename[:255],
        "purpose": purpose,
        "size_bytes": 0,
        "created_at_ns": now_ns,
        "expires_at_ns": now_ns + keep_ns,
    }


def _file(row: Row[Any] | dict[str, Any]) -> dict[str, Any]:
    told: Mapping[str, Any] = row if isinstance(row, dict) else dict(row._mapping)
    return {
        "id": told["id"],
        "object": "file",
        "bytes": told["size_bytes"],
        "created_at": told["created_at_ns"] // _S,
        "expires_at": told["expires_at_ns"] // _S,
        "filename": told["filename"],
        "purpose": told["purpose"],
        "status": "processed",
    }


def _page_asked(query: str, most: int) -> tuple[int, str | None, dict[str, str]]:
    """Limit, the id to go on behind, and everything. Raises: InvalidRequest."""
    asked = {name: values[-1] for name, values in parse_qs(query).items()}
    limit = asked.get("limit", "20")
    if not limit.isdigit() or not 1 <= int(limit) <= most:
        raise InvalidRequest(f"limit must be 1 to {most}", param="limit")
    if asked.get("order", "desc") != "desc":
        raise InvalidRequest("order must be desc", param="order")
    return int(limit), asked.get("after"), asked


def _page(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """items: one more than the limit where there are more."""
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": len(items) > limit, **ends}


def _json(inbound: Inbound, value: dict[str, Any]) -> Reply:
    headers: Headers = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
    return Reply(200, headers, msgspec.json.encode(value))


def _no_file(ident: str | None, param: str = "file_id") -> NotFound:
    return NotFound(
        f"no file {(ident or '')[:200]!r} in this project; it was deleted, or is past its time", param=param
    )


def _s(ns: int | None) -> int | None:
    return None if ns is None else ns // _S


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def streamed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield piece
