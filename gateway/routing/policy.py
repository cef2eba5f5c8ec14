"""The choice: request + catalogue + health -> RoutePlan. Pure; chance comes in as an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, get_args

from msgspec import Struct
from msgspec.structs import replace

from billing.errors import UnknownPrice
from billing.money import format_usd
from billing.prices import PriceSheet
from billing.rating import charge
from billing.usage import Meter
from gateway.errors import InvalidRequest, Unavailable, UnpricedModel, Unsupported
from gateway.offered import Feature, Strategy
from gateway.routing.catalog import AS_EVER, LOCAL, UNKNOWN_CONTEXT_WINDOW, Deployment, Terms
from gateway.routing.health import CALM, Outlook, Promise
from gateway.routing.outliers import outliers
from gateway.routing.preferences import NONE, Preferences
from gateway.routing.strategies import LIKELY, Candidate, Chance, Choice, Load, order, price_pusd
from gateway.routing.warmth import Chain
from providers.base import Capabilities, Operation
from providers.neutral import ChatRequest, FilePart, ImagePart
from providers.neutral.content import is_document

COLD: Mapping[str, int] = {}
PriceOf = Callable[[Deployment], PriceSheet]
CapabilitiesOf = Callable[[Deployment], Capabilities]


# Deployment, how it ended, after how many milliseconds.
Try = tuple[str, str, int]
OK: Final = "ok"
# Asked beside another one that answered sooner.
LOST: Final = "lost"
COME_BACK_S: Final = 5.0


class Leg(Struct, frozen=True):
    """One deployment of a plan, with the price that its answer will be charged at. why: what put it in its place.
    fresh_tokens: of the prompt, about how many it has to read; cached_tokens: and how many not."""

    deployment: Deployment
    sheet: PriceSheet
    why: str = ""
    fresh_tokens: int = 0
    cached_tokens: int = 0

    @property
    def prompt_cost_pusd(self) -> int:
        """About what its provider bills for reading the prompt, whatever comes of the answer."""
        read = {Meter.INPUT_TOKENS: self.fresh_tokens, Meter.CACHE_READ_TOKENS: self.cached_tokens}
        try:
            return charge(read, self.sheet).cost_pusd
        except UnknownPrice:  # by the second or by the piece: nothing is billed for text that was read
            return 0


class Turn(Struct, frozen=True):
    """Whose request it is, where it has to wait: the tenant and its weight; lower urgencies go first; tokens of its
    prompt; how long it waits in all, None: as long as the settings say."""

    tenant: str = ""
    urgency: int = 1
    tokens: int = 0
    weight: int = 1
    wait_s: float | None = None


ANYBODYS: Final = Turn()


class RoutePlan(Struct, frozen=True, dict=True):
    """In the order to try. Never empty. left_out: deployment id -> why it may not be tried.

    chain: names of the prompt's prefixes, where the strategy asks for them; asked_s: for how long the client wants them
    kept. promise: the first leg's, to be kept when its call begins. turn: for legs with `max_parallel`."""

    legs: tuple[Leg, ...]
    strategy: Strategy = "weighted"
    left_out: tuple[tuple[str, str], ...] = ()
    chain: Chain = ()
    turn: Turn = ANYBODYS
    promise: Promise | None = None
    terms: Terms = AS_EVER
    asked_s: float | None = None

    @cached_property
    def providers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([leg.deployment.provider for leg in self.legs]))

    @cached_property
    def sheets(self) -> tuple[PriceSheet, ...]:
        return tuple([leg.sheet for leg in self.legs])

    @cached_property
    def context_window(self) -> int:
        """Tokens: the widest."""
        return max([leg.deployment.context_window or UNKNOWN_CONTEXT_WINDOW for leg in self.legs])

    @cached_property
    def has_turns(self) -> bool:
        """Whether somebody is asked by so many at once only."""
        return any(leg.deployment.max_parallel is not None for leg in self.legs)

    def most_output(self, stated: int | None) -> int:
        """The longest answer that any of them gives to a request with this limit of its own."""
        return max([leg.deployment.most_output(stated) for leg in self.legs])

    def told(self, leg: Leg) -> str:
        """For the client's `x-farebox-route`: which place in which order, and why."""
        if len(self.legs) == 1:
            return f"{self.strategy}; 1/1; {leg.why}"
        place = next(at for at, mine in enumerate(self.legs, 1) if mine.deployment is leg.deployment)
        return f"{self.strategy}; {place}/{len(self.legs)}; {leg.why}"


def plan(
    alias: str,
    needs: frozenset[str],
    deployments: Sequence[Deployment],
    capabilities_of: CapabilitiesOf,
    price_of: PriceOf,
    chance: Chance,
    *,
    terms: Terms = AS_EVER,
    outlook: Outlook = CALM,
    load: Load = LIKELY,
    preferences: Preferences = NONE,
    warm: Mapping[str, int] = COLD,
) -> RoutePlan:
    """Constraints first, then who is well, then priority (lowest first), then the alias' strategy among equals.

    needs: the operation and the features that the request uses. preferences: the request's own, which narrow what the
    operator allows and never widen it. warm: deployment id -> tokens of the prompt that it holds. A weight of 0 is a
    spare: behind its priority's others, as is who fails clearly more than they do. Who is not well goes last, whoever
    is back soonest first, and is never left out: it may be all there is.
    Raises: Unavailable while none of an alias' replicas is here; Unsupported when no deployment can do what is asked;
    UnpricedModel when those that could have no price; InvalidRequest when those that have one are dearer than the alias
    allows, or are not what the request prefers.
    """
    if not deployments:
        raise Unavailable(f"no replica that serves {alias!r} is here now; come back soon", retry_after_s=COME_BACK_S)
    able, left_out = _able(alias, needs, deployments, capabilities_of)
    candidates: list[Candidate] = []
    unwanted: list[tuple[str, str]] = []
    for place, deployment in able:
        name = deployment.id
        try:
            sheet = price_of(deployment)
        except UnknownPrice:
            left_out.append((name, "no price"))
            continue
        if preferences is not NONE and (reason := preferences.forbids(deployment, sheet)) is not None:
            unwanted.append((name, reason))
            continue
        candidates.append(Candidate(deployment, sheet, outlook.of(name), place, warm.get(name, 0)))
    left_out += unwanted
    if unwanted and not candidates:
        told = "; ".join(f"{name}: {reason}" for name, reason in unwanted[:8])
        raise InvalidRequest(f"no deployment of {alias!r} is what `provider` asks for ({told})", param="provider")
    if not candidates:
        raise UnpricedModel(
            f"{alias!r} has no price, so it is not run; the operator sets one with `farebox prices set`",
            param="model",
        )
    if terms.most_pusd is not None:
        candidates = _affordable(alias, candidates, terms.most_pusd, load, left_out)
    strategy = preferences.strategy or terms.strategy
    if len(candidates) == 1:  # The commonest plan, and nothing to choose.
        only = candidates[0]
        return RoutePlan((_leg(only, _only(only), load),), strategy, tuple(left_out), terms=terms)
    if preferences.second_usd is not None:
        terms = replace(terms, second_pusd=round(preferences.second_usd * 10**12))

    def choose(equals: Sequence[Candidate]) -> list[Choice]:
        return order(strategy, equals, load, chance, second_pusd=terms.second_pusd)

    legs = tuple(_legs(candidates, choose, preferences, load))
    return RoutePlan(legs if preferences.allow_fallbacks else legs[:1], strategy, tuple(left_out), terms=terms)


def _able(
    alias: str, needs: frozenset[str], deployments: Sequence[Deployment], capabilities_of: CapabilitiesOf
) -> tuple[list[tuple[int, Deployment]], list[tuple[str, str]]]:
    missing: set[str] = set()
    able: list[tuple[int, Deployment]] = []
    left_out: list[tuple[str, str]] = []
    for place, deployment in enumerate(deployments):
        lacks = lacking(needs, capabilities_of(deployment))
        features = deployment.features
        if features is None and deployment.kind == LOCAL:
            features = _TEXT_ALONE
        if features is not None:
            lacks |= (needs & _FEATURES) - features
        if lacks:
            missing.update(lacks)
            left_out.append((deployment.id, f"no {', '.join(sorted(lacks))}"))
        else:
            able.append((place, deployment))
    if not able:
        names = sorted(missing)
        raise Unsupported(f"no deployment of {alias!r} supports {', '.join(names)}", names)
    return able, left_out


def _affordable(
    alias: str, candidates: list[Candidate], most_pusd: int, load: Load, left_out: list[tuple[str, str]]
) -> list[Candidate]:
    prices = [(price_pusd(c.sheet, load, load.longest(c.deployment)), c) for c in candidates]
    kept = [c for pusd, c in prices if pusd <= most_pusd]
    if not kept:
        least = format_usd(min(pusd for pusd, _ in prices))
        raise InvalidRequest(
            f"{alias!r} allows {format_usd(most_pusd)} USD a request and this one may cost {least} USD; "
            "ask for fewer output tokens or send a shorter prompt",
            code="cost_ceiling_exceeded",
        )
    left_out.extend((c.deployment.id, f"may cost {format_usd(pusd)} USD") for pusd, c in prices if pusd > most_pusd)
    return kept


def _legs(
    candidates: Sequence[Candidate],
    choose: Callable[[Sequence[Candidate]], list[Choice]],
    preferences: Preferences,
    load: Load,
) -> Iterator[Leg]:
    well: dict[tuple[int, int, int, bool], list[Candidate]] = {}
    unwell: list[Candidate] = []
    for candidate in candidates:
        if candidate.standing.well:
            deployment = candidate.deployment
            wanted = preferences.place(deployment) if preferences.order else 0
            long = int(_too_long(candidate, load))
            well.setdefault((wanted, long, deployment.priority, deployment.weight == 0), []).append(candidate)
        else:
            unwell.append(candidate)
    several = len({priority for _, _, priority, _ in well}) > 1
    for wanted, long, priority, spare in sorted(well):
        group = well[wanted, long, priority, spare]
        notes = [f"place {wanted + 1} of the request's order"] if wanted < len(preferences.order) else []
        notes += ["its context may be too short"] if long else []
        notes += [f"priority {priority}"] if several else []
        if len(group) == 1:
            yield _leg(group[0], ", ".join(notes) or "the only one well", load)
        elif spare:
            yield from (_leg(c, ", ".join([*notes, "spare"]), load) for c in group)
        else:
            worse = outliers((c.deployment.id, c.standing) for c in group)
            equals = [c for c in group if c.deployment.id not in worse] if worse else group
            yield from (_leg(c.candidate, ", ".join([*notes, c.why]), load) for c in choose(equals))
            told = {c.deployment.id: c for c in group}
            yield from (_leg(told[name], ", ".join([*notes, why]), load) for name, why in worse.items())
    unwell.sort(key=lambda c: (preferences.place(c.deployment), c.standing.wait_s, c.deployment.priority, c.place))
    yield from (_leg(c, _unwell(c), load) for c in unwell)


def _leg(candidate: Candidate, why: str, load: Load) -> Leg:
    fresh = max(0, load.input_tokens - candidate.cached_tokens)
    return Leg(candidate.deployment, candidate.sheet, why, fresh, load.input_tokens - fresh)


def _too_long(candidate: Candidate, load: Load) -> bool:
    """By the usual count, which may be wrong: so this one goes behind the others and is not left out."""
    window = candidate.deployment.context_window
    return window is not None and load.input_tokens > window


def _only(candidate: Candidate) -> str:
    return "the only one" if candidate.standing.well else f"the only one, {_unwell(candidate)}"


def _unwell(candidate: Candidate) -> str:
    standing = candidate.standing
    found = f" ({standing.found})" if standing.condition == "absent" else ""
    return f"{standing.condition} for {standing.wait_s:.3g} s{found}"


def needed_features(request: ChatRequest, operation: str) -> frozenset[str]:
    needs = {operation}
    if request.tools:
        needs.add("tools")
    if request.response_format is not None and request.response_format.kind != "text":
        needs.add("response_format")
    if request.logprobs:
        needs.add("logprobs")
    if request.candidates > 1:
        needs.add("candidates")
    for message in request.messages:  # no generator: this is asked of every request
        for part in message.content:
            if type(part) is ImagePart:
                needs.add("image_input")
            elif type(part) is FilePart and is_document(part):
                needs.add("file_input")
    return frozenset(needs)


def lacking(needs: frozenset[str], capabilities: Capabilities) -> frozenset[str]:
    """What of the needs is not there. The answer is remembered: there are few kinds of needs and of hosts."""
    known = (needs, capabilities)
    if (found := _LACKING.get(known)) is None:
        found = frozenset(
            need
            for need in needs
            if not (need in capabilities.operations if need in _OPERATIONS else getattr(capabilities, need))
        )
        if len(_LACKING) >= 1024:
            _LACKING.clear()
        _LACKING[known] = found
    return found


_OPERATIONS = frozenset(get_args(Operation))
_FEATURES = frozenset(get_args(Feature))
# What models do that an engine of ours serves, where the operator says nothing else: few of them take images.
_TEXT_ALONE = _FEATURES - {"image_input"}
_LACKING: dict[tuple[frozenset[str], Capabilities], frozenset[str]] = {}
