"""Answers kept for questions that mean the same: by meaning, only where an alias says `similar_answers`.

Beside the exact answers of `answers.py`, whose entries it points to: what is kept, for how long, and what a hit costs
is said there. A question is only ever compared with others of the same project, alias, dialect, system prompt, settings
and guardrails, that hold the same figures and as many negations; what is compared is the one thing a user said. Its
vector comes from a small model of the operator's own, asked over HTTP like any deployment, at the operator's cost.

What no vector tells apart is for the operator to weigh, and is in gateway/routing/README.md."""

from __future__ import annotations

import asyncio
import hmac
import re
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import sqrt
from operator import mul
from typing import Any, Final

import hiredis
import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.admission import Principal
from gateway.admission.store import LimitStore, link_to
from gateway.answers import HEADER, Place
from gateway.errors import GatewayError, Unavailable
from gateway.exchange import Headers, Providers
from gateway.observe.metrics import METRICS
from gateway.routing.catalog import Catalog, Similar
from gateway.routing.preferences import Preferences
from providers.base import Call, Embedder, EmbeddingCall
from providers.errors import ProviderError
from providers.neutral import ChatRequest, EmbeddingRequest, TextPart

log = structlog.get_logger(__name__)

TOLD: Final = "x-farebox-similarity"
SIMILAR: Final = "similar"
# Of one context (a system prompt and settings), the newest; and contexts of one project and alias. With vectors of 384
# numbers that is 64 kB each, 16 MB in all.
ENTRIES: Final = 64
CONTEXTS: Final = 256
# A question longer than this is hardly asked twice, and small models read no further.
QUESTION_BYTES: Final = 2_000
NUMBERS_MAX: Final = 4096
# Who has just failed is not waited for by the next request.
PAUSE_S: Final = 5.0
# Beyond so many, requests go on without: limits are asked only after this.
AT_ONCE: Final = 32
# Compared in full: those whose signs differ least.
CLOSEST: Final = 8
# What a provider takes where a request says nothing.
_USUAL_TEMPERATURE: Final = 1.0
_FIGURES: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_NOT: Final = re.compile(
    r"\b(?:no|not|never|none|without|except|cannot|nicht|kein\w*|nie|ohne|pas|jamais|sans|sin|nunca)\b|n['’]t\b",
    re.IGNORECASE,
)


class Entry(Struct, frozen=True, array_like=True):
    """A question that was answered. signs: of its numbers, as bits. vector: float16, of length one. name: of its exact
    answer's key."""

    signs: bytes
    vector: bytes
    name: str


class Question(Struct, frozen=True):
    """context: what must be the same, as a key of Redis' own; index: the keys of one project and alias."""

    text: str
    context: str
    index: str
    terms: Similar
    threshold: float


class Found(Struct, frozen=True):
    """name: of the answer; None: nothing was close enough. entry: what to keep for this question."""

    name: str | None
    entry: Entry | None
    headers: Headers


NOTHING: Final = Found(None, None, [])


class SimilarAnswers:
    """One a gateway process. clock: monotonic seconds."""

    def __init__(
        self,
        redis: LimitStore,
        secret: bytes,
        providers: Providers,
        catalog: Callable[[], Catalog],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link_to(redis)
        self._secret = blake2b(secret, digest_size=32, person=b"similar").digest()
        self._providers = providers
        self._catalog = catalog
        self._clock = clock
        self._paused_until = 0.0
        self._asking = 0

    async def aclose(self) -> None:
        await self._link.aclose()

    def question(
        self, call: Call, preferences: Preferences, who: Principal, headers: Mapping[str, str], terms: Similar
    ) -> Question | str | None:
        """What is to be looked for; or why this request is none of those; None: the client or its project has no part
        in it."""
        if headers.get(HEADER) == "exact" or (terms.projects and who.project_id not in terms.projects):
            return None
        if (why := unfit(call.request, terms)) is not None:
            return why
        text = said_by(call.request)
        asked = replace(call.request, user=None, metadata=None, messages=call.request.messages[:-1])
        same = (call.dialect, call.operation, asked, preferences, call.forward_headers, call.strict)
        context: Any = (*same, telling(text), terms.model)
        if who.guard is not None:
            context = (*context, who.guard.id)
        whose = hmac.new(self._secret, f"{who.project_id}\0{call.request.model}".encode(), "sha256").hexdigest()[:32]
        named = hmac.new(self._secret, whose.encode(), "sha256")
        named.update(msgspec.msgpack.encode(context, order="deterministic"))
        # One hash slot for a project's contexts of an alias: they are counted together.
        index = f"fbx:similar:{{{whose}}}"
        return Question(text, f"{index}:{named.hexdigest()[:32]}", index, terms, _threshold(headers, terms))

    async def find(self, question: Question) -> Found:
        """Never fails: who cannot be asked in time finds nothing."""
        vector = await self._vector(question)
        if vector is None:
            return NOTHING
        entry = Entry(_signs(vector), struct.pack(f"<{len(vector)}e", *vector), "")
        try:
            listed: Any = await self._link.call("LRANGE", question.context, 0, ENTRIES - 1)
        except (Unavailable, hiredis.ReplyError):
            return NOTHING
        near, closest = _nearest(entry, vector, [_read(packed) for packed in listed])
        told = [(TOLD, f"{closest:.4f}; threshold={question.threshold:g}")] if near is not None else []
        if near is None or closest < question.threshold:
            METRICS.kept_answer("unlike")
            return Found(None, entry, told)
        return Found(near.name, entry, told)

    async def keep(self, question: Question, entry: Entry, place: Place) -> None:
        """Point to the answer that is kept there."""
        packed = msgspec.msgpack.encode(replace(entry, name=place.name))
        lasts_ms = max(1, int(place.seconds * 1000))
        try:
            await self._link.call("LPUSH", question.context, packed)
            await self._link.call("LTRIM", question.context, 0, ENTRIES - 1)
            await self._link.call("PEXPIRE", question.context, lasts_ms)
            await self._link.call("ZADD", question.index, time.time_ns() // 1_000_000, question.context)
            await self._link.call("PEXPIRE", question.index, lasts_ms)
            if await self._link.call("ZCARD", question.index) > CONTEXTS:
                for oldest in (await self._link.call("ZPOPMIN", question.index))[::2]:
                    await self._link.call("DEL", oldest)
        except (Unavailable, hiredis.ReplyError) as error:
            log.debug("question not kept", reason=type(error).__name__)

    async def _vector(self, question: Question) -> tuple[float, ...] | None:
        """Of length one. None: nobody told it in time."""
        if self._clock() < self._paused_until or self._asking >= AT_ONCE:
            return None
        terms = question.terms
        self._asking += 1
        try:
            async with asyncio.timeout(terms.wait_s):
                deployment = self._catalog().deployments(terms.model)[0]
                provider = self._providers.get(deployment.adapter)
                if not isinstance(provider, Embedder):
                    raise Unavailable(f"{deployment.provider} makes no embeddings")
                request = EmbeddingRequest(model=deployment.model, input=(question.text,))
                call = EmbeddingCall("openai_embeddings", request, b"", "similar", strict=False)
                answer = await provider.embed(call, deployment.model)
            numbers = answer.response.vectors[0]
            length = sqrt(sum(map(mul, numbers, numbers)))
            if not 0 < len(numbers) <= NUMBERS_MAX or length == 0:
                raise Unavailable("what came is no vector")
        except (ProviderError, GatewayError, TimeoutError, LookupError, ValueError) as error:
            self._paused_until = self._clock() + PAUSE_S
            METRICS.kept_answer("not_embedded")
            log.warning("questions are not compared for a while: no embedding", model=terms.model,
                        reason=type(error).__name__)  # fmt: skip
            return None
        finally:
            self._asking -= 1
        return tuple(number / length for number in numbers)


def unfit(request: ChatRequest, terms: Similar) -> str | None:
    """Why an answer to something alike may not answer this; None: it may."""
    shape = request.response_format
    if request.tools:
        return "tools"
    if request.candidates != 1 or request.logprobs:
        return "several candidates or logprobs"
    if shape is not None and shape.kind != "text":
        return "response_format"
    temperature = _USUAL_TEMPERATURE if request.temperature is None else request.temperature
    if temperature > terms.max_temperature:
        return f"temperature {temperature:g} above {terms.max_temperature:g}"
    roles = [message.role for message in request.messages]
    if roles.count("user") != 1 or roles[-1:] != ["user"] or "assistant" in roles:
        return "not the first question of a conversation"
    if not all(isinstance(part, TextPart) for message in request.messages for part in message.content):
        return "more than text"
    if len(said_by(request).encode()) > QUESTION_BYTES:
        return f"a question of more than {QUESTION_BYTES} bytes"
    return None


def said_by(request: ChatRequest) -> str:
    """The question itself."""
    return "\n".join(part.text for part in request.messages[-1].content if isinstance(part, TextPart)).strip()


def telling(text: str) -> tuple[Sequence[str], int]:
    """What vectors hardly see and answers hang on: its figures in their order, and how often it says no."""
    return _FIGURES.findall(text), len(_NOT.findall(text))


def _threshold(headers: Mapping[str, str], terms: Similar) -> float:
    """A request may want more likeness than its alias, never less."""
    try:
        return min(1.0, max(terms.threshold, float(headers.get(TOLD, ""))))
    except ValueError:
        return terms.threshold


def _signs(vector: Sequence[float]) -> bytes:
    bits = sum(1 << at for at, number in enumerate(vector) if number > 0)
    return bits.to_bytes((len(vector) + 7) // 8, "little")


def _read(packed: bytes) -> Entry | None:
    try:
        return msgspec.msgpack.decode(packed, type=Entry)
    except msgspec.MsgspecError:  # of another version
        return None


def _nearest(asked: Entry, vector: Sequence[float], listed: Sequence[Entry | None]) -> tuple[Entry | None, float]:
    """The likest, and its cosine. Signs differ as angles do, and are compared a thousand times as fast: the full
    product is made for the few that differ least. Another model's vectors are of another length and no neighbours."""
    signs = int.from_bytes(asked.signs, "little")
    same = [each for each in listed if each is not None and len(each.vector) == len(asked.vector)]
    same.sort(key=lambda each: (int.from_bytes(each.signs, "little") ^ signs).bit_count())
    best, closest = None, -1.0
    for each in same[:CLOSEST]:
        cosine = sum(map(mul, vector, struct.unpack(f"<{len(vector)}e", each.vector)))
        if cosine > closest:
            best, closest = each, cosine
    return best, min(1.0, closest)
