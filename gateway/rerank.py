"""The way of a rerank request: a query and documents in, their order out. Sold by the search unit or by the token."""

from __future__ import annotations

from msgspec.structs import replace

from billing.rating import Counts
from billing.usage import Meter, Outcome
from gateway.admission import Principal
from gateway.desk import Ask, Desk
from gateway.errors import Unsupported
from gateway.exchange import Inbound, Providers, Reply, SayError, in_usd, is_strict, queue_of, tags_of
from gateway.metering import size_of_texts
from gateway.routing.policy import Leg
from gateway.settlement import Ending
from providers.base import RerankAnswer, RerankCall, Reranker
from providers.dialects.rerank import DIALECT
from providers.neutral.rerank import RerankRequest, RerankResponse
from providers.wire import jsonio

# Cohere cuts what is longer than this, query included, into pieces that count as documents of their own, and sells by
# the hundred. Source: docs.cohere.com "How does Cohere pricing work?", read 2026-11.
_PIECE_TOKENS = 500
_DOCUMENTS_PER_UNIT = 100
# At worst: as in admission.budget, before a model's first answer.
_BYTES_PER_TOKEN = 2
_PAIR_TOKENS = 8
"""What a cross-encoder puts round each pair of query and document."""


class Rerank:
    def __init__(self, desk: Desk, providers: Providers, strict: bool, say: SayError) -> None:
        self._desk = desk
        self._providers = providers
        self._strict = strict
        self._say = say

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        request = DIALECT.decode_request(_body(inbound), model=inbound.route.model)
        if who.guard is not None:
            query, *documents = await self._desk.looked_at(
                inbound, who, request.model, (request.query, *request.documents)
            )
            request = replace(request, query=query, documents=tuple(documents))
        call = RerankCall(request, inbound.request_id, is_strict(inbound, who, self._strict))
        ask = Ask(
            request_id=inbound.request_id,
            dialect=inbound.route.dialect,
            alias=request.model,
            needs=frozenset({"rerank"}),
            size=size_of_texts((request.query, *request.documents)),
            answers=False,
            counts=at_worst(request),
            tags=tags_of(inbound.headers),
            queue_s=queue_of(inbound.headers),
        )
        booking = await self._desk.check_in(ask, who, inbound.now_ns)

        async def attempt(leg: Leg) -> RerankAnswer:
            provider = self._providers.get(leg.deployment.adapter)
            if not isinstance(provider, Reranker):
                raise Unsupported(f"{leg.deployment.provider} does not rerank", ("rerank",))
            return await provider.rerank(call, leg.deployment.model)

        async with booking.settlement.owed(self._say):
            arrival = await booking.dispatcher.first_arrival(booking.plan, attempt)
            booking.settlement.answered(arrival.leg, arrival.attempts, arrival.tries)
            response = arrival.got.response
            ending = Ending(Outcome.COMPLETED, finish_reason="stop", status=200, counts=told(response))
            amount_pusd = await booking.settlement.finish(ending)
        headers = booking.headers(arrival.got.dropped)
        headers += [("content-type", "application/json"), ("x-farebox-cost-usd", in_usd(amount_pusd))]
        version = inbound.route.version
        body = DIALECT.encode_response(response, request, version=version, request_id=inbound.request_id)
        return Reply(200, headers, body)


def _body(inbound: Inbound) -> bytes:
    """Without the version of Cohere's API, which Bedrock's users have to say."""
    if inbound.route.envelope != "invoke_model":
        return inbound.body
    members = jsonio.split_object(inbound.body)
    members.pop("api_version", None)
    return jsonio.joined(members)


def at_worst(request: RerankRequest) -> Counts:
    query = _tokens(request.query)
    pairs = [query + _tokens(document) for document in request.documents]
    pieces = sum(-(-pair // _PIECE_TOKENS) for pair in pairs)
    return (
        {Meter.SEARCH_UNITS: -(-pieces // _DOCUMENTS_PER_UNIT)},
        {Meter.INPUT_TOKENS: sum(pairs) + _PAIR_TOKENS * len(pairs)},
    )


def told(response: RerankResponse) -> Counts:
    counts: list[dict[Meter, int]] = []
    if response.search_units is not None:
        counts.append({Meter.SEARCH_UNITS: response.search_units})
    if response.tokens is not None:
        counts.append({Meter.INPUT_TOKENS: response.tokens})
    return tuple(counts)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // _BYTES_PER_TOKEN) + 1
