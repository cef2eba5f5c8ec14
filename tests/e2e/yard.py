"""Every emulated backend with one gateway in front of all of them: `via-<backend>` is the echo model of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.config import ModelSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.bedrock import BedrockEmulator
from tests.emulators.gemini import GeminiEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Emulator

BACKENDS = ("openai", "groq", "cerebras", "vllm", "anthropic", "gemini", "bedrock")
# What the backends are reached with: no client may ever see one of these.
UPSTREAM_KEY = "sk-test"
UPSTREAM_SECRET = "secret-test-key"


@dataclass
class Yard:
    gateway: House
    backends: dict[str, Emulator]


def emulator_of(name: str) -> Emulator:
    match name:
        case "anthropic":
            return AnthropicEmulator(api_key=UPSTREAM_KEY)
        case "gemini":
            return GeminiEmulator(key=UPSTREAM_KEY)
        case "bedrock":
            return BedrockEmulator()
    return OpenAIEmulator(name)  # type: ignore[arg-type]


@asynccontextmanager
async def yard_of(
    folder: Path, sqlite_template: Path, redis_url: str, models: tuple[ModelSettings, ...] = (), *, port: int = 0
) -> AsyncIterator[Yard]:
    """models: beside the one echo model of each backend. port: the gateway's; 0 for any."""
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        backends: dict[str, Emulator] = {}
        providers = {}
        for name in BACKENDS:
            emulator = await stack.enter_async_context(emulator_of(name))
            backends[name] = emulator
            suffix = {"gemini": "", "anthropic": "", "bedrock": "", "groq": "/openai/v1"}.get(name, "/v1")
            kind = "openai_like" if name == "vllm" else name
            keys = {"access_key_id": "AKIDTEST", "secret_access_key": UPSTREAM_SECRET} if name == "bedrock" else None
            region = {"region": "us-east-1"} if name == "bedrock" else {}
            providers[name] = provider(kind, emulator.url + suffix, keys, **region)
        models += tuple(model(f"via-{name}", f"{name}/echo-1") for name in BACKENDS)
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        settings = settings_for(folder, url, redis_url, providers, models)
        gateway = await stack.enter_async_context(house(settings, port=port))
        yield Yard(gateway, backends)
