"""The steps that every paid request shares, whatever it asks for: who, where to, how much at worst, what is owed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from billing.errors import JournalUnavailable, UnknownPrice
from billing.journal import Journal
from billing.prices import STANDARD, PriceSheet, variant_of, variants_asked
from billing.rating import BY_TOKENS, Counts, priced
from billing.usage import Intent
from gateway.admission import Admission, Gate, KeyStore, Principal
from gateway.admission.principal import PROVIDER
from gateway.errors import Forbidden, QuotaExceeded, RateLimited, Unauthenticated
from gateway.exchange import Headers, Inbound, Providers
from gateway.guardrails.watch import Watch
from gateway.metering import Size
from gateway.routing.catalog import UNKNOWN_CONTEXT_WINDOW, Deployment, Similar, permits
from gateway.routing.explaining import explained
from gateway.routing.fallback import Dispatcher
from gateway.routing.offer import Offer
from gateway.routing.policy import COLD, Leg, RoutePlan, Turn, plan
from gateway.routing.preferences import NONE, Preferences
from gateway.routing.strategies import ASK_FOR_PROMPT, LIKELY, Load
from gateway.routing.warmth import Chain
from gateway.settlement import Settlement

# Where requests wait for their turn: those of a dearer tier before, those of a cheaper one behind.
_URGENCY: Final = {"priority": 0, "flex": 2, "batch": 2}


class Ask(Struct, frozen=True):
    """What router, admission and ledger need to know of a request.

    needs: the operation and the features it uses. max_output_tokens: as the client stated it. answers: False where the
    model writes nothing (embeddings), so that no output is held for. preferences: its own word on where it may go.
    session: whose conversation it is part of, where it says. prompt: names of its prefixes for a tenant, on demand;
    asked_s: for how long it asks for them to be kept.
    counts: at worst, of what is not sold by its text (reranking, sound, images). grades: price variants that fit it
    closer than its tier's, the closest first. held_tokens: by deployment how much of the prompt it told us it holds.
    input_tokens: as an engine counted them. queue_s: how long the client would wait for its turn."""

    request_id: str
    dialect: str
    alias: str
    needs: frozenset[str]
    size: Size
    max_output_tokens: int | None = None
    answers: bool = True
    candidates: int = 1
    end_user: str | None = None
    service_tier: str | None = None
    preferences: Preferences = NONE
    session: str | None = None
    prompt: Callable[[str], Chain] | None = None
    asked_s: float | None = None
    counts: Counts = BY_TOKENS
    grades: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    held_tokens: Mapping[str, int] = COLD
    input_tokens: int | None = None
    queue_s: float | None = None

    @property
    def load(self) -> Load:
        """For comparing prices: four bytes a token."""
        answers = self.candidates if self.answers else 0
        session = self.session or self.end_user or ""
        tokens = self.input_tokens or self.size.text_bytes // 4 + 1
        return Load(tokens, self.max_output_tokens, answers, session, counts=self.counts)


class Booking(Struct, frozen=True):
    """An admitted request whose intent is on disk. most_output: the longest answer that its deployments give."""

    plan: RoutePlan
    admission: Admission
    settlement: Settlement
    most_output: int
    dispatcher: Dispatcher

    def heard(self, leg: Leg, headers: Mapping[str, str]) -> None:
        """What the deployment says of its quota, where the choice looks at it."""
        if self.plan.strategy == "most_quota":
            self.dispatcher.heard(leg.deployment.id, headers)

    def headers(self, dropped: tuple[str, ...]) -> Headers:
        """Who answered, after how many tries, and what is left of the limits."""
        deployment = self.settlement.leg.deployment
        headers = [
            ("x-request-id", self.settlement.id),
            ("x-farebox-provider", deployment.provider),
            ("x-farebox-model", deployment.model),
            ("x-farebox-attempts", str(self.settlement.attempts)),
            ("x-farebox-route", self.plan.told(self.settlement.leg)),
            *self.admission.limit_headers(self.settlement.dialect, self.settlement.at_ns),
        ]
        if dropped:
            headers.append(("x-farebox-dropped", ", ".join(dropped)))
        return headers


class Desk:
    """Everything long-lived that checking in needs, built once."""

    def __init__(
        self,
        keys: KeyStore,
        gate: Gate,
        journal: Journal,
        providers: Providers,
        offer: Offer,
        clock: Callable[[], int],
        dispatcher: Dispatcher,
        watch: Watch,
    ) -> None:
        self._dispatcher = dispatcher
        self._watch = watch
        self._keys = keys
        self._gate = gate
        self._journal = journal
        self._providers = providers
        self._offer = offer
        self._clock = clock

    async def principal(self, inbound: Inbound) -> Principal:
        """Who asks. Raises: Unauthenticated, Forbidden."""
        if inbound.key is None:
            raise Unauthenticated("no API key; send it as `Authorization: Bearer fbx-...`", code="missing_api_key")
        return await self._keys.principal(inbound.key, inbound.client_ip, inbound.now_ns // 1_000_000)

    async def looked_at(self, inbound: Inbound, who: Principal, alias: str, texts: tuple[str, ...]) -> tuple[str, ...]:
        """What is to be embedded, ranked, spoken or drawn, past the key's guardrails. Raises: Blocked."""
        return texts if who.guard is None else await self._watch.texts(who.guard, who, inbound, alias, texts)

    def plan(
        self,
        alias: str,
        needs: frozenset[str],
        who: Principal,
        now_ns: int,
        load: Load = LIKELY,
        variant: str = STANDARD,
        preferences: Preferences = NONE,
        prompt: Callable[[str], Chain] | None = None,
        grades: tuple[str, ...] = (),
        held_tokens: Mapping[str, int] = COLD,
    ) -> RoutePlan:
        """Raises: ModelNotFound, Forbidden, Unsupported, UnpricedModel, InvalidRequest."""
        deployments = self._offer.catalog.deployments(alias)
        if not permits(who.models, alias):
            raise Forbidden(f"this key may not use {alias!r}", code="model_not_allowed", param="model")

        def price_of(deployment: Deployment) -> PriceSheet:
            for grade in grades:
                with suppress(UnknownPrice):
                    return sold(deployment, grade)
            return sold(deployment, variant)

        def sold(deployment: Deployment, name: str) -> PriceSheet:
            sheet = self._offer.price_of(deployment, now_ns, variant=name, organisation_id=who.organisation_id)
            if load.counts and priced(load.counts, sheet) is None:
                raise UnknownPrice(deployment.id, next(iter(load.counts[0])))
            return sheet

        terms = self._offer.catalog.terms_of(alias).for_project(who.routing)
        chain: Chain = ()
        if prompt is not None and len(deployments) > 1 and (preferences.strategy or terms.strategy) in ASK_FOR_PROMPT:
            chain = prompt(who.organisation_id)
        chosen = plan(
            alias,
            needs,
            deployments,
            lambda d: self._providers.get(d.adapter).capabilities,
            price_of,
            random.random,
            terms=terms,
            outlook=self._dispatcher.outlook([d.id for d in deployments]),
            load=load
            if len(deployments) == 1
            else replace(load, session=load.session or who.key_id, key=f"{alias}\x1f{who.key_id}"),
            preferences=preferences,
            warm=self._dispatcher.warm(deployments, chain, held_tokens) if chain else COLD,
        )
        return replace(chosen, chain=chain) if chain else chosen

    def _route(self, ask: Ask, who: Principal, now_ns: int, variant: str) -> RoutePlan:
        said = (ask.preferences, ask.prompt, ask.grades, ask.held_tokens)
        chosen = self.plan(ask.alias, ask.needs, who, now_ns, ask.load, variant, *said)
        return replace(chosen, asked_s=ask.asked_s) if chosen.chain else chosen

    def among(self, alias: str, preferences: Preferences) -> Sequence[Deployment]:
        """Those that the choice lies between, where it looks at who holds the prompt's beginning; else none."""
        strategy = preferences.strategy or self._offer.catalog.terms_of(alias).strategy
        return self._offer.catalog.deployments(alias) if strategy in ASK_FOR_PROMPT else ()

    def keeps_answers(self, alias: str) -> float | None:
        """For how many seconds; None: not at all."""
        return self._offer.catalog.terms_of(alias).keep_s

    def similar(self, alias: str) -> Similar | None:
        """How its kept answers serve questions that mean the same; None: they do not."""
        return self._offer.catalog.terms_of(alias).similar

    def explain(self, ask: Ask, who: Principal, now_ns: int) -> dict[str, Any]:
        """The plan of a request that is not to be run: nothing is held and nothing promised. Raises: as `plan`."""
        variant = variant_of(ask.service_tier)
        route = self._route(ask, who, now_ns, variant)
        standings = self._dispatcher.outlook([leg.deployment.id for leg in route.legs])
        return explained(ask.alias, route, ask.load, standings)

    async def check_in(self, ask: Ask, who: Principal, now_ns: int) -> Booking:
        """From here on a usage record is owed: every way on is walked inside `settlement.owed()`.

        Raises: a GatewayError or BillingError; then nothing is owed and nothing reserved."""
        variant = variant_of(ask.service_tier)
        route = self._route(ask, who, now_ns, variant)
        route = self._dispatcher.promised(route)
        if any(leg.deployment.max_parallel is not None for leg in route.legs):
            urgency = _URGENCY.get(ask.service_tier or "", 1)
            wait_s = self._dispatcher.patience_s(route.terms.queue_s, ask.queue_s)
            route = replace(route, turn=Turn(who.key_id, urgency, ask.size.text_bytes // 4 + 1, who.weight, wait_s))
        while True:
            try:
                most, admission = await self._admit(route, ask, who, now_ns)
                break
            except (RateLimited, QuotaExceeded) as refused:
                route = _without(route, refused)
        settlement = self._owe(ask, who, route, admission, now_ns)
        try:
            settlement.open()
        except JournalUnavailable:
            await self._gate.release(admission)
            raise
        return Booking(route, admission, settlement, most, self._dispatcher)

    async def _admit(self, route: RoutePlan, ask: Ask, who: Principal, now_ns: int) -> tuple[int, Admission]:
        """Returns: the longest answer that its deployments give, and the reservation."""
        most = max(leg.deployment.most_output(ask.max_output_tokens) for leg in route.legs) if ask.answers else 0
        return most, await self._gate.admit(
            who,
            ask.request_id,
            ask.alias,
            input_bytes=ask.size.text_bytes + ask.size.attachments,
            images=ask.size.images,
            unseen=ask.size.unseen > 0,
            teaches=not (ask.size.attachments or ask.size.unseen),
            max_output_tokens=ask.max_output_tokens,
            candidates=ask.candidates,
            deployment_max_output=most,
            context_window=max(leg.deployment.context_window or UNKNOWN_CONTEXT_WINDOW for leg in route.legs),
            sheets=list(self._sheets(route, ask, who, now_ns)),
            end_user=ask.end_user,
            now_ms=now_ns // 1_000_000,
            providers=tuple(dict.fromkeys(leg.deployment.provider for leg in route.legs)),
            tags=ask.tags,
            counts=ask.counts,
        )

    def _owe(self, ask: Ask, who: Principal, route: RoutePlan, admission: Admission, now_ns: int) -> Settlement:
        leg = route.legs[0]
        intent = Intent(
            id=ask.request_id,
            at_ns=now_ns,
            organisation_id=who.organisation_id,
            project_id=who.project_id,
            key_id=who.key_id,
            end_user=ask.end_user,
            alias=ask.alias,
            provider=leg.deployment.provider,
            model=leg.deployment.model,
            deployment=leg.deployment.id,
            price_id=leg.sheet.id,
            estimate=dict(admission.estimate),
            hold_pusd=admission.hold_pusd,
            dialect=ask.dialect,
            variant=leg.sheet.variant,
            tags=ask.tags,
        )

        def price_of(deployment: Deployment, variant: str) -> PriceSheet:
            return self._offer.price_of(deployment, now_ns, variant=variant, organisation_id=who.organisation_id)

        tier = variant_of(ask.service_tier)
        return Settlement(
            self._journal, self._gate, admission, intent, leg, self._clock, price_of, ask.counts, route, tier
        )

    def _sheets(self, route: RoutePlan, ask: Ask, who: Principal, now_ns: int) -> Iterator[PriceSheet]:
        """Every price an answer may come at: a provider whose asked tier is full falls back to the standard one."""
        for leg in route.legs:
            yield leg.sheet
            for variant in variants_asked(ask.service_tier)[1:]:
                with suppress(UnknownPrice):
                    yield self._offer.price_of(
                        leg.deployment, now_ns, variant=variant, organisation_id=who.organisation_id
                    )


def _without(route: RoutePlan, refused: RateLimited | QuotaExceeded) -> RoutePlan:
    """The plan without a provider that has no room. Raises: what refused, where the room of no provider is at fault, or
    none is left."""
    provider = refused.scope_id.partition("/")[2] if refused.scope == PROVIDER else None
    legs = tuple(leg for leg in route.legs if leg.deployment.provider != provider)
    if not legs or len(legs) == len(route.legs):
        raise refused
    gone = tuple((leg.deployment.id, refused.code) for leg in route.legs if leg.deployment.provider == provider)
    promise = route.promise if route.legs[0] is legs[0] else None
    return replace(route, legs=legs, left_out=(*route.left_out, *gone), promise=promise)
