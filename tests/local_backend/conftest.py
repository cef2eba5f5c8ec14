"""Fixtures of the engine's tests. The real model is fetched once and kept; without it the tests fail, never skip."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from openai import AsyncOpenAI

from local_backend.catalogue import pull
from local_backend.errors import ModelUnavailable
from tests.local_backend.support import SMOLLM2, EngineProcess, cache_dir, make_tiny_model, running_engine

# One thread: on a machine that others use too, two wait for each other longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Directory of SmolLM2-135M-Instruct. FAREBOX_TEST_CACHE says where fetched models stay."""
    try:
        return pull(SMOLLM2, cache_dir(), lambda done, total, note: None)
    except ModelUnavailable as error:
        pytest.fail(f"these tests need the real model, and it cannot be had: {error.message}", pytrace=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random two-layer Llama with a byte tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_engine(smollm2: Path) -> Iterator[EngineProcess]:
    """One engine with the real model, shared by all tests that only ask it something."""
    with running_engine(smollm2, "--served-name", SMOLLM2, "--max-body-bytes", "300000") as engine:
        yield engine


@pytest.fixture
async def client(smollm2_engine: EngineProcess) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=smollm2_engine.url + "/v1", api_key="-", max_retries=0) as made:
        yield made


@pytest.fixture
async def http(smollm2_engine: EngineProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=smollm2_engine.url, timeout=60) as made:
        yield made
