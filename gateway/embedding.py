"""The way of an embedding: texts to vectors. Nothing streams and nothing is written, so only input is held and paid."""

from __future__ import annotations

from msgspec.structs import replace

from billing.usage import Outcome
from gateway.admission import Principal
from gateway.desk import Ask, Desk
from gateway.errors import InvalidRequest, Unsupported
from gateway.exchange import Inbound, Providers, Reply, SayError, in_usd, is_strict, queue_of, tags_of
from gateway.metering import size_of_texts
from gateway.routing.policy import Leg
from gateway.settlement import Ending
from providers.base import Embedder, EmbeddingCall
from providers.dialects import bedrock_embeddings, openai_embeddings
from providers.dialects.base import EmbeddingDialect
from providers.neutral import EmbeddingRequest, EmbeddingResponse, Usage


class Embedding:
    def __init__(self, desk: Desk, providers: Providers, strict: bool, say: SayError) -> None:
        self._desk = desk
        self._providers = providers
        self._strict = strict
        self._say = say

    async def serve(self, inbound: Inbound, who: Principal) -> Reply:
        spoken = dialect_of(inbound)
        request = spoken.decode_request(inbound.body, model=inbound.route.model)
        strict = is_strict(inbound, who, self._strict)
        call = EmbeddingCall(spoken.name, request, inbound.body, inbound.request_id, strict)
        if who.guard is not None:
            call = await self._looked_at(call, inbound, who)
            request = call.request
        ask = ask_of(call, tags_of(inbound.headers), queue_of(inbound.headers))
        ask = ask if inbound.tier is None else replace(ask, service_tier=inbound.tier)
        booking = await self._desk.check_in(ask, who, inbound.now_ns)
        dropped: tuple[str, ...] = ()

        async def attempt(leg: Leg) -> tuple[bytes, Usage]:
            nonlocal dropped
            provider = self._providers.get(leg.deployment.adapter)
            if not isinstance(provider, Embedder):
                raise Unsupported(f"{leg.deployment.provider} makes no embeddings", ("embeddings",))
            answer = await provider.embed(call, leg.deployment.model)
            dropped = answer.dropped
            response = answer.response
            if answer.body is not None and answer.dialect == spoken.name:
                return answer.body, response.usage
            return spoken.encode_response(_named(response, request), request), response.usage

        async with booking.settlement.owed(self._say):
            arrival = await booking.dispatcher.first_arrival(booking.plan, attempt)
            booking.settlement.answered(arrival.leg, arrival.attempts, arrival.tries)
            body, usage = arrival.got
            amount_pusd = await booking.settlement.finish(_ending(usage))
        headers = booking.headers(dropped)
        headers += [("content-type", "application/json"), ("x-farebox-cost-usd", in_usd(amount_pusd))]
        if inbound.route.envelope == "invoke_model" and usage.input_tokens is not None:
            headers.append((bedrock_embeddings.TOKENS_HEADER, str(usage.input_tokens)))
        return Reply(200, headers, body)

    async def _looked_at(self, call: EmbeddingCall, inbound: Inbound, who: Principal) -> EmbeddingCall:
        """Raises: Blocked; InvalidRequest for tokens in place of text, which no guardrail can read."""
        request = call.request
        texts = tuple(each for each in request.input if isinstance(each, str))
        if len(texts) != len(request.input):
            raise InvalidRequest("this key has guardrails: send texts, not token numbers", param="input")
        seen = await self._desk.looked_at(inbound, who, request.model, texts)
        return call if seen == texts else replace(call, request=replace(request, input=seen), body=b"")


def dialect_of(inbound: Inbound) -> EmbeddingDialect:
    match inbound.route.dialect:
        case "bedrock_titan_embed":
            return bedrock_embeddings.TITAN
        case "bedrock_nova_embed":
            return bedrock_embeddings.NOVA
        case "bedrock_cohere_embed":
            return bedrock_embeddings.COHERE
        case "cohere_embed":
            return bedrock_embeddings.CohereOwn(inbound.route.version)
        case "openai_embeddings":
            return openai_embeddings.DIALECT
    from providers.dialects.gemini import embeddings  # Loaded by whoever speaks it.

    return embeddings.BATCH if inbound.route.batch else embeddings.ONE


def ask_of(call: EmbeddingCall, tags: tuple[str, ...] = (), queue_s: float | None = None) -> Ask:
    return Ask(
        request_id=call.request_id,
        dialect=call.dialect,
        alias=call.request.model,
        needs=frozenset({"embeddings"}),
        size=size_of_texts(call.request.input),
        answers=False,
        end_user=call.request.user,
        tags=tags,
        queue_s=queue_s,
    )


def _named(response: EmbeddingResponse, request: EmbeddingRequest) -> EmbeddingResponse:
    """Gemini's answers do not say which model made them; clients of the others are told the one they asked for."""
    return response if response.model else replace(response, model=request.model)


def _ending(usage: Usage) -> Ending:
    """A provider that counts its input has said everything: no output is missing. Else the estimate stands."""
    if usage.input_tokens is not None:
        usage = replace(usage, output_tokens=0)
    return Ending(Outcome.COMPLETED, usage, "stop", 200)
