"""The steps that every paid request shares, whatever it asks for: who, where to, how much at worst, what is owed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from gateway.routing.catalog import Deployment, Terms, permits
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
    def is_plain(self) -> bool:
        """Whether nothing that it says of itself but its features has a word in where it goes."""
        return self.preferences is NONE and not self.counts and not self.grades

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


class Lone(Struct, frozen=True):
    """The plan of an alias whose only deployment is no choice of anybody else's either: that of every plain request of
    this principal for it, as long as the prices stand and the deployment is well."""

    who: Principal
    since_ns: int
    until_ns: int
    plan: RoutePlan


# Clients choose names that only `*` answers to.
_LONE_MAX: Final = 10_000
# Whoever has nothing to choose need not know how much there is to read.
_NO_MATTER: Final = Load(input_tokens=0)


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
        self._lone: dict[tuple[str, frozenset[str], str], Lone] = {}
        self._lone_of = offer.catalog, offer.prices

    def principal(self, inbound: Inbound) -> Awaitable[Principal]:
        """Who asks. Raises: Unauthenticated, Forbidden."""
        if inbound.key is None:
            raise Unauthenticated("no API key; send it as `Authorization: Bearer fbx-...`", code="missing_api_key")
        return self._keys.principal(inbound.key, inbound.client_ip, inbound.now_ns // 1_000_000)

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

    def _remembered(self, ask: Ask, who: Principal, now_ns: int) -> RoutePlan | None:
        """What `_route` would plan for a plain request, from the last one like it. None: it has to be asked."""
        catalog, prices = made_of = self._offer.catalog, self._offer.prices
        if self._lone_of[0] is not catalog or self._lone_of[1] is not prices or len(self._lone) >= _LONE_MAX:
            self._lone.clear()
            self._lone_of = made_of
        kind = (ask.alias, ask.needs, who.key_id)
        lone = self._lone.get(kind)
        if lone is not None and lone.who is who and lone.since_ns <= now_ns < lone.until_ns:
            return lone.plan if self._dispatcher.is_well(lone.plan.legs[0].deployment.id) else None
        deployments = catalog.deployments(ask.alias)
        if (
            len(deployments) != 1
            or deployments[0].id in catalog.caches
            or catalog.terms_of(ask.alias).most_pusd is not None
            or not self._dispatcher.is_well(deployments[0].id)
        ):
            return None
        plan = self.plan(ask.alias, ask.needs, who, now_ns, _NO_MATTER)
        self._lone[kind] = Lone(who, now_ns, prices.stands_until(now_ns), plan)
        return plan

    def among(self, alias: str, preferences: Preferences, terms: Terms) -> Sequence[Deployment]:
        """Those that the choice lies between, where it looks at who holds the prompt's beginning; else none."""
        strategy = preferences.strategy or terms.strategy
        return self._offer.catalog.deployments(alias) if strategy in ASK_FOR_PROMPT else ()

    def terms_of(self, alias: str) -> Terms:
        """What the operator says of it."""
        return self._offer.catalog.terms_of(alias)

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
        route = self._remembered(ask, who, now_ns) if ask.is_plain and variant == STANDARD else None
        if route is None:
            route = self._dispatcher.promised(self._route(ask, who, now_ns, variant))
        if route.has_turns:
            urgency = _URGENCY.get(ask.service_tier or "", 1)
            wait_s = self._dispatcher.patience_s(route.terms.queue_s, ask.queue_s)
            route = replace(route, turn=Turn(who.key_id, urgency, ask.size.text_bytes // 4 + 1, who.weight, wait_s))
        while True:
            most = route.most_output(ask.max_output_tokens) if ask.answers else 0
            try:
                admission = await self._admit(route, ask, who, now_ns, most)
                break
            except (RateLimited, QuotaExceeded) as refused:
                route = _without(route, refused)
        settlement = self._owe(ask, who, route, admission, now_ns, variant)
        try:
            settlement.open()
        except JournalUnavailable:
            await self._gate.release(admission)
            raise
        return Booking(route, admission, settlement, most, self._dispatcher)

    def _admit(self, route: RoutePlan, ask: Ask, who: Principal, now_ns: int, most: int) -> Awaitable[Admission]:
        """most: the longest answer that its deployments give."""
        return self._gate.admit(
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
            context_window=route.context_window,
            sheets=self._sheets(route, ask, who, now_ns),
            end_user=ask.end_user,
            now_ms=now_ns // 1_000_000,
            providers=route.providers,
            tags=ask.tags,
            counts=ask.counts,
        )

    def _owe(
        self, ask: Ask, who: Principal, route: RoutePlan, admission: Admission, now_ns: int, tier: str
    ) -> Settlement:
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

        return Settlement(
            self._journal, self._gate, admission, intent, leg, self._clock, price_of, ask.counts, route, tier
        )

    def _sheets(self, route: RoutePlan, ask: Ask, who: Principal, now_ns: int) -> Sequence[PriceSheet]:
        """Every price an answer may come at: a provider whose asked tier is full falls back to the standard one."""
        if ask.service_tier is None:
            return route.sheets
        sheets = list(route.sheets)
        for variant in variants_asked(ask.service_tier)[1:]:
            for leg in route.legs:
                with suppress(UnknownPrice):
                    sheets.append(
                        self._offer.price_of(
                            leg.deployment, now_ns, variant=variant, organisation_id=who.organisation_id
                        )
                    )
        return sheets


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
