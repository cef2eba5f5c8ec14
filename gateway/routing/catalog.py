"""The catalogue: which deployments stand behind an alias. An immutable snapshot; a reload swaps the whole of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from billing.prices import PriceBook
from gateway.config import DeploymentSettings, Settings, Strategy
from gateway.errors import ModelNotFound
from gateway.offered import SimilarSettings
from gateway.routing.replicas import NOBODY, Fleet, placed
from gateway.routing.warmth import Cache
from providers.errors import ContentFiltered, ProviderError

if TYPE_CHECKING:
    from gateway.admission.principal import ProjectRouting

LOCAL = "local"
ANY = "*"
# What is assumed of a model whose limits nobody told: no prompt is cut short by it, and an answer of unstated length is
# held at what most hosted models write at most.
UNKNOWN_CONTEXT_WINDOW = 10_000_000
UNKNOWN_MAX_OUTPUT_TOKENS = 16_384


# What hosts keep of prompts, where the operator says nothing else: an unused prefix is gone after so long. Sources:
# PROVIDERS.md 1.9; the shortest of what each documents. A server of one's own keeps what fits (Cache's default).
CACHES: Final[Mapping[str, Cache]] = {
    "openai": Cache(10_000_000, 300.0),
    "azure_ai": Cache(10_000_000, 300.0),
    "anthropic": Cache(10_000_000, 300.0),
    "bedrock": Cache(10_000_000, 300.0),
    "bedrock_openai": Cache(10_000_000, 300.0),
    "gemini": Cache(10_000_000, 180.0),
    "vertex": Cache(10_000_000, 180.0),
    "groq": Cache(10_000_000, 120.0),
    "cerebras": Cache(10_000_000, 300.0),
}


# Tokens of the shortest prefix that hosts keep, by a part of the model's name, the most telling first. Sources, read
# 2026-11: OpenAI's own guide, developers.openai.com/api/docs/guides/prompt-caching ("prompts that are 1024 tokens or
# longer"); ai.google.dev/gemini-api/docs/caching; docs.litellm.ai/docs/completion/prompt_caching (2026-10) for Claude,
# at Anthropic as on Bedrock; of Opus 4.7 accounts differ (2,048, 4,096), and the longer is safe. A model that came
# later counts as its family's usual.
_HOSTED: Final = CACHES.keys() - {"groq", "cerebras"}
_LEAST_KEPT: Final = (
    ("claude-opus-4-5", 4096),
    ("claude-opus-4-6", 4096),
    ("claude-opus-4-7", 4096),
    ("claude-haiku-4-5", 4096),
    ("claude-3-5-haiku", 2048),
    ("claude-3-haiku", 2048),
    ("claude-opus-5", 512),
    ("claude-fable-5", 512),
    ("claude-mythos-5", 512),
    ("claude", 1024),
    ("gemini-2.5", 2048),
    ("gemini", 4096),
)
_LEAST_USUAL: Final = 1024


def least_kept(kind: str, model: str) -> int:
    """0: engines of one's own keep whatever fills a block."""
    if kind not in _HOSTED:
        return 0
    return next((tokens for part, tokens in _LEAST_KEPT if part in model), _LEAST_USUAL)


class Deployment(Struct, frozen=True, dict=True):
    """One way to get an answer: a model at a configured provider.

    provider: the name the operator gave it, e.g. "groq" or "azure-east". kind: which adapter speaks to it.
    model: the provider's own name. context_window, max_output_tokens: tokens, None where nobody told.
    unstated_output_tokens: what a request that names no limit is held for; None: the most the model may write.
    zdr: the operator vouches that nothing sent there is kept. cache: what it keeps of prompts to read them sooner.
    max_parallel: requests of one process at once; None: no end.
    account: whose key it is asked with, where that is not the provider's own. features: what it does of what its
    provider can; None: all, but for images at an engine of ours. priced_as: provider and model at whose price it is
    sold; None: its own. endpoint: which adapter asks it, by `ProviderSet`'s key; empty: the one called like the
    provider.
    """

    provider: str
    kind: str
    model: str
    weight: int = 1
    priority: int = 0
    context_window: int | None = None
    max_output_tokens: int | None = None
    unstated_output_tokens: int | None = None
    region: str | None = None
    zdr: bool = False
    cache: Cache = Cache()
    max_parallel: int | None = None
    residency: str | None = None
    account: str | None = None
    features: frozenset[str] | None = None
    priced_as: tuple[str, str] | None = None
    endpoint: str = ""

    @cached_property
    def id(self) -> str:
        place = f"{self.provider}/{self.model}"
        return place if self.account is None else f"{place}@{self.account}"

    @property
    def adapter(self) -> str:
        """What `Providers.get` takes: of the snapshot that this one is of, however the catalogue changes meanwhile."""
        return self.endpoint or self.provider

    def most_output(self, stated: int | None) -> int:
        """The longest answer to expect of a request with this limit of its own."""
        if stated is None and self.unstated_output_tokens is not None:
            return self.unstated_output_tokens
        return self.max_output_tokens or max(UNKNOWN_MAX_OUTPUT_TOKENS, stated or 0)


class Shadow(Struct, frozen=True):
    """model: the alias that is asked. share: of an alias' requests. key_id: in whose name."""

    model: str
    share: float
    key_id: str


class Similar(Struct, frozen=True):
    """model: what is asked for embeddings. threshold: cosine from which on two questions mean the same. projects: whose
    questions; none: everybody's, each project's apart."""

    model: str
    threshold: float
    max_temperature: float
    wait_s: float
    projects: frozenset[str]


class Terms(Struct, frozen=True):
    """What the operator says of an alias. most_pusd: for one request, at its longest answer; None: no ceiling.
    second_pusd: what `auto` pays to save a second. hedge_percentile: of a deployment's first-token times, after which
    a second one is asked too. past_filters: a refusal by one provider's content filter is not the last word.
    keep_s: how long an answer serves the same question again. cache_prompts: mark what a provider may cache.
    continues: a stream that breaks is carried on by the next deployment. shadow: who is asked again, for comparison.
    similar: which kept answers serve a question that means the same. queue_s: how long a request waits for its turn;
    None: as the settings say."""

    strategy: Strategy = "weighted"
    most_pusd: int | None = None
    second_pusd: int = 0
    hedge_percentile: int | None = None
    past_filters: bool = False
    keep_s: float | None = None
    cache_prompts: bool = False
    continues: bool = False
    shadow: Shadow | None = None
    similar: Similar | None = None
    queue_s: float | None = None

    def for_project(self, said: ProjectRouting | None) -> Terms:
        """The same with a project's own word, which is nearer."""
        if said is None:
            return self
        second = self.second_pusd if said.second_pusd is None else said.second_pusd
        marks = self.cache_prompts if said.cache_prompts is None else said.cache_prompts
        return replace(self, second_pusd=second, cache_prompts=marks)

    def goes_on(self, error: ProviderError) -> bool:
        """Whether the next deployment is asked although this one looked at the request and said no."""
        return self.past_filters and isinstance(error, ContentFiltered)


AS_EVER: Final = Terms()
_REMEMBERED: Final = 10_000


class Catalog(Struct, frozen=True, dict=True):
    """aliases: what clients may ask for by name. open_providers: provider name -> kind, whose every priced model can be
    asked for as `provider/model`. others: what answers to every other name; a model `*` is that name. terms: how an
    alias' deployments are chosen among, where somebody said so."""

    aliases: Mapping[str, tuple[Deployment, ...]]
    open_providers: Mapping[str, str]
    others: tuple[Deployment, ...] = ()
    terms: Mapping[str, Terms] = {}
    endpoints: Mapping[str, str] = {}
    """Provider (or `provider@account`) -> key of its adapter."""
    regions: Mapping[str, str] = {}
    """Where a provider is, if it says so: there its deployments are that do not say."""

    @cached_property
    def caches(self) -> Mapping[str, Cache]:
        """Of every deployment that shares an alias with another: only there is anything to choose."""
        return {d.id: d.cache for group in self.aliases.values() if len(group) > 1 for d in group}

    @cached_property
    def _by_other_names(self) -> dict[str, tuple[Deployment, ...]]:
        """What has been asked for that is nobody's own name."""
        return {}

    def terms_of(self, alias: str) -> Terms:
        if (found := self.terms.get(alias)) is not None:
            return found
        return AS_EVER if alias in self.aliases else self.terms.get(ANY, AS_EVER)

    def deployments(self, alias: str) -> tuple[Deployment, ...]:
        """Raises: ModelNotFound, telling what could have been asked for."""
        if (found := self.aliases.get(alias)) is not None:
            return found
        provider, slash, model = alias.partition("/")
        if slash and model and (kind := self.open_providers.get(provider)) is not None:
            endpoint = self.endpoints.get(provider, "")
            return (Deployment(provider, kind, model, region=self.regions.get(provider), endpoint=endpoint),)
        if self.others:
            if (found := self._by_other_names.get(alias)) is None:
                if len(self._by_other_names) >= _REMEMBERED:  # Clients choose these names.
                    self._by_other_names.clear()
                found = tuple(replace(d, model=alias) if d.model == ANY else d for d in self.others)
                self._by_other_names[alias] = found
            return found
        known = ", ".join(sorted(self.aliases)[:8]) or "none yet"
        raise ModelNotFound(f"no model {alias!r} here; GET /v1/models lists them (some: {known})", param="model")


def permits(patterns: Iterable[str] | None, alias: str) -> bool:
    """Whether a key's model list lets this alias through. None permits all; patterns are shell globs."""
    return patterns is None or any(fnmatchcase(alias, pattern) for pattern in patterns)


def from_settings(
    settings: Settings, book: PriceBook, endpoints: Mapping[str, str] | None = None, fleet: Fleet = NOBODY
) -> Catalog:
    """The catalogue that the settings describe: what they name, the local model, and every priced model of each
    provider under `provider/model`; the first provider in the file also answers to the model's bare name.

    endpoints: keys of the adapters, where they are not the providers' names. fleet: who has joined the providers with
    replicas, whose deployments are one for each."""
    keys = endpoints or {}
    enabled = {name: p.kind or name for name, p in settings.providers.items() if p.enabled}
    joined = {name for name in enabled if settings.providers[name].replicas}
    regions = {name: p.region for name, p in settings.providers.items() if p.region}

    def group(*listed: DeploymentSettings) -> tuple[Deployment, ...]:
        each = (one for said in listed for one in (placed(said, fleet) if said.provider in joined else (said,)))
        return tuple(_deployment(_local_terms(one, settings), enabled, keys, regions) for one in each)

    aliases: dict[str, tuple[Deployment, ...]] = {}
    for said in settings.deployments:
        if said.provider in enabled or said.provider == LOCAL:
            aliases[said.place] = group(said)
            aliases.setdefault(said.model, aliases[said.place])
    for name, kind in enabled.items():
        if name in joined:
            told = dict.fromkeys(model for replica in fleet.get(name, ()) for model in replica.models)
            for model in told.keys() & {*book.models(name), *book.models(kind)}:
                aliases.setdefault(f"{name}/{model}", group(DeploymentSettings(provider=name, model=model)))
                aliases.setdefault(model, aliases[f"{name}/{model}"])
            continue
        for model in book.models(kind):
            deployment = Deployment(name, kind, model, region=regions.get(name), endpoint=keys.get(name, ""))
            aliases.setdefault(deployment.id, (deployment,))
            aliases.setdefault(model, (deployment,))
    if settings.local.enabled and settings.local.base_url:
        local = replace(_local(settings), endpoint=keys.get(LOCAL, ""))
        aliases[local.model] = aliases[local.id] = (local,)
    for entry in settings.models:
        aliases[entry.alias] = group(*entry.deployments)
    open_providers = {name: kind for name, kind in enabled.items() if name not in joined}
    _add_fallbacks(settings, aliases, open_providers, keys, regions)
    terms = {
        entry.alias: Terms(
            entry.strategy,
            _pusd(entry.max_request_usd),
            _pusd(entry.second_usd) or 0,
            entry.hedge_percentile,
            "content_filter" in entry.fallback_on,
            entry.keep_answers_s,
            entry.cache_prompts,
            entry.continue_broken,
            None if entry.shadow is None else Shadow(entry.shadow.model, entry.shadow.share, entry.shadow.key_id),
            None if entry.similar_answers is None else _similar(entry.similar_answers),
            entry.queue_s,
        )
        for entry in settings.models
    }
    return Catalog(aliases, open_providers, aliases.pop(ANY, ()), terms, keys, regions)


def _similar(said: SimilarSettings) -> Similar:
    return Similar(said.model, said.threshold, said.max_temperature, said.wait_s, frozenset(said.projects))


def _add_fallbacks(
    settings: Settings,
    aliases: dict[str, tuple[Deployment, ...]],
    enabled: Mapping[str, str],
    keys: Mapping[str, str],
    regions: Mapping[str, str],
) -> None:
    """Each fallback's deployments come behind the alias' own, one priority further each. Fallbacks of fallbacks are
    theirs alone, so no two aliases can send a request round in a circle."""
    own = dict(aliases)
    for entry in settings.models:
        found = list(own[entry.alias])
        for name in entry.fallbacks:
            after = max((d.priority for d in found), default=0) + 1
            places = {d.id for d in found}
            provider, _, model = name.partition("/")
            more = own.get(name)
            if more is None and (kind := enabled.get(provider)) is not None:
                more = (
                    Deployment(provider, kind, model, region=regions.get(provider), endpoint=keys.get(provider, "")),
                )
            found += [replace(d, priority=after + d.priority) for d in more or () if d.id not in places]
        aliases[entry.alias] = tuple(found)


def _pusd(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd * 10**12)


def _deployment(
    said: DeploymentSettings, enabled: Mapping[str, str], keys: Mapping[str, str], regions: Mapping[str, str]
) -> Deployment:
    provider, _, model = (said.price_as or "").partition("/")
    kind = enabled.get(said.provider, said.provider)
    usual = CACHES.get(kind, Cache())
    return Deployment(
        said.provider,
        kind,
        said.model,
        said.weight,
        said.priority,
        said.context_window,
        said.max_output_tokens,
        region=said.region or regions.get(said.provider),
        zdr=said.zdr,
        cache=Cache(
            usual.tokens if said.cache_tokens is None else said.cache_tokens,
            usual.seconds if said.cache_s is None else said.cache_s,
            least_kept(kind, said.model),
        ),
        max_parallel=said.max_parallel,
        residency=said.residency,
        account=said.account,
        features=said.capabilities,
        priced_as=(provider, model) if model else None,
        endpoint=keys.get(account_of(said.provider, said.account), ""),
    )


def account_of(provider: str, account: str | None) -> str:
    """What an endpoint is called: a provider, or one of several accounts there."""
    return provider if account is None else f"{provider}@{account}"


def _local_terms(said: DeploymentSettings, settings: Settings) -> DeploymentSettings:
    """What our own engine's model does is said once, where the engine is set up."""
    own = said.provider == LOCAL and said.capabilities is None
    return replace(said, capabilities=settings.local.capabilities) if own else said


def _local(settings: Settings) -> Deployment:
    local = settings.local
    return Deployment(
        LOCAL,
        LOCAL,
        local.served_name,
        context_window=local.context_window,
        max_output_tokens=local.context_window,
        unstated_output_tokens=local.max_output_tokens,
        features=local.capabilities,
    )
