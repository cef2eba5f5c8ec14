"""A chat past the guardrails of its key: what `gateway.chat` calls at each of its steps where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.errors import Blocked
from gateway.metering import Size, size_of
from gateway.settlement import Ending
from providers.base import Call
from providers.dialects import load

if TYPE_CHECKING:
    from gateway.guardrails.visit import Visit


def visited(call: Call, visit: Visit) -> Call:
    """Past those that look here. Raises: Blocked."""
    request = visit.request(call.request)
    return call if request is call.request else replace(call, request=request, body=b"")


async def asked_call(call: Call, visit: Visit, size: Size) -> Call:
    """Past those who are asked elsewhere. size: what is held for. Raises: Blocked."""
    request = await visit.asked_request(call.request)
    if request is call.request:
        return call
    if size_of(request).text_bytes > size.text_bytes:
        raise Blocked("a guardrail made the prompt much longer than it was, and nothing is held for that")
    return replace(call, request=request, body=b"")


def with_slack(size: Size) -> Size:
    """Whoever edits a prompt may lengthen it a little, and its hold must cover what is sent."""
    return replace(size, text_bytes=size.text_bytes + size.text_bytes // 4 + 1024)


async def guarded_answer(body: bytes, ending: Ending, call: Call, visit: Visit) -> tuple[bytes, Ending]:
    """A whole answer, which has been made, so it is charged whatever becomes of it."""
    dialect = load(call.dialect)
    before = dialect.decode_response(body)
    after = await visit.response(before)
    if after is before:
        return body, ending
    reason = after.candidates[0].finish_reason if after.candidates else ending.finish_reason
    return dialect.encode_response(after, call.request), replace(ending, finish_reason=reason)
