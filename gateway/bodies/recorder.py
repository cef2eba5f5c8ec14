"""Keeps what a request said and what it was answered, beside the request. Nothing here is waited for: bytes are set
aside as they pass, then read, redacted and sealed in the notebook's thread. Too many or too large: lost and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from gateway.exchange import Inbound, Reply
from gateway.observe.metrics import METRICS
from gateway.observe.notebook import Notebook
from gateway.schema import body_logs

if TYPE_CHECKING:
    from gateway.admission import Principal
    from gateway.envelope import KeyRing

MOST_BYTES: Final = 1024 * 1024
"""Of either body. What is larger is not kept."""
KIND: Final = "body"
# Files and batches are kept by nature; each line of a batch is a request of its own.
_CHATS: Final = frozenset(("chat", "completions", "conversation", "interaction"))
_KEPT: Final = _CHATS | {"embeddings", "rerank", "speech", "images", "transcriptions", "translations"}


class Recorder:
    """ring: read anew for each batch of notes, in a thread: it is rotated while gateways run."""

    def __init__(self, notebook: Notebook, ring: Callable[[], KeyRing]) -> None:
        self._notebook = notebook
        self._ring = ring

    def passing(self, inbound: Inbound, who: Principal, reply: Reply) -> Reply:
        """The reply, kept as it goes. Only for a project that logs bodies (`Principal.bodies`)."""
        if inbound.route.operation not in _KEPT:
            return reply
        if isinstance(reply.body, bytes):
            self._keep(inbound, who, reply.body)
            return reply
        return replace(reply, body=self._passed(inbound, who, reply.body))

    async def _passed(self, inbound: Inbound, who: Principal, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        held: list[bytes] = []
        size = 0
        try:
            async for piece in pieces:
                size += len(piece)
                if size <= MOST_BYTES:
                    held.append(piece)
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
            if size > MOST_BYTES:
                METRICS.note_lost(KIND)
            else:
                self._keep(inbound, who, b"".join(held), streamed=inbound.route.operation in _CHATS)

    def _keep(self, inbound: Inbound, who: Principal, answer: bytes, *, streamed: bool = False) -> None:
        size = len(inbound.body) + len(answer)
        if max(len(inbound.body), len(answer)) > MOST_BYTES:
            METRICS.note_lost(KIND)
            return
        self._notebook.put(KIND, body_logs, partial(self._row, inbound, who, answer, streamed), size)

    def _row(self, inbound: Inbound, who: Principal, answer: bytes, streamed: bool) -> dict[str, Any]:
        """In a thread."""
        from gateway.bodies.telling import told

        logging = who.bodies
        assert logging is not None
        plain = told(inbound, answer, logging.detectors, streamed=streamed)
        sealed = self._ring().seal(plain, of_row(inbound.request_id), logging.salt)
        return {
            "request_id": inbound.request_id,
            "project_id": who.project_id,
            "at_ns": inbound.now_ns,
            "expires_at_ns": inbound.now_ns + logging.days * 24 * 3600 * 10**9,
            "key_id": sealed.key_id,
            "wrapped": sealed.wrapped,
            "ciphertext": sealed.ciphertext,
            "salted_for": logging.organisation_id if logging.salt else None,
        }


def of_row(request_id: str) -> str:
    """What a body is sealed for: moved to another request's row it does not open."""
    return f"body_logs/{request_id}"
