"""Every emulated backend with one gateway in front of all of them: `via-<backend>` is the first model of each.

`BACKENDS` is the one list of what stands in the yard: how each is emulated, reached, and what its models can do. What
is claimed here is what `python -m tests.emulators --with-gateway` prints, and the matrix asks for all of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.config import ModelSettings, PriceSettings
from providers import registry
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.azure import AzureEmulator
from tests.emulators.bedrock import ACCESS_KEY_ID, MODELS, SECRET_ACCESS_KEY, BedrockEmulator
from tests.emulators.bedrock_openai import BedrockOpenAIEmulator
from tests.emulators.gemini import GeminiEmulator
from tests.emulators.media import MediaEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.ranking import RankingEmulator
from tests.emulators.sagemaker import SageMakerEmulator
from tests.emulators.server import Emulator, Out, Request

# What the backends are reached with: no client may ever see one of these.
UPSTREAM_KEY = "sk-test"
UPSTREAM_SECRET = SECRET_ACCESS_KEY
AWS_KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": UPSTREAM_SECRET}
REGION = {"region": "us-east-1"}
CLAUDE = "claude-sonnet-4-5"
BEDROCK_CLAUDE = f"us.{MODELS[0]}"


class Campus(Emulator):
    """Several emulators behind one address, as an account has them: whose mark the path holds answers, or the first."""

    def __init__(self, first: Emulator, **marked: Emulator) -> None:
        super().__init__()
        self._first, self._marked = first, marked
        for emulator in (first, *marked.values()):
            emulator.stats, emulator.cache = self.stats, self.cache

    async def handle(self, request: Request, out: Out) -> None:
        found = (emulator for mark, emulator in self._marked.items() if f"/{mark}" in request.path)
        await next(found, self._first).handle(request, out)


@dataclass(frozen=True)
class Special:
    """A model that does not chat. does: what may be asked of it. price: where it is not sold by the token."""

    name: str
    does: tuple[str, ...]
    price: PriceSettings | None = None


@dataclass(frozen=True)
class Backend:
    """kind: of provider. suffix: of the base URL. chats: the first is `via-<backend>`; a name that holds "reason"
    thinks unasked."""

    kind: str
    emulator: Callable[[], Emulator]
    suffix: str = ""
    credential: Mapping[str, str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    chats: tuple[str, ...] = ("echo-1", "reason-1")
    specials: tuple[Special, ...] = ()
    lacks: frozenset[str] = frozenset()
    """What its adapter refuses of what the provider as a whole is said to take."""


def _per(unit: Any, usd: str) -> PriceSettings:
    return PriceSettings(per={unit: Decimal(usd)})


EMBEDDER = Special("text-embedding-3-small", ("embeddings",))
HEARING = ("transcriptions", "translations")

BACKENDS: Mapping[str, Backend] = {
    "openai": Backend(
        "openai",
        lambda: Campus(OpenAIEmulator(), audio=MediaEmulator(), images=MediaEmulator()),
        "/v1",
        chats=("echo-1", "reason-1", "gpt-4o-mini"),
        specials=(
            EMBEDDER,
            Special("whisper-1", HEARING, _per("seconds", "0.0001")),
            Special("tts-1", ("speech",), _per("characters", "0.000015")),
            Special("gpt-image-1", ("image_generation",)),
        ),
    ),
    "azure_ai": Backend(
        "azure_ai",
        lambda: AzureEmulator(api_key=UPSTREAM_KEY),
        chats=("echo-1", "reason-1", CLAUDE),
        specials=(EMBEDDER, Special("cohere-rerank-v4", ("rerank",), _per("search_units", "0.002"))),
    ),
    "groq": Backend(
        "groq",
        lambda: Campus(OpenAIEmulator("groq"), audio=MediaEmulator()),
        "/openai/v1",
        specials=(Special("whisper-large-v3", HEARING, _per("seconds", "0.0001")),),
    ),
    "cerebras": Backend("cerebras", lambda: OpenAIEmulator("cerebras"), "/v1"),
    "openai_like": Backend(
        "openai_like",
        lambda: Campus(OpenAIEmulator("vllm"), rerank=RankingEmulator("jina")),
        "/v1",
        specials=(EMBEDDER, Special("bge-reranker", ("rerank",))),
    ),
    # Images go to an engine of ours only where its operator says that its model takes them.
    "local": Backend("local", lambda: OpenAIEmulator("vllm"), "/v1", lacks=frozenset({"images"})),
    "cohere": Backend(
        "cohere",
        lambda: Campus(OpenAIEmulator("vllm"), rerank=RankingEmulator("cohere"), embed=RankingEmulator("cohere")),
        chats=("command-a",),
        lacks=frozenset({"logprobs"}),  # the tokens without their rivals would go
        specials=(
            Special("embed-v4.0", ("embeddings",)),
            Special("rerank-v3.5", ("rerank",), _per("search_units", "0.002")),
        ),
    ),
    "sagemaker": Backend("sagemaker", SageMakerEmulator, credential=AWS_KEYS, settings=REGION),
    "sagemaker_invocations": Backend(
        "sagemaker", SageMakerEmulator, credential=AWS_KEYS, settings={**REGION, "options": {"api": "invocations"}}
    ),
    "anthropic": Backend(
        "anthropic", lambda: AnthropicEmulator(api_key=UPSTREAM_KEY), chats=("echo-1", CLAUDE, "claude-opus-4-6")
    ),
    "bedrock": Backend(
        "bedrock",
        BedrockEmulator,
        credential=AWS_KEYS,
        settings=REGION,
        chats=("echo-1", "amazon.nova-pro-v1:0", "openai.gpt-oss-120b-1:0", BEDROCK_CLAUDE),
        specials=(
            Special("amazon.titan-embed-text-v2:0", ("embeddings",)),
            Special("cohere.embed-english-v3", ("embeddings",)),
            Special("amazon.nova-2-multimodal-embeddings-v1:0", ("embeddings",)),
            Special("cohere.rerank-v3-5:0", ("rerank",), _per("search_units", "0.002")),
        ),
    ),
    "bedrock_mantle": Backend(
        "bedrock_openai",
        BedrockOpenAIEmulator,
        credential=AWS_KEYS,
        settings={**REGION, "options": {"host": "mantle"}},
        chats=("openai.gpt-oss-120b", "xai.grok-4.3"),
    ),
    "vertex": Backend(
        "vertex",
        lambda: GeminiEmulator("vertex", key=UPSTREAM_KEY),
        credential={"access_token": UPSTREAM_KEY},
        settings={"options": {"project": "demo", "location": "us-central1"}},
        chats=("gemini-2.5-flash", "gemini-3-pro-preview", CLAUDE, "meta/llama-4-maverick-17b-128e-instruct-maas"),
        specials=(Special("gemini-embedding-001", ("embeddings",)), Special("text-embedding-005", ("embeddings",))),
    ),
    "gemini": Backend(
        "gemini",
        lambda: GeminiEmulator(key=UPSTREAM_KEY),
        chats=("echo-1", "gemini-2.5-flash", "gemini-3-pro-preview"),
        specials=(Special("gemini-embedding-001", ("embeddings",)),),
    ),
}
# What Anthropic's own dialect has no word for, whoever hosts the model and speaks it.
_UNKNOWN_TO_CLAUDE = {"candidates", "logprobs", "completions"}


@dataclass
class Yard:
    gateway: House
    backends: dict[str, Emulator]


def models_of(name: str) -> dict[str, list[str]]:
    """`<backend>/<model>` -> what may be asked of it, in plain words; all else is refused by name."""
    backend = BACKENDS[name]
    has = registry.class_of(backend.kind).capabilities
    words = {"chat", "stream", "prompt_cache", "stop", "count_tokens"} | (has.operations & {"completions"})
    words |= {"tools", "tool_choice", "parallel_tools"} if has.tools else set()
    words |= {"json_schema"} if has.response_format else set()
    words |= {"images"} if has.image_input else set()
    words |= {word for word in ("reasoning", "logprobs", "candidates") if getattr(has, word)}
    words -= backend.lacks
    listed = {
        f"{name}/{chat}": sorted(words - _UNKNOWN_TO_CLAUDE if "claude" in chat else words) for chat in backend.chats
    }
    return listed | {f"{name}/{special.name}": list(special.does) for special in backend.specials}


def all_models() -> tuple[ModelSettings, ...]:
    """Every model of every backend under the name that is also its place."""
    chats = [model(place, place) for name, backend in BACKENDS.items() for place in _places(name, backend.chats)]
    specials = [
        model(f"{name}/{special.name}", f"{name}/{special.name}", **({"price": special.price} if special.price else {}))
        for name, backend in BACKENDS.items()
        for special in backend.specials
    ]
    return (*chats, *specials)


def _places(name: str, models: tuple[str, ...]) -> list[str]:
    return [f"{name}/{each}" for each in models]


@asynccontextmanager
async def yard_of(
    folder: Path, sqlite_template: Path, redis_url: str, models: tuple[ModelSettings, ...] = (), *, port: int = 0
) -> AsyncIterator[Yard]:
    """models: beside the first model of each backend. port: the gateway's; 0 for any."""
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        backends: dict[str, Emulator] = {}
        providers = {}
        for name, backend in BACKENDS.items():
            emulator = backends[name] = await stack.enter_async_context(backend.emulator())
            url = emulator.url + backend.suffix
            providers[name] = provider(backend.kind, url, backend.credential, **backend.settings)
        models += tuple(model(f"via-{name}", f"{name}/{backend.chats[0]}") for name, backend in BACKENDS.items())
        database = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        settings = settings_for(folder, database, redis_url, providers, models)
        gateway = await stack.enter_async_context(house(settings, port=port))
        yield Yard(gateway, backends)
