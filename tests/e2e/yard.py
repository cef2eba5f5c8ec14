"""Every emulated backend with one gateway in front of all of them: `via-<backend>` is the first model of each.

`BACKENDS` is the one list of what stands in the yard: how each is emulated, reached, and what its models can do. What
is claimed here is what `python -m tests.emulators --with-gateway` prints, and the matrix asks for all of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.config import ModelSettings
from providers import registry
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.azure import AzureEmulator
from tests.emulators.bedrock import ACCESS_KEY_ID, MODELS, SECRET_ACCESS_KEY, BedrockEmulator
from tests.emulators.gemini import GeminiEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.sagemaker import SageMakerEmulator
from tests.emulators.server import Emulator

# What the backends are reached with: no client may ever see one of these.
UPSTREAM_KEY = "sk-test"
UPSTREAM_SECRET = SECRET_ACCESS_KEY
AWS_KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": UPSTREAM_SECRET}
REGION = {"region": "us-east-1"}
CLAUDE = "claude-sonnet-4-5"
BEDROCK_CLAUDE = f"us.{MODELS[0]}"


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
    embedders: tuple[str, ...] = ()


BACKENDS: Mapping[str, Backend] = {
    "openai": Backend(
        "openai",
        OpenAIEmulator,
        "/v1",
        chats=("echo-1", "reason-1", "gpt-4o-mini"),
        embedders=("text-embedding-3-small",),
    ),
    "azure_ai": Backend(
        "azure_ai",
        lambda: AzureEmulator(api_key=UPSTREAM_KEY),
        chats=("echo-1", "reason-1", CLAUDE),
        embedders=("text-embedding-3-small",),
    ),
    "groq": Backend("groq", lambda: OpenAIEmulator("groq"), "/openai/v1"),
    "cerebras": Backend("cerebras", lambda: OpenAIEmulator("cerebras"), "/v1"),
    "openai_like": Backend("openai_like", lambda: OpenAIEmulator("vllm"), "/v1", embedders=("text-embedding-3-small",)),
    "local": Backend("local", lambda: OpenAIEmulator("vllm"), "/v1"),
    "sagemaker": Backend("sagemaker", SageMakerEmulator, credential=AWS_KEYS, settings=REGION),
    "sagemaker_invocations": Backend(
        "sagemaker", SageMakerEmulator, credential=AWS_KEYS, settings={**REGION, "options": {"api": "invocations"}}
    ),
    "anthropic": Backend(
        "anthropic", lambda: AnthropicEmulator(api_key=UPSTREAM_KEY), chats=("echo-1", CLAUDE, "claude-reason-1")
    ),
    "bedrock": Backend(
        "bedrock",
        BedrockEmulator,
        credential=AWS_KEYS,
        settings=REGION,
        chats=("echo-1", "amazon.nova-pro-v1:0", "openai.gpt-oss-120b-1:0", BEDROCK_CLAUDE),
    ),
    "vertex": Backend(
        "vertex",
        lambda: GeminiEmulator("vertex", key=UPSTREAM_KEY),
        credential={"access_token": UPSTREAM_KEY},
        settings={"options": {"project": "demo", "location": "us-central1"}},
        chats=("gemini-2.5-flash", "gemini-3-pro-preview", CLAUDE, "meta/llama-4-maverick-17b-128e-instruct-maas"),
        embedders=("gemini-embedding-001",),
    ),
    "gemini": Backend(
        "gemini",
        lambda: GeminiEmulator(key=UPSTREAM_KEY),
        chats=("echo-1", "gemini-2.5-flash", "gemini-3-pro-preview"),
        embedders=("gemini-embedding-001",),
    ),
}


@dataclass
class Yard:
    gateway: House
    backends: dict[str, Emulator]


def models_of(name: str) -> dict[str, list[str]]:
    """`<backend>/<model>` -> what may be asked of it, in plain words; all else is refused by name."""
    backend = BACKENDS[name]
    has = registry.class_of(backend.kind).capabilities
    words = {"chat", "stream", "prompt_cache", "stop", "count_tokens"} | (has.operations - {"embeddings", "rerank"})
    words |= {"tools", "tool_choice"} if has.tools else set()
    words |= {"json_schema"} if has.response_format else set()
    words |= {"images"} if has.image_input else set()
    words |= {word for word in ("reasoning", "logprobs", "candidates") if getattr(has, word)}
    listed = {f"{name}/{chat}": sorted(words) for chat in backend.chats}
    if "embeddings" in has.operations:
        listed |= {f"{name}/{embedder}": ["embeddings"] for embedder in backend.embedders}
    return listed


def all_models() -> tuple[ModelSettings, ...]:
    """Every model of every backend under the name that is also its place."""
    return tuple(model(place, place) for name in BACKENDS for place in models_of(name))


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
