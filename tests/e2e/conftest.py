"""One OpenAI emulator and one gateway in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.yard import Yard, all_models, yard_of
from tests.emulators.openai import OpenAIEmulator


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Directory of the real model; fetched once. Imported here, because torch is heavy and most tests need none."""
    from local_backend.catalogue import pull
    from tests.local_backend.support import SMOLLM2, cache_dir

    return pull(SMOLLM2, cache_dir(), lambda done, total, note: None)


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIEmulator]:
    async with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture
async def gateway(
    upstream: OpenAIEmulator, tmp_path: Path, fresh_database_url: str, redis_url: str
) -> AsyncIterator[House]:
    providers = {"up": provider("openai", f"{upstream.url}/v1")}
    faults = tuple(
        model(name, f"up/{name}")
        for name in (
            "fault-500",
            "fault-429-retry-after-ms",
            "fault-401",
            "fault-400",
            "fault-context",
            "fault-cut-mid-frame",
            "fault-stream-error",
            "fault-no-usage",
            "fault-200-error-body",
            "fault-wrong-content-type",
        )
    )
    models = (model("echo", "up/echo-1"), model("spare", "up/fault-503", "up/echo-1"), *faults)
    async with house(settings_for(tmp_path / "data", fresh_database_url, redis_url, providers, models)) as built:
        yield built


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    """One for each module: starting all of them takes longer than most tests."""
    names = ("text-embedding-3-small", "gemini-embedding-001")
    embedders = (model("embed-openai", f"openai/{names[0]}"), model("embed-google", f"gemini/{names[1]}"))
    faulty = tuple(
        model(f"{backend}-{fault}", f"{backend}/fault-{fault}")
        for backend in ("openai", "anthropic", "gemini", "bedrock")
        for fault in ("500", "429", "400", "cut-mid-frame", "stream-error")
    )
    claude = (model("claude-bedrock", "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0"),)
    # Names at which llm-comply asks for thinking too.
    thinkers = (
        model(f"o3-claude-sonnet-4-{name}", f"{name}/echo-1") for name in ("openai", "anthropic", "gemini", "bedrock")
    )
    models = (*all_models(), *embedders, *faulty, *claude, *thinkers)
    async with yard_of(tmp_path_factory.mktemp("yard"), sqlite_template, _valkey, models) as built:
        yield built
