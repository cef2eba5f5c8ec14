"""The settings of what is offered: providers, their models, the aliases that clients ask for, prices.

A file says them (gateway.config); the same words stand behind what operators add while the gateway runs (document.py).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from gateway.config_parts import Secret
from gateway.sections import Seconds, Section

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=200)]
Usd = Annotated[Decimal, Meta(description="USD per million tokens, as a decimal string with at most six decimals")]
Feature = Literal["tools", "image_input", "file_input", "response_format", "reasoning", "logprobs", "candidates"]
Strategy = Literal[
    "weighted",
    "priority",
    "lowest_cost",
    "lowest_latency",
    "least_busy",
    "most_quota",
    "sticky",
    "split",
    "prefix",
    "auto",
]
ProbeSeconds = Annotated[float, Meta(ge=1, le=86_400)]
ProbePath = Annotated[str, Meta(pattern=r"^/[!-~]*$", max_length=500)]
PricedUnit = Literal["seconds", "characters", "images", "search_units", "searches", "pages", "requests"]
UnitUsd = Annotated[Decimal, Meta(description="USD for one unit, as a decimal string with at most twelve decimals")]


class PriceSettings(Section, frozen=True):
    """What a deployment's tokens cost. A kind that is left out is sold as the one it is a part of: cache reads and
    writes as input, reasoning as output. A model that is not sold by the token has `per` alone."""

    input: Usd | None = None
    output: Usd | None = None
    cache_read: Usd | None = None
    cache_write: Usd | None = None
    reasoning: Usd | None = None
    per: dict[PricedUnit, UnitUsd] = field(default_factory=dict)


class ProviderSettings(Section, frozen=True):
    kind: Name = ""
    """Which adapter speaks to it. Empty: the one named like the section."""
    enabled: bool = True
    base_url: str | None = None
    region: str | None = None
    credential: dict[str, Secret] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    replicas: bool = False
    """It has no address of its own: engines join it, renew their lease, leave. Needs the setting `replicas.token`."""
    probe_s: ProbeSeconds | None = None
    """How often it is asked whether it is there and takes our key, by a request that costs nothing: one gateway of all
    asks, all know. None: only requests find out."""
    probe_path: ProbePath | None = None
    """What is asked for, from the host's root on: `/health`. None: its list of models."""

    def reveal(self) -> dict[str, str]:
        """The credential's values, for the adapter alone. Raises: ConfigError for the first that cannot be had."""
        return {name: secret.reveal() for name, secret in self.credential.items()}


class DeploymentTerms(Section, frozen=True, kw_only=True):
    """A model at a provider, and what there is to know of it."""

    provider: Name
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    """The provider's own name for it."""
    region: str | None = None
    """Where it is, for requests that ask for a region, and for what it costs there. None: where its provider is."""
    residency: str | None = None
    """Where what is sent there stays, as `eu`: requests may ask for it as for a region."""
    capabilities: frozenset[Feature] | None = None
    """What this model does of what its provider can. None: all of it, but for images at an engine of our own."""
    context_window: Annotated[int, Meta(ge=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_parallel: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    """Requests that one gateway process asks of it at once; more wait, fairly among keys. None: no end."""
    zdr: bool = False
    """You have it in writing that nothing sent there is kept. Requests may ask for such deployments alone."""
    cache_tokens: Annotated[int, Meta(ge=0)] | None = None
    """How many tokens of prompts its prefix cache holds, for `prefix` and `auto`. None: as its kind usually does."""
    cache_s: Seconds | None = None
    """Until an unused prefix is gone. None: as its kind usually does."""
    price: PriceSettings | None = None
    """What clients are charged. None: the price book's. Neither: the deployment is refused as unpriced."""
    cost: PriceSettings | None = None
    """What the provider charges us, with a `price` of your own. None: the same."""
    price_as: Annotated[str, Meta(pattern=r"^[^/]+/.+$", max_length=400)] | None = None
    """Sold at the price of this model, `provider/model` of the price book: for deployments with names of their own."""


class DeploymentSettings(DeploymentTerms, frozen=True, kw_only=True):
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    priority: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Lower is tried first; equals share by weight."""
    account: Name | None = None
    """Whose key: a name for `credential`, so that one model by several accounts is several deployments."""
    credential: dict[str, Secret] = field(default_factory=dict)
    """In place of the provider's own. Needs `account`."""

    @property
    def place(self) -> str:
        """What it is called everywhere: health, usage rows, `order` and `only` of a request."""
        return f"{self.provider}/{self.model}" + (f"@{self.account}" if self.account else "")


class ShadowSettings(Section, frozen=True, kw_only=True):
    """A share of an alias' chats is asked again of another one, for comparison. Nobody sees those answers."""

    model: Name
    """The alias that is asked."""
    share: Annotated[float, Meta(gt=0, le=1)] = 0.01
    key_id: str
    """In the name of this key of yours (`farebox keys list`): its budget bounds what the copies may cost."""


class SimilarSettings(Section, frozen=True, kw_only=True):
    """Kept answers also serve questions that mean the same, in other words. Needs `keep_answers_s`."""

    model: Name
    """What turns questions into vectors: an alias or `provider/model` of yours, a small one near by. Its tokens are on
    nobody's bill."""
    threshold: Annotated[float, Meta(ge=0.5, le=1)] = 0.95
    """Cosine from which on two questions mean the same. A request may want more in `x-farebox-similarity`."""
    max_temperature: Annotated[float, Meta(ge=0, le=2)] = 0.3
    """Who asks for more wants a new answer each time; a request that does not say counts as 1."""
    wait_s: Annotated[float, Meta(gt=0, le=10)] = 0.3
    """For a vector; later, the request goes on without."""
    projects: tuple[str, ...] = ()
    """Ids of the projects that take part. None: all, each apart from the others."""


class AliasTerms(Section, frozen=True, kw_only=True):
    """How an alias' deployments are chosen among."""

    strategy: Strategy = "weighted"
    """Among deployments of equal priority: by weight, as listed, cheapest, quickest, the one with least to do, the one
    with most of its provider's quota left, always the same for a session, always the same for a key (`split`: an A/B
    test by weight), the one soonest done with this prompt (which of them still holds its beginning counts), or `auto`:
    money and seconds weighed against each other."""
    second_usd: Decimal = Decimal("0.001")
    """What `auto` pays to save a client one second of waiting. A request may say its own."""
    hedge_percentile: Annotated[int, Meta(ge=50, le=99)] | None = None
    """A stream whose first token is later than so many percent of that deployment's usually are is asked of the next
    one too; who answers first is kept. Your provider may charge you for both prompts; the client pays for one. None:
    never."""
    cache_prompts: bool = False
    """Mark what a provider's own prompt cache may keep, in requests that mark nothing, for models that need to be told
    (Claude). Written prefixes cost more, read ones a tenth: for conversations and long system prompts."""
    continue_broken: bool = False
    """A stream of plain text that breaks is carried on by the next deployment, shown what has been said so far."""
    keep_answers_s: Seconds | None = None
    """How long a whole answer serves the very same question of the same project again, without asking anybody. None:
    never. A request says `x-farebox-cache: no-store` to have its own."""
    similar_answers: SimilarSettings | None = None
    """Kept answers also serve questions that mean the same. None: only the very same question."""
    shadow: ShadowSettings | None = None
    fallbacks: tuple[Name, ...] = ()
    """Other aliases, or `provider/model`, asked in this order when every deployment above has failed."""
    fallback_on: tuple[Literal["content_filter"], ...] = ()
    """Beside outages, throttling and too long a prompt: refusals after which the next deployment is asked."""
    queue_s: Seconds | None = None
    """How long a request waits for its turn at deployments with `max_parallel`, all of them together. None: as
    `routing.queue_s`. A request may say less: `x-farebox-queue-s: 0.5`."""
    max_request_usd: Decimal | None = None
    """Deployments where a request with its longest answer may cost more are not tried. None: no ceiling."""


Alias = Annotated[str, Meta(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._:/@-]*)$", max_length=200)]


class ModelSettings(AliasTerms, frozen=True, kw_only=True):
    alias: Alias
    """What clients ask for. `*` is every name that nothing else answers to; a deployment's model `*` is that name."""
    deployments: Annotated[tuple[DeploymentSettings, ...], Meta(min_length=1)]
